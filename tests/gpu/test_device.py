"""The library on the device that is there: every head, every cut, every precision, what interrupts a run."""

import math
import warnings
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from gpu.conftest import DEVICE, ON_GPU
from gpu.tasks import TASKS
from rgd_hf import ReweightedTrainer, rgd_surrogate
from rgd_hf.observers import HardExamples
from rgd_hf.trainer import NonFiniteLossError
from tests.helpers.releases import compiles, shards_without_gpu
from tests.helpers.tiny import parameters_of, relative_error

pytestmark = pytest.mark.filterwarnings("ignore")
TAU = 1.5
# Sums of some hundred float32 terms in another order: the bound is of the norm, not of an element.
SAME = 2e-5


def batch_of(data):
    return {key: torch.stack([torch.as_tensor(row[key]) for row in data]).to(DEVICE) for key in data[0]}


def trained(task, args, n=16, cls=ReweightedTrainer, **settings):
    trainer = cls(TASKS[task].build(), args, train_dataset=TASKS[task].data(n), **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("reweighting", ["none", "kl"])
def test_every_head_takes_the_step_of_brute_force_autograd(task, reweighting, device_args):
    """`reweighting="kl"` descends on the mean surrogate of the losses, `none` on their mean."""
    model, data = TASKS[task].build().to(DEVICE).train(), TASKS[task].data()
    batch = batch_of(data)
    losses = TASKS[task].losses(model(**batch), batch)
    objective = losses.mean() if reweighting == "none" else rgd_surrogate(losses, "kl", TAU).mean()
    objective.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    start = parameters_of(TASKS[task].build().to(DEVICE))
    args = device_args(max_steps=1, per_device_train_batch_size=len(data))
    ours = trained(task, args, reweighting=reweighting, tau=TAU)
    assert next(ours.model.parameters()).device.type == DEVICE.type
    assert relative_error(parameters_of(ours.model) - start, parameters_of(model) - start) < 1e-3
    assert relative_error(parameters_of(ours.model), parameters_of(model)) < SAME


@pytest.mark.parametrize("task", ["single label", "causal LM"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_step_does_not_depend_on_how_it_is_cut(task, normalize, device_args):
    cuts = [(16, 1), (4, 4)]
    found = [
        parameters_of(
            trained(
                task,
                device_args(
                    f"{batch}",
                    per_device_train_batch_size=batch,
                    gradient_accumulation_steps=steps,
                    max_steps=3,
                ),
                tau=TAU,
                normalize_weights=normalize,
            ).model
        )
        for batch, steps in cuts
    ]
    assert relative_error(found[1], found[0]) < SAME


def statistics(trainer):
    return [entry for entry in trainer.state.log_history if "weight_mean" in entry]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("task", ["single label", "causal LM"])
def test_mixed_precision_trains_as_float32_does(task, precision, normalize, device_args):
    """fp16 goes through the gradient scaler, whose factor must not reach the weights or the normalization."""
    if precision == "fp16" and not ON_GPU:
        pytest.skip("fp16 autocast with its scaler needs an accelerator")
    if precision == "bf16" and ON_GPU and not torch.cuda.is_bf16_supported():
        pytest.skip("this device has no bf16")
    settings = {"tau": TAU, "normalize_weights": normalize}
    full = trained(task, device_args("full", learning_rate=0.01), **settings)
    mixed = trained(task, device_args("mixed", learning_rate=0.01, **{precision: True}), **settings)
    for expected, log in zip(statistics(full), statistics(mixed), strict=True):
        for key in ("weight_mean", "weight_max", "effective_sample_size", "unweighted_loss"):
            assert log[key] == pytest.approx(expected[key], rel=0.05), key
    start = parameters_of(TASKS[task].build())
    step = parameters_of(full.model).cpu() - start
    assert relative_error(parameters_of(mixed.model).cpu().float() - start, step) < 0.2


def test_a_bf16_model_has_float32_losses_and_weights(device_args):
    model = TASKS["single label"].build().to(torch.bfloat16)
    data = TASKS["single label"].data()
    trainer = ReweightedTrainer(model, device_args(max_steps=2), train_dataset=data, tau=TAU)
    trainer.train()
    assert all(math.isfinite(log["unweighted_loss"]) for log in statistics(trainer))
    loss = trainer.compute_loss(trainer.model, batch_of(data))
    assert loss.dtype == torch.float32 and next(trainer.model.parameters()).dtype == torch.bfloat16


@compiles
def test_a_compiled_model_trains_as_the_plain_one(device_args):
    torch._dynamo.reset()
    backend = "inductor" if ON_GPU else "aot_eager"
    plain = trained("single label", device_args("plain", max_steps=3), tau=TAU)
    compiled = trained(
        "single label",
        device_args("compiled", max_steps=3, torch_compile=True, torch_compile_backend=backend),
        tau=TAU,
    )
    torch._dynamo.reset()
    assert relative_error(parameters_of(compiled.model), parameters_of(plain.model)) < 1e-4


@pytest.mark.parametrize("task", ["single label", "causal LM"])
def test_gradient_checkpointing_changes_nothing(task, device_args):
    plain = trained(task, device_args("plain"), tau=TAU)
    checkpointed = trained(task, device_args("checkpointed", gradient_checkpointing=True), tau=TAU)
    assert relative_error(parameters_of(checkpointed.model), parameters_of(plain.model)) < SAME


@shards_without_gpu
def test_a_model_sharded_by_fsdp2_has_the_same_gradients(device_args, tmp_path):
    """FSDP2 over a group of one: its hooks and distributed tensors, without a second device."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    task, data = TASKS["causal LM"], TASKS["causal LM"].data()
    plain = ReweightedTrainer(task.build(), device_args(), train_dataset=data, tau=TAU)
    plain.compute_loss(plain.model.train(), batch_of(data)).backward()
    distributed.init_process_group(
        "nccl" if ON_GPU else "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        trainer = ReweightedTrainer(task.build(), device_args("sharded"), train_dataset=data, tau=TAU)
        model = trainer.model.train()
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
        trainer.compute_loss(model, batch_of(data)).backward()
        for expected, parameter in zip(plain.model.parameters(), model.parameters(), strict=True):
            assert relative_error(parameter.grad.full_tensor(), expected.grad) < SAME
    finally:
        distributed.destroy_process_group()


def test_a_resumed_run_takes_the_same_steps(device_args):
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 2,
        "optim": "adamw_torch",
    }
    whole = trained("single label", device_args("whole", learning_rate=1e-3, **settings), tau=TAU)
    args = device_args("cut", learning_rate=1e-3, **settings)

    class StopInTheMiddle(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trained("single label", args, tau=TAU, callbacks=[StopInTheMiddle()])
    resumed = ReweightedTrainer(
        TASKS["single label"].build(), args, train_dataset=TASKS["single label"].data(), tau=TAU
    )
    resumed.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir))
    assert relative_error(parameters_of(resumed.model), parameters_of(whole.model)) < SAME
    for key in ("weight_mean", "weight_max", "unweighted_loss"):
        assert statistics(resumed)[-1][key] == pytest.approx(statistics(whole)[-1][key], rel=1e-4)


def test_a_nan_loss_stops_the_run(device_args):
    data = TASKS["regression"].data()
    data[3]["labels"] = torch.tensor(float("nan"))
    with pytest.raises(NonFiniteLossError, match="step"):
        ReweightedTrainer(TASKS["regression"].build(), device_args(), train_dataset=data).train()


def test_hard_examples_are_those_of_the_largest_losses(device_args):
    data = TASKS["regression"].data()
    for row in data:
        row["labels"] = torch.zeros(())
    data[5]["labels"] = torch.tensor(40.0)
    trainer = ReweightedTrainer(
        TASKS["regression"].build(), device_args(learning_rate=1e-4), train_dataset=data, tau=50.0
    )
    examples = HardExamples()
    trainer.add_observer(examples)
    trainer.train()
    (hardest,) = examples.most_weighted(1)
    assert hardest.index == 5 and hardest.loss == pytest.approx(1600, rel=0.3)


# --- no wait for the device between two logs --------------------------------------------------------------------------

WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")


class CountWaits(TorchDispatchMode):
    """Counts the operators after which the host has to wait for the device; on CUDA the wait itself raises."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.watching = False

    def watch(self, on: bool) -> None:
        self.watching = on
        if ON_GPU:
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if self.watching and name in WAITING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


class WatchedTrainer(ReweightedTrainer):
    """Watches what the library does between model and backward from the second step on: the first checks the labels."""

    def compute_loss(self, model, *args, **kwargs):
        mode = self.mode
        if self.state.global_step == 0:
            return super().compute_loss(model, *args, **kwargs)
        # The model may wait by itself (Llama looks at its mask), under the stock Trainer too.
        hooks = [
            model.register_forward_pre_hook(lambda *_: mode.watch(False)),
            model.register_forward_hook(lambda *_: mode.watch(True)),
        ]
        with mode:
            mode.watch(True)
            try:
                return super().compute_loss(model, *args, **kwargs)
            finally:
                mode.watch(False)
                for hook in hooks:
                    hook.remove()


SETTINGS = [
    {"reweighting": "none"},
    {"reweighting": "kl"},
    {"reweighting": "kl", "normalize_weights": True},
    {"reweighting": "kl", "reweighting_level": "sample"},
    {"target_ess": 0.9},
    {"reweighting": "focal"},
    {"reweighting": "tilted"},
    {"reweighting": "cvar"},
]


def waits_of(task, settings, args, cls=WatchedTrainer):
    trainer = cls(TASKS[task].build(), args, train_dataset=TASKS[task].data(), **settings)
    trainer.mode = CountWaits()
    trainer.train()
    return trainer.mode.counts


@pytest.mark.parametrize("task", ["single label", "token classification", "causal LM", "encoder-decoder LM"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_from_losses_to_the_objective_nothing_waits_for_the_device(task, settings, device_args):
    args = device_args(max_steps=3, logging_steps=3, gradient_accumulation_steps=2)
    assert not waits_of(task, settings, args)


def test_a_wait_would_be_seen(device_args):
    class Waits(WatchedTrainer):
        def weigh(self, items, inputs):
            items.losses.sum().item()
            return super().weigh(items, inputs)

    if ON_GPU:
        with pytest.raises(RuntimeError, match="synchroniz"):
            waits_of("single label", {}, device_args(), Waits)
    else:
        assert waits_of("single label", {}, device_args(), Waits)


def cuda_waits(cls, args, **settings):
    """Waits of whole training steps, as CUDA itself reports them, from the third step on."""

    class FromTheThird(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                torch.cuda.set_sync_debug_mode("warn")

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == args.max_steps - 1:
                torch.cuda.set_sync_debug_mode("default")

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trained("single label", args, n=64, cls=cls, callbacks=[FromTheThird()], **settings)
    return sum("synchronizing" in str(warning.message) for warning in found)


@pytest.mark.skipif(not ON_GPU, reason="CUDA reports waits, and there is none here")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_whole_step_waits_no_more_often_than_the_stock_trainers(settings, device_args):
    options = {"max_steps": 8, "logging_steps": 8, "logging_nan_inf_filter": False, "max_grad_norm": 1.0}
    stock = cuda_waits(Trainer, device_args("stock", **options))
    assert cuda_waits(ReweightedTrainer, device_args("ours", **options), **settings) <= stock
