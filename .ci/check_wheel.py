"""The swap on an installed package: `make release` runs it in an empty environment, outside the checkout.

A tiny BERT with random weights takes two steps; nothing is downloaded.
"""

import tempfile
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import rgd_hf
from rgd_hf import ReweightedTrainer as Trainer

assert not (Path(rgd_hf.__file__).parents[1] / "pyproject.toml").exists(), (
    "this is the checkout, not the wheel"
)

config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
dataset = [{"input_ids": torch.randint(0, 50, (7,)), "labels": i % 3} for i in range(16)]
with tempfile.TemporaryDirectory() as directory:
    args = TrainingArguments(directory, max_steps=2, logging_steps=2, report_to=[], save_strategy="no")
    trainer = Trainer(model=BertForSequenceClassification(config), args=args, train_dataset=dataset)
    trainer.train()
    trainer.save_model(directory)
    BertForSequenceClassification.from_pretrained(directory)
log = next(entry for entry in trainer.state.log_history if "weight_mean" in entry)
assert 1 < log["weight_mean"] < 2.72, log
print(f"rgd-hf {rgd_hf.__version__ if hasattr(rgd_hf, '__version__') else ''} trains: {log}")
