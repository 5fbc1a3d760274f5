"""The arguments of a Trainer, which have the settings of re-weighting whatever the user gives it or sets on it."""

from typing import Any

from rgd_hf.class_weights import as_setting
from rgd_hf.trainer_base import TrainerBase
from rgd_hf.training_args import GivenArguments, ReweightingArguments, with_settings


class ArgumentsMixin(TrainerBase):
    """Completes `trainer.args` by the settings that the Trainer was given beside them.

    `trainer.args` may be set to another object later: plain `TrainingArguments` are completed as when the Trainer is made;
    those with the settings of re-weighting are taken as they are.
    """

    # The fields that the Trainer itself was given; None while it is made.
    _given_settings: dict[str, Any] | None = None
    _given_args: GivenArguments | None = None

    @property
    def args(self) -> Any:
        """The arguments in use: the user's own object, or a copy of it that has the settings of re-weighting."""
        try:
            return vars(self)["args"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'args'") from None

    @args.setter
    def args(self, args: Any) -> None:
        if self._given_settings is not None and not isinstance(args, ReweightingArguments):
            self._complete(args)
        elif args is not vars(self).get("args"):
            vars(self)["args"], self._given_args = args, None

    def _take_settings(self, given: dict[str, Any]) -> None:
        """Use fields of `ReweightingArguments` in place of those of the arguments, now and of plain ones that are set later."""
        self._given_settings = given
        self._complete(self.args)

    def _complete(self, users: Any) -> None:
        assert self._given_settings is not None
        args = with_settings(users, self._given_settings)
        vars(self)["args"] = args
        self._given_args = None if args is users else GivenArguments(users, args, self._given_settings)

    def _use_given_arguments(self) -> None:
        if self._given_args is not None:
            self._given_args.bring_up_to_date(self.args)
        # A list or dict that was set since: records and comparisons take the scalar form.
        self.args.class_weights = as_setting(self.args.class_weights)

    def evaluate(self, *args: Any, **kwargs: Any):
        """As the Trainer's."""
        self._use_given_arguments()
        return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any):
        """As the Trainer's."""
        self._use_given_arguments()
        return super().predict(*args, **kwargs)
