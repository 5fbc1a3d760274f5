"""Penalties and averages on two processes: they train, resume, and hold the same average."""

import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import Trainer

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.contrib import CORALMixin, EMAMixin, MIROMixin, SWADMixin
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert


class Averaged(EMAMixin, CORALMixin, MIROMixin, ReweightedTrainer):
    pass


class Valley(SWADMixin, Trainer):
    pass


KEYWORDS = {Averaged: {"ema_decay": 0.5, "num_domains": 2}, Valley: {}}


def trainer_of(cls, folder):
    settings = {"max_steps": 3, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": 1}
    args = ReweightedTrainingArguments(output_dir=str(folder), **(QUIET | settings))
    rows = classification_data(16)
    train = [{**row, "domain": torch.tensor(i % 2)} for i, row in enumerate(rows)] if KEYWORDS[cls] else rows
    trainer = cls(tiny_bert(), args, train_dataset=train, eval_dataset=rows, **KEYWORDS[cls])
    if cls is Valley:
        trainer.validation_loss = lambda metrics: 1.0
    return trainer


def average_of(trainer):
    return parameters_of(trainer.model if isinstance(trainer, Valley) else trainer.ema.module)


def on_every_process(folder: Path) -> None:
    for cls in KEYWORDS:
        whole = trainer_of(cls, folder / cls.__name__)
        whole.train()
        resumed = trainer_of(cls, folder / cls.__name__)
        resumed.train(resume_from_checkpoint=str(folder / cls.__name__ / "checkpoint-1"))
        assert resumed.args.world_size == 2
        torch.testing.assert_close(average_of(resumed), average_of(whole))
        first = average_of(whole).clone()
        distributed.broadcast(first, 0)
        torch.testing.assert_close(first, average_of(whole), rtol=0, atol=0)


def test_two_processes_hold_one_average_and_resume(tmp_path):
    run_on(2, __file__, tmp_path)


if __name__ == "__main__":
    on_every_process(Path(sys.argv[1]))
