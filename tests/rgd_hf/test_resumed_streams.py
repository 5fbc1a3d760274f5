"""Resuming in the middle of a stream: exact in its first pass, and a warning after it."""

import warnings

import datasets
import pytest
import torch
from transformers import TrainerCallback, default_data_collator

from rgd_hf import ReweightedTrainer
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert

STEPS = 9  # a pass over the stream has four


class KilledAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stream():
    rows = [{name: value.tolist() for name, value in row.items()} for row in classification_data(22)]
    return datasets.Dataset.from_list(rows).to_iterable_dataset()


def train(args, data, killed_at=None, resume=False):
    trainer = ReweightedTrainer(
        model=tiny_bert(),
        args=args,
        train_dataset=data,
        data_collator=default_data_collator,
        callbacks=[KilledAt(killed_at)] if killed_at else [],
    )
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    except KeyboardInterrupt:
        return None
    return parameters_of(trainer.model)


@pytest.fixture
def saving_args(make_args):
    return make_args(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        learning_rate=0.1,
        optim="sgd",
    )


@pytest.mark.parametrize(
    ("data", "killed_at"),
    [(stream, 2), (lambda: stream().repeat(None), 2), (lambda: stream().repeat(None), 6)],
    ids=["in the first pass", "without an end, early", "without an end, late"],
)
def test_exact(data, killed_at, saving_args, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This training resumes")
        whole = train(saving_args, data())
        saving_args.output_dir = str(tmp_path / "killed")
        assert train(saving_args, data(), killed_at) is None
        assert torch.equal(whole, train(saving_args, data(), resume=True))


def test_more_steps_in_the_first_pass_are_no_later_pass(saving_args, tmp_path):
    """The end of a training is epoch 1.0 whatever the stream."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This training resumes")
        saving_args.max_steps, saving_args.lr_scheduler_type = 3, "constant"
        whole = train(saving_args, stream())
        saving_args.output_dir, saving_args.max_steps = str(tmp_path / "shorter"), 2
        train(saving_args, stream())
        saving_args.max_steps = 3
        assert torch.equal(whole, train(saving_args, stream(), resume=True))


def test_after_the_first_pass_a_warning_names_what_resumes_exactly(saving_args):
    assert train(saving_args, stream(), killed_at=6) is None
    with pytest.warns(UserWarning, match=r"resumes at step 6, in pass 2 .*\.repeat\(None\)"):
        train(saving_args, stream(), resume=True)


def test_data_of_known_length_resumes_in_every_pass_without_a_word(saving_args, tmp_path):
    rows = classification_data(22)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="This training resumes")
        whole = train(saving_args, rows)
        saving_args.output_dir = str(tmp_path / "killed")
        assert train(saving_args, rows, killed_at=6) is None
        assert torch.equal(whole, train(saving_args, rows, resume=True))
