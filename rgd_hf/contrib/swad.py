"""SWAD: the average of all weights between the end of fitting and the start of overfitting."""

import json
import math
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from rgd_hf.contrib.checkpoints import state_file
from rgd_hf.contrib.errors import SetupError
from rgd_hf.overrides import check_class
from rgd_hf.trainer_base import TrainerBase

SWAD_NAME = "swad.safetensors"
AVERAGE, SEGMENT, PENDING = "average", "segment", "pending"

PATIENCE_TO_START = 3
PATIENCE_TO_END = 6

T = TypeVar("T")


class LossValley(Generic[T]):
    """Decides which segments belong to the average, from their validation losses in order.

    The start is the first segment whose loss is the lowest of the `PATIENCE_TO_START` that begin with it. From then
    on, the threshold is `tolerance` times the mean of these losses; the end is reached when `PATIENCE_TO_END`
    segments in a row are above it, and the last segment of the average is the one before them. Where training ends before
    there is a start, the average is the last segment, as in the authors' code; Algorithm 1 leaves it open. A segment whose loss
    is NaN or infinite begins no average and joins none: its weights may be NaN.

    Source: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, Algorithm 1 (arXiv 2102.08604).
    The authors' code differs from it, and from this, in two more places: once it has the start, it adds the segments just
    before it that are under the threshold, and it drops those above the threshold at the end of the average.

    Args:
        tolerance: factor of the threshold, at least 1.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.start: int | None = None
        self.threshold = float("inf")
        self.ended = False
        self.count = 0
        self.pending: deque[tuple[float, T]] = deque()

    def add(self, loss: float, segment: T) -> list[T]:
        """Add the next segment with its validation loss; returns the segments now known to belong to the average."""
        if self.ended:
            return []
        self.count += 1
        self.pending.append((math.inf if math.isnan(loss) else loss, segment))
        if self.start is None:
            self._look_for_start()
            return []
        accepted = []
        if len(self.pending) > PATIENCE_TO_END:
            loss, segment = self.pending.popleft()
            accepted = [segment] if math.isfinite(loss) else []
        window = [loss for loss, _ in self.pending]
        if len(window) == PATIENCE_TO_END and min(window) > self.threshold:
            self.ended = True
            self.pending.clear()
        return accepted

    def finish(self) -> list[T]:
        """The segments that belong to the average because training ended before overfitting was found.

        The last one alone where no start was found: the validation loss was still falling.
        """
        if self.start is None:
            left = [segment for _, segment in self.pending][-1:]
        else:
            left = [segment for loss, segment in self.pending if math.isfinite(loss)]
        self.pending.clear()
        return left

    def _look_for_start(self) -> None:
        if len(self.pending) > PATIENCE_TO_START:
            self.pending.popleft()
        losses = [loss for loss, _ in self.pending]
        if len(losses) == PATIENCE_TO_START and losses[0] == min(losses) and all(map(math.isfinite, losses)):
            self.start = self.count - PATIENCE_TO_START
            self.threshold = self.tolerance * sum(losses) / len(losses)


class WeightAverage:
    """Running mean of a model's parameters and buffers, in float32 (integers are copied).

    Unlike `torch.optim.swa_utils.AveragedModel` it takes in means of several steps, by their number, and does not average
    in half precision where the model is in half precision.

    Attributes:
        count: number of averaged steps.
        mean: averaged tensors by name; empty before the first step.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor], count: int = 1) -> None:
        """Add weights that stand for `count` steps."""
        self.count += count
        for name, tensor in weights.items():
            if name not in self.mean or not tensor.is_floating_point():
                self.mean[name] = (
                    tensor.detach().clone().float() if tensor.is_floating_point() else tensor.clone()
                )
            else:
                self.mean[name].lerp_(tensor.detach().float(), count / self.count)


