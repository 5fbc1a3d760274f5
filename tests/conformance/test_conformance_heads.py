"""The stock Trainer and ours on models whose losses the library unreduces itself.

`none` is compared with the stock Trainer, `kl` with a stock Trainer on the surrogate G, written here from the logits
alone. Updates are of one micro-batch: under accumulation the stock Trainer multiplies the mean losses that BERT and
others hard-code, as its last test here measures, so accumulation is compared with the full batch in one.
"""

import datasets
import pytest
import torch
from comparison import assert_same_metrics, assert_same_run
from tasks import TASKS, TAU, SurrogateTrainer, first, run
from transformers import Trainer, TrainingArguments

from rgd_hf import ReweightedTrainer
from tests.helpers.tiny import assert_all_is_learned, stack

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
# Its default epsilon is below the rounding errors of a small gradient, which it divides by its size.
ADAMW = {"optim": "adamw_torch", "adam_epsilon": 1e-3}
SETTINGS = pytest.mark.parametrize(
    "keywords",
    [{}, ADAMW, {"max_grad_norm": 0.1, "weight_decay": 0.1}],
    ids=["SGD", "AdamW", "clipping"],
)


@EVERY_TASK
def test_whatever_is_compared_has_a_gradient(task):
    assert_all_is_learned(task.model(), stack(task.data(8)))


@EVERY_TASK
@SETTINGS
def test_none_trains_as_the_stock_trainer(task, keywords, tmp_path):
    expected = run(Trainer, task, tmp_path / "stock", **keywords)
    found = run(ReweightedTrainer, task, tmp_path / "ours", reweighting="none", **keywords)
    assert_same_run(expected, found, rtol=1e-5)


@EVERY_TASK
@SETTINGS
def test_kl_trains_on_the_surrogate(task, keywords, tmp_path):
    expected = run(SurrogateTrainer, task, tmp_path / "stock", **keywords)
    found = run(ReweightedTrainer, task, tmp_path / "ours", reweighting="kl", tau=TAU, **keywords)
    assert_same_run(expected, found, rtol=1e-5, same_loss=False)


@EVERY_TASK
def test_predicts_as_the_stock_trainer(task, tmp_path):
    data = task.data(11, seed=2)
    stock, ours = (
        cls(
            task.model(),
            TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True),
            data_collator=None,
        )
        for cls in (Trainer, ReweightedTrainer)
    )
    expected, found = stock.predict(data), ours.predict(data)
    torch.testing.assert_close(
        torch.tensor(first(found.predictions)), torch.tensor(first(expected.predictions))
    )
    assert (found.label_ids == expected.label_ids).all()
    assert_same_metrics(expected.metrics, found.metrics, rtol=1e-5)
    if task.name != "encoder-decoder LM":  # which without labels needs decoder inputs, from either Trainer
        bare = ours.predict([{k: v for k, v in example.items() if k != "labels"} for example in data])
        torch.testing.assert_close(
            torch.tensor(first(bare.predictions)), torch.tensor(first(expected.predictions))
        )
        assert bare.label_ids is None and "test_loss" not in bare.metrics


