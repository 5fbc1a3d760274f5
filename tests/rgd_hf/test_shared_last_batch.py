"""Two processes that share out an epoch's last batch take the steps of one, also where rows are not samples."""

import itertools
import sys
import tempfile
from pathlib import Path
from types import MethodType, SimpleNamespace

import datasets
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.data import DataLoader
from transformers import (
    BertForTokenClassification,
    DataCollatorWithFlattening,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainingArguments,
)

from rgd_hf import ReweightedTrainer, ReweightingMixin
from rgd_hf.batches.repeats import Share, leave_out_repeats, share_of_last_batch
from rgd_hf.weightings import GroupDRO
from tests.helpers.language import llama, text, tokenizer
from tests.helpers.processes import run_on
from tests.helpers.quiet import QUIET
from tests.helpers.tiny import (
    classification_data,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

TAU = 20.0


class ReweightedSFTTrainer(ReweightingMixin, trl.SFTTrainer):
    """What a user writes."""


class ReweightedRewardTrainer(ReweightingMixin, trl.RewardTrainer):
    """A batch of pairs has two rows for each."""

    def compute_per_sample_losses(self, model, inputs):
        margin = inputs.pop("margin")
        outputs = model(**inputs)
        chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
        return -logsigmoid(chosen - rejected - margin), outputs


class OwnLoader(ReweightedTrainer):
    """A dataloader that tells nothing of the samples in its rows."""

    def get_train_dataloader(self):
        loader = DataLoader(
            self.train_dataset, batch_size=self.args.train_batch_size, collate_fn=DataCollatorWithFlattening()
        )
        return self.accelerator.prepare(loader)


def settings(cls, samples, **changes):
    """Arguments of two steps an epoch, or one, whatever the number of processes."""
    args = {
        "output_dir": tempfile.mkdtemp(),
        "num_train_epochs": 2,
        "learning_rate": 0.1,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    if cls is not TrainingArguments:
        args |= {"bf16": False, "gradient_checkpointing": False, "max_length": None}
    given = QUIET | args | changes
    given.pop("max_steps", None)
    made = cls(**given)
    made.per_device_train_batch_size = made.per_device_eval_batch_size = samples // max(made.world_size, 1)
    return made


def pairs(n):
    words = text(n)["text"]
    return datasets.Dataset.from_list(
        [
            {"chosen": words[i], "rejected": words[i - 1], "margin": 0.3 * i, "group": int(i < 3)}
            for i in range(n)
        ]
    )


def token_ids(n):
    return [{"input_ids": tokenizer()(line)["input_ids"]} for line in text(n)["text"]]


def sft(n, **changes):
    changes = {"padding_free": True} | changes
    args, data = settings(trl.SFTConfig, 8, **changes), text(n)
    return ReweightedSFTTrainer(
        llama(), args, train_dataset=data, eval_dataset=data, processing_class=tokenizer(), tau=TAU
    )


def reward(n, rule="kl", **changes):
    torch.manual_seed(0)
    config = llama().config
    config.num_labels = 1
    return ReweightedRewardTrainer(
        LlamaForSequenceClassification(config),
        settings(trl.RewardConfig, 8, **changes),
        train_dataset=pairs(n),
        eval_dataset=pairs(n),
        processing_class=tokenizer(),
        reweighting=rule,
    )


def flattening(n, cls=ReweightedTrainer, samples=8, **options):
    return cls(
        llama(),
        settings(TrainingArguments, samples),
        train_dataset=token_ids(n),
        eval_dataset=token_ids(n),
        data_collator=DataCollatorWithFlattening(),
        tau=TAU,
        **options,
    )


def flat(n, samples):
    """A loss for each token, in one dimension."""

    def losses(outputs, labels):
        return cross_entropy(outputs.logits.flatten(0, 1), labels.flatten(), reduction="none")

    torch.manual_seed(0)
    data = [{**row, "labels": torch.arange(7) % 3} for row in classification_data(n)]
    return ReweightedTrainer(
        BertForTokenClassification(tiny_config()),
        settings(TrainingArguments, samples),
        train_dataset=data,
        eval_dataset=data,
        per_sample_loss_fn=losses,
    )


CASES = {
    "flat losses, one sample a process": lambda: flat(7, samples=2),
    "padding-free, 7": lambda: sft(7),
    "padding-free, 6, padded": lambda: sft(6, pad_to_multiple_of=16),
    "padding-free, 3": lambda: sft(3),
    "padding-free, 10": lambda: sft(10),
    "accumulated": lambda: sft(27, gradient_accumulation_steps=2),
    "packed": lambda: sft(19, padding_free=False, packing=True, max_length=16),
    "flattened": lambda: flattening(7),
    "pairs, 8": lambda: reward(8),
    "pairs, 7": lambda: reward(7),
    "pairs, 3": lambda: reward(3),
    "pairs in groups": lambda: reward(7, GroupDRO(2, 0.5)),
    "one sample a process": lambda: flattening(7, OwnLoader, samples=2),
}


REFUSED = {
    "one row": "a batch of 4 samples has a single row",
    "flat losses": "a batch of 4 samples has losses of shape [28]",
}


def trained(case):
    trainer = CASES[case]()
    start = parameters_of(trainer.model)
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    evaluated = trainer.evaluate()["eval_loss"]
    counted = trainer.eval_losses[~trainer.eval_losses.isnan()]
    return {
        "step": parameters_of(trainer.model) - start,
        "losses": losses,
        "eval_loss": evaluated,
        "rows": len(counted),
    }


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_on(2, __file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case, of_two):
    expected = trained(case)
    for found in (results[case] for results in of_two):
        assert relative_error(found["step"], expected["step"]) < 1e-4
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)


def test_samples_that_cannot_be_told_apart_are_refused_at_once(of_two):
    for found, (case, words) in itertools.product(of_two, REFUSED.items()):
        message, step = found[case]
        assert step == 0
        assert words in message
        assert "dataloader_drop_last=True" in message and "per_device_train_batch_size=1" in message


def shard(n, samples, index, processes=2, **options):
    drawn = torch.utils.data.BatchSampler(range(n), samples, False)
    sampler = BatchSamplerShard(drawn, processes, index, **options)
    return SimpleNamespace(batch_sampler=sampler), list(sampler)[-1]


@pytest.mark.parametrize("n", range(1, 18))
@pytest.mark.parametrize("split", [False, True])
def test_share_is_what_accelerate_does_not_repeat(n, split):
    shares = [shard(n, 4, index, split_batches=split) for index in range(2)]
    step = 4 if split else 8
    kept = []
    for loader, batch in shares:
        share = share_of_last_batch(loader)
        assert (share is None) == (n % step == 0)
        if share is not None:
            assert share.samples == len(batch)
            kept += batch[: share.kept]
            assert share.divides == (n % step % share.samples > 0)
    if n % step:
        assert kept == list(range(n // step * step, n))


class OwnBatches:
    """Batches of samples that are drawn with replacement, as many as one likes."""

    def __init__(self, dataset, batches, size):
        self.dataset, self.batches, self.batch_size = dataset, batches, size

    def __len__(self):
        return self.batches

    def __iter__(self):
        for number in range(self.batches):
            yield [1000 * number + place for place in range(self.batch_size)]


class OwnBatchSampler(OwnBatches, torch.utils.data.BatchSampler):
    """One that keeps the class's sampler, which it does not draw from."""

    def __init__(self, dataset, batches, size):
        super().__init__(dataset, batches, size)
        self.sampler, self.drop_last = torch.utils.data.SequentialSampler(dataset), False


@pytest.mark.parametrize("sampler", [OwnBatches, OwnBatchSampler])
@pytest.mark.parametrize("batches", range(1, 12))
@pytest.mark.parametrize("n", [5, 25, 40])
def test_share_is_that_of_the_batches_which_a_sampler_of_ones_own_draws(n, batches, sampler):
    kept = []
    for index in range(3):
        loader = DataLoader(
            range(n), batch_sampler=BatchSamplerShard(sampler(range(n), batches, 4), 3, index)
        )
        last, share = list(loader.batch_sampler)[-1], share_of_last_batch(loader)
        if -(-n // 4) != batches:
            assert (share is None) == (batches % 3 == 0) and (share is None or not share.divides)
            kept += last if share is None else last[: share.kept]
    drawn = list(sampler(range(n), batches, 4))
    if kept:
        assert kept == [sample for batch in drawn[(batches - 1) // 3 * 3 :] for sample in batch]


def test_rows_of_repeats_that_are_not_known_are_refused():
    def batch(rows):
        return {"input_ids": torch.ones(rows, 3), "labels": torch.ones(rows, dtype=torch.int64)}

    with pytest.raises(ValueError, match=r"4 samples has 6 rows of labels\. Do this"):
        leave_out_repeats(batch(6), Share(4, 4, True), None, ["labels"], "Do this.")
    for kept, weight in ((4, None), (0, [0.0] * 6)):
        found = batch(6)
        leave_out_repeats(found, Share(4, kept, False), None, ["labels"], "")
        assert (found["sample_weight"].tolist() if weight else found.get("sample_weight")) == weight


def test_all_rows_of_an_evaluation_count_where_samples_have_several(make_args):
    rows = classification_data(6)

    def collate(examples):
        """Every sample as it is, and with its tokens reversed."""
        batch = stack(examples)
        twice = {"input_ids": torch.cat([batch["input_ids"], batch["input_ids"].flip(1)])}
        return twice | {"labels": batch["labels"].repeat(2)}

    losses = [
        ReweightedTrainer(
            tiny_bert(), make_args(per_device_eval_batch_size=size), eval_dataset=rows, data_collator=collate
        ).evaluate()["eval_loss"]
        for size in (4, 6)
    ]
    own = tiny_bert().eval()(**collate(rows)).loss.item()
    assert losses == pytest.approx([own, own], rel=1e-5)


if __name__ == "__main__":
    results = {case: trained(case) for case in CASES}
    for case, trainer in zip(REFUSED, (flattening(7, OwnLoader), flat(11, samples=8)), strict=True):
        try:
            trainer.train()
        except ValueError as error:
            results[case] = str(error), trainer.state.global_step
    torch.save(results, Path(sys.argv[1]) / f"{trainer.args.process_index}.pt")


@pytest.mark.parametrize("name", ["sample_lengths", "lengths"])
def test_columns_of_the_users_reach_the_model(name, make_args):
    seen = []

    def forward(self, input_ids=None, sample_lengths=None, lengths=None, labels=None, **kwargs):
        seen.append({"sample_lengths": sample_lengths, "lengths": lengths}[name])
        return LlamaForCausalLM.forward(self, input_ids=input_ids, labels=labels, **kwargs)

    model = llama()
    model.forward = MethodType(forward, model)
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5], name: 3}
    trainer = ReweightedTrainer(
        model, make_args(max_steps=1), train_dataset=[row] * 4, eval_dataset=[row] * 4
    )
    trainer.train()
    trainer.evaluate()
    assert len(seen) > 2 and all(value is not None for value in seen)
