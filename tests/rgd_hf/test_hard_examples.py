"""Which samples carried the most weight: against sums by hand, over processes, epochs, resumes and collators."""

import json
from collections import defaultdict
from dataclasses import astuple

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, default_data_collator

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, ReweightingMixin
from rgd_hf.items import Items
from rgd_hf.observers.hard_examples import HardExamples, add_by_sample
from tests.helpers.operators import CountSteps, CountWaits
from tests.helpers.processes import run_on
from tests.helpers.recorded import RecordedMixin
from tests.helpers.tiny import classification_data, tiny_bert
from tests.helpers.varied import pad, varied_data


class Recorded(RecordedMixin, ReweightedTrainer):
    pass


class WatchedTrainer(ReweightedTrainer):
    """Keeps what `weigh` sees, sample by sample, recognized by its content."""

    def __init__(self, *args, **kwargs):
        self.visits = defaultdict(list)
        super().__init__(*args, **kwargs)

    def weigh(self, items, inputs):
        weights = super().weigh(items, inputs)
        for row in range(len(items.reference)):
            valid = items.reference[row] > 0
            if valid.any():
                key = tuple(inputs["input_ids"][row][inputs["attention_mask"][row] > 0].tolist())
                mean = items.losses[row][valid].mean().item(), weights[row][valid].mean().item()
                self.visits[key].append(mean)
        return weights


class RecordingTrainer(RecordedMixin, WatchedTrainer):
    pass


def by_hand(trainer: RecordingTrainer, data: list[dict]) -> list[tuple[int, float, float, int]]:
    rows = []
    for index, example in enumerate(data):
        visits = trainer.visits[tuple(torch.as_tensor(example["input_ids"]).tolist())]
        if visits:
            losses, weights = zip(*visits)
            rows.append((index, sum(weights) / len(visits), sum(losses) / len(visits), len(visits)))
    return sorted(rows, key=lambda row: (-row[1], -row[2]))


def assert_same(examples, expected):
    found = [astuple(example) for example in examples]
    assert [(e[0], e[3]) for e in found] == [(e[0], e[3]) for e in expected]
    values = [torch.tensor([e[1:3] for e in rows], dtype=torch.float64) for rows in (found, expected)]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 3, "normalize_weights": True},
        {"reweighting": "none"},
        {"target_ess": 0.8},
        {"dataloader_num_workers": 2},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [list, datasets.Dataset])
def test_means_are_those_of_every_visit(kind, settings, make_args):
    data = varied_data(37)
    rows = data if kind is list else datasets.Dataset.from_list([{**row, "other": "text"} for row in data])
    args = make_args(ReweightedTrainingArguments, max_steps=23, per_device_train_batch_size=5, **settings)
    trainer = RecordingTrainer(tiny_bert(), args, train_dataset=rows, data_collator=pad)
    trainer.train()
    assert_same(trainer.hard_examples(1000), by_hand(trainer, data))
    assert len(trainer.hard_examples(1000)) == 37 and len(trainer.hard_examples(4)) == 4
    if settings.get("reweighting") == "none":
        losses = [example.loss for example in trainer.hard_examples(37)]
        assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("level", ["sample", "token"])
def test_tokens_count_through_the_mean_of_their_sample(level, make_args):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, max_position_embeddings=32, initializer_range=0.5, **sizes)
    )
    data = varied_data(20)
    for number, row in enumerate(data):
        row["labels"] = row["input_ids"].clone()
        if number == 3:
            row["labels"][:] = -100  # nothing to learn from: never seen
    args = make_args(ReweightedTrainingArguments, max_steps=9, reweighting_level=level, tau=5.0)
    trainer = RecordingTrainer(model, args, train_dataset=data, data_collator=pad)
    trainer.train()
    found = trainer.hard_examples(20)
    assert_same(found, by_hand(trainer, data))
    assert 3 not in [example.index for example in found] and len(found) == 19


def test_sums_by_sample_against_a_loop():
    torch.manual_seed(0)
    losses, weights, reference = (
        torch.rand(4, 3),
        torch.rand(4, 3),
        torch.rand(4, 3) * (torch.rand(4, 3) > 0.4),
    )
    reference[2] = 0
    indices = torch.tensor([5, 0, 1, 5])  # one sample twice
    sums = torch.zeros(6, 3, dtype=torch.float64)
    add_by_sample(sums, indices, Items(losses, reference), weights)
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for row, index in enumerate(indices.tolist()):
        mass = reference[row].sum()
        if mass > 0:
            expected[index, 0] += ((reference[row] * weights[row]).sum() / mass).item()
            expected[index, 1] += ((reference[row] * losses[row]).sum() / mass).item()
            expected[index, 2] += 1
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="packed"):
        add_by_sample(sums, indices, Items(losses[:1], reference[:1]), weights[:1])


