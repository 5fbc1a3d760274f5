"""Training logs of the weights, the warning about clipped losses, and the stop on NaN and infinite values."""

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import HPSearchBackend

from rgd_hf.observers.statistics import stop_if_not_finite
from rgd_hf.observers.trainer import ObserversMixin
from rgd_hf.weightings import WeightsError

if TYPE_CHECKING:
    from rgd_hf.weightings import Weighting


NOTHING_COUNTS = (
    "No micro-batch since the last log has a label that counts: all are -100, or of a class or sample weight of 0. The loss "
    "is 0 and nothing is learnt from it: look at the labels of a training batch, and whether a maximum length cuts them away."
)
"""The warning about a loss that would look perfect."""


class LogsMixin(ObserversMixin):
    """Logs what the weights did, and stops the training on NaN or infinite losses and weights."""

    # Of the ReweightingMixin that derives from this class.
    stop_on_non_finite_loss: bool | None
    args: Any
    objective: Any
    _warned = False
    # Whether the training is a trial of a search that ends because of a loss that is not finite.
    _trial_ends = False
    _in_training_step: bool
    # Whether batches of this training have had sample weights.
    _has_sample_weights = False
    # The step of the Trainer's last log of this training.
    _logged_step = 0

    if TYPE_CHECKING:
        weighting: Weighting
        weigh_override: str | None

        @property
        def reweights(self) -> bool: ...  # noqa: D102
        @property
        def unreduces_losses(self) -> bool: ...  # noqa: D102
        def _end_step(self) -> None: ...
        def _stop_if_miscounted(self) -> None: ...

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; training logs also have the statistics of the weights and of other observers since the last."""
        more: dict[str, Any] = {}
        is_training_log = self.unreduces_losses and self._is_training_log(logs)
        if is_training_log:
            self._logged_step = self.state.global_step
            self._stop_if_not_finite()
        if is_training_log and not self._trial_ends:
            self._end_step()
            logs.update(self.weighting.logs())
            for observer in self.observers:
                found = self._collect(observer)
                if observer is self.statistics:
                    if not found and self._micro_batches:
                        warnings.warn(NOTHING_COUNTS, stacklevel=2)
                    self._micro_batches = 0
                    if not self.reweights:  # there is no rule, but class or sample weights may be in the loss
                        shown = ("unweighted_loss",) if self._weighs_without_rule() else ()
                        found = {name: found[name] for name in shown if name in found}
                numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
                logs.update(numbers)
                more.update({name: value for name, value in found.items() if name not in numbers})
            self._warn_once(logs)
        super().log(logs, *args, **kwargs)
        # Reporters take numbers alone.
        if more:
            self.state.log_history[-1].update(more)

    def _is_training_log(self, logs: dict[str, float]) -> bool:
        """Whether it is the Trainer's own, once in a step after its end, to which all processes come.

        Overrides may log a loss too, on one process or in the middle of a step.
        """
        if "loss" not in logs or not self.is_in_train or self._in_training_step:
            return False
        return self.state.global_step == self._globalstep_last_logged != self._logged_step

    def _weighs_without_rule(self) -> bool:
        """Whether class or sample weights are in the loss, on any process; every process has to call it."""
        if self.args.class_weights is not None:
            return True
        # What follows on one process waits for the others, whose batches may be without the column.
        seen = torch.tensor([self._has_sample_weights], device=self.args.device)
        return bool(self.accelerator.gather(seen).any())

    def _warn_once(self, statistics: dict[str, float]) -> None:
        # At the start every loss is at chance level, which says nothing about the rest of the run.
        settled = max(0.1, self.args.reweighting_warmup_ratio) * self.state.max_steps
        if self._warned or self.state.global_step < settled:
            return
        advice = self.weighting.advice(statistics)
        if advice is not None:
            self._warned = True
            warnings.warn(advice, stacklevel=3)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._stop_if_not_finite()
        if not self._trial_ends:
            super()._save_checkpoint(*args, **kwargs)

    def _stop_if_not_finite(self) -> None:
        self._stop_if_miscounted()
        stops = self.stop_on_non_finite_loss
        if not (stops or self.reweights):
            return
        bad_loss, bad_weight = self.statistics.first_bad_steps(self.accelerator.gather)
        # A loss that is not finite may well have such a weight, but not the other way round within a step.
        if bad_weight < bad_loss:
            name = self.weigh_override or self.weighting.name_in_errors
            raise WeightsError(
                f"{name} returned a negative, NaN or infinite weight at optimizer step {bad_weight:.0f}, so the parameters "
                f"are no longer usable. Weights have to be finite and at least 0: clamp them. Checkpoints in "
                f"{self.args.output_dir!r} were written before that step and are kept."
            )
        if stops or stops is None:
            if self.hp_search_backend is not None and self.state.is_hyper_param_search:
                self._end_trial_if_not_finite(bad_loss)
            else:
                stop_if_not_finite(bad_loss, self.args.output_dir)

    def _end_trial_if_not_finite(self, first_bad_step: float) -> None:
        """In place of an exception, which would end the whole search: the trial ends and its objective is NaN."""
        if math.isinf(first_bad_step):
            return
        if not self._trial_ends:
            self._trial_ends = True
            warnings.warn(
                f"The training loss was NaN or infinite at optimizer step {first_bad_step:.0f} of this trial, which "
                "therefore ends; the search continues. Narrow the search space (a lower learning rate) to spare such trials.",
                stacklevel=3,
            )
        self.control.should_training_stop = True
        # Not that of an evaluation before the loss went wrong. Optuna fails a trial by this one; the other backends are
        # told what an evaluation after the training gives, which the Trainer makes where there is none.
        self.objective = math.nan if self.hp_search_backend == HPSearchBackend.OPTUNA else None
