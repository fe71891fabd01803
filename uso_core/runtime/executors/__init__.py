"""Where requests are carried out: in this process (`local`) or elsewhere. What crosses can be pickled. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from uso_core.catalog.models import Model
from uso_core.errors import UsoError
from uso_core.events import Event
from uso_core.request import GenerationRequest

if TYPE_CHECKING:
    from uso_core.memory.plan import MemoryPlan


class Wish(Enum):
    """What the caller wants of a running request."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True)
class Work:
    """One request to carry out, with seed and model settled.

    With `previews` each step sends a small image. With `styles_only` the styles are encoded and no image is made. Only
    the images `first` to `end` (exclusive, from 0; None: the last) are made.
    """

    request: GenerationRequest
    previews: bool = False
    styles_only: bool = False
    first: int = 0
    end: int | None = None


@dataclass(frozen=True)
class WorkerState:
    """The model in a worker's memory: its device, dtype and plan."""

    model: Model
    device: str
    dtype: str
    plan: MemoryPlan


class Executor(Protocol):
    """Carries out as many requests at once as it has `slots`; the engine queues."""

    @property
    def slots(self) -> int:
        """How many requests at once; it may change."""

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        """The events of a request, ending with exactly one of `events.LAST`; raises nothing.

        `wish` is asked after each event: STOP ends the work within a step, SKIP abandons the current image. An executor
        that waits for another process yields None at least every half second, so that Stop and Skip take effect.
        """

    def state(self) -> tuple[WorkerState | None, ...]:
        """What each worker has loaded."""

    def places(self) -> tuple[str, ...]:
        """Where each worker of `state` is; empty if all are in this process."""

    def trouble(self) -> UsoError | None:
        """Why no request can be carried out now, if that is known."""

    def get_ready(self) -> None:
        """Starts what the first request would have to wait for; returns at once."""

    def free(self) -> None:
        """Frees the models' memory; called only while nothing runs."""

    def close(self) -> None:
        """Ends the workers; called once, while nothing runs."""