@EVERY_TASK
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_accumulation_trains_as_the_full_batch_does(task, reweighting, tmp_path):
    """The stock Trainer is exact with the 24 samples of an update in one batch; ours has them in 2, 3 or 4."""
    base = Trainer if reweighting == "none" else SurrogateTrainer
    data = task.data(40, ragged=True)
    for size, steps in ((6, 4), (8, 3), (12, 2)):
        expected = run(base, task, tmp_path / "stock", data, per_device_train_batch_size=24)
        found = run(
            ReweightedTrainer,
            task,
            tmp_path / "ours",
            data,
            reweighting=reweighting,
            tau=TAU,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        # Epochs are counted in micro-batches, which cut this epoch at other places.
        assert_same_run(expected, found, rtol=1e-5, same_loss=reweighting == "none", same_epoch=False)


# Not the encoder-decoder: there the stock Trainer pops the labels from which the model makes its decoder inputs.
SMOOTHED = [task for task in TASKS if task.name in ("single label", "token classification", "causal LM")]


@pytest.mark.parametrize("task", SMOOTHED, ids=lambda task: task.name)
def test_label_smoothing_trains_as_the_stock_trainers(task, tmp_path):
    keywords = {"label_smoothing_factor": 0.2, "eval_strategy": "no"}
    # The stock Trainer's eval_loss is the smoothed one; ours is plain.
    expected = run(Trainer, task, tmp_path / "stock", evaluate=False, **keywords)
    found = run(ReweightedTrainer, task, tmp_path / "ours", evaluate=False, reweighting="none", **keywords)
    assert_same_run(expected, found, rtol=1e-5)


BERT_TASK = TASKS[0]


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_train_epochs": 2.5, "max_steps": -1},
        {"eval_do_concat_batches": True, "eval_accumulation_steps": 1},
        {"include_for_metrics": ["inputs", "loss"]},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"neftune_noise_alpha": 5.0},
        {"include_num_input_tokens_seen": "all"},
        {"auto_find_batch_size": True},
        {"seed": 1, "data_seed": 2},
        {"torch_empty_cache_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_settings_of_the_trainer(keywords, reweighting, tmp_path):
    base = Trainer if reweighting == "none" else SurrogateTrainer
    expected = run(base, BERT_TASK, tmp_path / "stock", **keywords)
    found = run(ReweightedTrainer, BERT_TASK, tmp_path / "ours", reweighting=reweighting, tau=TAU, **keywords)
    # bf16 logits differ in nothing, but the losses are then computed in another order.
    assert_same_run(
        expected, found, rtol=1e-2 if "bf16" in keywords else 1e-5, same_loss=reweighting == "none"
    )


def lengths(data):
    return datasets.Dataset.from_list(
        [
            {
                "input_ids": example["input_ids"][: 3 + i % 7].tolist(),
                "label": int(example["labels"]),
                "text": "x",
            }
            for i, example in enumerate(data)
        ]
    )


class PadIds:
    """Pads and renames `label`, as `DataCollatorWithPadding` does with a tokenizer."""

    def __call__(self, examples):
        ids = [torch.tensor(e["input_ids"]) for e in examples]
        batch = {
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "attention_mask": torch.nn.utils.rnn.pad_sequence(
                list(map(torch.ones_like, ids)), batch_first=True
            ),
        }
        labels = [e.get("label", e.get("labels")) for e in examples]
        return batch | {"labels": torch.tensor(labels)}


@pytest.mark.parametrize("reweighting", ["none", "kl"])
@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_samplers_and_dynamic_padding(strategy, reweighting, tmp_path):
    base = Trainer if reweighting == "none" else SurrogateTrainer
    keywords = {
        "train_sampling_strategy": strategy,
        "data_collator": PadIds(),
        "data": lengths(BERT_TASK.data()),
    }
    expected = run(base, BERT_TASK, tmp_path / "stock", **keywords)
    found = run(ReweightedTrainer, BERT_TASK, tmp_path / "ours", reweighting=reweighting, tau=TAU, **keywords)
    assert_same_run(expected, found, rtol=1e-5, same_loss=reweighting == "none")


def test_the_stock_trainer_multiplies_hard_coded_mean_losses(tmp_path):
    """The reason why accumulation is not compared with the stock Trainer's own; once this fails, it can be."""
    data = BERT_TASK.data(24)
    keywords = {"max_steps": 1, "logging_steps": 1, "max_grad_norm": 1e9}
    whole = run(Trainer, BERT_TASK, tmp_path, data, per_device_train_batch_size=24, **keywords)
    cut = run(
        Trainer,
        BERT_TASK,
        tmp_path,
        data,
        per_device_train_batch_size=6,
        gradient_accumulation_steps=4,
        **keywords,
    )
    norms = [r.trainer.state.log_history[0]["grad_norm"] for r in (whole, cut)]
    assert norms[1] == pytest.approx(4 * norms[0], rel=1e-4)


class OwnLoss:
    """A user's `compute_loss`, which knows nothing of ours."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        return (outputs.loss * 0.5, outputs) if return_outputs else outputs.loss * 0.5


@pytest.mark.parametrize("is_scaled", [None, False])
def test_a_compute_loss_of_the_users_own_is_scaled_as_by_the_stock_trainer(is_scaled, tmp_path):
    own = type("Own", (OwnLoss,), {} if is_scaled is None else {"loss_is_scaled_for_ga": is_scaled})
    stock, ours = type("A", (own, Trainer), {}), type("B", (own, ReweightedTrainer), {})
    keywords = {"gradient_accumulation_steps": 2, "evaluate": False, "eval_strategy": "no"}
    expected = run(stock, BERT_TASK, tmp_path, **keywords)
    assert_same_run(expected, run(ours, BERT_TASK, tmp_path, reweighting="none", **keywords), rtol=1e-5)


def test_a_compute_loss_that_leaves_ours_out_is_refused(tmp_path):
    with pytest.raises(NotImplementedError, match=r"super\(\)\.compute_loss"):
        run(type("B", (OwnLoss, ReweightedTrainer), {}), BERT_TASK, tmp_path)
