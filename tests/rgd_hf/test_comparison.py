"""`rgd_hf.compare`: pairs by seed, resumes, refuses what would not be a comparison, and says what was found."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from functools import partial

import pytest
from transformers import Trainer

from rgd_hf import Comparison, ReweightedTrainer, ReweightedTrainingArguments, compare
from rgd_hf.comparison.formats import number, signed
from rgd_hf.comparison.statistics import mean_interval
from rgd_hf.weightings import KL
from tests.helpers.tiny import classification_data, tiny_bert

METHODS = ["ERM", "RGD (kl, tau=1)"]


class Builder:
    """A `make_trainer` that counts its calls; `options` go to the arguments."""

    def __init__(self, make_args, **options):
        self.make_args, self.options, self.calls, self.trained = make_args, options, [], []

    def __call__(self, seed, reweighting):
        self.calls.append((seed, reweighting))
        args = self.make_args(ReweightedTrainingArguments, **{"seed": seed, **self.options})
        data = classification_data(24)
        trainer = ReweightedTrainer(
            model=tiny_bert(seed), args=args, reweighting=reweighting, train_dataset=data, eval_dataset=data
        )
        train = trainer.train
        trainer.train = lambda **keywords: (self.trained.append((seed, reweighting)), train(**keywords))[1]
        return trainer


class Killed(Builder):
    """Interrupted in step 3 of the re-weighted run."""

    def __call__(self, seed, reweighting):
        trainer = super().__call__(seed, reweighting)
        log = trainer.log

        def stop(*args, **keywords):
            if trainer.state.global_step == 3 and reweighting == "kl":
                raise KeyboardInterrupt
            return log(*args, **keywords)

        trainer.log = stop
        return trainer


def test_each_method_is_trained_from_each_seed_as_it_would_be_alone(make_args, tmp_path):
    found = compare(Builder(make_args), seeds=[3, 5], output_dir=tmp_path / "c")
    assert list(found.scores) == METHODS and found.baseline == "ERM"
    for seed in (3, 5):
        for method, reweighting in zip(METHODS, ("none", "kl")):
            alone = Builder(make_args)(seed, reweighting)
            alone.train()
            assert found.scores[method][seed] == pytest.approx(alone.evaluate()["eval_loss"], rel=1e-6)
    assert found.scores["ERM"][3] != found.scores["RGD (kl, tau=1)"][3]


def test_the_same_call_resumes_and_more_seeds_train_only_these(make_args, tmp_path, capsys):
    first = Builder(make_args)
    before = compare(first, seeds=[0, 1], output_dir=tmp_path / "c")
    assert first.trained == [(0, "none"), (0, "kl"), (1, "none"), (1, "kl")]
    lines = (tmp_path / "c" / "runs.jsonl").read_text().splitlines()
    # As if killed while the last line was written.
    (tmp_path / "c" / "runs.jsonl").write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    again = Builder(make_args)
    after = compare(again, seeds=[0, 1, 2], output_dir=tmp_path / "c")
    assert again.trained == [(1, "kl"), (2, "none"), (2, "kl")]
    assert {m: {s: after.scores[m][s] for s in (0, 1)} for m in METHODS} == before.scores
    third = Builder(make_args)
    assert str(compare(third, seeds=[0, 1, 2], output_dir=tmp_path / "c")) == str(after)
    assert third.trained == [] and third.calls == [(0, "none"), (0, "kl")]


@pytest.mark.parametrize("only_model", [False, True])
def test_an_interrupted_run_ends_as_if_it_had_not_been(only_model, make_args, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    options |= {"save_only_model": only_model}
    whole = compare(Builder(make_args, **options), seeds=[0], output_dir=tmp_path / "whole")

    with pytest.raises(KeyboardInterrupt):
        compare(Killed(make_args, **options), seeds=[0], output_dir=tmp_path / "killed")
    rest = Builder(make_args, **options)
    resumed = compare(rest, seeds=[0], output_dir=tmp_path / "killed")
    assert rest.trained == [(0, "kl")]
    assert ("checkpoint-2 in" in capsys.readouterr().out) == only_model
    assert resumed.scores["RGD (kl, tau=1)"][0] == pytest.approx(whole.scores["RGD (kl, tau=1)"][0], rel=1e-6)


def interrupted(make_args, folder, **options) -> dict:
    """Options of a comparison that was interrupted in its second run, after a checkpoint in step 2."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **options}
    with pytest.raises(KeyboardInterrupt):
        compare(Killed(make_args, **options), seeds=[0], output_dir=folder)
    return options


