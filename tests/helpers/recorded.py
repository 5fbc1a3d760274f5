"""Trainers that record hard examples from the start."""

from rgd_hf.observers import HardExamples


class RecordedMixin:
    """Adds the observer `HardExamples` to a Trainer class that is listed after it."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self.examples = HardExamples()
        self.add_observer(self.examples)

    def hard_examples(self, count):
        """What was recorded; see `HardExamples.most_weighted`."""
        return self.examples.most_weighted(count)
