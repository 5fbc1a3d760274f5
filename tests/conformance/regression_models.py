"""The one-dimensional regression `y = a x + b`: data, models that compute their own loss, and its losses."""

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import PretrainedConfig, PreTrainedModel

from rgd_hf import rgd_surrogate


class RegressionDataset(Dataset):
    """`length` points of `y = 2 x + 3` with noise, under one or more label names."""

    def __init__(self, length=64, seed=42, label_names=("labels",), x_name="input_x"):
        generator = np.random.default_rng(seed)
        self.x_name = x_name
        self.x = generator.normal(size=length).astype(np.float32)
        self.labels = {
            name: (2 * self.x + 3 + generator.normal(scale=0.1, size=length)).astype(np.float32)
            for name in label_names
        }

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {self.x_name: self.x[index]} | {name: y[index] for name, y in self.labels.items()}


class RegressionStream(IterableDataset):
    """The same points as a stream without a length, once through or for ever."""

    def __init__(self, length=64, infinite=False):
        self.data = RegressionDataset(length)
        self.infinite = infinite

    def __iter__(self):
        while True:
            yield from (self.data[index] for index in range(len(self.data)))
            if not self.infinite:
                return


class NoLabels(Dataset):
    """Another dataset without its label columns."""

    def __init__(self, data, label_names=("labels",)):
        self.data, self.label_names = data, label_names

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return {name: value for name, value in self.data[index].items() if name not in self.label_names}


def squared_errors(predictions, labels):
    """Un-reduced loss of one label name, `[batch]`."""
    return (predictions - labels).square()


class RegressionModel(nn.Module):
    """No config, returns a tuple, computes the mean loss itself; `reduce` says mean of what."""

    def __init__(self, double_output=False):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))
        self.b = nn.Parameter(torch.tensor(-0.5))
        self.double_output = double_output
        self.config = None

    def objective(self, losses):
        return losses.mean()

    def forward(self, input_x, labels=None):
        y = input_x * self.a + self.b
        outputs = (y, y) if self.double_output else (y,)
        return outputs if labels is None else (self.objective(squared_errors(y, labels)), *outputs)


class RegressionDictModel(RegressionModel):
    """Returns a plain dict."""

    def forward(self, input_x, labels=None):
        y = input_x * self.a + self.b
        result = {"output": y}
        return result if labels is None else {"loss": self.objective(squared_errors(y, labels))} | result


class RegressionKwargsModel(RegressionModel):
    """Its forward has `**kwargs`, so that the Trainer offers it `num_items_in_batch`, and it uses it."""

    def forward(self, input_x, labels=None, **kwargs):
        y = input_x * self.a + self.b
        if labels is None:
            return (y,)
        losses = squared_errors(y, labels)
        count = kwargs.get("num_items_in_batch")
        return self.objective(losses) if count is None else self.objective(losses) * losses.numel() / count, y


class TwoLabelsModel(RegressionModel):
    """Two label names, one loss."""

    def forward(self, input_x, labels_1=None, labels_2=None):
        y = input_x * self.a + self.b
        if labels_1 is None:
            return (y,)
        return self.objective(squared_errors(y, labels_1) + squared_errors(y, labels_2)), y


class RegressionConfig(PretrainedConfig):
    model_type = "regression"

    def __init__(self, start=0.5, **kwargs):
        super().__init__(**kwargs)
        self.start = start


class RegressionPreTrainedModel(PreTrainedModel):
    """A model that is saved and loaded with its config."""

    config_class = RegressionConfig
    base_model_prefix = "regression"

    def __init__(self, config=None):
        super().__init__(config or RegressionConfig())
        self.a = nn.Parameter(torch.tensor(self.config.start))
        self.b = nn.Parameter(torch.tensor(-self.config.start))
        self.post_init()

    def _init_weights(self, module):
        pass

    objective = RegressionModel.objective
    double_output = False
    forward = RegressionModel.forward


def surrogate_of(model_class, tau):
    """`model_class` with the surrogate G of its losses in place of the losses: the oracle for `kl`."""

    class Surrogate(model_class):
        def objective(self, losses):
            return rgd_surrogate(losses, "kl", tau).mean() if self.training else losses.mean()

    Surrogate.__name__ = model_class.__name__
    return Surrogate
