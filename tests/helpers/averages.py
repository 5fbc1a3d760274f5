"""Trainers of averages on tiny data."""

import torch

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.contrib import SWADMixin
from tests.helpers.tiny import classification_data, tiny_bert


class SWADTrainer(SWADMixin, ReweightedTrainer):
    pass


def trainer_of(cls, tmp_path, keywords, **settings):
    defaults = {
        "max_steps": 10,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "learning_rate": 0.1,
    }
    args = ReweightedTrainingArguments(
        output_dir=str(tmp_path),
        optim="sgd",
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **(defaults | settings),
    )
    data = classification_data(24)
    return cls(model=tiny_bert(), args=args, train_dataset=data, eval_dataset=data[:8], **keywords)


def loss_of(trainer) -> float:
    rows = trainer.eval_dataset
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        return trainer.model.eval()(**batch).loss.item()
