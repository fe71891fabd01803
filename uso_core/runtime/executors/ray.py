"""Carries out requests on the workers of a Ray cluster, of this machine alone or of many. The only importer of Ray.

The engine queues; each slot's request takes a worker here, and idle workers help with its further images. What a worker
that dies leaves undone goes on elsewhere: an image depends on its request and seed, not on who makes it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from uso_core.errors import InternalError, SettingsError, UsoError, WorkerError
from uso_core.events import LAST, Cancelled, Done, Encoding, Event, Failed, ImageReady, Loading, Skipped, Step
from uso_core.messages import message
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.runtime.executors.carrier import Carrier, Reply
from uso_core.runtime.executors.loopback import Loopback
from uso_core.runtime.executors.pool import Member, Pool
from uso_core.settings import ROOT, Settings, authenticate_ray, keep_ray_on_loopback

log = logging.getLogger(__name__)

LEASE_SECONDS = 0.8  # for which a worker goes on without a word from its caller
PATIENCE_SECONDS = 0.2  # after which a worker answers that nothing is new
LOOK_SECONDS = 0.1  # between two looks at what the caller wants
TEND_SECONDS = 1.0  # between two looks at the cluster
START_SECONDS = 180.0  # for a worker to come up
RETRY_SECONDS = 10.0  # between two attempts to connect
CLOSE_SECONDS = 1.0
END_SECONDS = 5.0  # for a worker to stop; a step may take longer
LOSSES = 2  # of the worker of one image, after which the request fails
LAPSES = 6  # of the lease of one request, each twice as long as the last
UNDERWAY = (Loading, Encoding, Step)  # passed on only of the image whose turn it is
NO_IMAGE = -1  # the index of a part whose result nobody awaits
CPUS_A_WORKER = 4  # without GPUs, if the number of workers is left to the cluster


class RayExecutor:
    """A slot for each worker that the cluster can hold."""

    def __init__(self, settings: Settings) -> None:
        """Connects in the background; raises `SettingsError` if Ray is not installed."""
        if importlib.util.find_spec("ray") is None:
            raise SettingsError("ray_missing")
        self._settings = settings
        self._loopback: Loopback | None = None
        self._trouble: UsoError | None = None
        self._connected, self._closed = threading.Event(), threading.Event()
        self._filled = False
        self._options: dict[str, float] = {}
        self.pool = Pool(self._start, self._end)
        self._tending = threading.Thread(target=self._tend, name="ray", daemon=True)
        self._tending.start()

    @property
    def slots(self) -> int:
        return max(self.pool.capacity, 1)

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        yield Loading(0.0, message("loading_cluster")) if not self._connected.is_set() else None
        while not self._connected.wait(LOOK_SECONDS):
            if self._trouble is not None:
                yield Failed(self._trouble)
                return
            yield None
            if wish() is Wish.STOP:
                yield Cancelled()
                return
        yield from _Run(self.pool, work, wish).events()

    def state(self) -> tuple[WorkerState | None, ...]:
        return tuple(member.state for member in self.pool.members) or (None,)

    def places(self) -> tuple[str, ...]:
        return tuple(member.place for member in self.pool.members)

    def trouble(self) -> UsoError | None:
        return self._trouble

    def get_ready(self) -> None:
        self._filled = True  # as soon as the cluster is there

    def free(self) -> None:
        for member in self.pool.members:
            member.actor.free.remote()
        self.pool.forget()

    def close(self) -> None:
        """Ends the workers, and the cluster if it is ours."""
        self._closed.set()
        self._tending.join(CLOSE_SECONDS)
        if self._tending.is_alive():  # it is still connecting: a cluster of ours ends with this process
            return
        for member in self.pool.members:
            self.pool.bury(member)
        if self._connected.is_set():
            import ray

            ray.shutdown()
        if self._loopback is not None:
            self._loopback.close()

    def _tend(self) -> None:
        """Connects, and follows the cluster: its machines come and go, and idle workers are given back."""
        while not self._closed.is_set():
            try:
                if not self._connected.is_set():
                    self._connect()
                self._follow_cluster()
            except Exception as error:  # whatever Ray raises, the page goes on; the next look may succeed
                address = self._settings.ray_address or "127.0.0.1"
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                trouble = WorkerError("cluster_unreachable", address=address, reason=reason.rstrip("."))
                if self._trouble is None or self._trouble.values != trouble.values:
                    log.warning("%s", trouble)
                self._trouble = trouble
            self._closed.wait(TEND_SECONDS if self._trouble is None else RETRY_SECONDS)

    def _connect(self) -> None:
        address = self._settings.ray_address
        if address is None:
            keep_ray_on_loopback()
        authenticate_ray(own=address is None)
        import ray

        if address is None:
            if self._loopback is not None:
                self._loopback.close()
            self._loopback = Loopback()
            address = self._loopback.address
        else:
            _reach(address)
        ray.init(
            address, namespace="uso", configure_logging=False, log_to_driver=True,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )  # fmt: skip
        self._look()
        self._connected.set()

    def _follow_cluster(self) -> None:
        self._look()
        self._trouble = None
        if self._filled:
            self._filled = False
            self.pool.fill()
            for member in self.pool.members:
                member.actor.get_ready.remote()
        self._check_idle()
        if self._settings.idle_minutes is not None:
            self.pool.give_back(60 * self._settings.idle_minutes)

    def _look(self) -> None:
        """How many workers the cluster can hold now, and what each takes."""
        import ray

        held = ray.cluster_resources()
        capacity, self._options = planned(held, self._settings.workers, self._settings.device)
        self.pool.capacity = capacity

    def _check_idle(self) -> None:
        """Notes where workers are; buries those that died while idle."""
        import ray

        asked = {member.actor.place.remote(): member for member in self.pool.members if not member.busy}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=TEND_SECONDS) if asked else ([], [])
        for ref in ready:
            member = asked[ref]
            try:
                member.place, member.up = ray.get(ref), True
            except ray.exceptions.RayError:
                if not member.busy:
                    self.pool.bury(member)

    def _start(self) -> Member:
        import ray

        own = dataclasses.replace(  # neither secrets nor another executor
            self._settings, executor="local", workers="auto", idle_minutes=None, hf_token=None, auth=None
        )
        actor = ray.remote(Carrier).options(max_concurrency=8, max_restarts=0, **self._options).remote(own)
        return Member(actor)

    def _end(self, member: Member) -> None:
        import ray

        ray.kill(member.actor)


def planned(held: dict[str, float], workers: str, device: str) -> tuple[int, dict[str, float]]:
    """How many workers a cluster with these resources can hold, at most `workers`, and the resources of each."""
    gpus = 0 if device == "cpu" else int(held.get("GPU", 0))
    cpus = int(held.get("CPU", 0))
    wanted = None if workers == "auto" else int(workers)
    if gpus:
        return min(gpus, wanted or gpus), {"num_gpus": 1, "num_cpus": min(1, cpus // gpus)}
    count = min(wanted or max(cpus // CPUS_A_WORKER, 1), max(cpus, 1))
    return count, {"num_gpus": 0, "num_cpus": max(cpus // count, 1)}


def _reach(address: str) -> None:
    """Raises OSError if nobody listens there: Ray itself tries for a minute, and then ends the process."""
    import socket

    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), 3):
        pass


@dataclass(eq=False)
class _Part:
    """One image of a request, or all that a request without images is, under way on a worker."""

    member: Member
    index: int
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    ref: Any = None  # of the reply that is awaited
    events: list[Event] = field(default_factory=list)  # not yet passed on
    stopping: bool = False
    stepping: bool = False  # the model is there
    began: float = field(default_factory=time.monotonic)


class _Run:
    """One request on its workers: the events in the order of the images."""

    def __init__(self, pool: Pool, work: Work, wish: Callable[[], Wish | None]) -> None:
        self._pool, self._work, self._wish = pool, work, wish
        count = 1 if work.styles_only else work.request.images
        self._todo = list(range(count))
        self._count = count
        self._next = 0  # the image to be passed on
        self._parts: list[_Part] = []
        self._ready: dict[int, list[Event]] = {}  # ends of images that wait for those before
        self._losses: dict[int, int] = {}
        self._lapses = 0
        self._main: Member | None = None
        self._kept_off: set[Member] = set()  # that failed to help
        self._sent: Any = None
        self._skips = self._encoding = self._starting = self._ending = False

    def events(self) -> Iterator[Event | None]:
        try:
            yield from self._events()
        finally:
            self._pool.withdraw(self)
            for part in self._parts:
                part.member.actor.ask.remote(part.key, Wish.STOP)
            for member in {part.member for part in self._parts} | ({self._main} if self._main else set()):
                self._pool.release(member)

    def _events(self) -> Iterator[Event | None]:
        while self._next < self._count:
            wish = self._wish()
            if wish is Wish.STOP:
                yield from self._stopped()
                return
            self._skips = self._skips or wish is Wish.SKIP
            self._staff()
            self._skip()
            if not self._starting and any(not part.member.up for part in self._parts if part.index == self._next):
                self._starting = True
                yield Loading(0.0, message("loading_worker"))
            lost = self._listen()
            news: list[Event | None] = [*self._news()]
            yield from news or [None]
            if lost is not None:
                yield Failed(lost)
                return
            if news and isinstance(news[-1], LAST):
                return
        yield Done()

    def _staff(self) -> None:
        """Gives each worker of this request an image, and borrows idle ones while images are left."""
        if self._main is None and self._parts:
            self._main = self._parts[0].member
            self._pool.keep(self._main)
        if self._main is None:
            self._main = self._pool.claim(self._work, self)
        if self._main is None:
            return
        if not any(part.member is self._main for part in self._parts):
            if not self._todo:
                self._take_over()
            if self._todo:
                self._begin(self._main)
        for part in self._parts:
            if part.member.recalled and not part.stopping:
                self._ask_to_stop(part)
        while self._todo and (helper := self._pool.borrow(self._work)) is not None:
            if helper in self._kept_off:
                self._pool.release(helper)
                return
            self._begin(helper, at=0 if helper.fits(self._work.request) == 2 else -1)  # one that loads is late

    def _begin(self, member: Member, at: int = 0) -> None:
        import ray

        if self._sent is None:
            self._sent = ray.put(self._work)  # its images travel once to each machine
        part = _Part(member, self._todo.pop(at))
        lease = LEASE_SECONDS * 2**self._lapses
        part.ref = member.actor.begin.remote(part.key, self._sent, part.index, part.index + 1, lease)
        member.remember(self._work.request)
        self._parts.append(part)

    def _take_over(self) -> None:
        """Takes an image back from a helper that still loads the model, rather than wait for it."""
        late = next((part for part in self._parts if not part.stepping and not part.stopping), None)
        if late is not None:
            self._todo, late.index = [late.index], NO_IMAGE
            self._ask_to_stop(late)

    def _skip(self) -> None:
        """Abandons the image that the user sees being made."""
        current = next((part for part in self._parts if part.index == self._next and not part.stopping), None)
        if self._skips and current is not None:
            self._skips = False
            current.member.actor.ask.remote(current.key, Wish.SKIP)

    def _listen(self) -> UsoError | None:
        """Takes in what workers reply within a moment; returns the error if the request cannot go on."""
        import ray

        if not self._parts:
            time.sleep(LOOK_SECONDS)
            return None
        awaited = {part.ref: part for part in self._parts}
        ready, _ = ray.wait(list(awaited), num_returns=1, timeout=LOOK_SECONDS)
        for ref in ready:
            part = awaited[ref]
            try:
                reply: Reply = ray.get(ref)
            except ray.exceptions.RayActorError as death:
                reason = next(iter(str(death).splitlines()), "")
                if (error := self._lost(part, reason)) is not None:
                    return error
            except ray.exceptions.RayError:
                code = secrets.token_hex(4)
                log.exception("report %s", code)
                return InternalError("internal", code=code)
            else:
                if (error := self._replied(part, reply)) is not None:
                    return error
        late = [part for part in self._parts if not part.member.up and time.monotonic() - part.began > START_SECONDS]
        if late:
            self._leave(late[0])
            self._pool.bury(late[0].member)
            return WorkerError("worker_not_started", seconds=round(START_SECONDS))
        return None

    def _replied(self, part: _Part, reply: Reply) -> UsoError | None:
        part.member.up, part.member.state = True, reply.state
        last = reply.events[-1] if reply.events and isinstance(reply.events[-1], LAST) else None
        part.stepping = part.stepping or not all(isinstance(event, Loading) for event in reply.events)
        told = [event for event in reply.events if part.index == self._next or not isinstance(event, UNDERWAY)]
        if last is None:
            part.events += told
            part.ref = part.member.actor.follow.remote(part.key, PATIENCE_SECONDS)
            return None
        helping = part.member is not self._main
        if isinstance(last, Cancelled):
            self._again(part)
            if not part.stopping:
                self._lapses += 1  # this process was too busy to renew the lease
                if self._lapses > LAPSES:
                    return WorkerError("worker_lost", times=self._lapses)
        elif isinstance(last, Failed) and helping:  # the request's own worker tries it
            self._kept_off.add(part.member)
            self._again(part)
        else:
            self._parts.remove(part)
            self._ready[part.index] = [*part.events, *(each for each in told if not isinstance(each, Done))]
        if helping:
            if self._todo and not self._ending and not part.member.recalled and part.member not in self._kept_off:
                self._begin(part.member)
            else:
                self._pool.release(part.member)
        return None

    def _lost(self, part: _Part, reason: str) -> UsoError | None:
        """A worker died: its image is made elsewhere, once."""
        times = self._losses[part.index] = self._losses.get(part.index, 0) + (part.index != NO_IMAGE)
        log.warning("A worker was lost at image %d of %d (%s).", part.index + 1, self._count, reason)
        self._leave(part)
        self._again(part)
        self._pool.bury(part.member)
        return WorkerError("worker_lost", times=times) if times >= LOSSES else None

    def _leave(self, part: _Part) -> None:
        if part.member is self._main:
            self._main = None

    def _again(self, part: _Part) -> None:
        if part in self._parts:
            self._parts.remove(part)
        if part.index != NO_IMAGE:
            self._todo = sorted([*self._todo, part.index])

    def _news(self) -> Iterator[Event]:
        """What may be passed on now: the steps of the current image, and its end; then those of the next."""
        while True:
            for part in self._parts:
                if part.index == self._next:
                    events, part.events = part.events, []
                    yield from self._passed(events)
            if self._next not in self._ready:
                return
            events = self._ready.pop(self._next)
            yield from self._passed(events)
            if events and isinstance(events[-1], Failed):
                return
            self._next += 1

    def _passed(self, events: list[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Encoding):  # once, though each worker does it
                if self._encoding:
                    continue
                self._encoding = True
            yield event

    def _ask_to_stop(self, part: _Part) -> None:
        part.stopping = True
        part.member.actor.ask.remote(part.key, Wish.STOP)

    def _stopped(self) -> Iterator[Event | None]:
        """Stops all workers, waits a little for them, passes on what was finished in time, then ends."""
        for part in self._parts:
            self._ask_to_stop(part)
        self._ending = True
        until = time.monotonic() + END_SECONDS
        while self._parts and time.monotonic() < until and self._listen() is None:
            yield from [event for event in self._news() if isinstance(event, ImageReady | Skipped)]
            yield None
        yield Cancelled()
