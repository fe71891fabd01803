"""Where requests are carried out: in this process (`local`), or elsewhere. What crosses can be pickled. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from uso_core.catalog.models import Model
from uso_core.events import Event
from uso_core.request import GenerationRequest

if TYPE_CHECKING:
    from uso_core.memory.plan import MemoryPlan


class Wish(Enum):
    """What the caller of a running request wants of it."""

    STOP = "stop"
    SKIP = "skip"


@dataclass(frozen=True)
class Work:
    """One request to carry out, its seed and model settled.

    With `previews` each step brings a small image. With `styles_only` no image is made: the styles are encoded.
    """

    request: GenerationRequest
    previews: bool = False
    styles_only: bool = False


@dataclass(frozen=True)
class WorkerState:
    """The model in a worker's memory: where it computes, in what number format, by what plan."""

    model: Model
    device: str
    dtype: str
    plan: MemoryPlan


class Executor(Protocol):
    """Carries out as many requests at once as it has `slots`; the engine queues."""

    @property
    def slots(self) -> int: ...

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        """The events of a request, exactly one of `events.LAST` at the end; nothing is raised.

        `wish` is asked after each event: STOP ends the work within a step, SKIP leaves out the image at work. An
        executor that waits for another process gives None at least every half second, so that Stop and Skip are heard.
        """

    def state(self) -> tuple[WorkerState | None, ...]:
        """What each worker has loaded."""

    def get_ready(self) -> None:
        """Begins what the first request would have to wait for; returns at once."""

    def free(self) -> None:
        """Frees the memory of models; called only while nothing runs."""

    def close(self) -> None:
        """Ends the workers; called once, while nothing runs."""
