"""Seconds an epoch of the tabular recipe's Trainer and of a bare PyTorch loop over the same tensors, side by side.

    python benchmarks/cost/tabular_throughput.py --data adult.parquet --target income-per-year

Both train the same 3x256 MLP with the same optimizer on the same device, in turns; the Trainer re-weights (kl). What
is compared is training alone, without evaluation. The medians of the epochs and their ratio are printed.
"""

import argparse
import gc
import statistics
import time
from typing import Any

import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.tabular.batches import TensorTable
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target
from rgd_hf.scripts.tabular.configuration import TabularConfig
from rgd_hf.scripts.tabular.losses import loss_of
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.preprocessing import TablePreprocessor
from rgd_hf.scripts.tabular.sources import load_table
from rgd_hf.scripts.tabular.splits import Part
from rgd_hf.scripts.tabular.trainer import TabularTrainer, quiet
from rgd_hf.scripts.tabular.training import make_table


def load(name: str, target_name: str | None) -> tuple[Part, TabularConfig]:
    """The whole table, encoded, and the configuration of the MLP."""
    table = load_table(name, target_name)
    args = ColumnArguments()
    columns = choose_columns(table.frame, table.target, args, print)
    frame, target = find_target(table.frame, table.target, args, print)
    preprocessor = TablePreprocessor(columns).fit(frame)
    part = Part(*preprocessor.transform(frame), target.encode(frame[table.target]))
    config = TabularConfig(
        network="mlp",
        n_num_features=part.x_num.shape[1],
        cat_cardinalities=preprocessor.cardinalities,
        n_blocks=3,
        d_block=256,
        classes=list(target.classes),
    )
    return part, config


def bare_loop(model: TabularModel, table: TensorTable, batch_size: int, epochs: int) -> list[float]:
    """Seconds of each epoch of a plain training loop."""
    # The Trainer's own choice of implementation, so that the loops alone differ.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    device = table.columns["labels"].device
    seconds = []
    model.train()
    for _ in range(epochs):
        started = time.perf_counter()
        for index in torch.randperm(len(table), device=device).split(batch_size):
            batch = table[index]
            labels = batch.pop("labels")
            loss = F.cross_entropy(model(**batch).logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    return seconds


def trainer_loop(
    model: TabularModel, table: TensorTable, batch_size: int, epochs: int, cpu: bool
) -> list[float]:
    """Seconds an epoch of the recipe's Trainer, its start and end included."""
    args = ReweightedTrainingArguments(
        output_dir="runs/tabular_throughput",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        per_device_train_batch_size=batch_size,
        num_train_epochs=epochs,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
        use_cpu=cpu,
    )
    trainer = quiet(
        TabularTrainer(model=model, args=args, train_dataset=table, per_sample_loss_fn=loss_of(False))
    )
    started = time.perf_counter()
    trainer.train()
    return [(time.perf_counter() - started) / epochs]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", default="digits", help="the table, as in recipes/tabular.py (default digits)"
    )
    parser.add_argument("--target", help="the column to predict; not needed for scikit-learn's tables")
    parser.add_argument("--batch_size", type=int, default=256, help="samples per step (default 256)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs per round (default 3)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, in which the two loops alternate (default 5)"
    )
    parser.add_argument("--cpu", action="store_true", help="use the CPU even if there is a GPU")
    args = parser.parse_args()
    part, config = load(args.data, args.target)
    device = torch.device("cpu" if args.cpu or not torch.cuda.is_available() else "cuda")
    table = make_table(part, config, device)
    models: list[Any] = [TabularModel(config) for _ in range(2)]
    for model in models:
        model.to(device)
    bare_loop(models[0], table, args.batch_size, 1)  # warm up
    gc.freeze()  # as the recipe does
    bare, trainer = [], []
    for _ in range(args.rounds):
        bare += bare_loop(models[0], table, args.batch_size, args.epochs)
        trainer += trainer_loop(models[1], table, args.batch_size, args.epochs, device.type == "cpu")
    gc.unfreeze()
    slow, fast = statistics.median(trainer), statistics.median(bare)
    rows = f"{len(table):,} rows, batch {args.batch_size}, {torch.get_num_threads()} thread(s), {device}"
    print(f"3x256 MLP, {rows}: seconds per epoch")
    print(f"  bare PyTorch loop   {fast:.3f}  ({min(bare):.3f} to {max(bare):.3f})")
    print(f"  ReweightedTrainer   {slow:.3f}  ({min(trainer):.3f} to {max(trainer):.3f})")
    print(f"  ratio               {slow / fast:.2f}")


if __name__ == "__main__":
    main()
