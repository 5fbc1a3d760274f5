"""The model card of a re-weighted run: what the Trainer writes, and how the losses were weighted."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, HfApi, ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.modelcard import TASK_TAG_TO_NAME_MAPPING

from rgd_hf.description import describe_weights, settings_in_use
from rgd_hf.heads import without_peft
from rgd_hf.hub.evaluated_sets import EvaluatedSetsMixin
from rgd_hf.hub.loading_snippet import find_task, loading_snippet, quoted, resized_vocabulary
from rgd_hf.hub.scores import Score, last_scores
from rgd_hf.loss_sources import OverriddenLosses
from rgd_hf.weightings import Weighting

TAGS = ["rgd-hf", "distributionally-robust-optimization"]

STATISTICS = {
    "weight_mean": "mean weight",
    "weight_max": "largest weight",
    "effective_sample_size": "effective sample size, as a fraction of the items",
    "clipped_fraction": "fraction of the items with a loss above tau",
    "unweighted_loss": "mean loss without weights",
}

_HEADING = re.compile(r"(?m)^(?=## )")
_ORIGIN = re.compile(r"This model (?:was trained from scratch|is a fine-tuned version of \[.*?\]\(.*?\))")
_LOCAL_ORIGIN = "is fine-tuned from a local checkpoint"
_STOCK_RESULTS = re.compile(r"(?m)^It achieves the following results on the evaluation set:\n(?:- .*\n)*")
_TITLE = re.compile(r"(?m)^# .*$")
_FOLDER = "`{}` is the folder of this file; give its path."
_BASE = "path/to/"
_BASE_FOLDER = "`{}` is the folder of the base model; give its path."
_EMPTY_RESULTS = re.compile(r"(?m)^### Training results\n\s*(?=^###)")


class ModelCardMixin(EvaluatedSetsMixin):
    """Adds to the Trainer's model card how the losses were weighted, how the model is loaded, and what to cite."""

    if TYPE_CHECKING:
        # Of the ReweightingMixin that derives from this class.
        weighting: Weighting
        weigh_override: str | None

        @property
        def unreduces_losses(self) -> bool: ...  # noqa: D102

        def _bare_model(self) -> nn.Module: ...
        def _level(self) -> str: ...
        def _loss_source(self) -> Any: ...

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        revision: str | None = None,
        **base_class_arguments: Any,
    ) -> None:
        """Write `README.md` into the output directory, on the first process alone; `push_to_hub` calls it.

        Args:
            language: language of the data, e.g. `"en"`.
            license: license of the model; by default that of the base model, if it comes from the Hub.
            tags: further tags, besides `rgd-hf`, `distributionally-robust-optimization` and those of the Trainer.
            model_name: name of the model; by default that of the repository, if known, else of the output directory.
            finetuned_from: base model; by default the repository on the Hub that the model was loaded from, if any.
            tasks: task or tasks; by default that of the model's head.
            dataset_tags: identifiers of data sets on the Hub; required for the metrics to be in the card's metadata.
            dataset: display names of the data sets; by default the identifiers.
            dataset_args: configuration of each data set, e.g. `"mrpc"`.
            revision: branch of the repository that the code on the card loads; by default `args.hub_revision`.
            **base_class_arguments: arguments that a Trainer class between has, such as TRL's `dataset_name`.
        """
        if not self.is_world_process_zero():
            return
        model = without_peft(self._bare_model())
        task = find_task(model)
        is_adapter = isinstance(getattr(self._bare_model(), "peft_config", None), Mapping)
        origin = finetuned_from or (self._base_of_adapter() if is_adapter else None) or _origin(model)
        base_model = origin if is_on_hub(origin) else None
        config: Any = getattr(model, "config", None)
        # Not by class: transformers' class of these configurations imports timm.
        if getattr(config, "model_type", None) == "timm_wrapper" and base_model is not None:
            license = license or (config.pretrained_cfg or {}).get("license")
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        tags = [*tags, *(tag for tag in TAGS if tag not in tags)]
        model_name = model_name or self._card_title()
        given = {
            "language": language,
            "license": license,
            "model_name": model_name,
            "tasks": tasks,
            "dataset": dataset,
            "dataset_args": dataset_args,
            **base_class_arguments,
        }
        given = {name: value for name, value in given.items() if value is not None} | {"tags": [*tags]}
        tasks = tasks or (task.pipeline if task else None)
        # The Trainer's own guesses are "the None dataset" for data in memory, and a model called "" for a new one.
        guesses = {"tasks": tasks, "dataset_tags": dataset_tags or [], "finetuned_from": base_model or ""}
        known = signature(super().create_model_card).parameters
        given |= {name: value for name, value in guesses.items() if name in known}
        by_trl = "dataset_name" in known  # its Trainers have a shorter list
        name_of_data = dataset if isinstance(dataset, str) else ", ".join(dataset or ())
        if by_trl and name_of_data:
            given.setdefault("dataset_name", name_of_data)
        for name in ("language", "license", "tasks", "dataset", "dataset_args"):
            if name not in known:
                given.pop(name, None)
        super().create_model_card(**given)

        path = Path(str(self.args.output_dir)) / "README.md"
        card = ModelCard.load(path)
        data = card.data
        data.library_name = "peft" if is_adapter else "transformers"
        # PEFT replaces the tags that were there, and names the base model in one, even if it is a folder.
        kept = (t for t in data.tags or [] if not t.startswith("base_model:") or t.endswith(f":{base_model}"))
        data.tags = list(dict.fromkeys([*kept, *tags]))
        data.base_model = base_model
        if by_trl:
            data.pop("licence", None)  # a placeholder
            license = license or _license_of(base_model)
            if name_of_data and given["dataset_name"] == name_of_data:  # taken for a repository's
                data.datasets = dataset_tags
                link = f"[{name_of_data}](https://huggingface.co/datasets/{name_of_data})"
                card.text = card.text.replace(link, name_of_data)
        data.language, data.license = data.language or language, data.license or license
        if data.pipeline_tag is None and task is not None:
            data.pipeline_tag = task.pipeline
        scores = last_scores(self)
        data.eval_results = self._eval_results(scores, tasks, dataset_tags, dataset, dataset_args) or None
        data.model_name = model_name if data.eval_results else None
        data.metrics = sorted({score.identifier for score in scores if score.key != "loss"}) or None
        card.text = self._card_text(card.text, origin, scores, is_adapter, revision)
        card.save(path)

    def _folder(self) -> str:
        return Path(str(self.args.output_dir)).resolve().name

    def _card_title(self) -> str:
        repository = self.hub_model_id or self.args.hub_model_id
        return repository.split("/")[-1] if repository else self._folder()

    def _base_of_adapter(self) -> str | None:
        """The base model that the configuration of a PEFT adapter names, a repository or a folder; None if there is none."""
        return next(iter(self._bases_of_adapters().values()), None)

    def _bases_of_adapters(self) -> dict[str, str]:
        """The base model that the saved configuration of each PEFT adapter names, by the adapter's name."""
        configs = getattr(self._bare_model(), "peft_config", None)
        if not isinstance(configs, Mapping):
            return {}
        # PEFT fills in what an adapter that was added later does not name.
        origin = _origin(without_peft(self._bare_model()))
        named = {
            name: getattr(config, "base_model_name_or_path", None) or origin
            for name, config in configs.items()
        }
        return {name: base for name, base in named.items() if base}

    def _eval_results(
        self, scores: list[Score], tasks: Any, tags: Any, names: Any, configs: Any
    ) -> list[EvalResult]:
        """The finite scores as metadata, where the task and the one data set they belong to are known."""
        task, tag, name, config = (_only(value) for value in (tasks, tags, names, configs))
        if task is None or tag is None:
            return []
        return [
            EvalResult(
                task_type=task,
                task_name=TASK_TAG_TO_NAME_MAPPING.get(task),
                dataset_type=tag,
                dataset_name=name or tag,
                dataset_config=config,
                dataset_split=score.split,
                metric_type=score.identifier,
                metric_name=score.name,
                metric_value=score.value,
            )
            for score in scores
            if isinstance(score.value, (int, float)) and math.isfinite(score.value)
        ]

    def _card_text(
        self, text: str, origin: str, scores: list[Score], is_adapter: bool, revision: str | None
    ) -> str:
        if is_on_hub(origin):
            sentence = f"This model is a fine-tuned version of [{origin}]({_page(origin)})"
        else:
            sentence = "This model " + (_LOCAL_ORIGIN if origin else "was trained from scratch")
        text = _ORIGIN.sub(lambda _: sentence, text, count=1)
        for replaced in (_STOCK_RESULTS, _EMPTY_RESULTS):
            text = replaced.sub("", text)
        head, *sections = _HEADING.split(text)
        sections = [section for section in sections if not _is_empty(section)]
        ours = [self._usage(origin, is_adapter, revision), _evaluation(scores), self._reweighting()]
        citations = "\n\n".join(dict.fromkeys(self.weighting.citations()))
        cited = [f"## Citation of the method\n\n```bibtex\n{citations}\n```"] if citations else []
        parts = [head, *filter(None, ours), *sections, *cited]
        return "\n\n".join(part.strip("\n") for part in parts) + "\n"

    def _usage(self, origin: str, is_adapter: bool, revision: str | None) -> str:
        repository = self.hub_model_id or self.args.hub_model_id
        name = repository or self._folder()
        has_processor = (
            self.processing_class is not None or getattr(self.data_collator, "tokenizer", None) is not None
        )
        model, base = without_peft(self._bare_model()), origin if is_adapter else None
        notes = [] if repository else [_FOLDER.format(name)]
        vocabulary = resized_vocabulary(model, [origin, _origin(model)]) if is_adapter else None
        if base and not is_on_hub(base):
            base = f"{_BASE}{Path(base).name}"
            notes.append(_BASE_FOLDER.format(base))
        code = loading_snippet(
            model,
            name,
            has_processor,
            base,
            self._reads_pairs(),
            is_repository=bool(repository),
            revision=revision or self.args.hub_revision if repository else None,
            vocabulary=vocabulary,
        )
        return "## How to use\n\n" + "".join(f"{note}\n\n" for note in notes) + f"```python\n{code}\n```"

    def _reads_pairs(self) -> bool:
        """Whether rows of the data are two texts each: the tokenizer then puts more special tokens into them."""
        tokenizer: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        data: Any = self.train_dataset if self.train_dataset is not None else self.eval_dataset
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not hasattr(data, "__getitem__"):
            return False
        one, two = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
        if isinstance(data, Mapping) or two <= one or not len(data) or "input_ids" not in data[0]:
            return False
        around = {
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        }
        rows = [data[i]["input_ids"] for i in range(min(8, len(data)))]
        return all(sum(int(token) in around for token in row) >= two for row in rows)

    def _reweighting(self) -> str:
        args: Any = self.args
        un_reduced = self.unreduces_losses  # else the model's own loss, untouched
        item = self._level() if un_reduced else "sample"
        prose = describe_weights(args, self.weighting, item, self.weigh_override)
        settings = settings_in_use(args, self.weighting)
        settings["reweighting_level"] = item
        if not un_reduced:
            del settings["reweighting_level"]
        shown = {f"`{name}`": f"`{value}`" for name, value in settings.items() if value is not None}
        function, source = getattr(self, "per_sample_loss_fn", None), self._loss_source()
        if isinstance(source, OverriddenLosses):
            shown["losses"] = f"of the method `{source.name}`"
        elif function is not None:
            shown["losses"] = f"of the function `{getattr(function, '__name__', type(function).__name__)}`"
        section = f"## Re-weighting\n\n{prose}\n\n{_table('Setting', 'Value', shown)}"
        return "\n\n".join(filter(None, [section, _end_of_training(self.state.log_history)]))


