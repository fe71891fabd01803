"""What the stages' commands have in common: numbers that make sense, and faults of their user told in a sentence."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from uso_core.errors import UsoError, exit_code


class StageError(ValueError):
    """A stage cannot do what it was asked; the text says why."""


def positive(text: str) -> int:
    """A number from 1, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number from 1")
    return number


def run_command(main: Callable[[], None]) -> None:
    """Calls a command; ends the program with status 2 and a sentence where a file lacks or a value cannot be."""
    try:
        main()
    except UsoError as error:
        sys.exit(exit_code(error))
    except (StageError, FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
