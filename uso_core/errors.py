"""Errors that the user can fix: one sentence says what is wrong, one what to do."""

from __future__ import annotations

import sys
from typing import Any

from uso_core.messages import Message, message


class UsoError(Exception):
    """An error that the user can fix.

    `key` says what is wrong, with the values that its sentence names; `hint` is the key of the remedy (default: the
    same key). The sentences are the texts "error_KEY" and "hint_HINT": `message` and `hint` hold them in English,
    `problem` and `remedy` as messages. Each face of the program phrases them once: the command line as two lines and
    exit code 2, the page as a toast, the API as an error reply.
    """

    def __init__(self, key: str, /, hint: str = "", **values: Any) -> None:
        super().__init__(key)
        self.key = key
        self.hint_key = hint or key
        self.problem = Message(f"error_{key}", values)
        self.remedy = Message(f"hint_{self.hint_key}", values)

    @property
    def values(self) -> dict[str, Any]:
        """The values that the sentences name."""
        return dict(self.problem.values)

    @property
    def told(self) -> Message:
        """Both sentences."""
        return message("sentences", parts=(self.problem, self.remedy))

    @property
    def message(self) -> str:
        return str(self.problem)

    @property
    def hint(self) -> str:
        return str(self.remedy)

    def __str__(self) -> str:
        return str(self.told)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.key, self.hint_key, self.values)


def _restored(kind: type[UsoError], key: str, hint: str, values: dict[str, Any]) -> UsoError:
    return kind(key, hint=hint, **values)


class RequestError(UsoError):
    """A request has a value out of range or an image that cannot be read."""


class UsageError(UsoError):
    """A command line cannot be understood."""


class SettingsError(UsoError):
    """A setting (flag, environment variable, .env line) has an invalid value."""


class WeightsError(UsoError):
    """A weight file is missing, damaged, or of the wrong kind."""


class DownloadError(UsoError):
    """A download cannot start or continue; what was fetched so far is kept."""


class OutputError(UsoError):
    """A result cannot be written."""


class OutOfMemory(UsoError):
    """This machine's memory is too small for the request."""


class MemoryShortage(OutOfMemory):
    """The free memory cannot hold the model; raised before anything is loaded."""


class WorkerError(UsoError):
    """A worker in another process cannot be reached, or was lost."""


class InternalError(UsoError):
    """A fault of ours: the log holds the traceback under the id in the message."""


def exit_code(error: UsoError) -> int:
    """Prints the error in two lines on stderr; returns the exit code: 2, or 1 for a fault of ours."""
    lines = (" ".join(text.split()) for text in (f"error: {error.message}", f"hint: {error.hint}"))
    print("\n".join(lines), file=sys.stderr)
    return 1 if isinstance(error, InternalError) else 2
