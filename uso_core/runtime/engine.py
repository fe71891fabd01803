"""One worker in front of one model: loads it when first asked, runs one request at a time, tells what happens.

Everything that touches the model runs in the worker's thread; callers submit requests and read events. PyTorch is
imported there too, so that a page can be served before.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import queue
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from uso_core import images
from uso_core.catalog.locate import choose_model, find_weights
from uso_core.catalog.models import Model, get_model
from uso_core.errors import InternalError, OutOfMemory, RequestError, UsoError
from uso_core.events import (
    LAST,
    Cancelled,
    Done,
    Encoding,
    Event,
    Failed,
    ImageReady,
    Loading,
    Queued,
    Skipped,
    Step,
    StylesReady,
)
from uso_core.messages import Message, message
from uso_core.request import GenerationRequest, Result, StoredStyle, number
from uso_core.runtime.startup import gc_paused
from uso_core.settings import Settings

if TYPE_CHECKING:
    from uso_core.memory.planner import MemoryPlan
    from uso_core.model.pipeline import USOPipeline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """The model in memory: where it computes, and in what number format."""

    model: Model
    device: str
    dtype: str


class Stop(Exception):
    """Raised in the worker, between two steps or two tensors, when the request was cancelled."""


class Skip(Exception):
    """Raised in the worker, between two steps, when the current image was skipped."""


class Job:
    """One submitted request: its events, and the way to stop it."""

    def __init__(
        self, request: GenerationRequest, previews: bool, engine: Engine, styles_only: bool = False
    ) -> None:  # fmt: skip
        self.request = request
        self.previews = previews
        self.styles_only = styles_only
        self._engine = engine
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._skipped = threading.Event()
        self._ended = threading.Event()

    def events(self, patience: float | None = None) -> Iterator[Event | None]:
        """The events up to the last one; with `patience` in seconds, None whenever so long nothing happened."""
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
        """Whether it was asked to stop; its last event may still be to come."""
        return self._cancelled.is_set()

    def wait(self) -> None:
        """Returns once the last event has been sent."""
        self._ended.wait()

    def cancel(self) -> None:
        """Stops the request within one step; its last event is then `Cancelled`. Does nothing once it has ended."""
        self._cancelled.set()
        self._engine._withdraw(self)

    def skip(self) -> None:
        """Leaves the image at work unfinished and goes on to the next; the request ends if there is none."""
        self._skipped.set()

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        if isinstance(event, LAST):
            self._ended.set()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Stop
        if self._skipped.is_set():
            raise Skip


class Engine:
    """Generates images from requests, one at a time, in the order of submission."""

    def __init__(self, settings: Settings) -> None:
        """Chooses the model (`choose_model`) but loads nothing; raises `SettingsError` for an unknown model name."""
        self.settings = settings
        self.model, self.reason = choose_model(settings)
        self.loaded: Loaded | None = None
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._pipeline: USOPipeline | None = None
        self._begun: str | None = None  # the model of `_pipeline` or `_parts`
        self._unload = False
        self.plan: MemoryPlan | None = None  # by which the loaded model was placed
        self._parts: dict[str, Any] = {}  # what a cancelled loading had already read, by role
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def submit(self, request: GenerationRequest, previews: bool = False, styles_only: bool = False) -> Job:
        """Queues a request, its seed settled; with `previews` each step brings one. Raises what `check` raises.

        With `styles_only` no image is made: its styles are encoded and told as `StylesReady`.
        """
        self.check(request)
        request = dataclasses.replace(request, model=request.model or self.model.name)  # a later choice changes nothing
        job = Job(request.with_seed(), previews, self, styles_only)
        with self._changed:
            self._waiting.append(job)
            self._tell_places()
            self._changed.notify()
        return job

    def check(self, request: GenerationRequest) -> None:
        """Refuses what can be refused without the model.

        Raises `SettingsError` for an unknown model name, `RequestError` for a guidance that the model was not taught, a
        image or saved style that is only named, or a content image of which nothing would be left.
        """
        model = get_model(request.model) if request.model is not None else self.model
        number("guidance", request.guidance, *model.guidances)
        for given in request.input_images:
            if given.image is None:
                raise RequestError("image_missing", name=given.name)
        for style in request.styles:
            if isinstance(style, StoredStyle) and not style.tokens:
                raise RequestError("style_missing", hint="style_again", name=style.name)
        if request.content is not None and request.content.image is not None:
            images.content_crop(*request.content.image.size, request.content_size)

    def choose(self, name: str) -> None:
        """Makes a model the one for requests that name none; it is read when the next of them comes.

        Raises `SettingsError` for an unknown name, `WeightsError` that says what is missing of its files.
        """
        model = get_model(name)
        find_weights(model, self.settings).require()
        self.model, self.reason = model, message("reason_chosen")

    def get_ready(self) -> None:
        """Begins to import PyTorch, so that the first request finds it there; returns at once."""
        threading.Thread(target=_import_pytorch, name="import", daemon=True).start()

    def unload(self) -> None:
        """Frees the model's memory as soon as nothing runs or waits; the next request reads the model again."""
        with self._changed:
            self._unload = True
            self._changed.notify()

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job._tell(Cancelled())
                self._tell_places()

    def _tell_places(self) -> None:
        for place, job in enumerate(self._waiting):
            ahead = place + (self._running is not None)
            if ahead:
                job._tell(Queued(ahead))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._unload)
                job = self._running = self._waiting.popleft() if self._waiting else None
                self._unload = self._unload and job is not None
                self._tell_places()
            if job is None:
                self._drop()
                continue
            last = self._run(job)
            with self._changed:
                self._running = None
                job._tell(last)
            del job

    def _run(self, job: Job) -> Event:
        try:
            job._check()
            self._generate(job, *self._ready(job))
        except Stop:
            return Cancelled()
        except UsoError as error:
            return Failed(error)
        except MemoryError:
            return Failed(OutOfMemory("out_of_memory", hint="smaller_size"))
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's, of any device
                return Failed(OutOfMemory("gpu_out_of_memory", hint="smaller_size"))
            code = secrets.token_hex(4)
            log.exception("report %s", code)
            return Failed(InternalError("internal", code=code))
        return Done()

    def _generate(self, job: Job, pipeline: USOPipeline, model: Model) -> None:
        from uso_core.model.pipeline import Sampling
        from uso_core.runtime.style_tokens import encoded, fingerprint, styles_of

        request = _sized(job.request, model)
        job._tell(Encoding())
        content = request.content.image if request.content else None
        began = time.perf_counter()
        styles, strengths = styles_of(request, pipeline, model)
        if job.styles_only:
            tokens = encoded(styles, pipeline)
            job._tell(StylesReady(tokens, strengths or (1.0,) * len(tokens), model.name, fingerprint(pipeline)))
            return
        condition = pipeline.encode(request.prompt, content, styles, request.content_size)
        sampling = Sampling(
            request.width, request.height, request.steps, request.guidance, request.schedule,
            request.content_strength, strengths, request.fast,
        )  # fmt: skip
        prepared = pipeline.prepare(condition, sampling)
        unread = pipeline.unread(request.prompt)
        for index in range(request.images):
            job._skipped.clear()
            job._check()
            seed = _settled(request) + index
            generator = pipeline.generator(seed)
            try:
                packed = pipeline.denoise(prepared, generator, _step_callback(job, request, index))
            except Skip:
                job._tell(Skipped(index))
                continue
            image = pipeline.to_images(pipeline.decode(packed, request.width, request.height))[0]
            dtype = str(pipeline.transformer.dtype).removeprefix("torch.")
            seconds = time.perf_counter() - began
            result = Result(request, seed, model.name, str(generator.device), dtype, seconds)
            job._tell(ImageReady(index, image, result, unread))
            began = time.perf_counter()

    def _ready(self, job: Job) -> tuple[USOPipeline, Model]:
        """The pipeline of the model that the request asks for, loaded if it is not."""
        model = get_model(job.request.model) if job.request.model else self.model
        if self._pipeline is not None and self._begun == model.name:
            return self._pipeline, model
        paths = find_weights(model, self.settings).require()
        if self._begun != model.name:
            self._drop()
            self._begun = model.name
        job._tell(Loading(0.0, message("loading_starting")))

        def tell(fraction: float, said: Message) -> None:
            job._skipped.clear()
            job._check()
            job._tell(Loading(fraction, said))

        _import_pytorch()
        from uso_core.runtime.load import assemble

        try:
            self._pipeline, self.plan = assemble(paths, self.settings, model, self._parts, tell)
        except Stop:
            raise  # what was read so far serves the next request
        except BaseException:
            self._drop()
            raise
        self._parts = {}
        dtype = str(self._pipeline.transformer.dtype).removeprefix("torch.")
        self.loaded = Loaded(model, str(self._pipeline.generator(0).device), dtype)
        return self._pipeline, model

    def _drop(self) -> None:
        """Lets go of the model and gives its memory back to the machine."""
        begun = self._begun is not None
        self._pipeline, self._parts, self._begun = None, {}, None
        self.loaded = self.plan = None
        gc.collect()
        torch = sys.modules.get("torch") if begun else None  # before that it may be in the midst of its import
        if torch is not None and torch.cuda.is_available():
            from uso_core.memory import pinned

            torch.cuda.empty_cache()
            pinned.empty_cache()


@cache
def _import_pytorch() -> None:
    with gc_paused():
        import uso_core.runtime.load  # noqa: F401


def _sized(request: GenerationRequest, model: Model) -> GenerationRequest:
    """The request with the size that `keep_size` stands for."""
    if not request.keep_size or request.content is None or request.content.image is None:
        return request
    prepared = images.content_crop(*request.content.image.size, request.content_size)
    width, height = images.kept_size(prepared, request.content_size, model.size)
    return dataclasses.replace(request, width=width, height=height)


def _settled(request: GenerationRequest) -> int:
    if request.seed is None:
        raise ValueError("the seed is settled on submission")
    return request.seed


def _step_callback(job: Job, request: GenerationRequest, index: int) -> Callable[..., None]:
    times = [time.perf_counter()]

    def callback(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> None:
        times.append(time.perf_counter())
        recent = times[-6:]
        seconds = (recent[-1] - recent[0]) / (len(recent) - 1)
        preview = pipeline.preview(tensors["denoised"], request.width, request.height) if job.previews else None
        job._tell(Step(step + 1, request.steps, index + 1, request.images, seconds, preview))
        job._check()

    return callback
