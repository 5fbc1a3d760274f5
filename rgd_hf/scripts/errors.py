"""Errors that the user of a recipe can put right."""


class UserError(Exception):
    """Shown as one line without a traceback; the recipe ends with exit code 2.

    The message says what was found, what is allowed and what to do.
    """


def listed(names) -> str:
    """`names` as a message lists them: `'a', 'b', 'c'`, or `none`."""
    return ", ".join(repr(str(name)) for name in names) or "none"