def name_repository(
    path: Path, repository: str, base_model: str | None = None, revision: str | None = None
) -> None:
    """Let a card that `create_model_card` wrote, for a folder or a repository, be that of a repository on the Hub.

    Args:
        path: the card; it is overwritten.
        repository: `owner/name`; becomes the title, the name of the results, and what the code loads.
        base_model: name on the Hub of an adapter's base model, which the card may know as a folder.
        revision: branch that the code loads; None for the main one.
    """
    card = ModelCard.load(path)
    title = repository.split("/")[-1]
    text = _TITLE.sub(lambda _: f"# {title}", card.text, count=1)
    text = _put_name(text, _FOLDER, repository)
    place = rf'"{re.escape(repository)}"(, revision="[^"]*")?'
    text = re.sub(place, lambda _: quoted(repository, revision), text)
    if base_model is not None:
        text = _put_name(text, _BASE_FOLDER, base_model)
        sentence = _LOCAL_ORIGIN, f"is a fine-tuned version of [{base_model}]({_page(base_model)})"
        text = text.replace(*sentence, 1)
        card.data.base_model = base_model
    card.text = text
    if card.data.eval_results:
        card.data.model_name = title
    card.save(path)


def _put_name(text: str, note: str, name: str) -> str:
    """Replace a folder that a note in a card's text explains by a name on the Hub, and take the note out."""
    found = re.search(re.escape(note).replace(r"\{\}", "(.+?)") + r"\n+", text)
    if found is None:
        return text
    text = text.replace(found.group(0), "", 1)
    # The folder's name stands in the code alone, or before a file's.
    return re.sub(rf'"{re.escape(found.group(1))}(?=["/])', lambda _: f'"{name}', text)


