"""Which data the logged evaluations were of: the log alone tells them apart by their prefix, and most have the same."""

from collections.abc import Mapping
from typing import Any

from rgd_hf.hub.scores import EvaluatedSet, split_of
from rgd_hf.trainer_base import TrainerBase


class EvaluatedSetsMixin(TrainerBase):
    """Notes for every evaluation whether it is of the Trainer's own evaluation set."""

    # By the identity of the log's entries, which are kept so that it stays theirs.
    _evaluated_sets: dict[int, tuple[dict, EvaluatedSet]] | None = None
    _passed_sets: Any = None

    def evaluate(self, *args: Any, **kwargs: Any):
        """As the Trainer's."""
        data = args[0] if args else kwargs.get("eval_dataset")
        # Of several sets, the Trainer calls this again for each.
        before, self._passed_sets = (
            self._passed_sets,
            data if isinstance(data, Mapping) else self._passed_sets,
        )
        begin = len(self.state.log_history)
        try:
            metrics = super().evaluate(*args, **kwargs)
        finally:
            self._passed_sets = before
        if self._evaluated_sets is None:
            self._evaluated_sets = {}
        for entry in self.state.log_history[begin:]:
            self._evaluated_sets.setdefault(id(entry), (entry, self._set_of(data)))
        return metrics

    def _set_of(self, data: Any) -> EvaluatedSet:
        own: Any = self.eval_dataset
        if data is None or isinstance(data, str):
            data = own if data is None else own[data]
        own_sets = dict(own) if isinstance(own, Mapping) else {None: own}
        passed = dict(self._passed_sets) if isinstance(self._passed_sets, Mapping) else {}
        split = split_of(data)
        if data is own or any(data is one for one in own_sets.values()):
            return EvaluatedSet(
                True, next((name for name, one in own_sets.items() if one is data), None), split
            )
        return EvaluatedSet(False, next((name for name, one in passed.items() if one is data), split), split)

    def evaluated_set(self, entry: dict) -> EvaluatedSet:
        """Which data an entry of the log is of; one of an earlier process is of the evaluation set."""
        _, found = (self._evaluated_sets or {}).get(id(entry), (entry, None))
        return found or EvaluatedSet(True)
