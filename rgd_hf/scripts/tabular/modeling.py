"""The networks as a `PreTrainedModel` whose saved folder predicts from a raw table.

    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    model.predict(frame)          # the predicted values, one per row of a pandas DataFrame
    model.predict_proba(frame)    # probabilities [rows, classes], classes in the order of model.config.classes

This file and those it imports are saved with the model, so the folder works without the recipe.
"""

import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import TabularConfig
from .networks import make_encoder, make_head
from .preprocessing import TablePreprocessor


@dataclass
class TabularOutput(ModelOutput):
    """What a `TabularModel` returns.

    Attributes:
        loss: mean loss, 0-dimensional, where labels were given.
        logits: `[batch, classes]`, or `[batch, 1]` in units of the standardized target; of an ensemble, the logarithm
            of its members' mean probabilities, or the mean of its members.
        member_logits: `[batch, k, classes]` of an ensemble's members.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    member_logits: Tensor | None = None


class TabularModel(PreTrainedModel):
    """MLP, ResNet, FT-Transformer or TabM over an encoded table.

    Attributes:
        preprocessor: turns a raw table into `x_num` and `x_cat`; saved and loaded with the model.
    """

    config_class = TabularConfig
    base_model_prefix = ""
    main_input_name = "x_num"

    def __init__(self, config: TabularConfig, preprocessor: TablePreprocessor | None = None):
        super().__init__(config)
        self.preprocessor = preprocessor
        # `from_pretrained` builds on the meta device, where the buffers of these libraries cannot be computed.
        with torch.device("cpu"):
            self.encoder = make_encoder(config)
            self.head = make_head(config, config.num_labels or 1)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        # The libraries' own initialization, made with the modules, is the published one.
        return

    def forward(
        self,
        x_num: Tensor | None = None,
        x_cat: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> TabularOutput | tuple:
        """Run the network.

        Args:
            x_num: float32 `[batch, numeric features]`, omitted if there are none.
            x_cat: int64 codes `[batch, categorical features]`, omitted if there are none.
            labels: class indices `[batch]`, or the standardized target, float `[batch]`.
            return_dict: False for a tuple.

        Returns:
            `TabularOutput`.
        """
        outputs = self.head(self.encoder(x_num, x_cat))
        members = outputs if outputs.ndim == 3 else None
        logits = outputs
        if members is not None:
            logits = members.mean(dim=1) if self._is_regression else _mean_of_members(members)
        loss = None
        if labels is not None:
            if self._is_regression:
                loss = F.mse_loss(logits.squeeze(-1).float(), labels.float())
            else:
                loss = F.cross_entropy(logits.float(), labels)
        output = TabularOutput(loss=loss, logits=logits, member_logits=members)
        return output if return_dict is not False else output.to_tuple()

    @property
    def _is_regression(self) -> bool:
        return self.config.problem_type == "regression"

    def predict(self, frame: Any, batch_size: int = 4096) -> np.ndarray:
        """The predicted target of every row of a pandas DataFrame.

        Warns, once a column, of values that are no category of the training rows, no number or no date. Where the file has
        better ones, it was read in another way than for training; the model card shows how to read it alike.

        Args:
            frame: has the columns that the model was trained on, in any order; more are ignored, missing values and
                unseen categories are allowed. Truth values and numbers match categories that were written as texts.
            batch_size: rows that go through the network together.

        Returns:
            `[rows]`: values of `config.classes`, or floats.

        Raises:
            ValueError: columns are missing.
        """
        logits = self._logits(frame, batch_size)
        if self._is_regression:
            return logits[:, 0] * self.config.target_std + self.config.target_mean
        return np.asarray(self.config.classes)[logits.argmax(axis=1)]

    def predict_proba(self, frame: Any, batch_size: int = 4096) -> np.ndarray:
        """Probabilities `[rows, classes]` of `config.classes`, float64; arguments and errors as for `predict`."""
        if self._is_regression:
            raise ValueError("A regression has no probabilities: use predict.")
        return torch.from_numpy(self._logits(frame, batch_size)).softmax(dim=1).numpy()

    @torch.no_grad()
    def _logits(self, frame: Any, batch_size: int) -> np.ndarray:
        x_num, x_cat = self._fitted_preprocessor().transform(frame)
        for doubt in self._fitted_preprocessor().doubts(frame):
            warnings.warn(
                f"{doubt} If the file says more than that, read it as the model card (README.md) shows.",
                stacklevel=3,
            )
        was_training = self.training
        self.eval()
        rows = []
        for start in range(0, len(frame), batch_size):
            part = slice(start, start + batch_size)
            inputs = {
                name: torch.from_numpy(x[part]).to(self.device)
                for name, x in {"x_num": x_num, "x_cat": x_cat}.items()
                if x.shape[1]
            }
            rows.append(self(**inputs).logits.double().cpu())
        self.train(was_training)
        return torch.cat(rows).numpy() if rows else np.empty((0, self.config.num_labels or 1))

    def _fitted_preprocessor(self) -> TablePreprocessor:
        if self.preprocessor is None:
            self.preprocessor = TablePreprocessor.from_pretrained(
                str(self.config.name_or_path), self.config.columns
            )
        return self.preprocessor

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """As `PreTrainedModel`'s, with the preprocessing beside the weights."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.preprocessor is not None or self.config.name_or_path:
            self._fitted_preprocessor().save_pretrained(save_directory)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """As `PreTrainedModel`'s, with the model card that lies in the model's folder, under the repository's name."""
        folder = Path(str(self.config.name_or_path))
        if (folder / "README.md").is_file():
            api, token = HfApi(), kwargs.get("token")
            repo_id = api.create_repo(
                repo_id, private=kwargs.get("private"), token=token, exist_ok=True
            ).repo_id
            card = (folder / "README.md").read_text(encoding="utf-8")
            card = card.replace(f"`{folder.name}` is the folder of this file; give its path.\n\n", "")
            card = card.replace(f'"{folder.name}"', f'"{repo_id}"')
            # What comes next keeps the card that it finds there.
            message = "Model card"
            api.upload_file(
                path_or_fileobj=card.encode(),
                path_in_repo="README.md",
                repo_id=repo_id,
                token=token,
                commit_message=message,
            )
        return super().push_to_hub(repo_id, *args, **kwargs)  # type: ignore[arg-type]


def _mean_of_members(logits: Tensor) -> Tensor:
    return torch.logsumexp(logits.float().log_softmax(dim=-1), dim=1) - np.log(logits.shape[1])


TabularConfig.register_for_auto_class()
TabularModel.register_for_auto_class("AutoModel")
