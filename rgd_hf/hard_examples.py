"""Hard examples by a class of Trainers, for scripts that have one; `trainer.add_observer(HardExamples())` does the same."""

from typing import TYPE_CHECKING, Any

from rgd_hf.batches.datasets import check_numbered
from rgd_hf.observers.hard_examples import HardExample, HardExamples
from rgd_hf.overrides import check_class

__all__ = ["HardExample", "HardExamplesMixin"]

if TYPE_CHECKING:
    from rgd_hf.trainer import ReweightedTrainer as TrainerBase
else:
    TrainerBase = object


class HardExamplesMixin(TrainerBase):
    """Adds the observer `HardExamples` to any class that derives from `ReweightingMixin`; list it first among the bases.

        class MyTrainer(HardExamplesMixin, ReweightedTrainer): ...

        trainer = MyTrainer(model, args, train_dataset=train, reweighting="kl")
        trainer.train()
        for example in trainer.hard_examples(50):
            print(example.weight, example.loss, trainer.train_dataset[example.index])

    Args:
        record_examples: whether to record the weights and losses of each sample (default True).

    Raises:
        ValueError: as for `HardExamples`.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        check_class(cls, HardExamplesMixin)

    def __init__(self, *args: Any, record_examples: bool = True, **kwargs: Any):
        self.record_examples = record_examples
        super().__init__(*args, **kwargs)
        self._examples = HardExamples()
        if record_examples:
            self.add_observer(self._examples)
            if self.train_dataset is not None:
                check_numbered(self.train_dataset)

    def hard_examples(self, count: int) -> list[HardExample]:
        """The `count` training samples with the largest mean weight; see `HardExamples.most_weighted`.

        Raises:
            RuntimeError: nothing was recorded: no training, or `record_examples=False`.
        """
        if not self.record_examples:
            raise RuntimeError("No examples were recorded: call train() with record_examples=True first.")
        return self._examples.most_weighted(count)
