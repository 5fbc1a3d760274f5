"""Models whose losses the library does not know: refused with the way out, which works."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BertForNextSentencePrediction,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
)

from rgd_hf import ReweightedTrainer, rgd_surrogate
from rgd_hf.heads import HEADS, verify
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)


class TestUnknownHeads:
    def test_stop_with_the_way_out(self, make_args):
        model = BertForNextSentencePrediction(tiny_config(2))
        with pytest.raises(NotImplementedError, match=r"BertForNextSentencePrediction.*per_sample_loss_fn"):
            ReweightedTrainer(model, make_args())

    def test_train_as_the_stock_trainer_does_with_none(self, make_args):
        data = classification_data(16, num_labels=2)
        models = []
        for cls, kwargs in ((Trainer, {}), (ReweightedTrainer, {"reweighting": "none"})):
            torch.manual_seed(0)
            models.append(BertForNextSentencePrediction(tiny_config(2)))
            cls(models[-1], make_args(), train_dataset=data, **kwargs).train()
        assert torch.equal(parameters_of(models[0]), parameters_of(models[1]))

    @pytest.mark.parametrize("accumulation", [1, 2, 4])
    def test_per_sample_loss_fn_trains_them_exactly(self, make_args, accumulation):
        data = classification_data(30, num_labels=2)
        torch.manual_seed(0)
        model = BertForNextSentencePrediction(tiny_config(2))
        start = parameters_of(model)
        args = make_args(
            per_device_train_batch_size=32 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer = ReweightedTrainer(
            model,
            args,
            train_dataset=data,
            per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(
                outputs.logits, labels, reduction="none"
            ),
        )
        trainer.train()
        torch.manual_seed(0)
        oracle, batch = BertForNextSentencePrediction(tiny_config(2)), stack(data)
        logits = oracle(input_ids=batch["input_ids"]).logits
        rgd_surrogate(F.cross_entropy(logits, batch["labels"], reduction="none")).mean().backward()
        for parameter in oracle.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert relative_error(parameters_of(model) - start, -0.5 * gradients_of(oracle)) < 1e-6

    def test_a_reduced_loss_is_refused(self, make_args):
        trainer = ReweightedTrainer(
            tiny_bert(),
            make_args(),
            train_dataset=classification_data(8),
            per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(outputs.logits, labels),
        )
        with pytest.raises(ValueError, match=r"0-dimensional.*reduction='none'"):
            trainer.train()

    def test_a_reduced_compute_loss_func_is_refused(self, make_args):
        with pytest.raises(ValueError, match="per_sample_loss_fn"):
            ReweightedTrainer(tiny_bert(), make_args(), compute_loss_func=lambda *args, **kwargs: 0.0)


class PassesOn(BertForSequenceClassification):
    def forward(self, input_ids=None, labels=None, **inputs):
        outputs = super().forward(input_ids=input_ids, labels=labels, **inputs)
        if labels is not None:
            outputs["loss"] = self.changed(outputs.loss, outputs.logits, labels)
        return outputs

    def changed(self, loss, logits, labels):
        return loss


class Focal(PassesOn):
    def changed(self, loss, logits, labels):
        return focal(logits, labels).mean()


class Smoothed(PassesOn):
    def changed(self, loss, logits, labels):
        return F.cross_entropy(logits, labels, label_smoothing=0.1)


class ClassWeights(PassesOn):
    def changed(self, loss, logits, labels):
        return F.cross_entropy(logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))


class FromItsStart(PassesOn):
    """A penalty on the distance from the initial weights: 0 at first."""

    start = None

    def changed(self, loss, logits, labels):
        if self.start is None:
            self.start = [p.detach().clone() for p in self.parameters()]
        return loss + sum((p - s).square().sum() for p, s in zip(self.parameters(), self.start))


class Rising(PassesOn):
    factor = 0.0

    def changed(self, loss, logits, labels):
        before, self.factor = self.factor, self.factor + 0.1
        return loss + before * logits.square().mean()


class ByItself(BertForSequenceClassification):
    def forward(self, input_ids, labels=None):
        logits = self.classifier(self.bert(input_ids).pooler_output)
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


class NeedsLabels(PassesOn):
    def forward(self, input_ids, labels):
        return super().forward(input_ids=input_ids, labels=labels)


class NeedsMore(PassesOn):
    def forward(self, input_ids, scale, labels=None):
        return super().forward(input_ids=input_ids, labels=labels)


def focal(logits, labels):
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (1 - (-losses).exp()) ** 2 * losses


def plain(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


FORWARDS = [PassesOn, Focal, Smoothed, ClassWeights, FromItsStart, Rising, ByItself, NeedsLabels, NeedsMore]


class TestForwardsOfOnesOwn:
    data = [{**row, "scale": 2.0} for row in classification_data(16)]

    def model(self, cls):
        torch.manual_seed(0)
        return cls(tiny_config(problem_type="single_label_classification"))

    @pytest.mark.parametrize("cls", FORWARDS)
    def test_they_are_refused_and_train_as_the_stock_trainer_does_with_none(self, cls, make_args):
        with pytest.raises(
            NotImplementedError,
            match=rf"{cls.__name__} .*its own `forward`, whose per-sample losses are not known\. Pass",
        ):
            ReweightedTrainer(self.model(cls), make_args())
        models = [self.model(cls) for _ in range(2)]
        for trainer, model, none in zip(
            (Trainer, ReweightedTrainer), models, ({}, {"reweighting": "none"}), strict=True
        ):
            trainer(model, make_args(), train_dataset=self.data, **none).train()
        assert torch.equal(*map(parameters_of, models))

    @pytest.mark.parametrize(
        ("cls", "losses"),
        [(PassesOn, plain), (Focal, focal), (ByItself, plain), (NeedsLabels, plain), (NeedsMore, plain)],
    )
    def test_the_way_out_trains_them_exactly(self, cls, losses, make_args):
        model, oracle = self.model(cls), self.model(BertForSequenceClassification)
        trainer = ReweightedTrainer(
            model,
            make_args(),
            train_dataset=self.data,
            per_sample_loss_fn=lambda outputs, labels: losses(outputs["logits"], labels),
        )
        batch = stack([{**row, "scale": torch.tensor(row["scale"])} for row in self.data])
        extra = {} if cls is NeedsMore else {"scale"}
        inputs = {name: value for name, value in batch.items() if name not in extra}
        trainer.compute_loss(model.train(), inputs).backward()
        logits = oracle(input_ids=batch["input_ids"]).logits
        rgd_surrogate(losses(logits, batch["labels"])).mean().backward()
        assert relative_error(gradients_of(model), gradients_of(oracle)) < 1e-5

    @pytest.mark.parametrize("cls", [FromItsStart, Rising])
    def test_one_batch_cannot_tell_so_they_are_not_compared(self, cls):
        """On the first batch their loss is that of the head, and later it is not."""
        model, batch = self.model(cls), stack(classification_data(16))
        head = HEADS["BertForSequenceClassification"]
        first = model(**batch).loss
        torch.testing.assert_close(
            first, plain(model(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()
        )
        first.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        with pytest.raises(NotImplementedError, match="model's own loss is"):
            verify(head, model, model, batch, "has its own forward")


def test_a_replaced_loss_function_is_named(make_args):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    model.loss_function = lambda **kwargs: torch.zeros(())
    with pytest.raises(NotImplementedError, match="its `loss_function` was replaced"):
        ReweightedTrainer(model, make_args())
