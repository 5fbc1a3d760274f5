"""`torch.compile` traces our functions whole, and a compiled model trains as the plain one does."""

import pytest
import torch
from cut_cases import Case, Cut, Setting
from cut_training import make_trainer
from torch._dynamo.utils import counters

from rgd_hf import rgd_surrogate, rgd_weights
from rgd_hf.divergences import divergences
from rgd_hf.items import Items, losses_at_level, reference_at_level, token_reference
from rgd_hf.losses import single_label_losses
from rgd_hf.training_args import ReweightingArguments
from rgd_hf.weightings.choice import weighting_of
from tests.helpers.releases import compiles
from tests.helpers.tiny import parameters_of

pytestmark = compiles


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def whole(function):
    """Compiled as one graph: a graph break is an error. Without a code generator, which changes no semantics."""
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("function", [rgd_weights, rgd_surrogate])
@pytest.mark.parametrize("divergence", list(divergences()))
def test_weights_and_surrogate_are_one_graph(function, divergence):
    losses = torch.rand(4, 5) * 3
    torch.testing.assert_close(whole(function)(losses, divergence, 1.5), function(losses, divergence, 1.5))


@pytest.mark.parametrize(
    "chosen",
    [
        {"tau": 1.5},
        {"target_ess": 0.9},
        {"reweighting": "focal"},
        {"reweighting": "tilted"},
        {"reweighting": "cvar"},
    ],
    ids=str,
)
@pytest.mark.parametrize("level", ["sample", "token"])
def test_the_whole_objective_is_one_graph(level, chosen):
    """Logits to weighted mean, forward and backward."""
    rule = weighting_of(ReweightingArguments(**chosen))

    def objective(logits, labels):
        valid = labels != -100
        losses = single_label_losses(logits.flatten(0, 1), labels.flatten()).view_as(labels)
        reference = token_reference(valid)
        at_level = losses_at_level(losses, reference, level)
        items = Items(at_level, reference_at_level(reference, level, None))
        weights = rule.weights(items._replace(losses=items.losses.detach()))
        return (weights * items.reference * items.losses).sum() / items.reference.sum()

    labels = torch.randint(0, 3, (4, 5)).masked_fill(torch.rand(4, 5) < 0.3, -100)
    logits = torch.randn(4, 5, 3)
    gradients = []
    for function in (objective, whole(objective)):
        leaf = logits.clone().requires_grad_()
        function(leaf, labels).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("task", ["sequence", "token"])
def test_a_compiled_model_trains_the_same(task, tmp_path):
    case = Case(Setting(task, optim="adamw_torch"), Cut(4, 2, 1))
    plain = make_trainer(case, tmp_path, max_steps=3)
    plain.train()
    compiled = make_trainer(
        case, tmp_path, max_steps=3, torch_compile=True, torch_compile_backend="aot_eager"
    )
    compiled.train()
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    ours = {reason for reason in counters["graph_break"] if "rgd_hf" in reason}
    assert not ours
    torch.testing.assert_close(
        parameters_of(compiled.model), parameters_of(plain.model), rtol=1e-5, atol=1e-6
    )
