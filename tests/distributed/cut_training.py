"""Train one case with the Trainer, in whatever process group this process belongs to."""

from pathlib import Path
from typing import Any

from brute_force import (
    ADAM_EPSILON,
    EVAL_SAMPLES,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    SEED,
    Trajectory,
)
from cut_cases import STEPS, Case
from cut_tasks import Collator, make_data, make_model, own_losses
from torch.utils.data import IterableDataset

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from tests.helpers.tiny import parameters_of


class Stream(IterableDataset):
    """Examples one after the other, without a length."""

    def __init__(self, data: list[dict]):
        self.data = data

    def __iter__(self):
        return iter(self.data)


def make_args(case: Case, folder: Path, **kwargs: Any) -> ReweightedTrainingArguments:
    setting, cut = case.setting, case.cut
    defaults: dict[str, Any] = {
        "output_dir": str(folder / str(case)),
        "per_device_train_batch_size": cut.micro,
        "gradient_accumulation_steps": cut.accumulation,
        "per_device_eval_batch_size": cut.eval_batch,
        "average_tokens_across_devices": cut.average_tokens,
        "accelerator_config": dict(cut.accelerator),
        "train_sampling_strategy": "random" if setting.shuffle else "sequential",
        "seed": SEED,
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "log_level": "error",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": setting.optim,
        "learning_rate": LEARNING_RATE[setting.optim],
        "adam_epsilon": ADAM_EPSILON,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "reweighting": setting.divergence,
        "tau": setting.tau,
        "reweighting_level": setting.level,
        "normalize_weights": setting.normalize,
        "reweighting_warmup_ratio": setting.warmup,
        "fused_lm_head": setting.fused,
    }
    return ReweightedTrainingArguments(**(defaults | kwargs))


def make_trainer(
    case: Case, folder: Path, callbacks: list | None = None, model: Any = None, **kwargs: Any
) -> ReweightedTrainer:
    setting, cut = case.setting, case.cut
    data = make_data(setting.task, setting.samples, weights=setting.sample_weight)
    # accelerate dispatches batches by concatenating them, which needs one length for all.
    fixed_length = cut.iterable or dict(cut.accelerator).get("dispatch_batches", False)
    return ReweightedTrainer(
        model or make_model(setting.task),
        make_args(case, folder, **kwargs),
        train_dataset=Stream(data) if cut.iterable else data,
        eval_dataset=make_data(setting.task, EVAL_SAMPLES, seed=1),
        data_collator=Collator(fixed_length),
        per_sample_loss_fn=own_losses if setting.task == "own" else None,
        callbacks=callbacks,
    )


def train(case: Case, folder: Path) -> Trajectory:
    """The trajectory of the Trainer, to compare with `brute_force(case.setting)`."""
    trainer = make_trainer(case, folder)
    start = parameters_of(trainer.model)
    output = trainer.train()
    eval_loss = trainer.evaluate()["eval_loss"]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trajectory(start, parameters_of(trainer.model), logs, output.training_loss, eval_loss)
