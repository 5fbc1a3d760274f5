"""What the launched processes do: `python scenarios.py SCENARIO FOLDER`, once in every process of the group.

A scenario does many things, because every launch imports torch again.
"""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from brute_force import Trajectory
from cut_cases import BY_PROCESSES, FSDP_SETTINGS, LABELS_MADE, RESUMED, ZERO_SETTINGS, Case, Cut, Setting
from cut_tasks import make_data, make_model
from cut_training import make_trainer, train
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)
from transformers.distributed import DistributedConfig

from rgd_hf.heads import find_head
from rgd_hf.loss_sources import HeadLosses
from rgd_hf.scripts.processes import leave_process_group
from rgd_hf.trainer import NonFiniteLossError
from tests.helpers.tiny import learned, parameters_of, tiny_bert

torch.set_num_threads(1)
# Every train() collects garbage; what importing left behind is not worth looking through each time.
gc.freeze()


def cuts(folder: Path) -> dict[str, Any]:
    """Trajectories of all cases for this number of processes."""
    return {str(case): train(case, folder) for case in BY_PROCESSES[int(os.environ["WORLD_SIZE"])]}


def two(folder: Path) -> dict[str, Any]:
    """All that needs two processes of data parallelism."""
    return cuts(folder) | {
        "resumed": [resumed(setting, folder) for setting in RESUMED],
        "non-finite": [non_finite(folder, normalize) for normalize in (False, True)],
        "labels made": [labels_made(case, folder) for case in LABELS_MADE],
        "own logs": own_logs(folder),
    }


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def resumed(setting: Setting, folder: Path) -> Trajectory:
    """Stop after step 4 of 10, with the last checkpoint at step 3 in the middle of an epoch; go on from there."""
    case, saving = Case(setting, Cut(2, 2, 2)), {"save_strategy": "steps", "save_steps": 3}
    make_trainer(case, folder / "resumed", [StopAfter(4)], **saving).train()
    trainer = make_trainer(case, folder / "resumed", **saving)
    start = parameters_of(trainer.model)
    trainer.train(resume_from_checkpoint=True)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trajectory(start, parameters_of(trainer.model), logs, 0.0, trainer.evaluate()["eval_loss"])


def non_finite(folder: Path, normalize: bool) -> dict[str, Any]:
    """Only the second process sees a NaN, in step 3; checkpoints are due every second step."""
    case = Case(Setting(normalize=normalize), Cut(2, 2, 2))
    trainer = make_trainer(
        case, folder / "non-finite", save_strategy="steps", save_steps=2, logging_steps=4, max_steps=10
    )
    trainer.model = trainer.model_wrapped = tiny_bert(num_labels=1)
    data = make_data("sequence", 37)
    for example in data:
        example["labels"] = example["labels"].float()
    data[2 * 8 + 2]["labels"] = torch.tensor(float("nan"))
    trainer.train_dataset = data
    found: dict[str, Any] = {"error": None}
    try:
        trainer.train()
    except NonFiniteLossError as error:
        found["error"] = str(error)
    found["checkpoints"] = sorted(path.name for path in Path(trainer.args.output_dir).glob("checkpoint-*"))
    return found


def labels_made(case: Case, folder: Path) -> Trajectory:
    """Every second batch of the second process has no labels before an override of `compute_loss` makes them."""
    trainer = make_trainer(case, folder / "labels-made")
    compute_loss, collate, batches = trainer.compute_loss, trainer.data_collator, count()

    def collate_without(examples):
        batch = collate(examples)
        if os.environ["RANK"] == "1" and next(batches) % 2 == 0:
            batch["to_come"] = batch.pop("labels")
        return batch

    def make_labels(model, inputs, *args, **kwargs):
        if "to_come" in inputs:
            inputs["labels"] = inputs.pop("to_come")
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.data_collator, trainer.compute_loss = collate_without, make_labels
    start, output = parameters_of(trainer.model), trainer.train()
    trainer.data_collator = collate
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trajectory(
        start,
        parameters_of(trainer.model),
        logs,
        output.training_loss,
        trainer.evaluate()["eval_loss"],
    )


def own_logs(folder: Path) -> Trajectory:
    """An override logs a loss in the middle of every step, on the first process only."""
    trainer = make_trainer(Case(Setting(), Cut(2, 2, 2)), folder / "own-logs")
    compute_loss = trainer.compute_loss

    def log_a_loss(*args, **kwargs):
        if trainer.is_world_process_zero():
            trainer.log({"loss": 0.0, "own": 1.0})
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = log_a_loss
    start, output = parameters_of(trainer.model), trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry and "own" not in entry]
    trainer.compute_loss = compute_loss
    eval_loss = trainer.evaluate()["eval_loss"]
    return Trajectory(start, parameters_of(trainer.model), logs, output.training_loss, eval_loss)


