"""How a study calls `domainbed.py`, and what it reads of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import domainbed
from benchmarks.study.recipe import LOGS, Outcome, Recipe
from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.domains.predictions import predictions_file
from rgd_hf.scripts.domains.selection import Choice, training_domain_validation
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.weight_histogram import BOUNDS, HISTOGRAM


class Domains(Recipe):
    """`domainbed.py`: a model for each held-out environment, all of them one run.

    The checkpoint is that of training-domain validation. Tuning is scored on that validation accuracy, final runs on the
    accuracy on the held-out environment, both averaged over the held-out environments.
    """

    kind = "domains"
    main = staticmethod(domainbed.main)
    arguments = (
        domainbed.DataArguments,
        domainbed.ModelArguments,
        domainbed.SweepArguments,
        ReweightedTrainingArguments,
    )

    def check_score(self, name: str, where: str) -> None:
        if name != "accuracy":
            raise UserError(f"{where}: score: {name!r} is not known: domains are compared by `accuracy`.")

    def options(
        self, options: Mapping[str, Any], seed: int, tuning: bool, holdout_fraction: float
    ) -> dict[str, Any]:
        own = dict(options)
        own["reweightings"] = own.pop("reweighting")
        own |= {"algorithms": "erm", "selection": "training_domain", "n_trials": 1, "first_trial": seed}
        if not tuning:
            own |= {"save_predictions": True, "logging_strategy": "steps", "logging_steps": LOGS}
        return own

    def outcome(
        self,
        records: list[dict[str, Any]],
        directory: Path,
        options: Mapping[str, Any],
        score: str,
        tuning: bool,
    ) -> Outcome:
        held_out = [run["held_out"][0] for run in records]
        found = {name: set(run["checkpoints"][0]) for name, run in zip(held_out, records)}
        suffix = "_out_accuracy"
        environments = sorted(
            {key.removesuffix(suffix) for keys in found.values() for key in keys if key.endswith(suffix)}
        )
        choices = {name: training_domain_validation(records, name, environments) for name in held_out}
        chosen = {name: choice for name, choice in choices.items() if choice is not None}
        validation = float(np.mean([choice.validation for choice in chosen.values()]))
        accuracy = float(np.mean([choice.accuracy for choice in chosen.values()]))
        metrics = {"accuracy": accuracy, "training_domain_validation_accuracy": validation}
        metrics["ece"] = float(np.mean([choice.ece for choice in chosen.values()]))
        metrics |= {f"{name}_accuracy": choice.accuracy for name, choice in chosen.items()}
        if tuning:
            return Outcome(validation, "training_domain_validation_accuracy", metrics)
        log = _mean_log(records, environments)
        return Outcome(accuracy, score, metrics, log, _predictions(directory, chosen, environments))


def _predictions(directory: Path, chosen: Mapping[str, Choice], environments: Sequence[str]) -> pd.DataFrame:
    """What the chosen checkpoints predict, one held-out environment after the other.

    Which samples of an environment are in its `in` split depends on the seed. `row` is the sample's number in its
    environment times the number of environments, plus the environment's place among them: no two samples share it.
    """
    tables = []
    for name, choice in chosen.items():
        table = pd.read_parquet(predictions_file(directory, choice.run))
        table = table[(table["step"] == choice.step) & (table["environment"] == name)]
        tables.append(table.assign(row=table["row"] * len(environments) + environments.index(name)))
    return pd.concat(tables, ignore_index=True)


def _mean_log(runs: Sequence[Mapping[str, Any]], environments: Sequence[str]) -> list[dict[str, Any]]:
    """The training logs of the held-out environments' models averaged, with the loss on the training ones' `out` splits.

    Counts of weights are those of all models.
    """
    entries: list[tuple[int, str, float]] = []
    histograms: dict[int, dict[str, Any]] = {}
    for run in runs:
        training = [name for name in environments if name not in run["held_out"]]
        for entry in run.get("training_log", []):
            if HISTOGRAM in entry:
                counts = histograms.setdefault(entry["step"], {HISTOGRAM: 0, BOUNDS: entry[BOUNDS]})
                counts[HISTOGRAM] = counts[HISTOGRAM] + np.array(entry[HISTOGRAM])
            entries += [
                (entry["step"], name, value)
                for name, value in entry.items()
                if isinstance(value, int | float)
            ]
        for point in run["checkpoints"]:
            loss = float(np.mean([point[f"{name}_out_loss"] for name in training]))
            entries.append((point["step"], "eval_loss", loss))
    frame = pd.DataFrame(entries, columns=["step", "name", "value"])
    table = frame[frame["name"] != "step"].groupby(["step", "name"])["value"].mean().unstack()
    return [
        {"step": int(step), **row.dropna().to_dict(), **histograms.get(int(step), {})}
        for step, row in table.iterrows()
    ]
