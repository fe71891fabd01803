"""The queue in front of an executor: positions, jobs, and the model for requests that name none. No torch."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from uso_core import images
from uso_core.catalog.locate import choose_model, find_weights
from uso_core.catalog.models import Model, get_model
from uso_core.errors import RequestError
from uso_core.events import LAST, Cancelled, Event, Queued
from uso_core.messages import Message, message
from uso_core.request import GenerationRequest, StoredStyle, number
from uso_core.runtime.executors import Executor, Wish, Work, WorkerState
from uso_core.runtime.executors.local import LocalExecutor
from uso_core.settings import Settings


@dataclass(frozen=True)
class Status:
    """The engine's state: the model for requests that name none and why, what is loaded, how many wait."""

    model: Model
    reason: Message
    workers: tuple[WorkerState | None, ...]
    waiting: int
    running: int

    @property
    def loaded(self) -> WorkerState | None:
        """What the first worker has loaded."""
        return next((worker for worker in self.workers if worker is not None), None)


class Job:
    """One submitted request: its events, and how to stop it."""

    def __init__(self, work: Work, engine: Engine) -> None:
        self._work = work
        self._engine = engine
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._skipped = threading.Event()
        self._ended = threading.Event()

    @property
    def request(self) -> GenerationRequest:
        """The submitted request, with seed and model settled."""
        return self._work.request

    def events(self, patience: float | None = None) -> Iterator[Event | None]:
        """The events up to the last one; with `patience` in seconds, yields None whenever nothing happened for that
        long.
        """
        while True:
            try:
                event = self._events.get(timeout=patience)
            except queue.Empty:
                yield None
                continue
            yield event
            if isinstance(event, LAST):
                return

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop; its last event may still follow."""
        return self._cancelled.is_set()

    def wait(self) -> None:
        """Returns once the last event has been sent."""
        self._ended.wait()

    def cancel(self) -> None:
        """Stops the request within one step; its last event is then `Cancelled`. Does nothing after it has ended."""
        self._cancelled.set()
        self._engine._withdraw(self)

    def skip(self) -> None:
        """Abandons the current image and goes on to the next; the request ends if there is none."""
        self._skipped.set()

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        if isinstance(event, LAST):
            self._ended.set()

    def _wish(self) -> Wish | None:
        if self._cancelled.is_set():
            return Wish.STOP
        if self._skipped.is_set():
            self._skipped.clear()
            return Wish.SKIP
        return None


class Engine:
    """Hands requests to an executor's slots in the order of submission."""

    def __init__(self, settings: Settings, executor: Executor | None = None) -> None:
        """Chooses the model (`choose_model`) but loads nothing; raises `SettingsError` for an unknown model name."""
        self.settings = settings
        self._executor = executor or LocalExecutor(settings)
        self._model, self._reason = choose_model(settings)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._free = self._closed = False
        self._changed = threading.Condition()
        for slot in range(self._executor.slots):
            threading.Thread(target=self._dispatch, name=f"engine-{slot}", daemon=True).start()

    def submit(self, request: GenerationRequest, previews: bool = False) -> Job:
        """Queues a request and settles its seed; with `previews` each step sends a small image.

        Raises what `check` raises.
        """
        return self._submit(request, previews=previews)

    def encode_styles(self, request: GenerationRequest) -> Job:
        """Queues the encoding of a request's styles, reported as `StylesReady`; makes no image."""
        return self._submit(request, styles_only=True)

    def check(self, request: GenerationRequest) -> None:
        """Refuses what can be refused without the model.

        Raises `SettingsError` for an unknown model name, `RequestError` for a guidance that the model was not trained
        for,
        an image or stored style given only by name, or a content image of which nothing would remain.
        """
        model = get_model(request.model) if request.model is not None else self._model
        number("guidance", request.guidance, *model.guidances)
        for given in request.input_images:
            if given.image is None:
                raise RequestError("image_missing", name=given.name)
        for style in request.styles:
            if isinstance(style, StoredStyle) and not style.tokens:
                raise RequestError("style_missing", hint="style_again", name=style.name)
        if request.content is not None and request.content.image is not None:
            images.content_crop(*request.content.image.size, request.content_size)

    def status(self) -> Status:
        """The engine's current state."""
        workers = self._executor.state()
        with self._changed:
            return Status(self._model, self._reason, workers, len(self._waiting), len(self._running))

    def choose(self, name: str) -> None:
        """Sets the model for requests that name none; it is loaded when the next such request comes.

        Raises `SettingsError` for an unknown name, `WeightsError` saying which of its files are missing.
        """
        model = get_model(name)
        find_weights(model, self.settings).require()
        with self._changed:
            self._model, self._reason = model, message("reason_chosen")

    def get_ready(self) -> None:
        """Starts what the first request would have to wait for; returns at once."""
        self._executor.get_ready()

    def unload(self) -> None:
        """Frees the models' memory once nothing runs or waits; the next request loads the model again."""
        with self._changed:
            self._free = True
            self._changed.notify()

    def close(self) -> None:
        """Cancels every job, waits for the last events and ends the workers; nothing can be submitted afterwards."""
        with self._changed:
            self._closed = True
            jobs = [*self._running, *self._waiting]
        for job in jobs:
            job.cancel()
        for job in jobs:
            job.wait()
        with self._changed:
            self._changed.notify_all()
        self._executor.close()

    def _submit(self, request: GenerationRequest, previews: bool = False, styles_only: bool = False) -> Job:
        self.check(request)
        settled = dataclasses.replace(
            request, model=request.model or self._model.name
        )  # a later choice changes nothing
        job = Job(Work(settled.with_seed(), previews, styles_only), self)
        with self._changed:
            if self._closed:
                raise RequestError("engine_closed")
            self._waiting.append(job)
            self._tell_places()
            self._changed.notify()
        return job

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job._tell(Cancelled())
                self._tell_places()

    def _tell_places(self) -> None:
        """Tells each waiting job how many are ahead of it; jobs about to take an idle slot are told nothing."""
        idle = self._executor.slots - len(self._running)
        for place, job in enumerate(self._waiting):
            if place >= idle:
                job._tell(Queued(place + len(self._running)))

    def _dispatch(self) -> None:
        """One slot's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting or self._may_free() or self._closed))
                if self._closed and not self._waiting:
                    return
                job = self._waiting.popleft() if self._waiting else None
                if job is None:
                    self._free = False
                    self._executor.free()
                    continue
                self._running.append(job)
                self._tell_places()
            last = self._carry_out(job)
            with self._changed:
                self._running.remove(job)
                job._tell(last)
                self._changed.notify()  # memory may be freed now
            del job

    def _may_free(self) -> bool:
        return self._free and not self._running

    def _carry_out(self, job: Job) -> Event:
        last: Event = Cancelled()
        if job.cancelled:
            return last
        for event in self._executor.run(job._work, job._wish):
            if isinstance(event, LAST):
                last = event
            elif event is not None:
                job._tell(event)
        return last
