"""`eval_loss` and `eval_losses` on two processes are those of the whole set in one batch, every sample once."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset
from transformers import default_data_collator

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import classification_data, stack, tiny_bert

DATA = classification_data(13)


def losses_of(rows=DATA):
    batch = stack(rows)
    with torch.no_grad():
        logits = tiny_bert().eval()(input_ids=batch["input_ids"]).logits
    return cross_entropy(logits, batch["labels"], reduction="none")


def trainer_of(folder, size, rows=DATA, cls=ReweightedTrainer, config=None, model=None, **keywords):
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": size, "num_train_epochs": 1}
    settings |= {"accelerator_config": config or {}, "learning_rate": 0.0, "eval_strategy": "epoch"}
    args = ReweightedTrainingArguments(output_dir=str(folder), **(QUIET | settings))
    keywords = {"train_dataset": DATA} | keywords
    return cls(model or tiny_bert(), args, eval_dataset=rows, **keywords)


def check(trainer, expected, name):
    loss = trainer.evaluate()["eval_loss"]
    assert loss == pytest.approx(expected.mean().item(), rel=1e-5), name
    torch.testing.assert_close(trainer.eval_losses, expected, rtol=1e-4, atol=1e-5, msg=str(name))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class SizedStream(Stream):
    def __len__(self):
        return len(DATA)


class Half(ReweightedTrainer):
    def _get_eval_sampler(self, eval_dataset):
        return [11, 0, 3, 5, 7, 2]


class Passes:
    """A loader of the user's around accelerate's."""

    def __init__(self, loader):
        self.loader, self.dataset = loader, loader.dataset

    def __iter__(self):
        return iter(self.loader)

    def __len__(self):
        return len(self.loader)


class Around(ReweightedTrainer):
    def get_eval_dataloader(self, eval_dataset=None):
        return Passes(super().get_eval_dataloader(eval_dataset))


class Unprepared(ReweightedTrainer):
    """Accelerate does not know this loader, which gives the processes samples by turns."""

    def get_eval_dataloader(self, eval_dataset=None):
        sampler = DistributedSampler(self.eval_dataset, shuffle=False)
        return DataLoader(self.eval_dataset, 2, sampler=sampler, collate_fn=default_data_collator)


def cuts(folder):
    expected = losses_of()
    for size in (1, 2, 4, 5, 16):
        check(trainer_of(folder, size), expected, size)
    check(trainer_of(folder, 4, config={"split_batches": True}), expected, "split_batches")
    check(trainer_of(folder, 4, DATA[:6], config={"even_batches": False}), expected[:6], "even_batches")
    for size in (2, 4, 5):
        check(trainer_of(folder, size, Stream()), expected, f"dispatched {size}")
        config = {"dispatch_batches": False}
        check(trainer_of(folder, size, SizedStream(), config=config), expected, f"stream {size}")
    check(trainer_of(folder, 4, cls=Half), expected[[11, 0, 3, 5, 7, 2]], "another sampler")
    check(trainer_of(folder, 4, cls=Around), expected, "a loader around it")
    trainer = trainer_of(folder, 2, DATA[:8], Unprepared, reweighting="none", train_dataset=DATA[:10])
    trainer.train()
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert logged == pytest.approx([expected[:8].mean().item()], rel=1e-5)
    check(trainer, expected[[0, 2, 1, 3, 4, 6, 5, 7]], "a loader that was not prepared")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return {"logits": self.linear(x)}


def flat(outputs, labels):
    return cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten(), reduction="none")


def rows_that_are_no_samples(folder):
    torch.manual_seed(0)
    rows = [{"x": torch.randn(6, 5), "labels": torch.randint(0, 3, (6,))} for _ in range(13)]
    batch = stack(rows)
    with torch.no_grad():
        expected = flat(Tokens()(batch["x"]), batch["labels"])
    for size, of in ((1, 13), (4, 8), (4, 12)):
        trainer = trainer_of(folder, size, rows[:of], model=Tokens(), per_sample_loss_fn=flat)
        check(trainer, expected[: of * 6], (size, of))
    with pytest.raises(ValueError, match=r"4 samples has losses of 24 rows\. Return .*_size=1"):
        trainer_of(folder, 4, rows, model=Tokens(), per_sample_loss_fn=flat).evaluate()


def on_every_process(folder: Path) -> None:
    cuts(folder)
    rows_that_are_no_samples(folder)


def test_two_processes_evaluate_every_sample_once(tmp_path):
    run_on(2, __file__, tmp_path)


if __name__ == "__main__":
    on_every_process(Path(sys.argv[1]))