def fsdp(folder: Path) -> dict[str, Any]:
    """FSDP2 on gloo: transformers shards the model with `fully_shard` when it loads it."""
    for setting in FSDP_SETTINGS:
        # In a process group save_pretrained would write on the first rank alone; there is none yet.
        make_model(setting.task).save_pretrained(_saved(folder, setting))
    found: dict[str, Any] = {str(setting): _train_sharded(setting, folder) for setting in FSDP_SETTINGS}
    rank = int(os.environ["RANK"])
    return found | {"doubted": doubted(rank, fully_shard), "refused": _refused(rank)}


def _saved(folder: Path, setting: Setting) -> Path:
    return folder / f"model-{setting}-{os.environ['RANK']}"


def _train_sharded(setting: Setting, folder: Path) -> Trajectory:
    cls = {"sequence": AutoModelForSequenceClassification, "causal": AutoModelForCausalLM}.get(
        setting.task, AutoModelForTokenClassification
    )
    plan = {"bert.embeddings": "free_full_weight", "bert.encoder.layer.*": "free_full_weight"}
    if setting.task == "causal":
        plan = {"transformer.h.*": "free_full_weight"}
    config = DistributedConfig(fsdp_size=int(os.environ["WORLD_SIZE"]), fsdp_plan=plan)
    model = cls.from_pretrained(_saved(folder, setting), distributed_config=config)
    trainer = make_trainer(Case(setting, Cut(2, 2, 2)), folder, model=model)

    def whole() -> torch.Tensor:
        parameters = dict(trainer.model.named_parameters())
        assert all(hasattr(p, "full_tensor") for p in parameters.values()), "the model is not sharded"
        return torch.cat([learned(n, p.detach().full_tensor()).flatten() for n, p in parameters.items()])

    start, output = whole(), trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    end = whole()  # evaluation leaves the outermost parameters gathered
    eval_loss = trainer.evaluate()["eval_loss"]
    return Trajectory(start, end, logs, output.training_loss, eval_loss)


class Derived(LlamaForCausalLM):
    """Its loss is compared with that of its head; `on_ids` makes it another where the batch has these ids."""

    on_ids = -1

    @property
    def loss_function(self):
        plain = super().loss_function

        def loss(logits, labels, vocab_size, **kwargs):
            found = plain(logits, labels, vocab_size, **kwargs)
            return found * 2 if bool((labels == self.on_ids).any()) else found

        return loss


def doubted(rank: int, wrap: Callable[..., Any], on_ids: int = -1) -> list[float]:
    """Losses of three batches of a rank; the first batch of rank 1 has no item, that of rank 0 has."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 33, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 64}
    model = Derived(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0))
    model.on_ids = on_ids
    for layer in model.model.layers:
        wrap(layer)
    wrap(model)
    head = find_head(model)
    assert head is not None
    source, found = HeadLosses(head, model.train(), None), []
    ids = torch.randint(2, 30, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    ids[0, :, 7] = 31  # in batches of rank 0 alone
    for step in range(3):
        row = ids[rank, step : step + 1]
        labels = torch.full_like(row, -100) if rank and not step else row
        losses = source.run(model, {"input_ids": row, "labels": labels}, 0.0).losses.sum()
        losses.backward()
        found.append(losses.item())
    return found


def _refused(rank: int) -> str:
    try:
        doubted(rank, fully_shard, on_ids=31)
    except NotImplementedError as error:
        return str(error)
    return ""


def zero(folder: Path) -> dict[str, Any]:
    """DeepSpeed ZeRO-2 and ZeRO-3 on gloo, and what is refused with them."""
    found: dict[str, Any] = {}
    for stage in (2, 3):
        for setting in ZERO_SETTINGS:
            found[f"{stage}-{setting}"] = _train_with_deepspeed(setting, folder, stage)
    found["refused"] = []
    for setting in (Setting(normalize=True), Setting("own", "token")):
        try:
            make_trainer(Case(setting, Cut(2, 2, 2)), folder, deepspeed=_deepspeed_config(2))
        except ValueError as error:
            found["refused"].append(str(error))
    return found


def _deepspeed_config(stage: int) -> dict[str, Any]:
    return {
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def _train_with_deepspeed(setting: Setting, folder: Path, stage: int) -> Trajectory:
    import deepspeed

    start = parameters_of(make_model(setting.task))
    trainer = make_trainer(Case(setting, Cut(2, 2, 2)), folder, deepspeed=_deepspeed_config(stage))
    output = trainer.train()
    with deepspeed.zero.GatheredParameters(list(trainer.model.parameters())):
        end = parameters_of(trainer.model).clone()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Trajectory(start, end, logs, output.training_loss, trainer.evaluate()["eval_loss"])


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "two": two,
    "four": cuts,
    "fsdp": fsdp,
    "zero": zero,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    started = time.perf_counter()
    found = SCENARIOS[name](folder)
    torch.save(found, folder / f"{name}-{os.environ['RANK']}.pt")
    print(f"{name} took {time.perf_counter() - started:.1f} s", flush=True)
    leave_process_group()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        # Other ranks may wait for this one, so leave without the clean-up that would wait for them.
        os._exit(1)
