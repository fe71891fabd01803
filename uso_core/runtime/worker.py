"""A worker: one loaded model at a time, synchronous. Loads on demand, resumes a stopped loading, frees memory."""

from __future__ import annotations

import dataclasses
import gc
import logging
import secrets
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from uso_core.catalog.locate import find_weights
from uso_core.catalog.models import Model, get_model
from uso_core.errors import InternalError, OutOfMemory, UsoError
from uso_core.events import Done, Event, Failed, ImageReady, Loading, Skipped
from uso_core.memory import pinned
from uso_core.memory.plan import MemoryPlan
from uso_core.memory.sizes import GB
from uso_core.messages import message
from uso_core.model.pipeline import USOPipeline, dtype_of
from uso_core.runtime.executors import Work, WorkerState
from uso_core.runtime.generate import Events, encode_styles, generate
from uso_core.runtime.load import load
from uso_core.runtime.loras import Added, FusedLoRAs, added_by
from uso_core.settings import Settings

log = logging.getLogger(__name__)
NO_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory")  # PyTorch's messages on a CPU
STEP_DOWN = 0.85  # of the planned peak with which the GPU ran out of memory


@dataclass(frozen=True)
class Loaded:
    """The model in memory, and the plan used to place it."""

    model: Model
    pipeline: USOPipeline
    plan: MemoryPlan
    fused: FusedLoRAs
    added: Added | None = ()  # the LoRAs in it beside USO's; None while they change

    @property
    def state(self) -> WorkerState:
        """The same without what cannot leave the process."""
        dtype = str(self.pipeline.transformer.dtype).removeprefix("torch.")
        return WorkerState(self.model, str(self.pipeline.compute_device), dtype, self.plan)


class Worker:
    """Carries out one request after another in the thread that iterates over its events."""

    def __init__(self, settings: Settings) -> None:
        self.settings = self._settings = settings  # the latter with less memory after a GPU ran out
        self.loaded: Loaded | None = None
        self._begun: str | None = None  # the model that is loaded, or whose loading was stopped
        self._parts: dict[str, Any] = {}  # what a stopped loading had already read, by role
        self._begun_with: Added = ()  # the LoRAs of that loading
        self._made = 0  # images made of the current request

    def run(self, work: Work) -> Events:
        """The events of one request except the last; errors are raised.

        If the GPU runs out of memory, plans once more for less and continues the request where it was.
        """
        self._made = work.first
        try:
            yield from self._attempt(work)
        except torch.OutOfMemoryError:
            if self.loaded is None or self._stepped_down:
                raise
            self._step_down(self.loaded.plan)
            yield Loading(0.0, message("loading_less_memory"))
            yield from self._attempt(work)

    @property
    def _stepped_down(self) -> bool:
        return self._settings is not self.settings

    def _step_down(self, plan: MemoryPlan) -> None:
        self._settings = dataclasses.replace(self.settings, vram_limit=STEP_DOWN * plan.peak_bytes / GB)
        self.free()

    def _attempt(self, work: Work) -> Events:
        model = get_model(work.request.model or "")
        held = self.loaded.added if self.loaded is not None and self.loaded.model is model else ()
        added = (held or ()) if work.styles_only else added_by(work.request.loras)  # which do not change styles
        loaded = yield from self.ready(model, added)
        if work.styles_only:
            yield from encode_styles(loaded.pipeline, loaded.model, work.request)
            return
        events = generate(loaded.pipeline, loaded.model, work.request, work.previews, self._made, work.end)
        wish = None
        try:
            while True:
                event = events.send(wish)
                self._made += isinstance(event, ImageReady | Skipped)
                wish = yield event
        except StopIteration:
            return
        finally:
            events.close()

    def free(self) -> None:
        """Releases the model and returns its memory to the machine."""
        begun = self._begun is not None
        self.loaded, self._parts, self._begun = None, {}, None
        gc.collect()
        if begun and torch.cuda.is_available():
            torch.cuda.empty_cache()
            pinned.empty_cache()

    def ready(self, model: Model, added: Added = ()) -> Generator[Event, Any, Loaded]:
        """Returns the model with these LoRAs, loading it if needed; what a stopped loading has read serves the next
        request.
        """
        if self.loaded is not None and self.loaded.model is model:
            if self.loaded.added == added:
                return self.loaded
            if (yield from self._with_loras(self.loaded, added)):
                return self.loaded
            self.free()
        paths = find_weights(model, self.settings).require()
        if self._begun != model.name:
            self.free()
            self._begun = model.name
        if self._begun_with != added:
            self._parts.pop("transformer", None)
            self._begun_with = added
        try:
            pipeline, plan = yield from load(paths, self._settings, model, self._parts, added)
            fused = FusedLoRAs(pipeline, paths, dtype_of(pipeline.transformer), added)
        except Exception:
            self.free()
            raise
        self._parts = {}
        self.loaded = Loaded(model, pipeline, plan, fused, added)
        return self.loaded

    def _with_loras(self, loaded: Loaded, added: Added) -> Generator[Event, Any, bool]:
        """Changes the loaded model's LoRAs; returns whether it could be done in place."""
        self.loaded = dataclasses.replace(loaded, added=None)
        change = loaded.fused.change(added)
        while True:
            try:
                fraction = next(change)
            except StopIteration as end:
                done = end.value
                break
            yield Loading(fraction, message("loading_loras", percent=round(100 * fraction)))
        if done:
            self.loaded = dataclasses.replace(loaded, added=added)
        return done


def guarded(events: Events) -> Events:
    """The events followed by the last one, whatever happens: nothing is raised."""
    last: Event = Done()
    try:
        yield from events
    except UsoError as error:
        last = Failed(error)
    except MemoryError:
        last = Failed(OutOfMemory("out_of_memory", hint="smaller_size"))
    except torch.OutOfMemoryError:
        last = Failed(OutOfMemory("gpu_out_of_memory", hint="smaller_size"))
    except Exception as error:
        if isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY):
            yield Failed(OutOfMemory("out_of_memory", hint="smaller_size"))
            return
        code = secrets.token_hex(4)
        log.exception("report %s", code)
        last = Failed(InternalError("internal", code=code))
    yield last
