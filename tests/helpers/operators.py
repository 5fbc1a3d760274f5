"""What operators do while a test runs: waits for the device, the largest tensor, the products of a shape."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

# `nonzero` is what indexing with a mask becomes: its output's shape depends on the data.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
}


class CountWaits(TorchDispatchMode):
    """Counts the operators after which the host has to wait for the device."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in WAITING:
            self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class CountSteps(TrainerCallback):
    """Counts from the second optimizer step on (the first checks the labels) and leaves out the last, which logs."""

    def __init__(self, mode):
        self.mode = mode
        self.per_step = []

    def on_step_end(self, args, state, control, **kwargs):
        self.per_step.append(self.mode.counts)
        self.mode.counts = Counter()


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operator made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


class CountProducts(TorchDispatchMode):
    """Counts the matrix products with a result of `shape`."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm"):
            self.count += tuple(result.shape) == self.shape
        return result
