"""The Python code that loads a trained model and calls it once, for its model card."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
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


def find_task(model: nn.Module) -> Task | None:
    """The task of `model` (unwrapped, no adapter), or None where no auto class of `TASKS` loads it."""
    name = type(model).__name__
    for task in TASKS:
        for listed in task.model_names.values():
            if name == listed or (isinstance(listed, (list, tuple)) and name in listed):
                return task
    return None


def loading_snippet(
    model: nn.Module, name: str, has_processor: bool, adapter_of: str | None = None, pairs: bool = False
) -> str:
    """Python code that loads the model called `name` and, where its task has a pipeline, calls it.

    Args:
        model: the trained model, unwrapped, no adapter.
        name: repository on the Hub, or folder.
        has_processor: whether its tokenizer, image processor or feature extractor is saved with it.
        adapter_of: name of the base model where `name` holds a PEFT adapter.
        pairs: whether it was trained on pairs of texts.

    Returns:
        Lines of code, without a fence.
    """
    task = find_task(model)
    # The configuration of a timm model says how images are prepared.
    has_pipeline = has_processor or _is_timm(model)
    if adapter_of is not None:
        lines = _load_adapter(model, task, name, adapter_of)
    elif task is not None and task.pipeline is not None and has_pipeline:
        return "\n".join(
            [
                *task.imports,
                "from transformers import pipeline",
                "",
                f'model = pipeline("{task.pipeline}", model="{name}"{_all_labels(model)})',
                f"print(model({task.pair_argument or task.argument if pairs else task.argument}))",
            ]
        )
    else:
        lines = _load_model(model, task, name)
    if has_processor:
        lines = ["from transformers import AutoProcessor", *lines]
        lines.append(f'processor = AutoProcessor.from_pretrained("{name}")')
    return "\n".join(lines)


def _all_labels(model: nn.Module) -> str:
    several = getattr(model.config, "problem_type", None) == "multi_label_classification"
    return ", top_k=None" if several else ""


def _load_model(model: nn.Module, task: Task | None, name: str) -> list[str]:
    if not isinstance(model, PreTrainedModel):
        return [
            "from safetensors.torch import load_file",
            "",
            f'weights = load_file("{name}/model.safetensors")  # for {type(model).__name__}.load_state_dict',
        ]
    module, cls = (
        ("transformers", task.auto_class) if task else (type(model).__module__, type(model).__name__)
    )
    if module.startswith("transformers."):
        module = "transformers"
    return [f"from {module} import {cls}", "", f'model = {cls}.from_pretrained("{name}")']


def _load_adapter(model: nn.Module, task: Task | None, name: str, base: str) -> list[str]:
    cls = task.auto_class if task else type(model).__name__
    config: Any = model.config
    labels = f", num_labels={config.num_labels}" if "Classification" in cls else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {cls}",
        "",
        f'base = {cls}.from_pretrained("{base}"{labels})',
        f'model = PeftModel.from_pretrained(base, "{name}")',
    ]


def _is_timm(model: nn.Module) -> bool:
    # Not by class: transformers' class of these configurations imports timm.
    return getattr(getattr(model, "config", None), "model_type", None) == "timm_wrapper"
