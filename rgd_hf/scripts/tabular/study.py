"""All methods on all tables with all seeds: one JSON line a finished run, and going on where a study stopped."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rgd_hf import ReweightedTrainingArguments
from rgd_hf.scripts.errors import UserError, listed
from rgd_hf.scripts.hard_examples import HARD_EXAMPLES
from rgd_hf.scripts.results import say, write_json
from rgd_hf.scripts.tabular.card import write_card
from rgd_hf.scripts.tabular.columns import ColumnArguments, choose_columns, find_target, shown_columns
from rgd_hf.scripts.tabular.configuration import ATTENTION_HEADS, NETWORKS
from rgd_hf.scripts.tabular.hard_examples import list_hard_rows
from rgd_hf.scripts.tabular.label_noise import with_label_noise
from rgd_hf.scripts.tabular.objectives import FOR_CLASSES_ONLY, OBJECTIVES, Objective
from rgd_hf.scripts.tabular.options import NetworkArguments
from rgd_hf.scripts.tabular.predictions import write_predictions
from rgd_hf.scripts.tabular.rivals import RIVALS, is_installed
from rgd_hf.scripts.tabular.scores import better_is_larger, main_score, scores
from rgd_hf.scripts.tabular.sources import Table
from rgd_hf.scripts.tabular.splits import PreparedTable, Splits, limit_rows
from rgd_hf.scripts.tabular.trainer import with_changes
from rgd_hf.scripts.tabular.training import TrainedNetwork, train_network
from rgd_hf.scripts.tabular.tuning import tune

RUNS_NAME = "runs.jsonl"
SETTINGS_NAME = "run_settings.json"


@dataclass
class StudyArguments:
    """Methods and seeds."""

    networks: list[str] = field(
        default_factory=lambda: ["mlp"],
        metadata={"help": f"Networks: {', '.join(NETWORKS)}, or 'all'."},
    )
    objectives: list[str] | None = field(
        default=None,
        metadata={
            "help": f"What each network is trained on: {', '.join(OBJECTIVES)}. By default erm, the chosen "
            "--reweighting, focal and class_weights; a regression has the first two. Settings of the weights "
            "(--target_ess, --normalize_weights, ...) hold for all that are re-weighted."
        },
    )
    rivals: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": f"Rivals: {', '.join(RIVALS)}; 'all' for those that are installed, or 'none'."},
    )
    seeds: int = field(default=1, metadata={"help": "Runs of every method, with seeds 0, 1, ..."})
    first_seed: int = field(default=0, metadata={"help": "Begin with this seed instead of 0."})
    tune: int = field(
        default=0,
        metadata={
            "help": "Trials of Optuna for every method (the first is the default settings), on the validation split "
            "of seed 0; the test split stays untouched."
        },
    )
    test_size: float = field(default=0.2, metadata={"help": "Share of the rows to test on."})
    validation_size: float = field(
        default=0.2, metadata={"help": "Share of the other rows for early stopping and tuning."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the cut between test and other rows."})
    label_noise: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training labels replaced by a wrong one, drawn anew for every seed; the labels of "
            "validation and test rows stay right."
        },
    )
    save_models: bool = field(
        default=True,
        metadata={
            "help": "Save every network of the first seed, with its preprocessing, below the output directory."
        },
    )
    save_predictions: bool = field(
        default=False,
        metadata={
            "help": "Save what every network predicts for the test rows (predictions.parquet) and its training log "
            "(trainer_state.json) below the output directory."
        },
    )
    hard_examples: int = field(
        default=0,
        metadata={
            "help": "List so many training rows that carried the most weight (hard, or mislabelled?), with their number "
            "in the table, in hard_examples.html and hard_examples.json beside every network of the first seed. "
            "Where samples have no weights of their own (erm, focal, class_weights) they are those of the largest loss."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Discard the results that the output directory holds."}
    )

    def __post_init__(self):
        for name, minimum in {"seeds": 1, "first_seed": 0, "tune": 0, "hard_examples": 0}.items():
            if getattr(self, name) < minimum:
                raise UserError(f"--{name} must be at least {minimum}, not {getattr(self, name)}.")
        for name in ("test_size", "validation_size"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"--{name} must lie between 0 and 1, not {getattr(self, name):g}.")


def methods_of(args: StudyArguments, reweighting: str, is_regression: bool) -> list[str]:
    """Names of the methods: rivals, then `network/objective`.

    Raises:
        UserError: an unknown name, a rival that is not installed, or an objective that does not fit the task.
    """
    networks = list(NETWORKS) if args.networks == ["all"] else args.networks
    chosen = [reweighting] if reweighting != "none" else []
    default = list(dict.fromkeys(["erm", *chosen, "focal", "class_weights"]))
    objectives = default if args.objectives is None else args.objectives
    rivals = {"all": [name for name in RIVALS if is_installed(name)], "none": []}.get(
        args.rivals[0] if len(args.rivals) == 1 else "", args.rivals
    )
    for kind, given, known in (
        ("networks", networks, NETWORKS),
        ("objectives", objectives, OBJECTIVES),
        ("rivals", rivals, RIVALS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UserError(f"unknown --{kind} {listed(unknown)}: choose among {listed(known)}.")
    absent = [name for name in rivals if not is_installed(name)]
    if absent:
        raise UserError(f"not installed: {listed(absent)}. pip install them, or choose other --rivals.")
    if is_regression:
        if args.objectives and set(args.objectives) & set(FOR_CLASSES_ONLY):
            raise UserError(f"{listed(FOR_CLASSES_ONLY)} need classes, but this is a regression.")
        objectives = [name for name in objectives if name not in FOR_CLASSES_ONLY]
    return [*rivals, *(f"{network}/{objective}" for network in networks for objective in objectives)]


class Study:
    """Runs what is not yet in the output directory.

    Args:
        study: methods and seeds.
        networks: sizes of the networks.
        columns: what the user says about the columns.
        training: training arguments that all networks share; `output_dir` is the study's directory.
    """

    def __init__(
        self,
        study: StudyArguments,
        networks: NetworkArguments,
        columns: ColumnArguments,
        training: ReweightedTrainingArguments,
    ):
        self.study = study
        self.networks = networks
        if {"ft_transformer", "all"} & set(study.networks) and (networks.d_block or 0) % ATTENTION_HEADS:
            raise UserError(
                f"--d_block must be a multiple of the FT-Transformer's {ATTENTION_HEADS} attention heads, not "
                f"{networks.d_block}."
            )
        self.columns = columns
        self.training = training
        self.directory = Path(str(training.output_dir))
        self.records: list[dict[str, Any]] = []

    def start(self, settings: Mapping[str, Any]) -> None:
        """Read what earlier runs left; `settings` are those that decide what a run gives.

        Raises:
            UserError: the directory holds runs with other settings.
        """
        problem = None
        if PartialState().is_main_process:
            problem = self._open(json.loads(json.dumps(settings, default=str)))
        problem, self.records = broadcast_object_list([problem, self.records])
        if problem is not None:
            raise UserError(problem)

    def _open(self, settings: dict[str, Any]) -> str | None:
        runs, before = self.directory / RUNS_NAME, self.directory / SETTINGS_NAME
        if self.directory.exists() and not self.directory.is_dir():
            return f"the output directory {self.directory} is a file. Choose another --output_dir."
        if self.study.overwrite_output_dir:
            for path in (runs, *self.directory.glob(f"*/*/{HARD_EXAMPLES}.*")):
                path.unlink(missing_ok=True)
        if runs.is_file():
            self.records = read_runs(runs)
        if self.records and before.is_file():
            old = json.loads(before.read_text(encoding="utf-8"))
            changed = [name for name in sorted({*old, *settings}) if old.get(name) != settings.get(name)]
            if changed:
                details = "; ".join(f"{n}: {old.get(n)!r}, now {settings.get(n)!r}" for n in changed)
                return (
                    f"{self.directory} holds runs with other settings ({details}). Choose another --output_dir, or "
                    "give --overwrite_output_dir to discard them."
                )
        write_json(before, settings)
        return None

    def run(self, table: Table) -> None:
        """Run all methods with all seeds on one table."""
        say("", f"{table.name}: {len(table.frame):,} rows")

        def warn(message: str) -> None:
            say(f"  warning: {message}")

        columns = choose_columns(table.frame, table.target, self.columns, warn)
        frame, target = find_target(table.frame, table.target, self.columns, warn)
        if target.is_regression and self.training.label_smoothing_factor:
            raise UserError("--label_smoothing_factor smooths classes, but this is a regression.")
        y = target.encode(frame[table.target])
        if table.max_rows:
            frame, y = limit_rows(frame, y, target, table.max_rows, self.study.split_seed)
        kinds = [column["kind"] for column in columns]
        described = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        task = "regression" if target.is_regression else f"{len(target.classes)} classes"
        say(f"  predicting {target.name!r} ({task}) of {len(frame):,} rows from {described} columns")
        prepared = PreparedTable(
            table.name,
            frame,
            y,
            target,
            columns,
            self.study.test_size,
            self.study.validation_size,
            self.study.split_seed,
        )
        self._check_earlier_runs(table.name, table.target)
        methods = methods_of(self.study, self.training.reweighting, target.is_regression)
        if self.study.hard_examples:
            self._say_what_is_not_listed(table.name, methods)
        for seed, todo in self._unfinished(table.name, methods):
            splits = with_label_noise(prepared.split(seed), self.study.label_noise)
            for method in todo:
                settings = self._tuned(method, prepared) if self.study.tune else {}
                self._add(self._run(prepared, method, splits, settings))

    def _check_earlier_runs(self, data: str, target: str) -> None:
        for record in self.records:
            before = record.get("target", target)
            if record["data"] == data and before != target:
                raise UserError(
                    f"{self.directory} holds runs of a table {data!r} with the target {before!r}, not {target!r}. "
                    "Choose another --output_dir, or give --overwrite_output_dir to discard them."
                )

    def _say_what_is_not_listed(self, data: str, methods: Sequence[str]) -> None:
        seed = self.study.first_seed
        done = {r["method"] for r in self.records if (r["data"], r["seed"]) == (data, seed)}
        names = [method for method in methods if method in done and method not in RIVALS]
        if names:
            say(
                f"  no new list of hard examples for {listed(names)}: what they weighed is known only while they train, "
                f"and seed {seed} was trained before. --overwrite_output_dir, or another --output_dir, trains anew."
            )

    def _unfinished(self, data: str, methods: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        done = {(r["method"], r["seed"]) for r in self.records if r["data"] == data}
        for seed in range(self.study.first_seed, self.study.first_seed + self.study.seeds):
            todo = [method for method in methods if (method, seed) not in done]
            if todo:
                yield seed, todo

    def _run(
        self, table: PreparedTable, method: str, splits: Splits, settings: dict[str, Any]
    ) -> dict[str, Any]:
        started, data = time.perf_counter(), table.name
        if method in RIVALS:
            test, details = self._fit_rival(method, splits, settings), dict[str, Any]()
        else:
            first = splits.seed == self.study.first_seed
            record_examples = first and self.study.hard_examples > 0
            trained = self._train(method, splits, settings, record_examples)
            main = main_score(splits.target.is_regression)
            validation = better_is_larger(main, trained.validation_score)
            test = trained.test
            details = {"best_epoch": round(trained.best_epoch), f"validation_{main}": round(validation, 6)}
            directory = self.directory / data / method.replace("/", "_")
            if self.study.save_models and first:
                self._save(directory, data, method, trained)
            if record_examples:
                names = shown_columns(table.frame, table.columns, self.columns)
                list_hard_rows(trained, self.study.hard_examples, table, splits, names, method, directory)
            if self.study.save_predictions and PartialState().is_main_process:
                of_seed = directory.with_name(f"{directory.name}_seed{splits.seed}")
                write_predictions(splits, test, of_seed)
                trained.trainer.state.save_to_json(str(of_seed / "trainer_state.json"))
                if not splits.target.is_regression:
                    counts = np.bincount(splits.train.y, minlength=len(splits.target.classes))
                    details["train_class_counts"] = counts.tolist()
        found = {} if test is None else scores(splits.test.y, test, splits.target.is_regression)
        record = {
            "data": data,
            "target": splits.target.name,
            "method": method,
            "seed": splits.seed,
            **{name: round(value, 6) for name, value in found.items()},
            "seconds": round(time.perf_counter() - started, 2),
            **details,
            **({"tuned": settings} if self.study.tune else {}),
        }
        return broadcast_object_list([record])[0]

    def _tuned(self, method: str, prepared: PreparedTable) -> dict[str, Any]:
        for record in self.records:
            if record["data"] == prepared.name and record["method"] == method:
                return record["tuned"]
        # Always on seed 0, so that all seeds share the settings; its test rows are those of every seed.
        splits = with_label_noise(prepared.split(0), self.study.label_noise)

        def validation_score(settings: dict[str, Any]) -> float:
            if method not in RIVALS:
                return self._train(method, splits, settings).validation_score
            predicted = self._fit_rival(method, splits, settings, on="validation")
            if predicted is None:
                return 0.0
            name = main_score(splits.target.is_regression)
            found = scores(splits.validation.y, predicted, splits.target.is_regression)
            return better_is_larger(name, found[name])

        return broadcast_object_list([tune(method, validation_score, self.study.tune)])[0]

    def _fit_rival(
        self, method: str, splits: Splits, settings: dict[str, Any], on: str = "test"
    ) -> np.ndarray | None:
        # These libraries know nothing of processes: the main one fits.
        if not PartialState().is_main_process:
            return None
        return RIVALS[method](splits, settings, splits.seed)(getattr(splits, on))

    def _train(
        self, method: str, splits: Splits, settings: dict[str, Any], record_examples: bool = False
    ) -> TrainedNetwork:
        network, name = method.split("/")
        objective = Objective(
            name,
            tau=settings.get("tau", self.training.tau),
            gamma=settings.get("gamma", self.training.focal_gamma),
            label_smoothing=self.training.label_smoothing_factor,
        )
        sizes = {n: settings[n] for n in ("n_blocks", "d_block", "dropout") if n in settings}
        changes = {n: settings[n] for n in ("learning_rate", "weight_decay") if n in settings}
        args = with_changes(self.training, seed=splits.seed, **changes)
        return train_network(
            splits,
            network,
            objective,
            replace(self.networks, **sizes),
            args,
            count_weights=self.study.save_predictions,
            record_examples=record_examples,
        )

    def _save(self, directory: Path, data: str, method: str, trained: TrainedNetwork) -> None:
        trained.trainer.save_model(str(directory))
        write_card(trained.trainer, directory, data, method)

    def _add(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if PartialState().is_main_process:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / RUNS_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        name = "rmse" if "rmse" in record else "accuracy"
        say(
            f"  seed {record['seed']:2d}  {record['method']:28s} {name} {record[name]:.4f}  "
            f"({record['seconds']:.1f} s)"
        )


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The records of a `runs.jsonl`; a last line that a killed process left unfinished is cut off."""
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number + 1 < len(lines):
                raise UserError(f"{path}, line {number + 1} is no JSON: {error}") from error
            path.write_text("".join(f"{kept}\n" for kept in lines[:-1]), encoding="utf-8")
    return records


def deciding_settings(*groups: Any) -> dict[str, Any]:
    """The options that decide what a run gives; those that say which runs there are may change."""
    which = {"networks", "objectives", "rivals", "seeds", "first_seed", "overwrite_output_dir", "save_models"}
    which |= {"save_predictions", "hard_examples"}
    found = {name: value for group in groups for name, value in asdict(group).items() if name not in which}
    return {name: value for name, value in found.items() if name != "label_noise" or value}
