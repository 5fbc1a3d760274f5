"""What a recipe says: on the main process alone."""

from accelerate import PartialState
from rich.console import Console

console = Console(markup=False, emoji=False)  # texts are the user's


def say(*lines: str) -> None:
    """Print lines."""
    if PartialState().is_main_process:
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)


def say_warning(message: str) -> None:
    """Print a warning."""
    say(f"warning: {message}")
