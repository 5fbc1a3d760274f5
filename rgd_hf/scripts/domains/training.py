"""The Trainers of the algorithms: batches of all training domains, and the best checkpoint kept."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Sampler

from rgd_hf import ReweightedTrainer
from rgd_hf.batches.columns import SAMPLE_INDEX
from rgd_hf.contrib import CORALMixin, MIROMixin, SetupError, SWADMixin
from rgd_hf.scripts.domains.batches import DOMAIN
from rgd_hf.scripts.training.metrics import predicted_labels
from rgd_hf.scripts.training.predictions import PredictionsMixin

BEST_NAME = "best.safetensors"
VALIDATION = "validation_accuracy"
CANNOT_SPLIT = (
    "domainbed.py keeps whole weights on every process: it works with DDP, not with FSDP or DeepSpeed."
)


class DomainTrainer(PredictionsMixin, ReweightedTrainer):
    """Empirical risk minimization over the training domains, with the re-weighting of its arguments.

    `eval_dataset` is a dict with one data set per split, named `<domain>_in` and `<domain>_out`. Every evaluation logs the
    mean accuracy and loss on the `out` splits of the training domains, as `eval_validation_accuracy` and `eval_loss`.
    `train` ends with the weights that have the best of these accuracies (the earliest of equals): DomainBed's
    training-domain validation. Checkpoints have them in `best.safetensors`.

    Args:
        sampler: sampler of the training batches.
        training_domains: names of the training domains, by their number in a batch.
    """

    hidden_columns = (DOMAIN, SAMPLE_INDEX)
    keeps_best = True

    def __init__(self, *args: Any, sampler: Sampler, training_domains: list[str], **kwargs: Any):
        self.domain_sampler, self.training_domains = sampler, training_domains
        self.best: dict[str, Tensor] = {}
        self.best_accuracy, self.best_step = -1.0, 0
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise SetupError(CANNOT_SPLIT)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        return self.domain_sampler

    def predicted(self, outputs: Any) -> np.ndarray:
        """Class numbers int64 `[samples]`, whatever the model's `problem_type`."""
        return predicted_labels(outputs, "single_label_classification")

    def bare_model(self) -> nn.Module:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    # --- the best checkpoint ------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As the Trainer's; of all splits, it also gives the training domains' mean accuracy and loss."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is not None:
            return metrics
        found = {
            f"{metric_key_prefix}_{name}": float(
                np.mean([metrics[f"{metric_key_prefix}_{d}_out_{kind}"] for d in self.training_domains])
            )
            for name, kind in ((VALIDATION, "accuracy"), ("loss", "loss"))
        }
        self.log(found)
        if self.is_in_train and self.keeps_best:
            self._keep_if_best(found[f"{metric_key_prefix}_{VALIDATION}"])
        return metrics | found

    def _keep_if_best(self, accuracy: float) -> None:
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best_step = accuracy, self.state.global_step
            # On the CPU: the device has no room to spare for a second model.
            self.best = {
                name: value.detach().to("cpu", copy=True)
                for name, value in self.bare_model().state_dict().items()
            }

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the model ends with the best weights."""
        output = super().train(*args, **kwargs)
        if self.best:
            self.bare_model().load_state_dict(self.best)
        return output

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.best and self.args.should_save:
            about = {"accuracy": repr(self.best_accuracy), "step": str(self.best_step)}
            weights = {name: value.contiguous() for name, value in self.best.items()}
            save_file(weights, str(Path(output_dir) / BEST_NAME), metadata=about)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / BEST_NAME).is_file():
            self.best = load_file(str(Path(checkpoint) / BEST_NAME))
            with safe_open(str(Path(checkpoint) / BEST_NAME), framework="pt") as file:
                about = file.metadata()
            self.best_accuracy, self.best_step = float(about["accuracy"]), int(about["step"])


class CORALDomainTrainer(CORALMixin, DomainTrainer):
    """CORAL between the training domains."""


class MIRODomainTrainer(MIROMixin, DomainTrainer):
    """MIRO with the model that training starts from."""


class SWADDomainTrainer(SWADMixin, DomainTrainer):
    """SWAD by the training domains' validation loss; the only checkpoint is the average at the end.

    During training only the `out` splits of the training domains are evaluated.
    """

    keeps_best = False

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; during training, of the training domains alone."""
        if eval_dataset is not None or not self.is_in_train:
            return super().evaluate(eval_dataset, *args, **kwargs)
        everything: Any = self.eval_dataset
        self.eval_dataset = {f"{name}_out": everything[f"{name}_out"] for name in self.training_domains}
        try:
            return super().evaluate(None, *args, **kwargs)
        finally:
            self.eval_dataset = everything
