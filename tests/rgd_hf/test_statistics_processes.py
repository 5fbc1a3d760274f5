"""Sample weights in the batches of one process alone: every process logs, and none waits for the others."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, tiny_bert


def collate(rows):
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
    if PartialState().process_index == 1:
        batch["sample_weight"] = torch.full((len(rows),), 2.0)
    return batch


def on_every_process(folder: Path) -> None:
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "reweighting": "none"}
    args = ReweightedTrainingArguments(output_dir=str(folder), **(QUIET | settings))
    trainer = ReweightedTrainer(
        tiny_bert(), args, train_dataset=classification_data(24), data_collator=collate
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    assert all("unweighted_loss" in entry for entry in logs), logs


def test_sample_weights_on_one_process_alone_are_logged_by_all(tmp_path):
    run_on(2, __file__, tmp_path)


if __name__ == "__main__":
    on_every_process(Path(sys.argv[1]))