class SWADMixin(TrainerBase):
    """SWAD for any class that derives from `transformers.Trainer`; list it before the Trainer.

        class SWADTrainer(SWADMixin, ReweightedTrainer): ...

    The weights after every step between two evaluations are averaged into a segment (buffers included), and the validation
    loss at its end decides about the segment, as `LossValley` says; so evaluate often (`eval_strategy="steps"`). `train` ends
    with the average in the model and an evaluation of it, which model card and hyperparameter search go by: `evaluate` and
    `save_model` after it are of the average. A trial of a search that rgd_hf ends, as its loss is not finite, has none. Where the validation loss never
    stopped falling, that is the average since the evaluation before the last one, and a warning says so. Batch normalizations whose statistics are trained have averaged ones then;
    `torch.optim.swa_utils.update_bn` counts them again.

    Up to eight copies of the weights in float32 are kept, in checkpoints too (`swad.safetensors`), from which a training
    resumes exactly.

    Source: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, Algorithm 1 (arXiv 2102.08604).

    Args:
        swad_tolerance: factor of the validation loss at which overfitting begins, at least 1 (default 1.3).

    Attributes:
        swad_average: the `WeightAverage` that `train` ended with; its `count`, the number of steps, is `swad_steps` among
            the metrics of the training, and 0 where nothing was evaluated: the last weights stay.

    Raises:
        SetupError: `swad_tolerance` is below 1, nothing is evaluated during training, the weights are split over processes
            (FSDP, DeepSpeed), or `load_best_model_at_end` would put the weights of one step in the average's place; in
            training: evaluation gives no loss, or a checkpoint to resume from has no state of SWAD.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_class(cls, SWADMixin)

    def __init__(self, *args: Any, swad_tolerance: float = 1.3, **kwargs: Any):
        if swad_tolerance < 1:
            raise SetupError(f"swad_tolerance must be at least 1, not {swad_tolerance:g}.")
        self.swad_tolerance = swad_tolerance
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SetupError("SWAD averages whole weights: it works with DDP, not with FSDP or DeepSpeed.")
        if self.args.load_best_model_at_end:
            raise SetupError("load_best_model_at_end would discard the average of SWAD: turn it off.")
        if self.args.eval_strategy == "no":
            raise SetupError(
                "SWAD goes by the validation loss during training: set eval_strategy='steps' and eval_steps, and give an "
                "eval_dataset."
            )
        self._start_swad()
        self.add_callback(_EveryStep(self))

    def _start_swad(self) -> None:
        self.swad_valley: LossValley[WeightAverage] = LossValley(self.swad_tolerance)
        self.swad_segment, self.swad_average = WeightAverage(), WeightAverage()

    def validation_loss(self, metrics: Mapping[str, float]) -> float:
        """The loss that decides about a segment: `eval_loss`, or the mean of the `eval_<name>_loss` of several evaluation sets.

        Raises:
            SetupError: there is none.
        """
        if "eval_loss" in metrics:
            return metrics["eval_loss"]
        sets: Any = self.eval_dataset if isinstance(self.eval_dataset, Mapping) else {}
        losses = [metrics[name] for name in (f"eval_{each}_loss" for each in sets) if name in metrics]
        if not losses:
            labels = ", ".join(map(repr, self.label_names))
            raise SetupError(
                f"SWAD goes by the validation loss, but evaluation gave none, only {', '.join(sorted(metrics))}: it has one "
                f"where every evaluation batch has labels ({f'the columns {labels}' if labels else 'there are no label_names'}). "
                "Give the evaluation set its labels, name their columns (TrainingArguments(label_names=[...])), or override "
                "validation_loss(self, metrics) to go by another number."
            )
        return sum(losses) / len(losses)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; during training it ends a segment."""
        metrics = super().evaluate(*args, **kwargs)
        eval_dataset = args[0] if args else kwargs.get("eval_dataset")
        if eval_dataset is None and self.is_in_train:
            self._take(self.swad_valley.add(self.validation_loss(metrics), self.swad_segment))
            self.swad_segment = WeightAverage()
        return metrics

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        # A batch size that did not fit begins here again.
        self._start_swad()
        self._ignore_keys_for_eval: list[str] | None = kwargs.get("ignore_keys_for_eval")
        return super()._inner_training_loop(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the model ends with the average, and is evaluated once more."""
        output = super().train(*args, **kwargs)
        # Of rgd_hf, where the loss of a search's trial was not finite: an average from before could win.
        if getattr(self, "_trial_ends", False):
            return output
        self._take(self.swad_valley.finish())
        output.metrics["swad_steps"] = self.swad_average.count
        if self.swad_valley.start is None and self.is_world_process_zero():
            steps = self.swad_average.count
            kept = f"is the average of the last {steps} steps alone" if steps else "has its last weights"
            warnings.warn(
                f"SWAD found no end of fitting in {self.swad_valley.count} evaluations: the validation loss was still "
                f"falling. The model {kept}. Train longer, or evaluate more often (eval_steps).",
                stacklevel=2,
            )
        if self.swad_average.count:
            model: Any = self.accelerator.unwrap_model(self.model)
            like = model.state_dict()
            model.load_state_dict(
                {name: mean.to(like[name].dtype) for name, mean in self.swad_average.mean.items()}
            )
        if self.hp_search_backend is None:
            self._evaluate_average()
        else:
            self.objective = None  # the search evaluates a model for which there is none
        return output

    def _evaluate_average(self) -> None:
        args = self.args
        full = args.fp16_full_eval, args.bf16_full_eval
        # After training these would leave the model in half precision.
        args.fp16_full_eval = args.bf16_full_eval = False
        try:
            # As the Trainer does: overrides may take nothing else.
            self.evaluate(ignore_keys=self._ignore_keys_for_eval)
        finally:
            args.fp16_full_eval, args.bf16_full_eval = full

    def _take(self, segments: list[WeightAverage]) -> None:
        for segment in segments:
            self.swad_average.add(segment.mean, segment.count)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if not self.args.should_save:
            return
        valley = self.swad_valley
        losses, segments = [loss for loss, _ in valley.pending], [segment for _, segment in valley.pending]
        averages = {AVERAGE: self.swad_average, SEGMENT: self.swad_segment}
        averages |= {f"{PENDING}{number}": segment for number, segment in enumerate(segments)}
        about = {
            "counts": {name: average.count for name, average in averages.items()},
            "losses": losses,
            "valley": {name: getattr(valley, name) for name in ("start", "threshold", "ended", "count")},
        }
        tensors = {
            f"{part}.{name}": tensor.contiguous()
            for part, average in averages.items()
            for name, tensor in average.mean.items()
        }
        save_file(tensors, str(Path(output_dir) / SWAD_NAME), metadata={"swad": json.dumps(about)})

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = state_file(checkpoint, SWAD_NAME, "SWAD")
        with safe_open(str(path), framework="pt") as file:
            about = json.loads(file.metadata()["swad"])
        averages = {name: WeightAverage(count) for name, count in about["counts"].items()}
        for key, tensor in load_file(str(path)).items():
            part, name = key.split(".", 1)
            averages[part].mean[name] = tensor.to(self.args.device)
        self.swad_average, self.swad_segment = averages.pop(AVERAGE), averages.pop(SEGMENT)
        for name, value in about["valley"].items():
            setattr(self.swad_valley, name, value)
        pending = [averages[f"{PENDING}{number}"] for number in range(len(averages))]
        self.swad_valley.pending = deque(zip(about["losses"], pending, strict=True))


class _EveryStep(TrainerCallback):
    def __init__(self, trainer: SWADMixin):
        self.trainer = trainer

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        model: Any = self.trainer.accelerator.unwrap_model(self.trainer.model)
        self.trainer.swad_segment.add(model.state_dict())
