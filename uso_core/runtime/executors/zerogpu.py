"""Carries out requests on a Hugging Face Space's ZeroGPU: in a process that has a GPU while it works.

The platform forks that process, so the model must have been assembled by the main thread of this one (`load`): CUDA is
emulated there, for that thread only. The decorated generator hands events over; closing it stops the work within a
step, and Skip travels through memory that both processes share. The only importer of `spaces`.
"""

from __future__ import annotations

import contextvars
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from uso_core.catalog.models import Model
from uso_core.errors import RequestError, UsoError, WorkerError
from uso_core.events import LAST, Cancelled, Event, Failed
from uso_core.loaders.convert import finished
from uso_core.request import SIZE_MULTIPLE, GenerationRequest
from uso_core.runtime.executors import Wish, Work, WorkerState
from uso_core.settings import Settings

SLOTS = 8  # requests that may ask the platform for a GPU at once; it has a queue of its own
FLAGS = 4 * SLOTS  # a stopped request may still wait for its GPU, and keep its flag
PATIENCE_SECONDS = 0.2
STOP_SECONDS = 0.8  # for the GPU to be given back; afterwards that happens without anybody waiting
# An estimate, which no GPU has timed: FLUX.1 at 1024 x 1024 with a content image takes half a second a step.
MOVING_SECONDS, DECODING_SECONDS = 10.0, 2.0
SECONDS_A_STEP_AND_TOKEN = 1e-4
TEXT_TOKENS, STYLE_TOKENS = 512, 64

Carry = Callable[[Work, int], Generator[Event, None, None]]


class ZeroGPUExecutor:
    """One model, loaded before the page is served; construct it before PyTorch is imported."""

    def __init__(self, settings: Settings) -> None:
        import spaces  # before PyTorch, which it prepares for the fork

        self._settings = settings
        self._worker: Any = None
        self._state: WorkerState | None = None
        self._flags = multiprocessing.RawArray("b", FLAGS)  # seen by the processes forked later
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(FLAGS):
            self._free.put(number)
        self._carry: Carry = spaces.GPU(duration=self.duration)(self._carried)

    slots = SLOTS

    def load(self, model: Model) -> None:
        """Assembles the model in the calling thread, which must be the main one; raises what `runtime.load` raises."""
        from uso_core.runtime.worker import Worker

        self._worker = Worker(self._settings)
        self._state = finished(self._worker.ready(model)).state  # now: other threads see no emulated device

    def duration(self, work: Work, flag: int = 0) -> int:
        """Seconds of GPU time to ask for: what it takes, since visitors pay for what is asked."""
        return seconds(work.request)

    def run(self, work: Work, wish: Callable[[], Wish | None]) -> Iterator[Event | None]:
        if (refused := self._refused(work)) is not None:
            yield Failed(refused)
            return
        flag = self._free.get()
        self._flags[flag] = 0
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        stop, ended = threading.Event(), threading.Event()
        # The visitor's quota is found through this thread's context, as it was when the request was submitted.
        pump = contextvars.copy_context().run
        arguments = (self._pump, work, flag, events, stop, ended)
        threading.Thread(target=pump, args=arguments, name="zerogpu", daemon=True).start()
        try:
            while True:
                try:
                    event = events.get(timeout=PATIENCE_SECONDS)
                except queue.Empty:
                    yield None
                else:
                    yield event
                    if isinstance(event, LAST):
                        return
                asked = wish()
                if asked is Wish.STOP:
                    break
                if asked is Wish.SKIP:
                    self._flags[flag] = 1
            stop.set()
            until = time.monotonic() + STOP_SECONDS
            while time.monotonic() < until and not ended.wait(PATIENCE_SECONDS):
                yield None
            yield Cancelled()
        finally:
            stop.set()

    def state(self) -> tuple[WorkerState | None, ...]:
        return (self._state,)

    def places(self) -> tuple[str, ...]:
        return ()

    def trouble(self) -> UsoError | None:
        return None

    def get_ready(self) -> None:
        """Nothing: the model is loaded before the page is served."""

    def free(self) -> None:
        """Nothing: the platform takes the GPU back, and the model could not be loaded again."""

    def close(self) -> None:
        """Nothing: the platform's processes end with this one."""

    def _refused(self, work: Work) -> UsoError | None:
        here = self._state.model.name if self._state is not None else ""
        if here != work.request.model:
            return RequestError("model_elsewhere", model=work.request.model, here=here)
        return None

    def _pump(
        self, work: Work, flag: int, events: queue.SimpleQueue[Event], stop: threading.Event, ended: threading.Event
    ) -> None:
        try:
            carried = self._carry(work, flag)
            for event in carried:
                if stop.is_set():
                    carried.close()
                    break
                events.put(event)
        except Exception as error:  # the platform's: no quota, no GPU, a process that died
            words = getattr(error, "message", None) or str(error) or type(error).__name__
            events.put(Failed(WorkerError("zerogpu", words=str(words).rstrip("."))))
        finally:
            self._free.put(flag)
            ended.set()

    def _carried(self, work: Work, flag: int) -> Generator[Event, None, None]:
        """Runs in the process that has the GPU, which inherited the model."""
        from uso_core.runtime.worker import guarded

        events = guarded(self._worker.run(work))
        wish: Wish | None = None
        try:
            while True:
                event = events.send(wish)
                yield event
                if isinstance(event, LAST):
                    return
                wish = Wish.SKIP if self._flags[flag] else None
                self._flags[flag] = 0
        finally:
            events.close()


def seconds(request: GenerationRequest) -> int:
    """An estimate of the GPU time that a request takes: it grows with pixels, steps, images and references."""
    tokens = request.width * request.height // SIZE_MULTIPLE**2 + TEXT_TOKENS + STYLE_TOKENS * len(request.styles)
    if request.content is not None:
        tokens += (request.content_size // SIZE_MULTIPLE) ** 2
    each = request.steps * tokens * SECONDS_A_STEP_AND_TOKEN + DECODING_SECONDS
    return round(MOVING_SECONDS + request.images * each)
