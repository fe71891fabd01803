"""A worker in a process of its own, as a caller in another process speaks to it: begin, follow, ask. No Ray here.

The caller renews its lease by following. One that has vanished renews nothing, and its work stops: another caller need
not wait for the end of what nobody will fetch.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from uso_core.errors import InternalError
from uso_core.events import LAST, Cancelled, Event, Failed, ImageReady, Step
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.runtime.executors.local import LocalExecutor
from uso_core.settings import Settings

GATHERED = (Step, ImageReady)  # into one reply: what is near follows soon, as the end does an image
PACE_SECONDS = 0.1  # for which they gather
log = logging.getLogger(__name__)
FORGET_SECONDS = 60.0  # after which the end of abandoned work is no longer kept


@dataclass(frozen=True)
class Reply:
    """What happened since the last reply, and what the worker has loaded now."""

    events: tuple[Event, ...] = ()
    state: WorkerState | None = None


@dataclass
class _Task:
    work: Work
    lease_seconds: float
    renewed: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    wish: Wish | None = None
    ended: bool = False

    @property
    def lapsed(self) -> bool:
        return time.monotonic() - self.renewed > self.lease_seconds


class Carrier:
    """Carries out one request after another in one thread; all methods may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._executor = LocalExecutor(settings)
        self._tasks: dict[str, _Task] = {}
        self._changed = threading.Condition()
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Always the same thread computes: a thread's GPU, and PyTorch's threads, belong to it.
        threading.Thread(target=self._compute, name="compute", daemon=True).start()

    def place(self) -> str:
        """The name of the machine that it runs on."""
        return platform.node()

    def begin(self, key: str, work: Work, first: int, end: int, lease_seconds: float) -> Reply:
        """Begins the images `first` to `end` (exclusive, from 0) of a request, under a key of the caller's."""
        task = _Task(dataclasses.replace(work, first=first, end=end), lease_seconds)
        with self._changed:
            self._forget()
            self._tasks[key] = task
        self._todo.put(lambda: self._carry_out(task))
        return Reply(state=self._state())

    def follow(self, key: str, patience: float) -> Reply:
        """The events since the last call, gathered for a moment, or none after `patience` seconds; renews the lease.

        Work that stopped because its lease lapsed, or that is unknown, ends with `Cancelled`.
        """
        with self._changed:
            task = self._tasks.get(key)
            if task is None:
                return Reply((Cancelled(),), self._state())
            task.renewed = time.monotonic()
            self._changed.wait_for(lambda: not all(isinstance(event, GATHERED) for event in task.events), PACE_SECONDS)
            self._changed.wait_for(lambda: bool(task.events), patience - PACE_SECONDS)
            task.renewed = time.monotonic()
            events, task.events = tuple(task.events), []
            if events and isinstance(events[-1], LAST):
                del self._tasks[key]
        return Reply(events, self._state())

    def ask(self, key: str, wish: Wish) -> None:
        """Stops the work within a step, or abandons its current image."""
        with self._changed:
            if (task := self._tasks.get(key)) is not None:
                task.wish = wish

    def get_ready(self) -> None:
        """Starts what the first request would have to wait for; returns at once."""
        self._executor.get_ready()

    def free(self) -> None:
        """Frees the model's memory after the work begun before; returns at once."""
        self._todo.put(self._executor.free)

    @property
    def running(self) -> int:
        """How many begun works have not ended."""
        with self._changed:
            return sum(not task.ended for task in self._tasks.values())

    def _compute(self) -> None:
        while True:
            try:
                self._todo.get()()
            except Exception:  # all later work waits for this thread
                log.exception("the model's memory could not be freed")

    def _carry_out(self, task: _Task) -> None:
        """Whatever happens, the work ends."""
        try:
            for event in self._executor.run(task.work, lambda: self._wish(task)):
                if event is not None:
                    self._tell(task, event)
        except Exception:
            code = secrets.token_hex(4)
            log.exception("report %s", code)
            self._tell(task, Failed(InternalError("internal", code=code)))

    def _tell(self, task: _Task, event: Event) -> None:
        with self._changed:
            task.events.append(event)
            task.ended = isinstance(event, LAST)
            self._changed.notify_all()

    def _wish(self, task: _Task) -> Wish | None:
        with self._changed:
            if task.lapsed:
                return Wish.STOP
            wish = task.wish
            if wish is Wish.SKIP:
                task.wish = None
            return wish

    def _state(self) -> WorkerState | None:
        return self._executor.state()[0]

    def _forget(self) -> None:
        past = time.monotonic() - FORGET_SECONDS
        for key in [key for key, task in self._tasks.items() if task.ended and task.renewed < past]:
            del self._tasks[key]
