"""Re-weighting for people who cannot subclass: a `compute_loss_func` for the stock Trainer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rgd_hf.heads import Head, find_head, why_unverified, without_peft
from rgd_hf.heads.classification import CLASSIFICATION, SINGLE_LABEL_CLASSIFICATION
from rgd_hf.heads.tokens import ALIGNED_LM, CAUSAL_LM, MASKED_LM, TOKEN_CLASSIFICATION
from rgd_hf.items import Items, token_reference
from rgd_hf.training_args import ReweightingArguments, check_read, take_weighting
from rgd_hf.weightings import Weighting
from rgd_hf.weightings.base import checked_weights
from rgd_hf.weightings.choice import weighting_of

# Their losses need no other column of the batch, and their items are the labels that are not -100.
_FROM_LABELS_ALONE = (
    CLASSIFICATION,
    SINGLE_LABEL_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    MASKED_LM,
    ALIGNED_LM,
    CAUSAL_LM,
)


class RGDLoss:
    """`Trainer(model, ..., compute_loss_func=RGDLoss(model, tau=2.0))`.

    Exact under gradient accumulation and on several processes (with `average_tokens_across_devices=True`, the
    Trainer's default), because the weighted losses are summed and divided by the items of the whole optimizer step,
    which the Trainer counts. Without gradients, as in evaluation, the loss is the plain mean. Whatever needs more than
    outputs and labels is not available here: `normalize_weights`, sample-level weights of token losses, sample and
    class weights, logs of the weights; nor `label_smoothing_factor`, which the stock Trainer does not pass on. Use
    `ReweightedTrainer` for those.

    Args:
        model: the model that is trained, before any wrapping; its class decides which loss is computed.
        reweighting: a name, as the field of `ReweightingArguments`; an object of `rgd_hf.weightings`; or a function of
            losses `[items]` to weights `[items]`.
        tau: clipping threshold of the divergences, in units of the loss: losses above it get the same weight. Default 1.
        target_ess: effective sample size of the `"kl"` weights as a fraction of the items, in place of `tau`.

    Raises:
        NotImplementedError: the per-sample losses of the model's head need more than its outputs and labels.
        ValueError: a setting is not allowed.

    References:
        arXiv 2306.09222, Algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        reweighting: str | Weighting | Callable[..., Tensor] = "kl",
        tau: float | None = None,
        target_ess: float | None = None,
    ):
        given: dict[str, Any] = {"reweighting": reweighting, "tau": tau, "target_ess": target_ess}
        rule, given = take_weighting({name: value for name, value in given.items() if value is not None})
        if rule is None:
            check_read(given, given["reweighting"], target_ess, takes_args=False)
        self.weighting = weighting_of(ReweightingArguments(**given)) if rule is None else rule
        if self.weighting.state_dict() or self.weighting.columns:
            raise ValueError(
                f"{self.weighting.method_name()} reads other columns of the batch or keeps a state over the steps, which a "
                "loss function of the stock Trainer has no access to: use ReweightedTrainer."
            )
        base = without_peft(model)
        head = find_head(model)
        if head is not None and getattr(base.config, "is_encoder_decoder", False):
            raise NotImplementedError(
                f"{type(base).__name__} makes the inputs of its decoder from the labels, which the stock Trainer withholds "
                "from a model with a compute_loss_func. Use ReweightedTrainer or ReweightedSeq2SeqTrainer."
            )
        if head is None or head not in _FROM_LABELS_ALONE:
            raise NotImplementedError(
                f"RGDLoss cannot compute per-sample losses of {type(base).__name__} from its outputs and labels alone. Use "
                "ReweightedTrainer (with per_sample_loss_fn where the head is not known)."
            )
        if why := why_unverified(model):
            raise NotImplementedError(
                f"{type(base).__name__} {why}, and RGDLoss cannot compare its losses with the model's own, which it never "
                "sees. Use ReweightedTrainer, which does so on the first batch."
            )
        self.head: Head = head
        self.model, self.config = base, base.config
        self._checked = False
        if head is CAUSAL_LM and getattr(base, "loss_type", None) is None:
            # The Trainer leaves out position 0, which nothing predicts, only for models that name their loss.
            base.loss_type = "ForCausalLM"

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The sum of the weighted losses divided by the number of items.

        Args:
            outputs: outputs of the model, which was called without labels.
            labels: labels of the batch.
            num_items_in_batch: number of label elements in the whole optimizer step that are not -100, as the Trainer
                counts them; None to average over this batch.

        Returns:
            0-dimensional float32.
        """
        inputs = {"labels": labels}
        if not self._checked:
            self.head.check(inputs, self.config)
            self._checked = True
        valid = self.head.valid(inputs, self.config)
        losses = self.head.losses(outputs, inputs, self.config, 0.0)
        weights = self._weights(Items(losses.detach(), token_reference(valid)))
        total = (weights * losses).sum()
        items = valid.sum()
        auxiliary = self.head.auxiliary(outputs, self.config, self.model)
        if auxiliary is not None:
            total = total + auxiliary * items
        if num_items_in_batch is None:
            return total / items.clamp(min=1)
        # The Trainer counts every element of [batch, classes] labels, but a sample has one loss.
        elements = labels.numel() // max(valid.numel(), 1)
        # Under DataParallel the number stands there once per device, and the Trainer multiplies what this returns by theirs.
        number = torch.as_tensor(num_items_in_batch, device=total.device).reshape(-1)
        return total * elements / (number[0].clamp(min=1) * number.numel())

    def _weights(self, items: Items) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.ones_like(items.losses, dtype=torch.float32)
        with torch.no_grad():
            rule = self.weighting
            weights = checked_weights(rule.weights(items), items.losses, lambda: rule.name_in_errors)
            return torch.where(items.reference > 0, weights, 1.0)
