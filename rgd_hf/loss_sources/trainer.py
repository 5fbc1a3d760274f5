"""Where a Trainer's unreduced losses come from: its model's head, a user's function, or a subclass's method."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rgd_hf.heads import needs_labels, why_unknown, without_peft
from rgd_hf.loss_sources import (
    CustomLosses,
    HeadLosses,
    OverriddenLosses,
    PerSampleLosses,
    PerSampleLossFn,
    find_loss_source,
)
from rgd_hf.overrides import Override, may_call, override_after, overrides_before
from rgd_hf.trainer_base import TrainerBase

if TYPE_CHECKING:
    from rgd_hf.weightings import Weighting


class _Identity:
    """Equal to another one of the very same object: data sets may compare element by element, or not at all."""

    def __init__(self, of: Any):
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.of is other.of

    __hash__ = None  # type: ignore[assignment]


class PerSampleLossesMixin(TrainerBase):
    """Finds the source of the unreduced losses, and lets subclasses compute them: `compute_per_sample_losses`.

    Attributes:
        per_sample_loss_fn: the user's function `(outputs, labels) -> losses`, or None.
    """

    args: Any
    per_sample_loss_fn: PerSampleLossFn | None = None
    _source_found_for: tuple[Any, ...] | None = None
    _source: HeadLosses | CustomLosses | OverriddenLosses | None = None

    if TYPE_CHECKING:
        weighting: Weighting
        weigh_override: str | None

        @property
        def reweights(self) -> bool: ...  # noqa: D102

        def _is_plain(self) -> bool: ...

    def compute_per_sample_losses(self, model: nn.Module, inputs: Any) -> PerSampleLosses:
        """The losses of a batch before any reduction; the re-weighted counterpart of overriding `compute_loss`.

        Override it for losses that need the inputs, a second model, or several heads. Everything else follows from
        what it returns: weights, class and sample weights, accumulation, several processes, the plain `eval_loss`.
        `super().compute_per_sample_losses(model, inputs)` gives the losses of the model's own head, or of
        `per_sample_loss_fn`.

        Args:
            model: the model, wrapped or not, in training or evaluation mode; it is called once.
            inputs: a batch with its labels, without `sample_weight`; a list or tuple as the data collator made it. Columns that
                a rule or an observer reads are found by their names, `inputs.pop("task")`, and are not in `model(**inputs)`.

        Returns:
            `PerSampleLosses`, or a plain tuple `(losses, outputs)` or `(losses, outputs, valid)`. Label smoothing,
            which only training has, is in the losses of this method.
        """
        inherited = getattr(super(), "compute_per_sample_losses", None)
        if inherited is not None:
            return inherited(model, inputs)
        source = self._loss_source()
        if isinstance(source, OverriddenLosses):
            source.default_used = True
            source = source.default
        if source is None:
            raise self._cannot_unreduce()
        smoothing = 0.0 if self._is_plain() else self.args.label_smoothing_factor
        batch = source.run(model, inputs, smoothing)
        return PerSampleLosses(batch.losses, batch.outputs, batch.valid, batch.auxiliary)

    @property
    def _has_own_losses(self) -> bool:
        return self.per_sample_loss_fn is not None or self._overridden_losses() is not None

    def _overridden_losses(self) -> Override | None:
        """The `compute_per_sample_losses` that is used in place of this class's."""
        left = overrides_before(self, PerSampleLossesMixin, "compute_per_sample_losses")
        return left[0] if left else override_after(self, PerSampleLossesMixin, "compute_per_sample_losses")

    def _loss_source(self) -> HeadLosses | CustomLosses | OverriddenLosses | None:
        """The source of the unreduced losses; None where everything is the stock Trainer's."""
        replaced = overrides_before(self, PerSampleLossesMixin, "compute_loss")
        functions = (
            self.per_sample_loss_fn,
            self.compute_loss_func,
            getattr(self.model, "_loss_function", None),
        )
        counted = self.train_dataset if self.args.class_weights == "balanced" else None
        found_for = (
            *(self.args.class_weights, self.reweights, replaced, self._overridden_losses()),
            self._router_coefficient(),
            *map(_Identity, (self.model, *functions, counted)),
        )
        if self._source_found_for != found_for:
            self._source_found_for = None
            self._source = self._find_loss_source()
            self._source_found_for = found_for
        return self._source

    def _head_ahead(self) -> HeadLosses | None:
        """The head whose items a batch will have, as far as is known before the forward pass."""
        source = self._loss_source()
        if isinstance(source, OverriddenLosses):
            overrides = overrides_before(self, PerSampleLossesMixin, "compute_per_sample_losses")
            asked = [may_call(override.function, "compute_per_sample_losses") for override in overrides]
            source = source.default if asked and all(asked) else None
        return source if isinstance(source, HeadLosses) else None

    @property
    def unreduces_losses(self) -> bool:
        """Whether the losses are this library's; otherwise everything is the stock Trainer's."""
        return self._loss_source() is not None

    def _find_loss_source(self) -> HeadLosses | CustomLosses | OverriddenLosses | None:
        overridden = self._overridden_losses()
        if not self._has_own_losses and (
            # A user's loss that is already reduced is left to the stock Trainer.
            self.compute_loss_func is not None
            or override_after(self, PerSampleLossesMixin, "compute_loss")
            or (not self._needs_weights and self._never_weighed())
        ):
            return None
        source = find_loss_source(
            self._bare_model(),
            self.per_sample_loss_fn,
            self.label_names,
            self.args.class_weights,
            self.train_dataset,
            self.args.device,
            self._router_coefficient(),
        )
        if overridden is None:
            return source
        if source is None and self.args.class_weights is not None:
            raise ValueError(
                f"class_weights need the class of each item, which {overridden.name} does not return: remove class_weights and "
                "multiply the losses there."
            )
        return OverriddenLosses(self.compute_per_sample_losses, overridden.name, source, self.label_names)

    def _router_coefficient(self) -> float | None:
        """Of a Trainer that has a setting for it, as TRL's, which multiplies the router's loss by itself; else None."""
        has_setting = hasattr(self.args, "router_aux_loss_coef")
        return getattr(self, "router_aux_loss_coef", None) if has_setting else None

    def _never_weighed(self) -> bool:
        """Whether an override of `compute_loss` cannot come to that of this package, which it does not mention."""
        overrides = overrides_before(self, PerSampleLossesMixin, "compute_loss")
        return any(not may_call(override.function, "compute_loss") for override in overrides)

    @property
    def _needs_weights(self) -> bool:
        return self.reweights or self.args.class_weights is not None

    @property
    def _without_weights(self) -> str:
        """What to do for a training without weights, for messages."""
        of_class = self.weigh_override
        steps = [
            *([] if self.weighting.is_plain else ["set reweighting='none'"]),
            *([] if self.args.class_weights is None else ["leave class_weights out"]),
            *([f"remove {of_class}"] if of_class else []),
        ]
        return " and ".join(steps)

    def _level(self) -> str:
        level, source = self.args.reweighting_level, self._loss_source()
        by_token = source is not None and source.token_level
        if level == "auto":
            return "token" if by_token else "sample"
        if level == "token" and source is not None and not by_token:
            raise ValueError(
                f"reweighting_level='token' needs a loss for every token, but {source.name} has one loss per sample: "
                "use 'sample' or 'auto'."
            )
        return level

    def _several_samples_in_a_row(self) -> ValueError:
        return ValueError(
            "reweighting_level='sample' needs one row for each sample, but a batch has a single row with several "
            "samples in it, which would share one weight. Pad the samples (with TRL packing=False and padding_free=False; "
            "otherwise a data collator that pads), or set reweighting_level='token'."
        )

    def _check_rows(self, by: str, losses: Tensor, inputs: Any) -> None:
        """Raise where losses of samples were asked for, but those that a user's function returned are of other items."""
        labels = [inputs[name] for name in self.label_names if isinstance(inputs.get(name), Tensor)]
        samples = {len(column) for column in labels if column.dim()}
        if len(samples) == 1 and losses.shape[0] not in samples:
            raise ValueError(
                f"reweighting_level='sample' needs one loss, or one row of losses, for each of the {samples.pop()} samples "
                f"of the batch, but {by} returned losses of shape {list(losses.shape)}: return them (and their mask) "
                "as [batch, tokens], or set reweighting_level='token'."
            )

    def _check_one_loss_function(self) -> None:
        """Raise where the user gave two functions for the loss, of which one would never be called."""
        # Some classes of TRL set a string, to tell the Trainer that their loss is scaled.
        if not callable(self.compute_loss_func) or not self._has_own_losses:
            return
        overridden = self._overridden_losses()
        used = overridden.name if overridden else "per_sample_loss_fn"
        raise ValueError(
            f"The Trainer has both {used} and compute_loss_func, which would never be called: {used} returns the losses "
            "that are re-weighted, averaged and evaluated. Leave compute_loss_func out, and put what it computes there."
        )

    def _cannot_unreduce(self) -> Exception:
        if self.compute_loss_func is not None:
            return ValueError(
                "compute_loss_func returns a loss that is already reduced, so it cannot be re-weighted. Pass "
                f"per_sample_loss_fn=(outputs, labels) -> unreduced losses instead; or {self._without_weights}."
            )
        name = type(self).__name__
        if bypassed := override_after(self, PerSampleLossesMixin, "compute_loss"):
            return NotImplementedError(
                f"{bypassed.name} computes its own loss, which {name} would never call: reduced "
                f"to one number, it cannot be re-weighted. Give {name} a method compute_per_sample_losses(self, model, "
                "inputs) that returns (losses, outputs), with one loss per sample or token before any reduction "
                f"(docs/subclasses.md shows how); or {self._without_weights} to train on that loss as it is."
            )
        model = self._bare_model()
        unknown = f"The per-sample losses of {type(without_peft(model)).__name__} are not known: {why_unknown(model)}. "
        if needs_labels(model):
            return NotImplementedError(
                f"{unknown}Give {name} a method compute_per_sample_losses(self, model, inputs) that calls the model with its "
                f"labels and returns (losses, outputs), unreduced; or {self._without_weights} to train on the model's own loss."
            )
        return NotImplementedError(
            f"{unknown}"
            "Pass per_sample_loss_fn=(outputs, labels) -> unreduced losses, one "
            f"element per sample or token; or, where that needs the inputs or another model, give {name} a method "
            "compute_per_sample_losses(self, model, inputs) that returns (losses, outputs); or "
            f"{self._without_weights} to train on the model's own loss."
        )

    def _bare_model(self) -> nn.Module:
        """The model without the wrappers of distributed training and compilation."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
