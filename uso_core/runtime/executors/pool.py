"""Which worker of several takes a request: one that has its model and its encodings, if one is idle. No Ray here."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from uso_core.request import GenerationRequest
from uso_core.runtime.executors import Work, WorkerState

MOST_KNOWN = 64  # encodings remembered per worker; it keeps about as many (`model/encoding_cache.py`)


@dataclass(eq=False)
class Member:
    """A worker as its callers see it: its address, what it has loaded, and who uses it."""

    actor: Any
    place: str = ""
    up: bool = False  # it has answered
    busy: bool = False
    helping: bool = False  # makes single images of another worker's request
    recalled: bool = False  # a helper that a new request waits for
    kind: Hashable = None  # the model of its last request
    loras: Hashable = ()  # of its last request; changing them takes moments, loading another model minutes
    state: WorkerState | None = None
    since: float = field(default_factory=time.monotonic)  # idle since
    known: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)

    def remember(self, request: GenerationRequest) -> None:
        """Notes what it has encoded now."""
        self.kind, self.loras = request.model, request.loras
        for key in encodings_of(request):
            self.known[key] = None
            self.known.move_to_end(key)
        while len(self.known) > MOST_KNOWN:
            self.known.popitem(last=False)

    def fits(self, request: GenerationRequest) -> int:
        """2 if it has the request's model, 1 if it has none, 0 if it would have to drop another one."""
        return 1 if self.state is None else 2 * (self.kind == request.model)


def encodings_of(request: GenerationRequest) -> list[Hashable]:
    """What of a request a worker encodes and keeps: the prompt and each image."""
    images = [(request.content.sha256, request.content_size)] if request.content else []
    styles = [("style", style.sha256) for style in request.styles]
    return [hashlib.sha256(request.prompt.encode()).digest(), *images, *styles]


def chosen(members: Iterable[Member], request: GenerationRequest) -> Member | None:
    """The worker that saves the most: the model, then the LoRAs, then encodings; then the one idle for longest."""
    wanted = encodings_of(request)

    def saves(member: Member) -> tuple[float, ...]:
        known = sum(key in member.known for key in wanted)
        return member.fits(request), member.loras == request.loras, known, -member.since

    return max(members, key=saves, default=None)


class Pool:
    """The workers at hand. At most `capacity` of them exist; they are started when a request needs one."""

    def __init__(self, start: Callable[[], Member], end: Callable[[Member], None]) -> None:
        self.capacity = 0
        self._start, self._end = start, end
        self._members: list[Member] = []
        self._waiting: set[object] = set()  # who has claimed a worker in vain
        self._lock = threading.Lock()

    @property
    def members(self) -> tuple[Member, ...]:
        """The workers in the order of their start."""
        with self._lock:
            return tuple(self._members)

    def claim(self, work: Work, claimer: object) -> Member | None:
        """A worker for a request; None if all are at work. One that only helps another is then called back."""
        with self._lock:
            best = chosen((member for member in self._members if not member.busy), work.request)
            if (best is None or not best.fits(work.request)) and len(self._members) < self.capacity:
                self._members.append(best := self._start())
            if best is not None:
                best.busy = True
                self._waiting.discard(claimer)
                return best
            self._waiting.add(claimer)
            helpers = [member for member in self._members if member.helping]
            if helpers and not any(member.recalled for member in helpers):
                helpers[-1].recalled = True
            return None

    def withdraw(self, claimer: object) -> None:
        """The claimer needs no worker any more."""
        with self._lock:
            self._waiting.discard(claimer)

    def borrow(self, work: Work) -> Member | None:
        """An idle worker for one image of a request that another worker carries out.

        None if there is none, if a request waits for one, or if it would have to drop another model for it.
        """
        with self._lock:
            if self._waiting:
                return None
            best = chosen((member for member in self._members if not member.busy and member.up), work.request)
            if best is None or not best.fits(work.request):
                if all(member.up for member in self._members) and len(self._members) < self.capacity:
                    self._members.append(self._start())  # it helps as soon as it is up
                return None
            best.busy = best.helping = True
            return best

    def release(self, member: Member) -> None:
        """Gives a worker back."""
        with self._lock:
            member.busy = member.helping = member.recalled = False
            member.since = time.monotonic()

    def keep(self, member: Member) -> None:
        """A helper becomes the worker that carries its request out."""
        with self._lock:
            member.helping = member.recalled = False

    def bury(self, member: Member) -> None:
        """Ends a worker, or notes that it has died; another may be started in its place."""
        with self._lock:
            if member in self._members:
                self._members.remove(member)
        self._end(member)

    def fill(self) -> None:
        """Starts all workers that there may be."""
        with self._lock:
            while len(self._members) < self.capacity:
                self._members.append(self._start())

    def give_back(self, idle_seconds: float) -> None:
        """Ends workers that have been idle for so long."""
        past = time.monotonic() - idle_seconds
        with self._lock:
            idle = [member for member in self._members if not member.busy and member.since < past]
            for member in idle:
                self._members.remove(member)
        for member in idle:
            self._end(member)

    def forget(self) -> None:
        """All models have been freed."""
        with self._lock:
            for member in self._members:
                member.kind, member.state = None, None
                member.known.clear()
