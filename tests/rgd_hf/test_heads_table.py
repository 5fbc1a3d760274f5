"""Which head a model gets: the source of every class in the table computes that head's loss, and no other."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BeitConfig,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    XLMConfig,
)

from rgd_hf.heads import EXCLUDED, HEADS, VERIFIED_CLASSES, find_head

SMALL: dict[str, Any] = dict(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)

# --- the losses in the source of transformers -----------------------------------------------------------------------

_ALIGNED_TOKENS = (
    r"\w*loss = (loss_fct|loss_func|criterion|self\.mlm_loss_fct)\(\w+\.(view|reshape)\(-1, [\w.]+(\(-1\))?\), "
    r"labels\.(view|reshape)\(-1\)(\.to\(logits\.device\))?\)"
)
_CAUSAL = (
    r"loss = self\.loss_function\((logits=)?(lm_)?logits, (labels=)?labels, (vocab_size=)?"
    r"((self\.)?\w+|self\.lm_head\.out_features|self\.config(\.\w+)*|self\.config\.get_text_config\(\)\.vocab_size|logits\.shape\[-1\])"
    r"(, pad_token_id=self\.config\.pad_token_id)?, \*\*kwargs\)"
)
_ROUTER = r"(aux_loss = load_balancing_loss_func\(outputs\.router_logits, .*|loss \+= self\.[\w.]*aux_loss_coef \* aux_loss\.to\(loss\.device\))"
_ONE_OF_THE_LOSS_FUNCTION = r"loss = self\.loss_function\(.*\)"

KNOWN = {
    "masked language modelling": [
        _ALIGNED_TOKENS,
        r"loss = self\.loss_function\((logits=)?logits, (labels=)?labels, vocab_size=self\.config\.vocab_size, \*\*kwargs\)",
    ],
    "language modelling with labels that are not shifted": [
        _ALIGNED_TOKENS,
        r"loss_func = CrossEntropyLoss\(\)",
    ],
    "encoder-decoder language modelling": [
        _ALIGNED_TOKENS,
        r"loss = self\.loss_function\(.*, shift_labels=(shift_labels|labels|shift_labels if shift_labels is not None else labels), \*\*kwargs\)",
    ],
    "causal language modelling": [_CAUSAL, _ROUTER],
    "classification": [
        r"loss = loss_fct\((pooled_)?logits\.squeeze\(\), labels\.squeeze\(\)\)",
        r"loss = loss_fct\((pooled_)?logits, labels\)",
        r"loss = loss_fct\((pooled_)?logits\.view\(-1, [\w.]+\), labels\.view\(-1\)\)",
        _ONE_OF_THE_LOSS_FUNCTION,
    ],
    "single-label classification": [
        r"loss = loss_fct\(logits\.view\(-1, self\.config\.num_labels\), labels\.view\(-1\)\)"
    ],
    "token classification": [
        _ALIGNED_TOKENS,
        r"loss = loss_fct\(logits\.view\(batch_size \* seq_length, self\.num_labels\), labels\.view\(batch_size \* seq_length\)\)",
        r"loss = self\.loss_function\(logits, labels, self\.config\)",
    ],
    "extractive question answering": [
        r"(start|end)_loss = loss_fct\((start|end)_logits, (start|end)_positions\)",
        r"total_loss = \(start_loss \+ end_loss\) / 2",
        r"loss = self\.loss_function\(start_logits, end_logits, start_positions, end_positions(, \*\*kwargs)?\)",
    ],
    "multiple choice": [r"loss = loss_fct\(reshaped_logits, labels(\.view\(-1\))?\)"],
    "semantic segmentation": [
        r"loss = loss_fct\(upsampled_logits, labels\)",
        r"loss = self\.loss_function\((upsampled_)?logits, labels, ignore_index=self\.config\.semantic_loss_ignore_index\)",
    ],
}

READ_BY_HAND = {
    # Compared with the model's own loss in test_heads_equal_models.
    "BambaForCausalLM",
    "DebertaForSequenceClassification",
    "DebertaV2ForSequenceClassification",
    "Gemma3ForSequenceClassification",
    "Qwen3_5ForSequenceClassification",
    "SegformerForSemanticSegmentation",
    "SwitchTransformersForConditionalGeneration",
    "XLMRobertaXLForTokenClassification",
    # As the one above: what is not attended to has no label.
    "BioGptForTokenClassification",
    "BrosForTokenClassification",
    "MraForTokenClassification",
    "YosoForTokenClassification",
    # A `loss_function` of the masked kind, by their `loss_type`.
    "T5GemmaForConditionalGeneration",
    "T5Gemma2ForConditionalGeneration",
    # The loss is computed by a module that they call.
    "FlaubertWithLMHeadModel",
    "Kosmos2ForConditionalGeneration",
    "Kosmos2_5ForConditionalGeneration",
    "XLMWithLMHeadModel",
    # Logits of image tokens stand in front of those of the text.
    "GitForCausalLM",
    # Heads under a condition (see below).
    "BeitForSemanticSegmentation",
    "Blip2ForConditionalGeneration",
    "DPTForSemanticSegmentation",
    "Data2VecVisionForSemanticSegmentation",
    "InstructBlipForConditionalGeneration",
    "InstructBlipVideoForConditionalGeneration",
    "NllbMoeForConditionalGeneration",
    "UperNetForSemanticSegmentation",
}


def _classes() -> dict[str, ast.ClassDef]:
    root = Path(inspect.getfile(transformers)).parent
    files = [*root.glob("models/*/modeling_*.py"), root / "modeling_layers.py"]
    return {
        node.name: node
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    }


def _forward(name: str, classes: dict[str, ast.ClassDef]) -> ast.FunctionDef:
    for node in classes[name].body:
        if isinstance(node, ast.FunctionDef) and node.name == "forward":
            return node
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    return next(_forward(base, classes) for base in bases)


def _losses(forward: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(forward):
        if isinstance(node, ast.Assign | ast.AugAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if "loss" in ast.unparse(target) and ast.unparse(target) not in ("loss_fct", "active_loss"):
                yield ast.unparse(node)


def differing_losses(names: set[str]) -> list[tuple[str, str]]:
    """Lines of the classes' forwards that compute a loss other than that of their head in the table."""
    classes = _classes()
    found = []
    for name in sorted(names - READ_BY_HAND):
        known = [r"\w*loss = None", *KNOWN[HEADS[name].name]]
        losses = list(_losses(_forward(name, classes)))
        found += [(name, loss) for loss in losses if not any(re.fullmatch(k, loss) for k in known)]
        if not losses:
            found.append((name, "no loss"))
    return found


