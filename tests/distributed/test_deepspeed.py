"""DeepSpeed ZeRO-2 and ZeRO-3 on two gloo processes.

Re-weighting with its items counted ahead of the forward pass (every head the library knows, `normalize_weights` off)
only changes the scalar that backward starts from, so it holds exactly with DeepSpeed. `normalize_weights` and
`per_sample_loss_fn` rescale the step's gradients after backward; DeepSpeed's engine has partitioned and reduced them
by then, so both are refused.
"""

import importlib.util

import pytest
import torch
from brute_force import check
from cut_cases import ZERO_SETTINGS
from transformers import TrainingArguments

from rgd_hf.gradients import check_gradients_can_be_rescaled

pytestmark = pytest.mark.timeout(600)

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed (DS_BUILD_OPS=0 pip install deepspeed; on a CPU, DS_ACCELERATOR=cpu)",
)


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("setting", ZERO_SETTINGS, ids=str)
def test_zero_equals_a_single_process(stage, setting, launched):
    first, second = launched("zero", 2, f"{stage}-{setting}")
    check(setting, first)
    assert torch.equal(first.parameters, second.parameters)


@needs_deepspeed
def test_what_rescales_gradients_is_refused_by_the_trainer(launched):
    for normalized, own in launched("zero", 2, "refused"):
        assert "normalize_weights rescales" in normalized
        assert "per_sample_loss_fn rescales" in own


@pytest.mark.parametrize("setting", ["normalize_weights", "per_sample_loss_fn"])
def test_the_refusal_names_the_setting_and_the_way_out(setting, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    check_gradients_can_be_rescaled(args, deepspeed=False, asked_by=setting)
    with pytest.raises(ValueError, match=f"{setting} .* DeepSpeed .* use DDP or FSDP"):
        check_gradients_can_be_rescaled(args, deepspeed=True, asked_by=setting)


@pytest.mark.parametrize("optimizer", ["adalomo", "galore_adamw_layerwise"])
def test_an_optimizer_that_steps_inside_backward_is_refused(optimizer, tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, optim=optimizer)
    with pytest.raises(ValueError, match="takes its step inside the backward pass"):
        check_gradients_can_be_rescaled(args, deepspeed=False, asked_by="normalize_weights")
