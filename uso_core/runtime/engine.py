"""The queue in front of an executor: positions, jobs, and the model for requests that name none. No torch."""

from __future__ import annotations

import atexit
import contextvars
import dataclasses
import logging
import math
import queue
import secrets
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

from uso_core import images
from uso_core.catalog.locate import choose_model, find_weights
from uso_core.catalog.loras import located, refuse_own, unchanged
from uso_core.catalog.models import Model, get_model
from uso_core.errors import InternalError, OutOfMemory, RequestError, UsoError
from uso_core.events import LAST, Cancelled, Event, Failed, ImageReady, Queued, Step
from uso_core.messages import Message, message
from uso_core.request import MAX_STRENGTH, GenerationRequest, StoredStyle, number
from uso_core.runtime.executors import Executor, Wish, Work, WorkerState
from uso_core.runtime.executors.local import LocalExecutor
from uso_core.settings import Settings

log = logging.getLogger(__name__)
Listener = Callable[[GenerationRequest, Event, float], None]  # with the seconds since the work began
LOOK_SECONDS = 0.5  # between two checks of a waiting job's position
EXIT_SECONDS = 10.0  # for a step to end when the program does: PyTorch aborts if Python goes away around it


@dataclass(frozen=True)
class Status:
    """The engine's state: the model for requests that name none and why, what is loaded, how many wait."""

    model: Model
    reason: Message
    workers: tuple[WorkerState | None, ...]
    waiting: int
    running: int
    places: tuple[str, ...] = ()  # where each worker is; empty if all are in this process
    trouble: UsoError | None = None  # why no worker can be reached

    @property
    def loaded(self) -> WorkerState | None:
        """What the first worker has loaded."""
        return next((worker for worker in self.workers if worker is not None), None)


class Job:
    """One submitted request: its events, and how to stop it."""

    def __init__(self, work: Work, engine: Engine, visitor: str = "") -> None:
        self._work = work
        self._engine = engine
        self.visitor = visitor
        self._told_ahead = 0
        self._began, self._deadline = time.monotonic(), math.inf  # monotonic seconds
        self._context = contextvars.copy_context()  # of the caller, which may say whose quota the work is charged to
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._skipped = threading.Event()
        self._stepping = False
        self._ended = threading.Event()

    @property
    def request(self) -> GenerationRequest:
        """The submitted request, with seed and model settled."""
        return self._work.request

    def events(self, patience: float | None = None) -> Iterator[Event | None]:
        """The events up to the last one; with `patience` in seconds, None when nothing happened for that long.

        A waiting job looks up its position only when asked for news, so nothing is sent that nobody reads.
        """
        waited = 0.0
        while True:
            pause = LOOK_SECONDS if patience is None else min(patience - waited, LOOK_SECONDS)
            try:
                event: Event = self._events.get(timeout=max(pause, 0.0))
            except queue.Empty:
                if self._ended.is_set() and self._events.empty():  # all was told to somebody else
                    return
                waited += pause
                if (ahead := self._engine._ahead_of(self)) and ahead != self._told_ahead:
                    self._told_ahead, waited = ahead, 0.0
                    yield Queued(ahead)
                elif patience is not None and waited >= patience:
                    waited = 0.0
                    yield None
                continue
            waited = 0.0
            yield event
            if isinstance(event, LAST):
                return

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to stop; its last event may still follow."""
        return self._cancelled.is_set()

    @property
    def overdue(self) -> bool:
        """Whether it has run longer than a request may."""
        return time.monotonic() > self._deadline

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the last event to be sent, or for `seconds`; returns whether it was."""
        return self._ended.wait(seconds)

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
        if self._cancelled.is_set() or self.overdue:
            return Wish.STOP
        if self._stepping and self._skipped.is_set():  # before, there is no image yet to leave out
            self._skipped.clear()
            return Wish.SKIP
        return None


def _pixels(request: GenerationRequest) -> int:
    """The pixels that each step works on: the image's, and the content's."""
    content, pixels = request.content, request.width * request.height
    if content is None:
        return pixels
    return pixels + math.prod(images.content_size(*(content.size or (1, 1)), request.content_size))


