"""The Python code that loads a trained model and calls it once, for its model card."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto


class Task(NamedTuple):
    """A task of the Hub: the auto class of its models, and how its pipeline is called.

    Attributes:
        auto_class: name of the auto class in `transformers`.
        model_names: class names of the task's models, by model type.
        pipeline: name of the task for `pipeline(...)` and `pipeline_tag`; None where transformers has no pipeline.
        imports: import lines that the call needs.
        argument: Python expression for the call's argument, in which `model` is the pipeline.
        pair_argument: the same for a model that reads pairs of texts.
    """

    auto_class: str
    model_names: Any
    pipeline: str | None = None
    imports: tuple[str, ...] = ()
    argument: str = ""
    pair_argument: str = ""


_SENTENCE = '"A sentence of your own."'
_IMAGE = 'Image.new("RGB", (224, 224))'

TASKS = [
    Task(
        "AutoModelForSequenceClassification",
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "text-classification",
        argument=_SENTENCE,
        pair_argument='{"text": "A sentence of your own.", "text_pair": "Another sentence."}',
    ),
    Task(
        "AutoModelForImageClassification",
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "image-classification",
        ("from PIL import Image",),
        _IMAGE,
    ),
    Task(
        "AutoModelForAudioClassification",
        auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
        "audio-classification",
        ("import numpy as np",),
        "np.zeros(model.feature_extractor.sampling_rate, dtype=np.float32)",
    ),
    Task(
        "AutoModelForTokenClassification",
        auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "token-classification",
        argument=_SENTENCE,
    ),
    Task(
        "AutoModelForMaskedLM",
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "fill-mask",
        argument='f"A {model.tokenizer.mask_token} of your own."',
    ),
    Task(
        "AutoModelForCausalLM",
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "text-generation",
        argument='"Once upon a time", max_new_tokens=20',
    ),
    Task(
        "AutoModelForSemanticSegmentation",
        auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        "image-segmentation",
        ("from PIL import Image",),
        _IMAGE,
    ),
    Task("AutoModelForSeq2SeqLM", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
    Task("AutoModelForQuestionAnswering", auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    Task("AutoModelForMultipleChoice", auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES),
    Task("AutoModelForVideoClassification", auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES),
    Task("AutoModelForCTC", auto.MODEL_FOR_CTC_MAPPING_NAMES),
    Task("AutoModelForSpeechSeq2Seq", auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES),
]
"""The tasks whose models an auto class loads, first match first."""


_LABELLED = ("Classification", "Segmentation", "Detection")
# Code with the names of a thousand classes cannot be read; the number of classes is enough to load the weights.
_NAMES_SHOWN = 30


def find_task(model: nn.Module) -> Task | None:
    """The task of `model` (unwrapped, no adapter), or None where no auto class of `TASKS` loads it."""
    name = type(model).__name__
    for task in TASKS:
        for listed in task.model_names.values():
            if name == listed or (isinstance(listed, (list, tuple)) and name in listed):
                return task
    return None


def loading_snippet(
    model: nn.Module,
    name: str,
    has_processor: bool,
    adapter_of: str | None = None,
    pairs: bool = False,
    is_repository: bool = False,
    revision: str | None = None,
    vocabulary: int | None = None,
) -> str:
    """Python code that loads the model called `name` and, where its task has a pipeline, calls it.

    Args:
        model: the trained model, unwrapped, no adapter.
        name: repository on the Hub, or folder.
        has_processor: whether its tokenizer, image processor or feature extractor is saved with it.
        adapter_of: name of the base model where `name` holds a PEFT adapter.
        pairs: whether it was trained on pairs of texts.
        is_repository: whether `name` is a repository.
        revision: branch of the repository that the model is on; None for the main one.
        vocabulary: number of embeddings that the base model is resized to before the adapter is loaded; None for its own.

    Returns:
        Lines of code, without a fence.
    """
    task = find_task(model)
    place = quoted(name, revision)
    # The configuration of a timm model says how images are prepared.
    has_pipeline = has_processor or _is_timm(model)
    if adapter_of is not None:
        lines = _load_adapter(model, task, place, adapter_of, vocabulary)
    elif task is not None and task.pipeline is not None and has_pipeline:
        return "\n".join(
            [
                *task.imports,
                "from transformers import pipeline",
                "",
                f'model = pipeline("{task.pipeline}", model={place}{_all_labels(model)})',
                f"print(model({task.pair_argument or task.argument if pairs else task.argument}))",
            ]
        )
    elif isinstance(model, PreTrainedModel):
        lines = _load_model(model, task, place)
    else:
        lines = _load_weights(model, name, place, is_repository)
    if has_processor:
        lines = ["from transformers import AutoProcessor", *lines]
        lines.append(f"processor = AutoProcessor.from_pretrained({place})")
    return "\n".join(lines)


def quoted(name: str, revision: str | None) -> str:
    """A model's name as the code has it, with the argument that names its branch where that is not the main one."""
    return f'"{name}"' + (f', revision="{revision}"' if revision not in (None, "main") else "")


