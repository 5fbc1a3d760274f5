"""`compute_per_sample_losses`, labels that the forward does not take, and the arguments of subclasses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BatchEncoding, BatchFeature, Trainer, default_data_collator

from rgd_hf import ReweightedTrainer, ReweightingMixin, rgd_surrogate, rgd_weights
from rgd_hf.weightings import GroupDRO
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
)


class Doubled(ReweightedTrainer):
    """The library's losses, changed."""

    def compute_per_sample_losses(self, model, inputs):
        losses, outputs, *rest = super().compute_per_sample_losses(model, inputs)
        return 2 * losses, outputs, *rest


class Own(ReweightedTrainer):
    """Losses without the library's."""

    def compute_per_sample_losses(self, model, inputs):
        outputs = model(input_ids=inputs["input_ids"])
        return 2 * F.cross_entropy(outputs.logits, inputs["labels"], reduction="none"), outputs


def gradient_of(trainer, batch):
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    return gradients_of(trainer.model)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, [1.0, 3.0, 0.5]])
def test_class_weights_and_smoothing_go_on_from_the_method(class_weights, smoothing, make_args):
    batch = stack(classification_data(8))
    trainer = Doubled(tiny_bert(), make_args(label_smoothing_factor=smoothing), class_weights=class_weights)
    oracle = tiny_bert()
    losses = 2 * F.cross_entropy(
        oracle(input_ids=batch["input_ids"]).logits,
        batch["labels"],
        reduction="none",
        label_smoothing=smoothing,
    )
    reference = torch.tensor(class_weights)[batch["labels"]] if class_weights else torch.ones(8)
    ((reference * rgd_surrogate(losses)).sum() / reference.sum()).backward()
    assert relative_error(gradient_of(trainer, dict(batch)), gradients_of(oracle)) < 1e-5