class Engine:
    """Hands requests to an executor's slots: each visitor's in order, visitors in turn."""

    def __init__(self, settings: Settings, executor: Executor | None = None, reason: Message | None = None) -> None:
        """Chooses the model (`choose_model`) but loads nothing; raises `SettingsError` for an unknown model name.

        `reason` is said instead of the usual one for the model.
        """
        self.settings = settings
        self._executor = executor or _executor(settings)
        self._model, chosen = choose_model(settings)
        self._reason = reason or chosen
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # by visitor; the first is next
        self._places: dict[Job, int] | None = None  # of the waiting jobs, from 0; None: to be counted
        self._running: list[Job] = []
        self._free = self._closed = False
        self.listener: Listener | None = None  # hears of each image and of each request's end
        self._changed = threading.Condition()
        self._dispatchers = 0
        with self._changed:
            self._staff()
        atexit.register(_close_at_exit, weakref.ref(self))

    def submit(self, request: GenerationRequest, previews: bool = False, visitor: str = "") -> Job:
        """Queues a request and settles its seed; with `previews` each step sends a small image.

        Visitors take turns: each has their own queue. Raises what `check` raises, and `RequestError` if too many
        requests wait already.
        """
        return self._submit(request, visitor, previews=previews)

    def encode_styles(self, request: GenerationRequest, visitor: str = "") -> Job:
        """Queues the encoding of a request's styles, reported as `StylesReady`; makes no image."""
        return self._submit(request, visitor, styles_only=True)

    def check(self, request: GenerationRequest, *more: GenerationRequest) -> None:
        """Refuses what can be refused without the model; of several requests that belong together, their whole work.

        Raises `SettingsError` for an unknown model name, `RequestError` for a guidance that the model was not trained
        for, an image or stored style given only by name, a LoRA that is not here, or a content image of which nothing
        would remain.
        """
        requests = (request, *more)
        work = sum(each.images * each.steps * _pixels(each) for each in requests) / 1e6
        if work > self.settings.limit("max_work"):
            work = math.ceil(100 * work) / 100  # never as few as are allowed
            raise RequestError("too_much_work", work=work, most=self.settings.limit("max_work"))
        for each in requests:
            self._check(each)

    def status(self) -> Status:
        """The engine's current state."""
        workers = self._executor.state()
        places = self._executor.places()
        with self._changed:
            waiting, running = self._count(), len(self._running)
        return Status(self._model, self._reason, workers, waiting, running, places, self._executor.trouble())

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

    def close(self, seconds: float | None = None) -> bool:
        """Cancels every job, waits for the last events and ends the workers; nothing can be submitted afterwards.

        Returns whether all ended within `seconds`; if not, a longer step is still running.
        """
        with self._changed:
            self._closed = True
            jobs = [*self._running, *(job for jobs in self._waiting.values() for job in jobs)]
        for job in jobs:
            job.cancel()
        until = None if seconds is None else time.monotonic() + seconds
        ended = True
        for job in jobs:
            ended = job.wait(None if until is None else max(until - time.monotonic(), 0.0)) and ended
        with self._changed:
            self._changed.notify_all()
        if ended:
            self._executor.close()
        return ended

    def _check(self, request: GenerationRequest) -> None:
        model = get_model(request.model) if request.model is not None else self._model
        refuse_own(located(request, self.settings), model, self.settings)
        number("guidance", request.guidance, *model.guidances)
        for given in request.input_images:
            if given.image is None and given.path is None:
                raise RequestError("image_missing", name=given.name)
        strengths = request.style_strengths or (1.0,) * len(request.styles)
        for style, strength in zip(request.styles, strengths, strict=True):
            if not isinstance(style, StoredStyle):
                continue
            if not style.tokens:
                raise RequestError("style_missing", hint="style_again", name=style.name)
            own = max(style.strengths, default=1.0)
            if strength * own > MAX_STRENGTH:
                raise RequestError("stored_strength", name=style.name, strength=strength, own=own, most=MAX_STRENGTH)
        if request.content is not None and request.content.size is not None:
            images.content_crop(*request.content.size, request.content_size)

    def _submit(
        self, request: GenerationRequest, visitor: str, previews: bool = False, styles_only: bool = False
    ) -> Job:
        self.check(request)
        name = request.model or self._model.name  # a later choice changes nothing
        request = dataclasses.replace(located(request, self.settings), model=name)
        if not get_model(name).guided:  # the record does not name a guidance that had no effect
            request = dataclasses.replace(request, guidance=get_model(name).guidance)
        job = Job(Work(images.set_aside(request.with_seed()), previews, styles_only), self, visitor)
        with self._changed:
            if self._closed:
                raise RequestError("engine_closed")
            self._refuse_too_many(visitor)
            self._waiting.setdefault(visitor, deque()).append(job)
            self._places = None
            job._told_ahead = self._ahead(job)
            if job._told_ahead:
                job._tell(Queued(job._told_ahead))
            self._staff()
        return job

    def _refuse_too_many(self, visitor: str) -> None:
        most, each = self.settings.limit("max_waiting"), self.settings.limit("max_waiting_each")
        if self._count() >= most:
            raise RequestError("queue_full", hint="try_later", count=self._count())
        if len(self._waiting.get(visitor, ())) >= each:
            raise RequestError("queue_full_for_one", hint="wait_or_stop", count=int(each))

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            jobs = self._waiting.get(job.visitor, ())
            if withdrawn := job in jobs:
                self._remove(job)
                job._tell(Cancelled())
        if withdrawn:
            self._report(job, Cancelled())

    def _remove(self, job: Job) -> None:
        jobs = self._waiting[job.visitor]
        jobs.remove(job)
        if not jobs:
            del self._waiting[job.visitor]
        self._places = None

    def _next(self) -> Job | None:
        """Takes the first job of the visitor whose turn it is; that visitor then goes to the back."""
        if not self._waiting:
            return None
        visitor = next(iter(self._waiting))
        job = self._waiting[visitor][0]
        self._waiting.move_to_end(visitor)
        self._remove(job)
        return job

    def _ahead_of(self, job: Job) -> int:
        with self._changed:
            self._staff()  # workers may have come while nothing else happened
            return self._ahead(job)

    def _ahead(self, job: Job) -> int:
        """How many requests are ahead of a job, including running ones; 0 if it does not wait."""
        if self._places is None:  # counted once per change, however many ask
            rounds = zip_longest(*self._waiting.values())
            order = (each for turn in rounds for each in turn if each is not None)
            self._places = {each: place for place, each in enumerate(order)}
        place = self._places.get(job)
        idle = self._executor.slots - len(self._running)
        return 0 if place is None or place < idle else place + len(self._running)

    def _staff(self) -> None:
        """Starts a dispatcher for each slot that has none, and wakes one if slots have become free."""
        while self._dispatchers < self._executor.slots:
            self._dispatchers += 1
            threading.Thread(target=self._dispatch, name=f"engine-{self._dispatchers}", daemon=True).start()
        if self._may_take():
            self._changed.notify()

    def _dispatch(self) -> None:
        """One slot's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._may_take() or self._may_free() or self._closed))
                if self._closed and not self._waiting:
                    return
                job = self._next()
                if job is None:
                    self._free = False
                    try:
                        self._executor.free()
                    except Exception:  # it may be asked again; whoever waits must not wait for ever
                        log.exception("the model's memory could not be freed")
                    continue
                self._running.append(job)
            last = self._ended(job)
            self._report(job, last)
            with self._changed:
                self._running.remove(job)
                job._tell(last)
                self._changed.notify()  # memory may be freed now
            del job

    def _may_take(self) -> bool:
        return bool(self._waiting) and len(self._running) < self._executor.slots

    def _may_free(self) -> bool:
        return self._free and not self._running

    def _ended(self, job: Job) -> Event:
        """Carries a job out; whatever happens, it ends, and the next one gets its turn."""
        try:
            return job._context.run(self._carry_out, job)
        except MemoryError:
            return Failed(OutOfMemory("out_of_memory", hint="smaller_size"))
        except Exception:
            code = secrets.token_hex(4)
            log.exception("report %s", code)
            return Failed(InternalError("internal", code=code))

    def _carry_out(self, job: Job) -> Event:
        job._began = time.monotonic()
        job._deadline = job._began + 60 * self.settings.limit("max_minutes")
        last: Event = Cancelled()
        if not job.cancelled:
            try:
                unchanged(job.request, self.settings)
                work = dataclasses.replace(job._work, request=images.brought_back(job.request))
            except RequestError as error:
                return Failed(error)
            for event in self._executor.run(work, job._wish):
                if isinstance(event, LAST):
                    last = event
                elif event is not None:
                    job._stepping = isinstance(event, Step)
                    job._tell(event)
                    if isinstance(event, ImageReady):
                        job._skipped.clear()  # it came too late for this image, and was not meant for the next
                        self._report(job, event)
        if isinstance(last, Cancelled) and job.overdue and not job.cancelled:
            last = Failed(RequestError("took_too_long", minutes=self.settings.limit("max_minutes")))
        return last

    def _report(self, job: Job, event: Event) -> None:
        """Tells the listener and the log; what goes wrong there is no fault of the request."""
        seconds = time.monotonic() - job._began
        try:
            if self.listener is not None:
                self.listener(job.request, event, seconds)
        except Exception:
            log.exception("the listener failed")
        if self.settings.log and isinstance(event, LAST):
            log.info("%s", _line(job.request, event, seconds))


def _close_at_exit(reference: weakref.ref[Engine]) -> None:
    if (engine := reference()) is not None and not engine._closed:
        engine.close(EXIT_SECONDS)


def _executor(settings: Settings) -> Executor:
    """The executor of that name in the settings."""
    if settings.executor == "ray":
        from uso_core.runtime.executors.ray import RayExecutor

        return RayExecutor(settings)
    return LocalExecutor(settings)


def _line(request: GenerationRequest, last: Event, seconds: float) -> str:
    """One request as a log line, without its prompt or images."""
    outcome = type(last).__name__.lower() + (f" {last.error.key}" if isinstance(last, Failed) else "")
    size = f"{request.width}x{request.height}"
    return f"{request.model} {size} {request.steps} steps {request.images} images {seconds:.1f} s {outcome}"
