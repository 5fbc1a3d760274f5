"""Batches that are not the plain ones: kept logits, shifted labels, tuned prompts, soft labels, wrong labels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainer, rgd_surrogate
from rgd_hf.heads import Head, find_head, logits_of
from tests.helpers.head_oracle import (
    BATCH,
    CLASSES,
    TOKENS,
    VOCABULARY,
    assert_equals_own_loss,
    build,
    text_batch,
    token_labels,
)
from tests.helpers.recorded import RecordedMixin
from tests.helpers.tiny import gradients_of, parameters_of, relative_error


class Recorded(RecordedMixin, ReweightedTrainer):
    pass


def head_of(model: Any) -> Head:
    head = find_head(model)
    assert head is not None
    return head


def losses_and_valid(
    model: Any, inputs: dict[str, Any], label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    head = head_of(model)
    head.check(inputs, model.config)
    withheld = {*head.label_names, *head.optional_label_names}
    outputs = model(**{name: value for name, value in inputs.items() if name not in withheld})
    losses, valid = (
        head.losses(outputs, inputs, model.config, label_smoothing),
        head.valid(inputs, model.config),
    )
    assert losses.shape == valid.shape
    assert (losses[~valid] == 0).all()
    return losses, valid


# --- causal language models -----------------------------------------------------------------------------------------


def test_the_last_token_predicts_nothing_and_the_first_is_not_predicted() -> None:
    model = build("LlamaForCausalLM")
    inputs = text_batch(labels=torch.full((BATCH, TOKENS), 5))
    _, valid = losses_and_valid(model, inputs)
    assert valid.sum() == BATCH * (TOKENS - 1)
    assert not valid[:, -1].any()


def test_shift_labels_are_used_as_they_are() -> None:
    model = build("LlamaForCausalLM")
    inputs = text_batch(labels=token_labels(VOCABULARY))
    inputs["shift_labels"] = token_labels(VOCABULARY).roll(3, 1)
    assert_equals_own_loss(model, inputs)
    _, valid = losses_and_valid(model, inputs)
    assert (valid == (inputs["shift_labels"] != -100)).all()


def test_logits_to_keep_with_labels_of_the_kept_tokens() -> None:
    inputs = text_batch(labels=token_labels(VOCABULARY)[:, -6:])
    assert_equals_own_loss(build("LlamaForCausalLM"), {**inputs, "logits_to_keep": torch.arange(TOKENS)[-6:]})
    model = build("LlamaForCausalLM")
    kept, _ = losses_and_valid(model, {**inputs, "logits_to_keep": 6})
    last, _ = losses_and_valid(model, {**inputs, "logits_to_keep": torch.arange(TOKENS)[-6:]})
    torch.testing.assert_close(kept, last)


@pytest.mark.parametrize(
    ("keep", "positions"),
    [
        (0, slice(None)),
        (4, slice(-4, None)),
        (torch.tensor([1, 2, 7]), [1, 2, 7]),
        (torch.arange(TOKENS) > 6, slice(7, None)),
    ],
)
def test_logits_to_keep_with_labels_of_the_whole_sequence(keep: Any, positions: Any) -> None:
    model = build("LlamaForCausalLM")
    inputs = text_batch(labels=token_labels(VOCABULARY))
    everything, valid = losses_and_valid(model, inputs)
    kept, kept_valid = losses_and_valid(model, {**inputs, "logits_to_keep": keep})
    torch.testing.assert_close(kept, everything[:, positions])
    assert (kept_valid == valid[:, positions]).all()


def test_outputs_that_are_tuples() -> None:
    inputs = text_batch(labels=token_labels(VOCABULARY))
    model = build("MixtralForCausalLM")
    as_dict, _ = losses_and_valid(model, inputs)
    outputs = model(**text_batch(), return_dict=False)
    head = head_of(model)
    torch.testing.assert_close(head.losses(outputs, inputs, model.config, 0.0), as_dict)
    expected = head.auxiliary(model(**text_batch()), model.config, model)
    assert expected is not None
    torch.testing.assert_close(head.auxiliary(outputs, model.config, model), expected)


def test_no_router_logits_no_auxiliary_loss() -> None:
    model = build("MixtralForCausalLM", output_router_logits=False)
    assert head_of(model).auxiliary(model(**text_batch()), model.config, model) is None
    classifier = build("MixtralForSequenceClassification")
    assert head_of(classifier).auxiliary(classifier(**text_batch()), classifier.config, classifier) is None


def test_no_logits_is_an_error_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="use_liger_kernel=False"):
        logits_of({"logits": None})


# --- PEFT -----------------------------------------------------------------------------------------------------------


def _prompted(class_name: str, task: str, **overrides: Any) -> Any:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    config = PromptTuningConfig(task_type=task, num_virtual_tokens=3, **overrides)
    return get_peft_model(build(class_name), config).eval()


def _equals_own_loss_of_peft(model: Any, inputs: dict[str, Any]) -> None:
    own = model(**inputs).loss
    head = head_of(model)
    base = model.get_base_model()
    prepared = head.prepare(base, inputs)
    outputs = model(**{k: v for k, v in inputs.items() if k not in head.label_names}, **prepared)
    losses, valid = head.losses(outputs, inputs, base.config, 0.0), head.valid(inputs, base.config)
    assert losses.shape == valid.shape == inputs["labels"].shape
    assert (losses[~valid] == 0).all()
    torch.testing.assert_close(losses.sum() / valid.sum(), own, rtol=1e-6, atol=1e-7)


def test_prompt_tuning_predicts_the_first_token_too() -> None:
    labels = token_labels(VOCABULARY)
    labels[2, 0] = 7
    model = _prompted("LlamaForCausalLM", "CAUSAL_LM")
    assert head_of(model).valid(text_batch(labels=labels), model.config)[2, 0]
    _equals_own_loss_of_peft(model, text_batch(labels=labels))


def test_prompt_tuning_of_an_encoder_decoder() -> None:
    labels = token_labels(VOCABULARY)[:, :6].contiguous()
    try:
        model = _prompted("T5ForConditionalGeneration", "SEQ_2_SEQ_LM")
    except AttributeError as error:  # of PEFT, which calls a private method of transformers
        pytest.skip(f"this PEFT with this transformers: {error}")
    _equals_own_loss_of_peft(model, text_batch(labels=labels))


def test_an_answer_past_the_tokens_has_no_loss_behind_a_tuned_prompt() -> None:
    model = _prompted("BertForQuestionAnswering", "QUESTION_ANS")
    past = torch.arange(BATCH) + TOKENS - 1
    _, valid = losses_and_valid(model, text_batch(start_positions=past, end_positions=past))
    assert valid.tolist() == [True, False, False, False]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_an_end_past_the_tokens_has_no_loss_behind_a_tuned_prompt(label_smoothing: float) -> None:
    """Where the logits go on: a sequence padded to the model's longest, and an end that was cut off."""
    model = _prompted("BertForQuestionAnswering", "QUESTION_ANS")
    starts = torch.arange(BATCH)
    losses, valid = losses_and_valid(
        model,
        text_batch(start_positions=starts, end_positions=torch.full((BATCH,), TOKENS)),
        label_smoothing,
    )
    logits = model(**text_batch()).start_logits
    expected = F.cross_entropy(logits, starts, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(losses, expected)
    assert valid.all()


def test_the_base_model_of_a_tuned_prompt_loses_the_virtual_tokens_alone() -> None:
    """Looked up without its PEFT wrapper, the head still aligns labels with the last logits."""
    model = _prompted("LlamaForCausalLM", "CAUSAL_LM")
    inputs = text_batch(labels=token_labels(VOCABULARY))
    base = head_of(model.get_base_model())
    outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    shorter = base.losses(outputs, inputs, model.config, 0.0)
    whole = head_of(model).losses(outputs, inputs, model.config, 0.0)
    torch.testing.assert_close(shorter[:, :-1], whole[:, 1:])


def test_adapters_leave_the_head_as_it_is() -> None:
    from peft import LoraConfig, get_peft_model

    base = build("LlamaForCausalLM")
    head = head_of(base)
    assert find_head(get_peft_model(base, LoraConfig(task_type="CAUSAL_LM"))) is head


# --- answers of which an end was cut off ----------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 4, 12])
@pytest.mark.parametrize("reweighting", ["kl", "none"])
def test_an_answer_that_was_cut_counts_as_one_sample(rows: int, reweighting: str, make_args: Any) -> None:
    """The step, the logs, the evaluation and the hard examples, however the 12 rows are cut into micro-batches."""
    starts, ends = torch.arange(12) % 6, torch.full((12,), 8)
    ends[:4], starts[4:7], starts[7], ends[7] = 512, 20, 512, 512  # one of them has no loss at all
    input_ids = torch.randint(4, VOCABULARY, (12, TOKENS), generator=torch.Generator().manual_seed(0))
    columns = {"input_ids": input_ids, "start_positions": starts, "end_positions": ends}
    data = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    without_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    oracle, model = (
        build("BertForQuestionAnswering", initializer_range=0.6, **without_dropout) for _ in range(2)
    )
    before = parameters_of(oracle)
    outputs = oracle(input_ids=input_ids)
    by_end = torch.stack(
        [
            F.cross_entropy(logits, at.clamp(max=TOKENS), reduction="none", ignore_index=TOKENS)
            for logits, at in ((outputs.start_logits, starts), (outputs.end_logits, ends))
        ]
    )
    counted = torch.stack([starts, ends]) < TOKENS
    samples = counted.any(0)
    losses = by_end.sum(0)[samples] / counted.sum(0)[samples]
    (rgd_surrogate(losses, tau=2.0) if reweighting == "kl" else losses).mean().backward()

    args = make_args(
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=12 // rows,
        max_steps=1,
        logging_steps=1,
        learning_rate=0.01,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
    )
    settings = {"reweighting": "kl", "tau": 2.0} if reweighting == "kl" else {"reweighting": "none"}
    trainer = Recorded(model, args, train_dataset=data, eval_dataset=data, **settings)
    mean = pytest.approx(losses.mean().item(), rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == mean and trainer.predict(data).metrics["test_loss"] == mean
    trainer.train()
    assert relative_error(parameters_of(model) - before, -0.01 * gradients_of(oracle)) < 1e-4
    if reweighting == "kl":
        assert trainer.state.log_history[-2]["unweighted_loss"] == mean
    expected = dict(zip(samples.nonzero().flatten().tolist(), losses.tolist(), strict=True))
    found = {example.index: example.loss for example in trainer.hard_examples(12)}
    assert found == pytest.approx(expected, rel=1e-5)


# --- classification -------------------------------------------------------------------------------------------------


def _soft_labels() -> torch.Tensor:
    one, other = (F.one_hot(torch.tensor(rows), CLASSES) for rows in ([0, 1, 2, 0], [1, 1, 0, 2]))
    return 0.25 * one + 0.75 * other


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("class_name", ["ViTForImageClassification", "Wav2Vec2ForSequenceClassification"])
def test_mixed_up_labels_have_the_soft_cross_entropy(class_name: str, label_smoothing: float) -> None:
    model = build(class_name, num_labels=CLASSES)
    speech = class_name.startswith("Wav2Vec2")
    inputs = (
        {"input_values": torch.randn(BATCH, 800)}
        if speech
        else {"pixel_values": torch.randn(BATCH, 3, 16, 16)}
    )
    losses, valid = losses_and_valid(model, {**inputs, "labels": _soft_labels()}, label_smoothing)
    targets = (1 - label_smoothing) * _soft_labels() + label_smoothing / CLASSES
    expected = -(targets * model(**inputs).logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(losses, expected)
    assert valid.all()


def test_label_smoothing_is_for_single_labels_alone() -> None:
    labels = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    model = build("BertForSequenceClassification", num_labels=CLASSES)
    smooth, _ = losses_and_valid(model, text_batch(labels=labels), 0.1)
    plain, _ = losses_and_valid(model, text_batch(labels=labels), 0.0)
    torch.testing.assert_close(smooth, plain, rtol=0, atol=0)


def test_audio_models_ignore_the_problem_type() -> None:
    model = build("Wav2Vec2ForSequenceClassification", num_labels=CLASSES, problem_type="regression")
    inputs = {"input_values": torch.randn(BATCH, 800), "labels": torch.tensor([0, 1, 2, -100])}
    own = model(**inputs).loss
    losses, valid = losses_and_valid(model, inputs)
    torch.testing.assert_close(losses.sum() / valid.sum(), own)


def test_problem_type_is_settled_by_the_first_batch() -> None:
    for labels, problem_type in (
        (torch.tensor([0, 1, 2, 0]), "single_label_classification"),
        (_soft_labels(), "single_label_classification"),
        (torch.tensor([[0.3, 0.6, 0.1]] * BATCH).bfloat16(), "single_label_classification"),
        (torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]), "multi_label_classification"),
        (torch.tensor([[0.5, 0.5, 0.5]] * BATCH), "multi_label_classification"),
    ):
        model = build("BertForSequenceClassification", num_labels=CLASSES)
        head_of(model).check(text_batch(labels=labels), model.config)
        assert model.config.problem_type == problem_type


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "labels", "message"),
    [
        ("BertForSequenceClassification", torch.tensor([0, 3, 1, 0]), "labels from 0 to 3.*num_labels"),
        ("BertForSequenceClassification", torch.tensor([0, -1, 1, 0]), "labels from -1"),
        ("BertForSequenceClassification", torch.ones(BATCH, CLASSES).long(), "multi-hot"),
        ("BertForSequenceClassification", torch.randn(BATCH, 2), "num_labels=3 needs"),
        ("BertForSequenceClassification", torch.randn(BATCH), "num_labels=3 needs"),
        ("DebertaForSequenceClassification", torch.tensor([0, -1, 1, 0]), "labels from -1"),
        ("BertForTokenClassification", torch.full((BATCH, TOKENS), 3), "labels from 3 to 3"),
        ("BertForMultipleChoice", torch.tensor([0, 2, 0, 0]), "between 0 and 1"),
        ("BertForMaskedLM", torch.full((BATCH, TOKENS), -1), "0 or more"),
        ("LlamaForCausalLM", torch.rand(BATCH, TOKENS), "float32"),
        ("SegformerForSemanticSegmentation", torch.full((BATCH, 8, 8), 3), "reduce_labels"),
        ("SegformerForSemanticSegmentation", torch.zeros(BATCH, 64).long(), "height, width"),
        ("Wav2Vec2ForSequenceClassification", torch.tensor([0, 3, 1, 0]), "labels from 0 to 3"),
    ],
)
def test_labels_that_do_not_fit_are_an_error_that_helps(
    class_name: str, labels: torch.Tensor, message: str
) -> None:
    model = build(class_name, num_labels=CLASSES)
    inputs = {"labels": labels, "input_ids": torch.zeros(BATCH, 2, TOKENS).long()}
    with pytest.raises(ValueError, match=message):
        head_of(model).check(inputs, model.config)


