"""Columns of the batches that are hidden from the model: sample weights, sample indices, inputs of rules and observers."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import datasets
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import IterableDataset

from rgd_hf.batches.columns import (
    SAMPLE_INDEX,
    SAMPLE_WEIGHT,
    ColumnCollator,
    SampleWeightCollator,
    WithColumns,
    check_sample_weights,
)
from rgd_hf.batches.datasets import (
    NumberedExamples,
    check_indices,
    check_numbered,
    has_column,
    number_of_samples,
)
from rgd_hf.batches.flattened import SAMPLE_LENGTHS, SampleLengthsCollator
from rgd_hf.heads import without_peft
from rgd_hf.items import without
from rgd_hf.overrides import set_on

# A mixin stands to the left of the Trainer class that it is mixed into; type checkers see the Trainer below it.
if TYPE_CHECKING:
    from rgd_hf.evaluation import PlainEvaluationMixin as TrainerBase
    from rgd_hf.observers import Observer
    from rgd_hf.weightings import Weighting
else:
    TrainerBase = object

_LIKE_WEIGHTS = {
    "weight",
    "weights",
    "sample_weights",
    "sampleweight",
    "sample-weight",
    "example_weight",
    "example_weights",
    "instance_weight",
    "instance_weights",
    "loss_weight",
    "loss_weights",
}


class _Prepared(NamedTuple):
    """What a Trainer made of its training set when it prepared it.

    Attributes:
        dataset: what it trains on; None where that is what it was given.
        given: number of samples that it was given; None where it is not known, or samples are packed.
        dropped: columns that it dropped.
    """

    dataset: Any = None
    given: int | None = None
    dropped: frozenset[str] = frozenset()


class ColumnsMixin(TrainerBase):
    """Carries columns from the data set past the model to the rule and the observers.

    Attributes:
        hidden_columns: further columns of the batches that are hidden from the model.
    """

    hidden_columns: tuple[str, ...] = ()
    # Whether the training batches come from the Trainer's own dataloader.
    _makes_batches = False
    _prepared = _Prepared()

    if TYPE_CHECKING:
        observers: list[Observer]
        weighting: Weighting

        @property
        def unreduces_losses(self) -> bool: ...  # noqa: D102

        def _bare_model(self) -> nn.Module: ...

    def _columns_read(self) -> tuple[str, ...]:
        """The columns that the rule and the observers read."""
        observed = [column for observer in self.observers for column in observer.columns]
        return tuple(dict.fromkeys([*self.weighting.columns, *observed]))

    def _hidden(self) -> set[str]:
        return {*self.hidden_columns, *self._columns_read(), SAMPLE_LENGTHS}

    def _without_columns(self, inputs: Any) -> Any:
        """`inputs` without the hidden columns (`sample_weight` is handled elsewhere)."""
        return without(inputs, *self._hidden())

    def _columns_by_name(self, inputs: Any) -> Any:
        """`inputs`, where the hidden columns are found by name only: a loss of the user's may need them.

        A batch that is no mapping comes back as it is.
        """
        if not isinstance(inputs, Mapping):
            return inputs
        hidden = self._hidden() - {SAMPLE_LENGTHS}
        columns = {name: value for name, value in inputs.items() if name in hidden}
        return WithColumns(self._without_columns(inputs), columns)

    def _prepare_input(self, data: Any) -> Any:
        """As the Trainer's; columns that are found by name only are kept."""
        if isinstance(data, WithColumns):
            prepare: Any = super()._prepare_input
            return WithColumns(prepare(dict(data)), prepare(data.columns), data.asked)
        return super()._prepare_input(data)

    @contextmanager
    def _columns_hidden_from(self, model: nn.Module, inputs: Any) -> Iterator[None]:
        """Inside, a method of the user's may call `model` with all of `inputs`.

        The model gets no hidden column but those that its forward names.
        """
        hidden = {SAMPLE_WEIGHT, *self._hidden()}
        if not isinstance(inputs, Mapping) or hidden.isdisjoint(inputs):
            yield
            return

        def without_columns(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if hidden.isdisjoint(kwargs):
                return args, kwargs
            named = inspect.signature(without_peft(self._bare_model()).forward).parameters
            return args, {k: v for k, v in kwargs.items() if k not in hidden or k in named}

        hook = model.register_forward_pre_hook(without_columns, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        wanted = (SAMPLE_WEIGHT, *self.hidden_columns, *self._columns_read())
        columns += [column for column in wanted if column not in columns]

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ):
        read = self._columns_read()
        if is_training:
            self._makes_batches = True
            self._hint_at_weights(dataset)
        collator = self.data_collator
        shared_out = self.accelerator.num_processes > 1 and not isinstance(dataset, IterableDataset)
        told = SampleLengthsCollator(collator) if shared_out and self.unreduces_losses else collator
        self.data_collator = SampleWeightCollator(told, check=is_training)
        checks = self.weighting.column_checks() if is_training else {}
        if is_training and SAMPLE_INDEX in read:
            check_numbered(dataset)
            self._say_if_samples_are_dropped()
            checks = {**checks, SAMPLE_INDEX: partial(check_indices, len(cast(Sized, dataset)))}
        for column in read:
            dtype = torch.int64 if column == SAMPLE_INDEX else None
            self.data_collator = ColumnCollator(
                self.data_collator, column, dtype, checks.get(column), is_needed=is_training
            )
        if is_training and SAMPLE_INDEX in read:
            if isinstance(dataset, datasets.Dataset):
                dataset = self._remove_unused_columns(dataset, description=description)
            plain, plain_sampler = dataset, sampler_fn
            dataset = NumberedExamples(plain)
            # The sampler may look for columns in the data set.
            sampler_fn = None if plain_sampler is None else lambda _: plain_sampler(plain)
        try:
            return super()._get_dataloader(
                dataset, description, batch_size, sampler_fn, is_training, dataloader_key
            )
        finally:
            self.data_collator = collator

    @property
    def _packs(self) -> bool:
        return getattr(self.args, "packing", False) is True

    def _note_dropped_columns(self, given: Any) -> None:
        """Compare the training set with the one that the Trainer was given, and may have prepared."""
        if given is self.train_dataset:
            return
        names, kept = _column_names(given), _column_names(self.train_dataset)
        if names is None and isinstance(given, datasets.IterableDataset) and self._packs:
            # It may not know its columns before it is read; TRL reads a sample, too.
            names = list(next(iter(given), ()))
        dropped: frozenset[str] = frozenset()
        if names is not None and (kept is not None or self._packs):
            dropped = frozenset(names) - frozenset(kept or ())
        samples = None if self._packs else number_of_samples(given)
        self._prepared = _Prepared(self.train_dataset, samples, dropped)

    def _check_columns_are_kept(self) -> None:
        prepared = self._prepared
        read = (SAMPLE_WEIGHT, *self.hidden_columns, *self._columns_read())
        missing = [name for name in dict.fromkeys(read) if name in prepared.dropped]
        if not missing or prepared.dataset is not self.train_dataset:
            return
        why, remedy = f"{type(self).__name__} drops when it prepares the data", "keep it there"
        if self._packs:
            why = "packing=True drops: a row holds several samples, or parts of them, and has none of its own"
            remedy = "set packing=False"
        other = (
            f"train without weights: train_dataset.remove_columns({SAMPLE_WEIGHT!r})"
            if missing == [SAMPLE_WEIGHT]
            else f"train without what reads it (reweighting: {self.weighting.method_name()})"
        )
        raise ValueError(
            f"The training set has the column {', '.join(map(repr, missing))}, which {why}. Either {remedy}, or {other}."
        )

    def _say_if_samples_are_dropped(self) -> None:
        """Warn where samples are reported by their index, and are others than those that the Trainer was given."""
        given, left = self._prepared.given, number_of_samples(self.train_dataset)
        if SAMPLE_INDEX not in self._columns_read() or self._prepared.dataset is not self.train_dataset:
            return
        if None not in (given, left) and left != given:
            warnings.warn(
                f"{type(self).__name__} was given {given:,} training samples and prepared {left:,}: the index of a hard example "
                "is that of trainer.train_dataset, not of the data set that it was given.",
                stacklevel=2,
            )

    def _check_sample_weights(self, batch: Any) -> None:
        """Look at the weights of the first batch of a training.

        Raises:
            ValueError: the training set has weights, but the batch does not; or one is negative or not finite.
        """
        weights = batch.get(SAMPLE_WEIGHT)
        if weights is not None:
            check_sample_weights(torch.as_tensor(weights))
        elif has_column(self.train_dataset, SAMPLE_WEIGHT, read=not self._makes_batches):
            raise ValueError(
                f"The training set has a column {SAMPLE_WEIGHT!r}, but a training batch has only "
                f"{', '.join(sorted(batch))}, so that the weights would be ignored. Keep the column in the dataloader and "
                "the data collator (float [batch]), or remove or rename it in train_dataset."
            )

    def _hint_at_weights(self, dataset: Any) -> None:
        """Warn about a column whose name suggests sample weights but is not `sample_weight`."""
        names = getattr(dataset, "column_names", None)
        if not self.args.remove_unused_columns or not isinstance(names, list) or SAMPLE_WEIGHT in names:
            return
        self._set_signature_columns_if_needed()
        used: Any = self._signature_columns
        for name in names:
            if name.lower() in _LIKE_WEIGHTS and name not in used:
                warnings.warn(
                    f"The training set's column {name!r} is not used. If it holds a weight per sample, rename it: "
                    f"train_dataset.rename_column({name!r}, {SAMPLE_WEIGHT!r}).",
                    stacklevel=2,
                )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **kwargs,
    ):
        """As the Trainer's, which sees no hidden columns but labels; `compute_loss` sees all."""
        if not isinstance(inputs, Mapping):  # for a `prediction_step` of the user's behind this one
            return super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys=ignore_keys, **kwargs
            )
        hidden, compute_loss = self._hidden() - {*self.label_names}, self.compute_loss
        shown = WithColumns({name: value for name, value in inputs.items() if name not in hidden})
        columns = {name: value for name, value in inputs.items() if name in hidden}
        columns = send_to_device(columns, self.args.device)

        def with_columns(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return compute_loss(model, WithColumns({**inputs, **columns}), *args, **kwargs)

        with ExitStack() as stack:
            stack.enter_context(self._columns_hidden_from(model, inputs))
            if columns:
                stack.enter_context(set_on(self, "compute_loss", with_columns))
            return super().prediction_step(
                model, shown, prediction_loss_only, ignore_keys=ignore_keys, **kwargs
            )

    def _collecting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def prediction_step(model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with self._columns_hidden_from(model, inputs):
                return step(model, inputs, *args, **kwargs)

        return super()._collecting(prediction_step)


def _column_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "column_names", None)
    return names if isinstance(names, list) else None
