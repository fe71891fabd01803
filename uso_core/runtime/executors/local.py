"""Carries out requests in this process, one at a time. PyTorch is imported with the first one, or before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from uso_core.catalog.locate import find_weights
from uso_core.catalog.models import get_model
from uso_core.errors import UsoError
from uso_core.events import LAST, Cancelled, Event, Failed, Loading
from uso_core.messages import message
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.runtime.startup import gc_paused
from uso_core.settings import Settings

if TYPE_CHECKING:
    from uso_core.runtime.worker import Worker


class LocalExecutor:
    """One worker in the engine's own thread."""

    slots = 1

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._worker: Worker | None = None

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        if self._worker is None:
            if (refused := self._refused(work)) is not None:
                yield refused
                return
            yield Loading(0.0, message("loading_starting"))
            _import_pytorch()
            from uso_core.runtime.worker import Worker

            self._worker = Worker(self._settings)
        from uso_core.runtime.worker import guarded

        events = guarded(self._worker.run(work))
        asked: Wish | None = None
        try:
            while True:
                event = events.send(asked)
                yield event
                if isinstance(event, LAST):
                    return
                if (asked := wish()) is Wish.STOP:
                    break
        finally:
            events.close()
        yield Cancelled()

    def _refused(self, work: Work) -> Failed | None:
        """Refuses, without waiting for PyTorch, what can be refused without it."""
        try:
            find_weights(get_model(work.request.model or ""), self._settings).require()
        except UsoError as error:
            return Failed(error)
        return None

    def state(self) -> tuple[WorkerState | None, ...]:
        loaded = self._worker.loaded if self._worker is not None else None
        return (loaded.state if loaded is not None else None,)

    def places(self) -> tuple[str, ...]:
        return ()

    def trouble(self) -> UsoError | None:
        return None

    def get_ready(self) -> None:
        threading.Thread(target=_import_pytorch, name="import", daemon=True).start()

    def free(self) -> None:
        if self._worker is not None:
            self._worker.free()

    def close(self) -> None:
        self.free()


@cache
def _import_pytorch() -> None:
    with gc_paused():
        import uso_core.runtime.worker  # noqa: F401
