"""What can go wrong and is not a fault of ours: one sentence that says what, one that says what to do."""

from __future__ import annotations

import sys


class UsoError(Exception):
    """Something the user can put right.

    `message` names the offending value; `hint` says what to do about it. Each face of the program translates it once:
    the command line into two lines and exit code 2, the page into a toast, the API into an error reply.
    """

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}"

    def __reduce__(self) -> tuple[type[UsoError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


class RequestError(UsoError):
    """A request asks for something out of range or gives a picture that cannot be read."""


class UsageError(UsoError):
    """A command line cannot be understood."""


class SettingsError(UsoError):
    """A setting (flag, environment variable, .env line) has a value that means nothing."""


class WeightsError(UsoError):
    """A weight file is missing, damaged, or not what its place asks for."""


class DownloadError(UsoError):
    """A download cannot begin or go on; what was fetched so far is kept."""


class OutputError(UsoError):
    """A result cannot be written."""


class OutOfMemory(UsoError):
    """The machine's memory does not suffice for what was asked."""


class MemoryShortage(OutOfMemory):
    """The memory that is free cannot hold the model, found out before anything was loaded."""


class InternalError(UsoError):
    """A fault of ours: the log holds the traceback under the id that the message names."""


def exit_code(error: UsoError) -> int:
    """Tells a terminal what is wrong, in two lines on stderr; returns the exit code: 2, or 1 for a fault of ours."""
    lines = (" ".join(text.split()) for text in (f"error: {error.message}", f"hint: {error.hint}"))
    print("\n".join(lines), file=sys.stderr)
    return 1 if isinstance(error, InternalError) else 2