def test_one_item_a_sample_is_a_row_of_one_item():
    generator = torch.Generator().manual_seed(0)
    losses, weights = torch.rand(2, 6, generator=generator)
    reference, indices = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0, 0.0]), torch.tensor([4, 1, 0, 4, 2, 3])
    flat, row = torch.zeros(2, 5, 3, dtype=torch.float64)
    add_by_sample(flat, indices, Items(losses, reference), weights)
    add_by_sample(row, indices, Items(losses[:, None], reference[:, None]), weights[:, None])
    assert torch.equal(flat, row) and flat[:, 2].tolist() == [1, 0, 1, 0, 2]


def test_recording_changes_nothing_in_training(make_args):
    states = []
    for cls in (WatchedTrainer, RecordingTrainer):
        args = make_args(ReweightedTrainingArguments, max_steps=6)
        trainer = cls(tiny_bert(), args, train_dataset=varied_data(20), data_collator=pad)
        trainer.train()
        states.append(trainer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(RuntimeError, match=r"call train\(\) first"):
        HardExamples().most_weighted(3)


class Killed(BaseException):
    pass


class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 8:
            raise Killed


def test_resumed_is_as_never_interrupted(make_args, tmp_path):
    def run(name: str, *callbacks, resume: str | None = None):
        args = make_args(
            ReweightedTrainingArguments,
            output_dir=str(tmp_path / name),
            max_steps=12,
            save_strategy="steps",
            save_steps=6,
        )
        data = {"train_dataset": varied_data(37), "data_collator": pad}
        trainer = RecordingTrainer(tiny_bert(), args, callbacks=list(callbacks), **data)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.hard_examples(37)

    whole = run("whole")
    with pytest.raises(Killed):
        run("broken", Kill)
    checkpoint = tmp_path / "broken" / "checkpoint-6"
    assert run("broken", resume=str(checkpoint)) == whole
    (checkpoint / "hard_examples.safetensors").unlink()
    with pytest.raises(ValueError, match="resume without hard examples"):
        run("broken", resume=str(checkpoint))


def test_steps_never_wait_for_the_device(make_args):
    args = make_args(ReweightedTrainingArguments, max_steps=6, logging_steps=6, gradient_accumulation_steps=2)
    counts = []
    for cls in (Recorded, ReweightedTrainer):
        mode = CountWaits()
        counter = CountSteps(mode)
        trainer = cls(tiny_bert(), args, train_dataset=classification_data(64), callbacks=[counter])
        with mode:
            trainer.train()
        counts.append(counter.per_step[1:-1])
    assert counts[0] == counts[1]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(varied_data(8))


def test_streams_and_unnamed_columns_are_refused(make_args):
    args = make_args(ReweightedTrainingArguments)
    with pytest.raises(ValueError, match="map-style"):
        RecordingTrainer(tiny_bert(), args, train_dataset=Stream()).train()
    with pytest.raises(ValueError, match="map-style"):
        stream = datasets.Dataset.from_list([{"labels": 1}]).to_iterable_dataset()
        RecordingTrainer(tiny_bert(), args, train_dataset=stream).train()
    tuples = [(1, 2)] * 8
    trainer = RecordingTrainer(tiny_bert(), args, train_dataset=tuples)
    with pytest.raises(ValueError, match="dicts, not tuple"):
        trainer.train()


class Epochs(torch.utils.data.Dataset):
    """Whose samples depend on the epoch."""

    def __init__(self):
        self.rows, self.epochs = classification_data(8), []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return self.rows[key]


def test_a_data_set_is_told_its_epochs_as_without_recording(make_args):
    told = {}
    for cls in (ReweightedTrainer, Recorded):
        data = Epochs()
        cls(tiny_bert(), make_args(num_train_epochs=3, max_steps=-1), train_dataset=data).train()
        told[cls] = data.epochs
    assert told[ReweightedTrainer] == told[Recorded] and 2 in told[Recorded]


class OwnLoader:
    """Batches by a dataloader that knows nothing of the index."""

    def get_train_dataloader(self):
        return DataLoader(self.train_dataset, batch_size=8, collate_fn=default_data_collator)


def test_a_dataloader_without_the_index_is_refused_and_the_remedy_works(make_args):
    data = classification_data(16)
    own = type("Own", (OwnLoader, Recorded), {})
    with pytest.raises(
        ValueError, match=r"'sample_index'.*only input_ids, labels.*give the training examples"
    ):
        own(tiny_bert(), make_args(), train_dataset=data).train()
    sequential = make_args(train_sampling_strategy="sequential")
    expected = Recorded(tiny_bert(), sequential, train_dataset=data)
    expected.train()
    numbered = [{**row, "sample_index": index} for index, row in enumerate(data)]
    found = own(tiny_bert(), make_args(), train_dataset=numbered)
    found.train()
    assert len(found.hard_examples(99)) == 16
    assert_same(found.hard_examples(99), [astuple(example) for example in expected.hard_examples(99)])


TWO_PROCESSES = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from tests.helpers.varied import pad, varied_data
from tests.helpers.tiny import tiny_bert
from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from rgd_hf.observers import HardExamples

folder, batch, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
args = ReweightedTrainingArguments(
    str(folder), per_device_train_batch_size=batch, num_train_epochs=3, use_cpu=True, report_to=[], learning_rate=0.1,
    optim="sgd", disable_tqdm=True, save_strategy="steps", save_steps=7, dataloader_pin_memory=False)
examples = HardExamples()
trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=varied_data(37), data_collator=pad)
trainer.add_observer(examples)
trainer.train(resume_from_checkpoint=str(folder / "checkpoint-7") if resume else None)
found = examples.most_weighted(37)
(folder / f"found-{args.process_index}.json").write_text(json.dumps([astuple(e) for e in found]))
"""


def test_two_processes_are_as_one(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)

    def run(processes: int, batch: int, resume: str) -> list:
        folder = tmp_path / str(processes)
        folder.mkdir(exist_ok=True)
        run_on(processes, script, folder, str(batch), resume)
        files = sorted(folder.glob("found-*.json"))
        assert len(files) == processes
        answers = [json.loads(path.read_text()) for path in files]
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    one = run(1, 8, "whole")
    assert (
        all(example[3] == 3 for example in one) and len(one) == 37
    )  # the repeats that fill up a batch are not counted
    for answer in (run(2, 4, "whole"), run(2, 4, "resume")):
        assert sorted(e[0] for e in answer) == list(range(37)) and all(e[3] == 3 for e in answer)
        values = [torch.tensor(sorted(e[:3] for e in examples)) for examples in (answer, one)]
        torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 8, 10_017])
@pytest.mark.parametrize("workers", [0, 1])
def test_indices_of_something_else_are_refused_by_name(make_args, bad, workers):
    """As the ids of a database; the device would end the process with an error of its own."""
    rows = [{**row, "sample_index": index} for index, row in enumerate(classification_data(8))]
    rows[3]["sample_index"] = bad
    args = make_args(num_train_epochs=1, dataloader_num_workers=workers)
    with pytest.raises(ValueError, match=rf"from 0 to 7, but a training batch has {bad}\."):
        Recorded(model=tiny_bert(), args=args, train_dataset=rows).train()
    renamed = [{"id": row.pop("sample_index"), **row} for row in rows]
    Recorded(model=tiny_bert(), args=args, train_dataset=renamed).train()


def test_samples_that_a_trainer_dropped_when_it_prepared_them(make_args, recwarn):
    """As TRL's drops those whose completion is cut away: indices are those of what is left, and a warning says so."""

    class Filters(Trainer):
        def __init__(self, model, args, train_dataset, **keywords):
            super().__init__(model, args, train_dataset=train_dataset[5:], **keywords)

    class Mine(RecordedMixin, ReweightingMixin, Filters):
        pass

    data = classification_data(13)
    trainer = Mine(model=tiny_bert(), args=make_args(num_train_epochs=1), train_dataset=data)
    with pytest.warns(
        UserWarning, match="given 13 training samples and prepared 8: .* trainer.train_dataset"
    ):
        trainer.train()
    assert sorted(example.index for example in trainer.hard_examples(20)) == list(range(8))
    recwarn.clear()
    Recorded(model=tiny_bert(), args=make_args(num_train_epochs=1), train_dataset=data).train()
    assert not [w for w in recwarn if "prepared" in str(w.message)]
