"""What users override of a Trainer's step, and the objective that the step then has to have.

A case is a class with one method, as a user would write it, and `expected`: of the weighted mean of the whole step's
losses as a function of the parameters, and the parameters, the objective whose gradient the step has to take.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# --- compute_loss ---------------------------------------------------------------------------------------------------


class PassesOn:
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        self.last_loss = loss.detach()
        return (loss, outputs) if return_outputs else loss


class DropsTheCount:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs)


class Scales:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = 3 * loss if model.training else loss
        return (loss, outputs) if return_outputs else loss


class AddsPenalty:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            loss = loss + 0.3 * model.classifier.weight.square().sum()
        return (loss, outputs) if return_outputs else loss


class LearnsTheScale:
    """Kendall's uncertainty, of a parameter that is at hand."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            scale = model.classifier.bias[0]
            loss = loss * torch.exp(-scale) + scale
        return (loss, outputs) if return_outputs else loss


class CallsTwice:
    """As R-Drop and mixup do."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        first, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        second = super().compute_loss(model, inputs, False, num_items_in_batch)
        loss = (first + second) / 2
        return (loss, outputs) if return_outputs else loss


class DoublesTheBatch:
    """As augmentation in the loss does: the mean stays."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        names = ("input_ids", "labels", "sample_weight")
        twice = {name: torch.cat([inputs[name]] * 2) for name in names if name in inputs}
        return super().compute_loss(model, twice, return_outputs, num_items_in_batch)


class LeavesTheLossOut:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        _, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class OwnLoss:
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        loss = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class OwnLossOfTheStep:
    """As the Trainer's own loss does: a sum, divided by the number of the step's items."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        total = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="sum")
        loss = total / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


# --- training_step --------------------------------------------------------------------------------------------------


class WrapsTheStep:
    def training_step(self, *args, **kwargs):
        self.steps_wrapped = getattr(self, "steps_wrapped", 0) + 1
        return super().training_step(*args, **kwargs)


class Adversarial:
    """The fast gradient method, in its usual form: a second pass with the embeddings moved."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        embeddings = model.bert.embeddings.word_embeddings.weight
        embeddings.data.add_(0.1)
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            adversarial = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(adversarial)
        embeddings.data.sub_(0.1)
        return loss


class StepsTwice:
    """The same by calling the parents' step again."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        super().training_step(model, inputs, num_items_in_batch)
        return loss


class OwnStep:
    """A copy of an older Trainer's step."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        loss = loss / self.args.gradient_accumulation_steps
        self.accelerator.backward(loss)
        return loss.detach()


class StepWithoutComputeLoss:
    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        loss = model(**{k: v for k, v in inputs.items() if k != "sample_weight"}).loss
        self.accelerator.backward(loss)
        return loss.detach()


class StepWithoutGradient:
    """Zeroth-order optimization asks for losses alone."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.eval()
        with torch.inference_mode():
            return self.compute_loss(model, self._prepare_inputs(inputs)).clone()


# --- get_batch_samples ----------------------------------------------------------------------------------------------


class ReversesBatches:
    def get_batch_samples(self, *args):
        batches, count = super().get_batch_samples(*args)
        return batches[::-1], count


class LosesTheCount:
    def get_batch_samples(self, *args):
        return super().get_batch_samples(*args)[0], None


class CountsNothing:
    def get_batch_samples(self, epoch_iterator, num_batches, device):
        return [batch for _, batch in zip(range(num_batches), epoch_iterator)], None


class CountsOtherwise:
    def get_batch_samples(self, *args):
        batches, _ = super().get_batch_samples(*args)
        return batches, torch.tensor(7)


# --- the table ------------------------------------------------------------------------------------------------------


def as_it_is(objective: Callable[[], torch.Tensor], model: Any) -> torch.Tensor:
    return objective()


def with_penalty(objective, model):
    return objective() + 0.3 * model.classifier.weight.square().sum()


def with_scale(objective, model):
    scale = model.classifier.bias[0]
    return objective() * torch.exp(-scale) + scale


def with_adversary(objective, model):
    embeddings = model.bert.embeddings.word_embeddings.weight
    objective().backward()
    embeddings.data.add_(0.1)
    objective().backward()
    embeddings.data.sub_(0.1)
    return 0 * embeddings.sum()


@dataclass(frozen=True)
class Case:
    """How a class composes with re-weighting to its right.

    Attributes:
        cls: the user's.
        expected: see above.
        refused: regular expression of the refusal of every set-up; None where there is none.
        refused_cut: of the refusal where a step has several micro-batches.
        refused_cut_normalized: likewise, where the weights are normalized too.
    """

    cls: type
    expected: Callable[[Callable[[], torch.Tensor], Any], torch.Tensor] = as_it_is
    refused: str | None = None
    refused_cut: str | None = None
    refused_cut_normalized: str | None = None


BY_ITSELF = r"{}\.training_step calls compute_loss by itself.*gradient_accumulation_steps=1"

CASES = [
    Case(PassesOn),
    Case(DropsTheCount),
    Case(Scales, lambda objective, model: 3 * objective()),
    Case(AddsPenalty, with_penalty),
    Case(LearnsTheScale, with_scale),
    Case(CallsTwice, refused_cut_normalized=r"CallsTwice\.compute_loss calls .* more than once"),
    Case(DoublesTheBatch),
    Case(LeavesTheLossOut, refused=r"LeavesTheLossOut\.compute_loss .* without the re-weighted one"),
    Case(OwnLoss, refused=r"OwnLoss\.compute_loss never reaches .*compute_per_sample_losses"),
    Case(
        OwnLossOfTheStep, refused=r"OwnLossOfTheStep\.compute_loss never reaches .*compute_per_sample_losses"
    ),
    Case(WrapsTheStep),
    Case(Adversarial, with_adversary, refused_cut=BY_ITSELF.format("Adversarial")),
    Case(
        StepsTwice,
        lambda objective, model: 2 * objective(),
        refused_cut=r"StepsTwice\.training_step calls super\(\)\.training_step more than once",
    ),
    Case(OwnStep, refused_cut=BY_ITSELF.format("OwnStep")),
    Case(
        StepWithoutComputeLoss, refused=r"StepWithoutComputeLoss\.training_step .* without self\.compute_loss"
    ),
    Case(StepWithoutGradient, refused=r"StepWithoutGradient\.training_step asks .* without a gradient"),
    Case(ReversesBatches),
    Case(LosesTheCount),
    Case(CountsNothing),
]