def _end_of_training(log_history: list[dict[str, Any]]) -> str:
    """The weights between the last two training logs."""
    logs = [entry for entry in log_history if "weight_mean" in entry]
    if not logs:
        return ""
    first = logs[-2]["step"] + 1 if len(logs) > 1 else 1
    shown = {name: f"{logs[-1][key]:.4g}" for key, name in STATISTICS.items() if key in logs[-1]}
    last = logs[-1]["step"]
    steps = f"step {last}" if first == last else f"steps {first} to {last}"
    title = f"Weights at the end of training ({steps}):"
    return f"{title}\n\n{_table('Statistic', 'Value', shown)}"


def _evaluation(scores: list[Score]) -> str:
    rows = {
        score.name + (f" ({score.evaluated_on})" if score.evaluated_on else ""): (
            f"{score.value:.4f}" if isinstance(score.value, float) else str(score.value)
        )
        for score in scores
    }
    return f"## Evaluation results\n\n{_table('Metric', 'Value', rows)}" if rows else ""


def _table(left: str, right: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines)


def _is_empty(section: str) -> bool:
    """Whether a section of the base card says nothing, or shows a call that the one above it replaces."""
    title, _, body = section.partition("\n")
    return body.strip() == "More information needed" or title == "## Quick start"


def _origin(model: nn.Module) -> str:
    """Where the weights were loaded from: a repository, a folder, or an empty string for new ones."""
    return getattr(getattr(model, "config", None), "_name_or_path", None) or ""


def _license_of(base_model: str | None) -> str | None:
    """The licence that a repository on the Hub states, where it can be asked."""
    if base_model is not None:
        with suppress(Exception):
            card = HfApi().model_info(base_model).card_data
            return None if card is None else card.license
    return None


def _page(name: str) -> str:
    return f"https://huggingface.co/{name}"


def is_on_hub(name: str) -> bool:
    """Whether `name` can be that of a repository on the Hub, and is no folder here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _only(value: Any) -> str | None:
    """The one element of a string or a list of one."""
    values = [value] if isinstance(value, str) else list(value or [])
    return values[0] if len(values) == 1 else None