def test_a_checkpoint_half_written_is_passed_over(make_args, tmp_path):
    options = interrupted(make_args, tmp_path / "killed")
    whole = compare(Builder(make_args, **options), seeds=[0], output_dir=tmp_path / "whole")
    half = tmp_path / "killed" / "kl-seed0" / "checkpoint-4"
    half.mkdir()
    (half / "config.json").write_text("{}")
    resumed = compare(Builder(make_args, **options), seeds=[0], output_dir=tmp_path / "killed")
    assert resumed.scores["RGD (kl, tau=1)"][0] == pytest.approx(whole.scores["RGD (kl, tau=1)"][0], rel=1e-6)


def test_an_interrupted_run_does_not_resume_with_other_settings(make_args, tmp_path):
    folder = tmp_path / "c"
    options = interrupted(make_args, folder)
    other = Builder(make_args, **options | {"learning_rate": 0.1})
    (folder / "runs.jsonl").unlink()
    shutil.rmtree(folder / "none-seed0")
    with pytest.raises(
        ValueError, match=r"kl-seed0 holds .*learning_rate: 0.5, now 0.1\).*delete that folder"
    ):
        compare(other, seeds=[0], output_dir=folder)
    assert other.trained == [(0, "none")]
    shutil.rmtree(folder / "kl-seed0")
    assert len(compare(other, seeds=[0], output_dir=folder).runs) == 2 and other.trained[1:] == [(0, "kl")]


@dataclass
class TextArguments(ReweightedTrainingArguments):
    """With a setting that `to_dict` hides like a secret, as TRL's `SFTConfig` has."""

    eos_token: str | None = None


def test_text_tokens_are_settings(make_args, tmp_path):
    def texts(token):
        return Builder(lambda _, **options: make_args(TextArguments, eos_token=token, **options))

    compare(texts("<end>"), seeds=[0], output_dir=tmp_path / "c")
    with pytest.raises(ValueError, match="eos_token: '<end>', now '<stop>'"):
        compare(texts("<stop>"), seeds=[0, 1], output_dir=tmp_path / "c")
    lines = tmp_path / "c" / "runs.jsonl"
    lines.write_text(lines.read_text().replace("<end>", "<EOS_TOKEN>"))  # as earlier versions wrote it
    assert len(compare(texts("<end>"), seeds=[0], output_dir=tmp_path / "c").runs) == 2


def test_checkpoints_of_a_finished_or_unknown_run_are_no_results(make_args, tmp_path):
    folder = tmp_path / "c"
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = compare(Builder(make_args, **options), seeds=[0], output_dir=folder)
    (folder / "runs.jsonl").unlink()
    again = Builder(make_args, **options)
    with pytest.raises(ValueError, match=r"none-seed0 holds a checkpoint, but no run_settings.json.*Delete"):
        compare(again, seeds=[0], output_dir=folder)
    for place in folder.glob("*-seed0"):
        shutil.rmtree(place)
    assert compare(again, seeds=[0], output_dir=folder).scores == first.scores
    assert again.trained == [(0, "none"), (0, "kl")]


def test_runs_of_other_settings_are_not_mixed(make_args, tmp_path):
    compare(Builder(make_args), seeds=[0], output_dir=tmp_path / "c")
    with pytest.raises(ValueError, match=r"learning_rate: 0.5, now 0.1\).*another output_dir"):
        compare(Builder(make_args, learning_rate=0.1), seeds=[0, 1], output_dir=tmp_path / "c")


