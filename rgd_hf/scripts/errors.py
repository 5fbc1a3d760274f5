"""Errors that the user of a recipe can put right."""

from collections.abc import Iterator
from contextlib import contextmanager

from rgd_hf.contrib import SetupError

# Their errors about settings say what to do; one that comes out of a library below them is a fault, to be traced.
LIBRARIES = ("rgd_hf", "transformers", "accelerate", "trl", "peft")


class UserError(Exception):
    """Shown as one line without a traceback; the recipe ends with exit code 2.

    The message says what was found, what is allowed and what to do.
    """


def listed(names) -> str:
    """`names` as a message lists them: `'a', 'b', 'c'`, or `none`."""
    return ", ".join(repr(str(name)) for name in names) or "none"


@contextmanager
def settings_explained() -> Iterator[None]:
    """What `LIBRARIES` raise about settings while a trainer is built, as `UserError`."""
    try:
        yield
    except SetupError:
        raise  # the user's as well
    except (ValueError, NotImplementedError) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in LIBRARIES:
            raise
        raise UserError(str(error)) from error