def _all_labels(model: nn.Module) -> str:
    several = getattr(model.config, "problem_type", None) == "multi_label_classification"
    return ", top_k=None" if several else ""


def _load_weights(model: nn.Module, name: str, place: str, is_repository: bool) -> list[str]:
    file, imports = f'"{name}/model.safetensors"', []
    if is_repository:
        file = f'hf_hub_download(filename="model.safetensors", repo_id={place})'
        imports = ["from huggingface_hub import hf_hub_download"]
    return [
        *imports,
        "from safetensors.torch import load_file",
        "",
        f"weights = load_file({file})  # for {type(model).__name__}.load_state_dict",
    ]


def _load_model(model: nn.Module, task: Task | None, place: str) -> list[str]:
    module, cls = (
        ("transformers", task.auto_class) if task else (type(model).__module__, type(model).__name__)
    )
    if module.startswith("transformers."):
        module = "transformers"
    return [f"from {module} import {cls}", "", f"model = {cls}.from_pretrained({place})"]


def _load_adapter(
    model: nn.Module, task: Task | None, place: str, base: str, vocabulary: int | None
) -> list[str]:
    cls = task.auto_class if task else type(model).__name__
    config: Any = model.config
    head, notes = _head_of(config, cls), []
    if "num_labels" in head and _are_named(config):
        labels = f"those of these {config.num_labels} go into base.config.id2label"
        notes = [f"# An adapter has no names of classes: {labels}."]
    return [
        "from peft import PeftModel",
        f"from transformers import {cls}",
        "",
        f'base = {cls}.from_pretrained("{base}"{head})',
        *notes,
        *([] if vocabulary is None else [f"base.resize_token_embeddings({vocabulary})"]),
        f"model = PeftModel.from_pretrained(base, {place})",
    ]


def _head_of(config: Any, cls: str) -> str:
    """Arguments that give the base model the head of the trained one: an adapter's files do not say what it is."""
    if "CTC" in cls:
        return f", vocab_size={config.vocab_size}, ignore_mismatched_sizes=True"
    if not any(kind in cls for kind in _LABELLED):
        return ""
    names = config.id2label
    labels = f", num_labels={config.num_labels}"
    if _are_named(config) and len(names) <= _NAMES_SHOWN:
        labels = f", id2label={names!r}, label2id={config.label2id!r}"
    return f"{labels}, ignore_mismatched_sizes=True"


def _are_named(config: Any) -> bool:
    return any(name != f"LABEL_{number}" for number, name in config.id2label.items())


def _is_timm(model: nn.Module) -> bool:
    # Not by class: transformers' class of these configurations imports timm.
    return getattr(getattr(model, "config", None), "model_type", None) == "timm_wrapper"


def resized_vocabulary(model: nn.Module, bases: Iterable[str]) -> int | None:
    """The number of a model's token embeddings, if its base model has another, or is not here to be asked.

    Args:
        model: the trained model, unwrapped, no adapter.
        bases: names or folders under which the configuration of its base model may be on this machine.

    Returns:
        The number; None if the model has no token embeddings, or as many as its base.
    """
    config: Any = getattr(model, "config", None)
    size = (
        getattr(config.get_text_config(), "vocab_size", None)
        if isinstance(config, PreTrainedConfig)
        else None
    )
    if size is None or not _embeds(model, size):
        return None
    for base in filter(None, bases):
        with suppress(Exception):  # whatever is wrong with it, the next is asked
            before = type(config).from_pretrained(base, local_files_only=True).get_text_config().vocab_size
            return None if before == size else size
    return size


def _embeds(model: nn.Module, size: int) -> bool:
    """Whether the model's inputs are embedded by a table of that size: the vocabulary of some is that of their outputs."""
    with suppress(NotImplementedError, AttributeError):
        weight: Any = model.get_input_embeddings().weight  # type: ignore[operator]
        return weight.ndim == 2 and len(weight) == size
    return False
