"""What is raised where a method and a training do not go together."""


class SetupError(ValueError):
    """A method cannot be used with this model, these settings, this data or this checkpoint; the message says why."""