def test_the_source_of_every_class_that_was_read_computes_its_heads_loss() -> None:
    """New classes are no failure: users' are checked on the first batch, and `make test-latest` lists them."""
    different = differing_losses(set(HEADS) & VERIFIED_CLASSES)
    assert not different, "read them, then change KNOWN, READ_BY_HAND or EXCLUDED: " + "\n".join(
        map(str, different)
    )


def test_excluded_classes_are_listed_by_transformers_and_have_no_head() -> None:
    assert not EXCLUDED & set(HEADS)
    # Releases before the newest do not have all of them; one that none had would be a misspelling.
    missing = {name for name in EXCLUDED if not hasattr(transformers, name)}
    assert len(missing) < len(EXCLUDED) / 2, missing


# --- find_head ------------------------------------------------------------------------------------------------------


class _OwnForward(BertForSequenceClassification):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class _OwnMethod(BertForSequenceClassification):
    def helper(self) -> int:
        return 1


class _Renamed(_OwnMethod):
    pass


def test_a_class_of_the_user() -> None:
    config = BertConfig(**SMALL)
    assert find_head(_OwnForward(config)) is None
    assert find_head(_OwnMethod(config)) is HEADS["BertForSequenceClassification"]
    assert find_head(_Renamed(config)) is HEADS["BertForSequenceClassification"]
    assert find_head(nn.Linear(2, 2)) is None


def test_a_model_that_is_no_task_head_has_none() -> None:
    config = BertConfig(**SMALL)
    assert find_head(BertModel(config)) is None
    assert find_head(BertForPreTraining(config)) is None
    assert find_head(transformers.BertForNextSentencePrediction(config)) is None


def test_a_replaced_loss_function_has_no_head() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    assert find_head(model) is not None
    model.loss_function = lambda **kwargs: torch.zeros(())
    assert find_head(model) is None


@pytest.mark.parametrize(
    ("name", "with_head", "without"),
    [
        ("BeitForSemanticSegmentation", {"use_auxiliary_head": False}, {"use_auxiliary_head": True}),
        ("UperNetForSemanticSegmentation", {"use_auxiliary_head": False}, {"use_auxiliary_head": True}),
        (
            "Blip2ForConditionalGeneration",
            {"use_decoder_only_language_model": True},
            {"use_decoder_only_language_model": False},
        ),
        ("NllbMoeForConditionalGeneration", {"output_router_logits": False}, {"output_router_logits": True}),
        ("XLMWithLMHeadModel", {"asm": False}, {"asm": True}),
        (
            "ModernBertForMaskedLM",
            {"sparse_prediction": True, "sparse_pred_ignore_index": -100},
            {"sparse_prediction": True, "sparse_pred_ignore_index": -1},
        ),
    ],
)
def test_heads_under_a_condition(name: str, with_head: dict[str, Any], without: dict[str, Any]) -> None:
    cls = getattr(transformers, name)

    def model(settings: dict[str, Any]) -> Any:
        # Only the class and the config are looked at, and these models are slow to make.
        bare = cls.__new__(cls)
        nn.Module.__init__(bare)
        object.__setattr__(bare, "config", SimpleNamespace(**settings))
        return bare

    assert find_head(model(with_head)) is HEADS[name]
    assert find_head(model(without)) is None


def test_the_settings_that_conditions_read_exist() -> None:
    assert BeitConfig().use_auxiliary_head is True
    assert XLMConfig().asm is False
    assert transformers.NllbMoeConfig().output_router_logits is False
    assert transformers.ModernBertConfig().sparse_pred_ignore_index == -100
