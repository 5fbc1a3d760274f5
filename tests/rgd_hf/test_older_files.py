"""What an older release saved loads and goes on: pickled arguments, checkpoints without the files that came later."""

import pytest
import torch

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from tests.helpers.tiny import classification_data, parameters_of, tiny_bert

LATER_FIELDS = ("reweighting_args", "fused_lm_head")
LATER_FILES = ("weight_statistics.safetensors", "weighting.safetensors")
SETTINGS = [
    {},
    {"tau": 3.0, "normalize_weights": True},
    {"reweighting": "focal", "focal_gamma": 1.5},
    {"target_ess": 0.8},
    {"reweighting": "none"},
]


def of_an_older_release(args: ReweightedTrainingArguments, path: str) -> ReweightedTrainingArguments:
    """`args` as `training_args.bin` brings them back where their class had none of `LATER_FIELDS` yet."""
    for name in LATER_FIELDS:
        del args.__dict__[name]
    torch.save(args, path)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_arguments_of_an_older_release_train_the_same(settings, make_args, tmp_path):
    def trained(args):
        trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(16))
        trainer.train()
        return trainer

    now = trained(make_args(ReweightedTrainingArguments, **settings))
    args = of_an_older_release(
        make_args(ReweightedTrainingArguments, **settings), str(tmp_path / "training_args.bin")
    )
    before = trained(args)
    assert torch.equal(parameters_of(before.model), parameters_of(now.model))
    assert before.args.to_dict() == now.args.to_dict()
    assert before.weighting.get_config() == now.weighting.get_config()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_checkpoint_of_an_older_release_resumes(settings, make_args, tmp_path):
    def trainer(max_steps):
        args = make_args(
            ReweightedTrainingArguments, max_steps=max_steps, save_strategy="steps", save_steps=2, **settings
        )
        return ReweightedTrainer(tiny_bert(), args, train_dataset=classification_data(40))

    whole = trainer(4)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    for name in LATER_FILES:
        (checkpoint / name).unlink(missing_ok=True)
    args = torch.load(checkpoint / "training_args.bin", weights_only=False)
    of_an_older_release(args, str(checkpoint / "training_args.bin"))
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(parameters_of(resumed.model), parameters_of(whole.model))
