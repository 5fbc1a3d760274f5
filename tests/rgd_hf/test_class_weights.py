import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F
from transformers import BertForTokenClassification, TrainingArguments

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, rgd_weights
from rgd_hf.class_weights import class_weights_of, weight_of_items
from rgd_hf.description import settings_in_use
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)

LABELS = [0, 0, 0, 1, 1, 2, -100]


class Drawn(torch.utils.data.Dataset):
    """Its samples are not called by numbers."""

    labels = np.array(LABELS)

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, key):
        raise AssertionError("samples need not be read to count labels")


def as_dataset(kind):
    if kind == "datasets":
        return Dataset.from_dict({"label": LABELS})
    if kind == "attribute":
        return Drawn()
    return [{"labels": torch.tensor(label)} for label in LABELS]


@pytest.mark.parametrize("kind", ["datasets", "list", "attribute"])
def test_balanced_is_scikit_learns(kind):
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2]), y=LABELS[:-1])
    found = class_weights_of("balanced", 3, as_dataset(kind), "labels")
    assert found.tolist() == pytest.approx(expected.tolist())
    assert class_weights_of("balanced", 4, as_dataset(kind), "labels")[3] == 0, "a class without samples"


def test_balanced_counts_truth_values_and_says_what_it_cannot_read():
    rows = [{"labels": label} for label in (True, False, False)]
    assert class_weights_of("balanced", 2, rows, "labels").tolist() == pytest.approx([0.75, 1.5])
    with pytest.raises(
        ValueError, match=r"whose examples must be dicts, not tuple\. List the weights instead"
    ):
        class_weights_of("balanced", 2, [(torch.zeros(3), 1)], "labels")


def test_balanced_counts_tokens():
    data = Dataset.from_dict({"labels": [[0, 1, -100], [0, 0, 1]]})
    assert class_weights_of("balanced", 2, data, "labels").tolist() == pytest.approx([5 / 6, 5 / 4])


def test_weight_of_items():
    weights = torch.tensor([1.0, 2.0, 4.0])
    assert weight_of_items(torch.tensor([2, 0, -100, 255]), weights).tolist()[:2] == [4.0, 1.0]
    assert weight_of_items(torch.tensor([[0.5, 0.5, 0.0]]), weights).tolist() == [1.5]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_class_weights_are_the_distribution_that_reweighting_departs_from(make_args, reweighting, normalize):
    """On an un-weighted basis they are torch's weighted cross-entropy; weights multiply on top."""
    data, class_weights = classification_data(8), torch.tensor([1.0, 0.5, 3.0])
    trainer = ReweightedTrainer(
        tiny_bert(),
        make_args(),
        class_weights=[1.0, 0.5, 3.0],
        reweighting=reweighting,
        normalize_weights=normalize,
    )
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, stack(data))
    loss.backward()

    oracle, batch = tiny_bert(), stack(data)
    logits = oracle(input_ids=batch["input_ids"]).logits
    if reweighting == "none":
        expected = F.cross_entropy(logits, batch["labels"], weight=class_weights)
    else:
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        weights, reference = rgd_weights(losses), class_weights[batch["labels"]]
        expected = (reference * weights * losses).sum() / (
            reference * weights if normalize else reference
        ).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradients_of(trainer.model), gradients_of(oracle)) < 1e-6


@pytest.mark.parametrize("normalize", [False, True])
def test_update_does_not_depend_on_how_the_batch_is_cut(make_args, normalize):
    data = [example | {"sample_weight": 0.5 + i % 3} for i, example in enumerate(classification_data(32))]
    updates = []
    for size, accumulation in ((32, 1), (8, 4)):
        args = make_args(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            train_sampling_strategy="sequential",
            label_smoothing_factor=0.1,
        )
        trainer = ReweightedTrainer(
            tiny_bert(), args, train_dataset=data, class_weights="balanced", normalize_weights=normalize
        )
        trainer.train()
        updates.append(parameters_of(trainer.model) - parameters_of(tiny_bert()))
    assert relative_error(updates[1], updates[0]) < 1e-6


def test_label_smoothing_is_in_training_and_not_in_evaluation(make_args):
    data, batch = classification_data(8), stack(classification_data(8))
    args = make_args(label_smoothing_factor=0.2)
    trainer = ReweightedTrainer(tiny_bert(), args, eval_dataset=data, reweighting="none")
    trainer.model.train()
    logits = tiny_bert()(input_ids=batch["input_ids"]).logits
    smoothed = F.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(smoothed.item(), rel=1e-6)
    plain = F.cross_entropy(logits, batch["labels"])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("level", ["token", "sample"])