@pytest.mark.parametrize(
    "change, options, complaint",
    [
        ({"seed": 0}, {}, r"seed=7.*TrainingArguments\(seed=seed\)"),
        ({}, {"metric": "eval_f1"}, "no 'eval_f1', but .*eval_loss"),
        ({}, {"reweightings": ["kl"]}, "two or more different"),
        ({}, {"reweightings": ["kl", "kl"]}, "two or more different"),
        ({}, {"seeds": []}, "one or more different"),
        ({}, {"seeds": [1, 1]}, "one or more different"),
    ],
)
def test_what_would_not_be_a_comparison_is_refused(change, options, complaint, make_args, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        compare(Builder(make_args, **change), **{"seeds": [7], "output_dir": tmp_path / "c", **options})


def test_a_trainer_that_ignores_the_reweighting_or_is_the_stock_one_is_refused(make_args, tmp_path):
    def stock(seed, reweighting):
        return Trainer(model=tiny_bert(), args=make_args(seed=seed), train_dataset=classification_data(8))

    with pytest.raises(ValueError, match="ReweightedTrainer, not Trainer"):
        compare(stock, seeds=[0], output_dir=tmp_path / "c")
    builder = Builder(make_args)
    with pytest.raises(ValueError, match="was given reweighting='none', but its Trainer has 'kl'"):
        compare(lambda seed, _: builder(seed, "kl"), seeds=[0], output_dir=tmp_path / "c")


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_model_that_was_trained_before_is_refused(seeds, make_args, tmp_path):
    """One made outside of `make_trainer`: the second method would begin where the first one ended."""
    builder, model = Builder(make_args), tiny_bert()

    def shared(seed, reweighting):
        trainer = builder(seed, reweighting)
        trainer.model = trainer.model_wrapped = model
        return trainer

    with pytest.raises(
        ValueError, match=r"kl, seed 0 was trained before, for none, seed 0.*inside make_trainer"
    ):
        compare(shared, seeds=seeds, output_dir=tmp_path / "c")
    assert builder.trained == [(0, "none")]


def test_what_is_frozen_may_be_shared(make_args, tmp_path):
    encoder = tiny_bert().bert.requires_grad_(False)

    class OnShared(Builder):
        def __call__(self, seed, reweighting):
            trainer = super().__call__(seed, reweighting)
            trainer.model.bert = encoder
            return trainer

    assert len(compare(OnShared(make_args), seeds=[0, 1], output_dir=tmp_path / "c").runs) == 4


def power(exponent):
    def rule(losses):
        return losses.clamp(max=1) ** exponent

    return rule


def capped(losses, exponent=1):
    return losses.clamp(max=1) ** exponent


def squared(losses):
    return capped(losses, exponent=2)


def test_functions_of_the_same_name_are_refused_before_training(make_args, tmp_path):
    builder = Builder(make_args)
    for same in ([power(1), power(8)], [lambda losses: losses, lambda losses: 2 * losses]):
        with pytest.raises(
            ValueError, match=r"'(rule|<lambda>)' is there more than once: .*\(def\).*partial"
        ):
            compare(builder, seeds=[0], reweightings=["none", *same], output_dir=tmp_path / "c")
    assert builder.calls == []


@pytest.mark.parametrize(
    "apart",
    [[capped, squared], [partial(capped, exponent=1), partial(capped, exponent=8)], [KL(2.0), KL(3.0)]],
)
def test_weightings_that_can_be_told_apart_are_compared_and_resumed(apart, make_args, tmp_path):
    given = {"seeds": [0], "reweightings": ["none", *apart], "output_dir": tmp_path / "c"}
    found = compare(Builder(make_args), **given)
    assert len(found.scores) == 3 and len({scores[0] for scores in found.scores.values()}) == 3
    lines = [json.loads(line) for line in (tmp_path / "c" / "runs.jsonl").read_text().splitlines()]
    assert [line["reweighting"] for line in lines] == ["none", *list(found.scores)[1:]]
    again = Builder(make_args)
    assert compare(again, **given).scores == found.scores and again.trained == []


def test_one_method_by_two_names_is_refused(make_args, tmp_path):
    builder = Builder(make_args)
    with pytest.raises(ValueError, match=r"'kl' and 'RGD \(kl, tau=1\)' are both.*leave one of them out"):
        compare(builder, seeds=[0], reweightings=["none", "kl", KL(1.0)], output_dir=tmp_path / "c")
    assert (0, "none") in builder.trained
    found = compare(builder, seeds=[0], reweightings=["none", KL(1.0)], output_dir=tmp_path / "c")
    assert list(found.scores) == METHODS and builder.trained.count((0, "none")) == 1


def test_plain_training_arguments_will_do(make_args, tmp_path):
    data = classification_data(8)

    def build(seed, reweighting):
        return ReweightedTrainer(
            tiny_bert(), make_args(seed=seed), train_dataset=data, eval_dataset=data, reweighting=reweighting
        )

    assert list(compare(build, seeds=[0], output_dir=tmp_path / "c").scores) == METHODS


def scores(*differences, metric="eval_accuracy", greater=True) -> Comparison:
    plain = {seed: 0.7 + 0.01 * seed for seed in range(len(differences))}
    other = {seed: plain[seed] + difference for seed, difference in enumerate(differences)}
    return Comparison({"ERM": plain, "RGD": other}, metric, greater)


@pytest.mark.parametrize(
    "comparison, word",
    [
        (scores(0.02, 0.021, 0.019), "better"),
        (scores(-0.02, -0.021, -0.019), "WORSE"),
        (scores(-0.02, -0.021, -0.019, metric="eval_loss", greater=False), "better"),
        (scores(0.02, -0.02, 0.01), "No significant difference"),
        (scores(0.5), "one seed"),
        (scores(0.02, 0.021, 0.019, metric="eval_utility", greater=None), "larger for RGD"),
        (scores(-0.02, -0.021, -0.019, metric="eval_utility", greater=None), "smaller for RGD"),
        (scores(0.02, math.nan, 0.03, math.nan), "eval_accuracy of RGD is nan for seeds 1, 3"),
        (scores(0.02, -math.inf), "eval_accuracy of RGD is -inf for seed 1"),
    ],
)
def test_the_verdict_follows_interval_and_direction(comparison, word):
    verdict = comparison.verdict("RGD")
    assert word in verdict and verdict in str(comparison)
    others = {"better than", "WORSE", "No significant difference", "one seed"}
    others = {other for other in others if other not in word and word not in other}
    assert not any(other in verdict for other in others)


def test_a_score_that_is_not_finite_is_no_tie_in_the_table():
    comparison = scores(0.02, math.nan, 0.03)
    assert [row[3:] for row in comparison.rows()[1:]] == [["", ""], ["nan", ""]]
    assert comparison.difference("RGD").verdict is None


def test_differences_are_paired_over_the_seeds_that_both_have():
    comparison = Comparison({"ERM": {0: 1.0, 1: 2.0}, "RGD": {1: 2.5, 2: 9.0}}, "eval_accuracy", True)
    assert comparison.differences("RGD") == {1: 0.5}


def test_the_table_shows_the_interval_of_the_statistics():
    differences = (0.02, -0.01, 0.03, 0.0)
    comparison, expected = scores(*differences), mean_interval(differences)
    (*_, row) = comparison.rows()
    assert row[3] == f"{expected.mean:+.4f}"
    assert [float(end) for end in re.findall(r"[-+][\d.]+", row[4])] == pytest.approx(expected[1:3], abs=5e-5)


def test_a_missing_evaluation_set_is_noticed_before_the_first_training(make_args, tmp_path):
    build = Builder(make_args)

    def without(seed, reweighting):
        trainer = build(seed, reweighting)
        trainer.eval_dataset = None
        return trainer

    with pytest.raises(ValueError, match=r"eval_dataset=\.\.\."):
        compare(without, seeds=[0], output_dir=tmp_path / "c")
    assert not build.trained


def test_a_trainer_may_know_its_evaluation_set_by_itself(make_args, tmp_path):
    build = Builder(make_args)

    def knows(seed, reweighting):
        trainer = build(seed, reweighting)
        data, trainer.eval_dataset = trainer.eval_dataset, None
        get_eval_dataloader = trainer.get_eval_dataloader
        trainer.get_eval_dataloader = lambda given=None: get_eval_dataloader(data)
        return trainer

    assert len(compare(knows, seeds=[0], output_dir=tmp_path / "c").runs) == 2


def test_numbers_are_printed_with_digits_that_say_something():
    assert [number(x) for x in (0.12345, 12.345, 123456.7)] == ["0.1235", "12.3", "123457"]
    assert signed(float("nan")) == "nan"
    assert [number(x) for x in (0.00123, 0.000123, 0.00001234)] == ["0.0012", "0.000123", "1.23e-05"]
    assert [signed(x) for x in (0.1, -0.1, -0.00001, 0.0)] == ["+0.1000", "-0.1000", "-1e-05", "+0.0000"]
    assert [signed(x) for x in (-1e-14, 1e-14)] == ["+0.0000", "+0.0000"], "rounding is no difference"


def test_lines_are_json_with_all_that_was_measured(make_args, tmp_path):
    compare(Builder(make_args), seeds=[0], output_dir=tmp_path / "c")
    lines = [json.loads(line) for line in (tmp_path / "c" / "runs.jsonl").read_text().splitlines()]
    assert [(line["reweighting"], line["seed"], line["method"]) for line in lines] == [
        ("none", 0, "ERM"),
        ("kl", 0, "RGD (kl, tau=1)"),
    ]
    assert all(
        line["settings"]["learning_rate"] == 0.5 and line["metrics"]["eval_loss"] > 0 for line in lines
    )


def test_runs_that_do_not_differ_are_said_to_be_equal():
    scores = {seed: 0.1 * seed for seed in range(3)}
    verdict = Comparison({"ERM": scores, "other": dict(scores)}, "eval_accuracy", True).verdict("other")
    assert verdict.startswith(
        "other and ERM have the same accuracy for each of 3 seeds: their scores do not differ"
    )
    assert "detect" not in verdict