def test_positions_that_do_not_fit_are_an_error() -> None:
    model = build("BertForQuestionAnswering")
    positions = {"start_positions": torch.rand(BATCH), "end_positions": torch.ones(BATCH).long()}
    with pytest.raises(ValueError, match="start_positions has shape"):
        head_of(model).check(text_batch(**positions), model.config)


# --- no wait for the device, no break of the graph ------------------------------------------------------------------

CASES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "causal": lambda: (build("LlamaForCausalLM"), text_batch(labels=token_labels(VOCABULARY))),
    "masked": lambda: (build("BertForMaskedLM"), text_batch(labels=token_labels(VOCABULARY))),
    "encoder-decoder": lambda: (
        build("T5ForConditionalGeneration"),
        text_batch(labels=token_labels(VOCABULARY), decoder_input_ids=text_batch()["input_ids"]),
    ),
    "token classification": lambda: (
        build("XLMRobertaXLForTokenClassification", num_labels=CLASSES),
        text_batch(labels=token_labels(CLASSES)),
    ),
    "classification": lambda: (
        build("BertForSequenceClassification", num_labels=CLASSES),
        text_batch(labels=torch.tensor([0, 2, -100, 1])),
    ),
    "question answering": lambda: (
        build("BertForQuestionAnswering"),
        text_batch(start_positions=torch.tensor([1, 20, 3, 0]), end_positions=torch.tensor([2, 30, 15, 0])),
    ),
    "segmentation": lambda: (
        build("SegformerForSemanticSegmentation", num_labels=CLASSES),
        {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.zeros(BATCH, 24, 24).long()},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_one_graph_that_never_waits_for_the_device(case: str) -> None:
    model, inputs = CASES[case]()
    head = head_of(model)
    head.check(inputs, model.config)
    withheld = {*head.label_names, *head.optional_label_names}
    outputs = dict(model(**{name: value for name, value in inputs.items() if name not in withheld}))

    def losses_and_count(outputs: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        losses = head.losses(outputs, inputs, model.config, 0.1)
        return losses, head.valid(inputs, model.config)

    expected = losses_and_count(outputs, inputs)
    compiled = torch.compile(losses_and_count, backend="eager", fullgraph=True)(outputs, inputs)
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    # Meta tensors have no values: whatever needs one (`.item()`, a boolean index, an `if`) raises.
    on_meta = [
        {k: v.to("meta") for k, v in batch.items() if isinstance(v, torch.Tensor)}
        for batch in (outputs, inputs)
    ]
    losses, valid = losses_and_count(*on_meta)
    assert losses.shape == expected[0].shape and valid.shape == expected[1].shape