def test_token_classification(make_args, level):
    torch.manual_seed(0)
    model = BertForTokenClassification(tiny_config())
    batch = {"input_ids": torch.randint(0, 50, (4, 6)), "labels": torch.randint(0, 3, (4, 6))}
    batch["labels"][:, 4:] = -100
    batch["labels"][1] = -100
    weights = torch.tensor([1.0, 0.5, 3.0])
    trainer = ReweightedTrainer(
        model, make_args(), class_weights=weights, reweighting="none", reweighting_level=level
    )
    model.train()
    logits = model(input_ids=batch["input_ids"]).logits
    loss = trainer.compute_loss(model, dict(batch)).item()
    if level == "token":
        expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), weight=weights).item()
    else:
        rows = [F.cross_entropy(logits[i], batch["labels"][i], weight=weights).item() for i in (0, 2, 3)]
        expected = sum(rows) / 3
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("heavy", "'balanced' or non-negative"),
        ("1,-1,1", "non-negative"),
        ("0,0,0", "not all 0"),
        ([1.0, 2.0], "2 weights.*3 classes"),
    ],
)
def test_wrong_weights_are_refused(make_args, setting, message):
    with pytest.raises(ValueError, match=message):
        ReweightedTrainer(tiny_bert(), make_args(), class_weights=setting)


FORMS = [
    {2: 2.0, 0: 1.0, 1: 5.0},
    {np.int64(1): 5, np.int64(0): 1, np.int64(2): 2},
    pd.Series({1: 5.0, 2: 2.0, 0: 1.0}),
    pd.Series([1.0, 5.0, 2.0]),
    np.array([1.0, 5.0, 2.0], dtype=np.float32),
    torch.tensor([1, 5, 2]),
    (1.0, 5.0, 2.0),
    [1.0, 5.0, 2.0],
]


@pytest.mark.parametrize("given", FORMS, ids=lambda given: type(given).__name__)
def test_each_class_gets_its_own_number(make_args, given):
    trainer = ReweightedTrainer(tiny_bert(), make_args(), class_weights=given, reweighting="none")
    trainer.model.train()
    batch = stack(classification_data(8))
    logits = trainer.model(input_ids=batch["input_ids"]).logits
    expected = F.cross_entropy(logits, batch["labels"], weight=torch.tensor([1.0, 5.0, 2.0])).item()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-6)
    args = make_args(ReweightedTrainingArguments, class_weights=given, reweighting="none")
    assert args.class_weights == trainer.args.class_weights == "1.0,5.0,2.0"
    assert class_weights_of(given, 3, None, "labels").tolist() == [1.0, 5.0, 2.0]


@pytest.mark.parametrize("cls", [TrainingArguments, ReweightedTrainingArguments])
@pytest.mark.parametrize("where", ["args before", "args", "trainer.args"])
def test_every_form_may_be_set_on_arguments(where, cls, make_args):
    """Equal to the keyword, and as scalars in what is recorded."""
    data, early = classification_data(8), where == "args before"
    args = make_args(cls, max_steps=1)
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=data, class_weights="1,5,2")
    trainer.train()
    expected = parameters_of(trainer.model)
    for form in FORMS:
        if early:
            args.class_weights = form
        trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=data)
        if not early:
            (args if where == "args" else trainer.args).class_weights = form
        trainer.train()
        assert torch.equal(parameters_of(trainer.model), expected)
        assert settings_in_use(trainer.args, trainer.weighting)["class_weights"] == "1.0,5.0,2.0"
        args.class_weights = None
    args.class_weights = changed = [3.0, 1.0, 1.0]
    trainer = ReweightedTrainer(tiny_bert(), args, train_dataset=data, eval_dataset=data, tau=2.0)
    for value in (4.0, 5.0):
        changed[0] = value
        args.class_weights = changed
        trainer.evaluate()
        assert trainer.args.class_weights == f"{value},1.0,1.0"
    args.class_weights = True
    with pytest.raises(ValueError, match="Found bool True"):
        trainer.train()


@pytest.mark.parametrize(
    "given",
    [
        {"negative": 1.0, "neutral": 5.0, "positive": 2.0},
        {1: 1.0, 2: 5.0, 3: 2.0},
        {0: 1.0, 2: 2.0},
        {False: 1.0, True: 2.0},
        {0: 1.0, 1: None},
        {1.0, 5.0, 2.0},
        {0: 1.0, 1: 5.0}.values(),
        pd.Series([1.0, 5.0], index=[0, 0]),
        pd.Series([1.0, 5.0], index=["a", "b"]),
        np.ones((3, 1)),
        torch.ones(1, 3),
        torch.tensor(2.0),
        2.0,
        b"123",
        [1.0, None],
    ],
    ids=str,
)
def test_numbers_of_unknown_classes_are_refused(make_args, given):
    with pytest.raises(ValueError, match=r"a dict or pandas Series from the classes 0, 1, .*Found"):
        ReweightedTrainer(tiny_bert(), make_args(), class_weights=given)
    with pytest.raises(ValueError, match=r"a dict or pandas Series from the classes 0, 1, .*Found"):
        make_args(ReweightedTrainingArguments, class_weights=given)


def transformed(transform, **columns):
    return Dataset.from_dict({"text": ["a", "bc"] * 4, **columns}).with_transform(transform)


