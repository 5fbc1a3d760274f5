"""How a Trainer uses its rule: builds it from the settings, updates it every step, saves and restores its state."""

import copy
import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rgd_hf.items import Items
from rgd_hf.trainer_base import TrainerBase
from rgd_hf.weightings import WEIGHTINGS, Weighting, WeightsError
from rgd_hf.weightings.base import checked_weights, qualified_name
from rgd_hf.weightings.choice import option_names, weighting_of

STATE_NAME = "weighting.safetensors"


class WeightingMixin(TrainerBase):
    """Applies the rule that weights the items of a training, and keeps its state."""

    _weighting: Weighting | None = None
    _weighting_settings: Any = None
    # The rule where the Trainer was given an object or a function.
    _given_rule: Weighting | None = None
    _read_settings: attrgetter
    _step_sums: Tensor | None = None
    # The rule's counts of the step's micro-batches, made before the forward passes, and the number of the one under way.
    _counts_ahead: Sequence[Tensor] = ()
    _micro_batch = 0
    # Counts ahead and counts of the losses, [2, ...], of the first micro-batch in which they differ, or else of any.
    _compared_counts: Tensor | None = None

    if TYPE_CHECKING:

        def _miscounted(self, ahead: list[float], found: list[float]) -> NotImplementedError: ...

    @property
    def weighting(self) -> Weighting:
        """The rule in use: the object or function that the Trainer was given, else the one that its arguments name."""
        # A hyper-parameter search writes into the arguments.
        if self._weighting is None or self._read_settings(self.args) != self._weighting_settings:
            made = weighting_of(self.args)
            if self._given_rule is not None:
                self._check_made_anew(self._given_rule, made)
            self._set_weighting(made)
        assert self._weighting is not None
        return self._weighting

    def _set_weighting(self, rule: Weighting, given: bool = False) -> None:
        self._weighting, self._given_rule = rule, rule if given else None
        self._read_settings = attrgetter(*sorted(option_names()))
        self._weighting_settings = self._read_settings(self.args)

    def _check_made_anew(self, given: Weighting, made: Weighting) -> None:
        """Raise where the arguments, of which one was changed, do not tell all the settings of the rule in use."""
        names, before = sorted(option_names()), self._weighting_settings
        args = copy.copy(self.args)
        for name, value in zip(names, before, strict=True):
            setattr(args, name, value)
        if type(made) is not type(given) or weighting_of(args).get_config() == given.get_config():
            return
        changed = [
            name for name, value in zip(names, before, strict=True) if getattr(self.args, name) != value
        ]
        raise ValueError(
            f"{', '.join(changed)} of the arguments changed, as a hyperparameter search does, but the rule {given.method_name()} was "
            "given as an object with settings that the arguments do not have, which would be lost. Make a Trainer with an object of "
            "its own for each value, or give a rule by its name."
        )

    @property
    def weigh_override(self) -> str | None:
        """Where `weigh` is overridden: the name of that method; None where the rule alone decides."""
        if type(self).weigh is WeightingMixin.weigh:
            return None
        definer = next(cls for cls in type(self).__mro__ if "weigh" in vars(cls))
        return f"{qualified_name(definer)}.weigh"

    @property
    def reweights(self) -> bool:
        """Whether losses are re-weighted; False for plain training (ERM)."""
        return self.weigh_override is not None or not self.weighting.is_plain

    def weigh(self, items: Items, inputs: Any) -> Tensor:
        """Weights of the items of a training micro-batch, by the rule; all 1 in steps that the schedule excludes.

        A class may override it: its weights are checked and the model card reports the override. Passing a function or
        an object as `reweighting` is simpler.

        Args:
            items: unreduced losses, detached, and reference weights, `[batch]` or `[batch, tokens]`.
            inputs: the batch they belong to, labels and `sample_weight` included.

        Returns:
            Detached float32 weights of the shape of `items.losses`, without the reference weights.
        """
        args, step, steps = self.args, self.state.global_step, self.state.max_steps
        started = step >= args.reweighting_warmup_ratio * steps  # type: ignore[attr-defined]
        stopped = args.reweighting_stop_ratio < 1 and step >= args.reweighting_stop_ratio * steps  # type: ignore[attr-defined]
        with torch.no_grad():
            return (
                self.weighting.weights(items)
                if started and not stopped
                else self.weighting.plain_weights(items)
            )

    def _weights_of(self, items: Items, inputs: Any) -> Tensor:
        """What `weigh` gives, checked; it is not asked where a micro-batch has no item at all.

        Raises:
            WeightsError: the result is not a tensor, or does not have the shape of the losses.
        """
        if not items.losses.numel():
            return torch.ones_like(items.losses)
        rule = self.weighting
        try:
            weights = checked_weights(
                self.weigh(items, inputs), items.losses, lambda: self.weigh_override or rule.name_in_errors
            )
        except WeightsError as error:
            raise WeightsError(f"{error} (optimizer step {self.state.global_step + 1}).") from None
        if WEIGHTINGS.get(rule.name) is type(rule) and self.weigh_override is None:
            return weights
        # Nobody reads the weight of an item that does not count, but 0 * inf is NaN.
        return weights.masked_fill(items.reference <= 0, 1.0)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _start_rule(self) -> None:
        self.weighting.reset(self.args.device)
        self._step_sums = self._compared_counts = None
        self._counts_ahead = ()

    def _tell_rule(self, micro_batches: Iterable[Items], of_all_processes: bool = True) -> None:
        """Let the rule count the items of a step before its first forward pass."""
        rule = self.weighting
        # Before `micro_batches`, which may be a generator, makes the items that most rules do not ask for.
        if type(rule).counts is Weighting.counts:
            return
        self._counts_ahead, self._micro_batch = (), -1
        ahead: list[Tensor] = []
        with torch.no_grad():
            for items in micro_batches:
                found = rule.counts(items)
                if found is None:
                    return
                ahead.append(found)
            if ahead:
                self._counts_ahead, counts = ahead, sum(ahead[1:], ahead[0])
                rule.begin_step(
                    self.accelerator.reduce(counts, reduction="sum") if of_all_processes else counts
                )

    def _compare_counts(self, items: Items) -> None:
        """Compare what the rule counted in the micro-batch under way, before its forward pass, with the items of its losses.

        Raises:
            NotImplementedError: they differ; on another device than the CPU, only in the training's first micro-batch, as
                this waits for the device, and else at the next log, checkpoint or end.
        """
        ahead, number = self._counts_ahead, self._micro_batch
        with torch.no_grad():
            found = self.weighting.counts(items._replace(losses=torch.zeros_like(items.losses)))
            assert found is not None
            pair = torch.stack([ahead[number] if number < len(ahead) else torch.zeros_like(found), found])
            before, self._compared_counts = self._compared_counts, pair
            if before is not None:
                self._compared_counts = torch.where(_differ(before), before, pair)
        if before is None or pair.device.type == "cpu":
            self._stop_if_differ(pair)

    def _stop_if_miscounted(self) -> None:
        """Raise what `_compare_counts` could not raise at once, on all processes."""
        if self._compared_counts is not None:
            for pair in self.accelerator.gather(self._compared_counts[None]):
                self._stop_if_differ(pair)

    def _stop_if_differ(self, pair: Tensor) -> None:
        if _differ(pair):
            raise self._miscounted(*pair.reshape(2, -1).tolist())

    def _add_sums(self, items: Items) -> None:
        """Add the rule's sums over a micro-batch to those of the step; called without gradients."""
        sums = self.weighting.sums(items)
        if sums is not None:
            self._step_sums = sums if self._step_sums is None else self._step_sums + sums

    def _end_step(self) -> None:
        """Update the rule with the sums of a step over all processes, once per step."""
        if self._step_sums is not None:
            sums, self._step_sums = self._step_sums, None
            with torch.no_grad():
                self.weighting.update(self.accelerator.reduce(sums, reduction="sum"))

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self._end_step()
        rule = self.weighting
        state = rule.state_dict()
        if state and self.args.should_save:
            config = {"weighting": json.dumps(rule.get_config())}
            # One tensor may stand under two names, which the file format does not take.
            tensors = {
                name: value.detach().clone(memory_format=torch.contiguous_format)
                for name, value in state.items()
            }
            save_file(tensors, str(Path(output_dir) / STATE_NAME), metadata=config)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.weighting.state_dict():
            return
        path = Path(checkpoint) / STATE_NAME
        if not path.is_file():
            raise ValueError(
                f"{checkpoint} has no {STATE_NAME}, the state of {self.weighting.method_name()}: it was written with "
                "another rule, or by save_only_model. Resume with that rule, or start a new training from the model of the checkpoint."
            )
        self.weighting.load_state_dict(load_file(str(path)))


def _differ(pair: Tensor) -> Tensor:
    # Sums of weights in another order are the same but for rounding.
    return ~torch.isclose(pair[0], pair[1], rtol=1e-4).all()