def test_evaluation_is_the_plain_mean_of_the_method(make_args):
    data = classification_data(13)
    trainer = Doubled(tiny_bert(), make_args(per_device_eval_batch_size=5), eval_dataset=data)
    own = tiny_bert().eval()(**stack(data)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(2 * own, rel=1e-5)
    assert len(trainer.eval_losses) == 13


@pytest.mark.parametrize(
    "arguments, settings",
    [
        ({"label_smoothing_factor": 0.1}, {}),
        ({}, {"per_sample_loss_fn": lambda outputs, labels: F.cross_entropy(outputs.logits, labels, reduction="none")}),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_reach_the_method_is_refused(arguments, settings, make_args):
    trainer = Own(tiny_bert(), make_args(**arguments), train_dataset=classification_data(8), **settings)
    with pytest.raises(ValueError, match=r"does not reach Own\.compute_per_sample_losses"):
        trainer.train()


@pytest.mark.parametrize(
    "returned, message",
    [
        (lambda losses, outputs: losses, "returned Tensor: return"),
        (lambda losses, outputs: (losses.mean(), outputs), "already reduced"),
        (lambda losses, outputs: (losses, outputs, losses[:2] > 0), "mask"),
        (lambda losses, outputs: (losses, outputs, None, losses), "auxiliary"),
    ],
)
def test_what_is_no_losses_is_refused(returned, message, make_args):
    class Wrong(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            losses, outputs, *_ = super().compute_per_sample_losses(model, inputs)
            return returned(losses, outputs)

    with pytest.raises(ValueError, match=message):
        Wrong(tiny_bert(), make_args(), train_dataset=classification_data(8)).train()


def test_a_method_behind_the_mixin_is_found(make_args):
    class Theirs(Trainer):
        compute_per_sample_losses = Own.compute_per_sample_losses

    class Ours(ReweightingMixin, Theirs):
        pass

    batch = stack(classification_data(8))
    found, expected = (gradient_of(cls(tiny_bert(), make_args()), dict(batch)) for cls in (Ours, Own))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", [BatchEncoding, BatchFeature])
@pytest.mark.parametrize("settings", [{"reweighting": GroupDRO(2, column="group")}, {"reweighting": "none"}])
def test_a_loss_of_the_users_moves_its_batch_as_before(make_args, kind, settings):
    moved = []

    def losses_of(model, inputs):
        assert inputs.copy().to("meta")["labels"].is_meta and not inputs["labels"].is_meta
        inputs.to(model.device)  # in place
        inputs = inputs.to(device=model.device, dtype=torch.float64)
        moved.append([inputs[name].dtype for name in ("input_ids", "group")])
        outputs = model(input_ids=inputs["input_ids"])
        return F.cross_entropy(outputs.logits, inputs.pop("labels"), reduction="none"), outputs

    class Ported(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            return losses_of(model, inputs)

    class Theirs(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            losses, outputs = losses_of(model, inputs)
            return (losses.mean(), outputs) if return_outputs else losses.mean()

    class Behind(ReweightingMixin, Theirs):
        hidden_columns = ("group",)

    cls = Behind if settings["reweighting"] == "none" else Ported
    cls(
        model=tiny_bert(),
        args=make_args(max_steps=1, remove_unused_columns=False),
        train_dataset=[{**row, "group": i % 2} for i, row in enumerate(classification_data(8))],
        data_collator=lambda examples: kind(default_data_collator([dict(e) for e in examples])),
        **settings,
    ).train()
    assert moved == [[torch.int64, torch.int64]]


# --- labels that the forward does not take --------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return {"logits": self.head(self.embedding(input_ids).mean(1))}


def unreduced(outputs, labels):
    return F.cross_entropy(outputs["logits"], labels, reduction="none")


@pytest.mark.parametrize("name", ["labels", "target"])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_labels_reach_the_function_past_the_forward(name, as_dataset, make_args):
    from datasets import Dataset

    data = [{"input_ids": row["input_ids"], name: row["labels"]} for row in classification_data(16)]
    if as_dataset:
        data = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in data])
    args = make_args(max_steps=1) if name == "labels" else make_args(max_steps=1, label_names=[name])
    trainer = ReweightedTrainer(
        Plain(), args, train_dataset=data, eval_dataset=data, per_sample_loss_fn=unreduced
    )
    trainer.train()
    batch = stack(classification_data(16))
    expected = unreduced(trainer.model(batch["input_ids"]), batch["labels"]).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_another_name_are_asked_for(make_args):
    data = [{"input_ids": row["input_ids"], "target": row["labels"]} for row in classification_data(8)]
    args = make_args(remove_unused_columns=False)

    class Lenient(Plain):
        def forward(self, input_ids, target=None):
            return super().forward(input_ids)

    trainer = ReweightedTrainer(Lenient(), args, train_dataset=data, per_sample_loss_fn=unreduced)
    with pytest.raises(ValueError, match=r"labels=None.*input_ids, target.*label_names"):
        trainer.train()


def test_inputs_that_are_the_labels_reach_both(make_args):
    """As for masked autoencoders, whose scripts set `label_names=["pixel_values"]`."""

    class Autoencoder(nn.Module):
        main_input_name = "pixel_values"

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, pixel_values=None):
            return {"logits": self.layer(pixel_values)}

    data = [{"pixel_values": torch.randn(4)} for _ in range(8)]
    trainer = ReweightedTrainer(
        Autoencoder(),
        make_args(label_names=["pixel_values"]),
        train_dataset=data,
        eval_dataset=data,
        per_sample_loss_fn=lambda outputs, pixels: (outputs["logits"] - pixels).square().mean(-1),
    )
    trainer.train()
    batch = stack(data)["pixel_values"]
    expected = (trainer.model(batch)["logits"] - batch).square().mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("column", ["attention_mask", "position_ids", "inputs_embeds"])
def test_an_optional_input_that_the_loss_needs_too_reaches_both(column, make_args):
    """As `bool_masked_pos`, which scripts for masked images list in `label_names`."""
    data = classification_data(8)
    for i, row in enumerate(data):
        row["attention_mask"] = torch.tensor([1] * (3 + i % 4) + [0] * (4 - i % 4))
        row["position_ids"] = torch.arange(7).flip(0)
    if column == "inputs_embeds":
        generator = torch.Generator().manual_seed(0)
        data = [{"labels": row["labels"], column: torch.randn(7, 16, generator=generator)} for row in data]
    trainer = ReweightedTrainer(
        tiny_bert(),
        make_args(label_names=["labels", column], max_steps=1),
        train_dataset=data,
        eval_dataset=data,
        per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(
            outputs.logits, labels["labels"], reduction="none"
        ),
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        trainer.model(**stack(data)).loss.item(), rel=1e-5
    )


# --- what would be left out without a word ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight", "sample_weights", "Weight"])
def test_a_column_that_looks_like_weights_gets_a_hint(name, make_args):
    from datasets import Dataset

    rows = [{k: v.tolist() for k, v in row.items()} for row in classification_data(8)]
    data = Dataset.from_list([row | {name: 1.0} for row in rows])
    with pytest.warns(UserWarning, match=rf"rename_column\('{name}', 'sample_weight'\)"):
        ReweightedTrainer(tiny_bert(), make_args(), train_dataset=data).train()


@pytest.mark.parametrize("num_labels", [1, 3])
def test_smoothing_that_changes_nothing_is_said(num_labels, make_args):
    data = classification_data(8)
    for row in data:
        row["labels"] = torch.rand(num_labels).round() if num_labels > 1 else torch.rand(())
    trainer = ReweightedTrainer(
        tiny_bert(num_labels=num_labels), make_args(label_smoothing_factor=0.1), train_dataset=data
    )
    with pytest.warns(UserWarning, match="label_smoothing_factor has no effect"):
        trainer.train()


# --- arguments of subclasses ----------------------------------------------------------------------------------------


def test_keywords_stay_keywords(make_args):
    class First(Trainer):
        def __init__(self, loss_fn, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_fn = loss_fn

    class Ours(ReweightingMixin, First):
        pass

    by_name = Ours(model=tiny_bert(), args=make_args(), loss_fn=len, tau=3.0)
    by_place = Ours(len, tiny_bert(), make_args(), tau=3.0)
    assert by_name.loss_fn is by_place.loss_fn is len and by_name.args.tau == by_place.args.tau == 3.0


def test_an_argument_of_the_name_of_a_setting_is_the_class_s_own(make_args):
    class Weighted(Trainer):
        def __init__(self, *args, class_weights=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.own_weights = class_weights

    class Ours(ReweightingMixin, Weighted):
        pass

    with pytest.warns(UserWarning, match=r"class_weights goes to Weighted.*ReweightedTrainingArguments"):
        trainer = Ours(model=tiny_bert(), args=make_args(), class_weights=[1.0, 2.0, 3.0])
    assert trainer.own_weights == [1.0, 2.0, 3.0] and trainer.args.class_weights is None


@pytest.mark.parametrize("settings", [{}, {"normalize_weights": True}, {"reweighting": "none"}], ids=str)
def test_what_an_epoch_of_unknown_length_leaves_over_is_part_of_the_next_step(settings, make_args):
    rows = classification_data(20)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows)

    rate = 1e-3
    args = make_args(
        max_steps=2, learning_rate=rate, per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    model, oracle = tiny_bert(), tiny_bert()
    ReweightedTrainer(model, args, train_dataset=Stream(), **settings).train()
    # The first step has 16 samples; the second the 4 that were left, and the first 16 of the next epoch.
    for step in (rows[:16], [*rows[16:], *rows[:16]]):
        batch = stack(step)
        losses = F.cross_entropy(
            oracle(input_ids=batch["input_ids"]).logits, batch["labels"], reduction="none"
        )
        weights = torch.ones(len(step)) if "reweighting" in settings else rgd_weights(losses)
        oracle.zero_grad()
        (
            (weights * losses).sum() / (weights.sum() if "normalize_weights" in settings else len(step))
        ).backward()
        with torch.no_grad():
            for parameter in oracle.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
    start = parameters_of(tiny_bert())
    assert relative_error(parameters_of(model) - start, parameters_of(oracle) - start) < 2e-4


def test_a_loss_that_the_model_did_not_compute_is_explained(make_args):
    trainer = ReweightedTrainer(tiny_bert(), make_args(), per_sample_loss_fn=lambda outputs, _: outputs.loss)
    with pytest.raises(ValueError, match=r"without labels, so that outputs\.loss is None.*outputs\.logits"):
        gradient_of(trainer, stack(classification_data(4)))