def test_balanced_reads_labels_without_the_transform(make_args):
    seen = []

    def tokens(batch):
        seen.append(len(batch["text"]))
        return {"input_ids": [torch.tensor([len(text)]) for text in batch["text"]], "labels": batch["label"]}

    labels = [0, 0, 0, 1, 1, 2, 2, 2]
    data = transformed(tokens, label=labels)
    assert class_weights_of("balanced", 3, data, "labels").tolist() == pytest.approx([8 / 9, 8 / 6, 8 / 9])
    assert sum(seen) <= 8, "a few examples, to see that their labels are kept"
    args = make_args(remove_unused_columns=False)
    ReweightedTrainer(tiny_bert(), args, train_dataset=data, class_weights="balanced").train()
    hidden = Dataset.from_dict({"label": labels, "x": labels}).with_format("torch", columns=["x"])
    assert class_weights_of("balanced", 3, hidden, "labels").tolist() == pytest.approx([8 / 9, 8 / 6, 8 / 9])


@pytest.mark.parametrize(
    "transform, columns, message",
    [
        (
            lambda b: {"labels": [len(t) for t in b["text"]]},
            {},
            "only the transform makes.*class_weights='1,",
        ),
        (lambda b: {"labels": [n // 2 for n in b["label"]]}, {"label": [*range(8)]}, "changes labels"),
        (lambda b: b, {"label": ["x"] * 8}, r"column 'label' has 'x'.*class_encode_column\('label'\)"),
    ],
)
def test_balanced_says_which_labels_it_cannot_count(transform, columns, message):
    with pytest.raises(ValueError, match=message):
        class_weights_of("balanced", 3, transformed(transform, **columns), "labels")


def test_heads_without_classes_are_refused(make_args):
    with pytest.raises(ValueError, match="per_sample_loss_fn"):
        ReweightedTrainer(
            tiny_bert(),
            make_args(),
            class_weights="1,1,1",
            per_sample_loss_fn=lambda outputs, labels: outputs,
        )
    with pytest.raises(ValueError, match="which regression"):
        ReweightedTrainer(tiny_bert(num_labels=1), make_args(), class_weights="2")


FLOATS = [{**row, "labels": torch.tensor([1.0, 0.0, 1.0])} for row in classification_data(8)]
NUMBERS = [{**row, "labels": torch.tensor(0.5)} for row in classification_data(8)]


@pytest.mark.parametrize(
    "settings",
    [{"class_weights": "balanced"}, {"class_weights": "1,2,3"}],
    ids=str,
)
@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize(
    ("kind", "rows", "known"),
    [
        ("multi_label_classification", FLOATS, True),
        ("regression", NUMBERS, True),
        ("multi_label_classification", FLOATS, False),  # the first batch tells
    ],
)
def test_settings_of_exclusive_classes_are_refused_where_there_are_none(
    settings, reweighting, kind, rows, known, make_args
):
    if not known and settings.get("class_weights") == "balanced":
        pytest.skip("labels that are no integers are not counted")
    model = tiny_bert(problem_type=kind if known else None, num_labels=1 if kind == "regression" else 3)
    refused = rf"class_weights needs mutually exclusive classes, which {kind} .* leave class_weights out"
    with pytest.raises(ValueError, match=refused):
        trainer = ReweightedTrainer(
            model, make_args(), train_dataset=rows, reweighting=reweighting, **settings
        )
        assert not known
        trainer.train()


@pytest.mark.parametrize("reweighting", ["kl", "none"])
def test_without_a_training_set_balanced_is_enough_for_evaluation_alone(make_args, reweighting):
    data = classification_data(8)
    args = make_args(ReweightedTrainingArguments, class_weights="balanced", reweighting=reweighting)
    trainer = ReweightedTrainer(tiny_bert(), args, eval_dataset=data)
    plain = tiny_bert().eval()(**stack(data)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-6)
    missing = pytest.raises(ValueError, match=r"'balanced' counts the labels of train_dataset.*has none")
    with missing:
        trainer.train()
    trainer.model.train()
    with missing:
        trainer.compute_loss(trainer.model, stack(data))
    trainer.train_dataset = data
    trainer.train()
    late, early = trainer.model, tiny_bert()
    ReweightedTrainer(early, args, train_dataset=data).train()
    torch.testing.assert_close(parameters_of(late), parameters_of(early))


def test_a_loader_of_its_own_without_a_training_set_is_not_trained_on_unbalanced(make_args):
    class OwnLoader(ReweightedTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(classification_data(8), 4, collate_fn=self.data_collator)

    trainer = OwnLoader(tiny_bert(), make_args(max_steps=1), class_weights="balanced")
    with pytest.raises(ValueError, match="counts the labels of train_dataset"):
        trainer.train()
    listed = OwnLoader(tiny_bert(), make_args(max_steps=1), class_weights="1,2.5,0.5")
    assert listed.train().global_step == 1
