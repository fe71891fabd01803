"""One run as the page and the API follow it: its texts, its previews, its images as files, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uso_core.events import Cancelled, Encoding, Event, Failed, ImageReady, Loading, Queued, Skipped, Step
from uso_core.request import Result
from uso_core.runtime.engine import Job
from uso_core.ui import text
from uso_core.ui.form import Status
from uso_core.ui.language import say

PATIENCE = 0.5  # seconds between checks whether the browser is still there
INTERVAL = 0.1  # minimum seconds between two updates: the browser would fall behind

Keep = Callable[[Image.Image, Result], Path]  # stores an image


@dataclass(frozen=True)
class Update:
    """What is new in a run: always a text, sometimes a preview or a finished image."""

    status: Status
    preview: Image.Image | None = None
    path: Path | None = None
    result: Result | None = None


class Sessions:
    """The active jobs of each open page, so that its Stop, or closing it, ends them and no others.

    And whether its user looks at an image of their choice, which a run then leaves in its place.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, list[Job]] = {}
        self._looking: set[str] = set()
        self._lock = threading.Lock()

    def add(self, session: str, job: Job) -> None:
        with self._lock:
            self._jobs.setdefault(session, []).append(job)

    def remove(self, session: str, job: Job) -> None:
        with self._lock:
            jobs = self._jobs.get(session, [])
            if job in jobs:
                jobs.remove(job)
            if not jobs:
                self._jobs.pop(session, None)

    def jobs(self, session: str) -> list[Job]:
        """The session's jobs in the order of submission."""
        with self._lock:
            return list(self._jobs.get(session, ()))

    def look(self, session: str, chosen: bool) -> None:
        """Whether the page's user has chosen an image since the last run began; False if the page is left."""
        with self._lock:
            (self._looking.add if chosen else self._looking.discard)(session)

    def looking(self, session: str) -> bool:
        with self._lock:
            return session in self._looking


def follow(job: Job, sessions: Sessions, session: str, keep: Keep) -> Iterator[Update | None]:
    """The updates of a job while it runs, None if nothing is new; raises the `UsoError` it failed with.

    Stopping the iteration, or closing the page, ends the job. A page has one status line for all its jobs: while one of
    them runs, those that wait show nothing.
    """
    sessions.add(session, job)
    told = 0.0
    try:
        for event in job.events(PATIENCE):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ImageReady):
                words = text.ready(event, job.request.images)
                path = keep(event.image, event.result)
                yield Update({"text": words, "percent": 100}, path=path, result=event.result)
            elif event is None and job.cancelled:
                yield Update({"text": say("stopping"), "percent": 0})
            elif (status := describe(event, job, sessions.jobs(session))) is None:
                yield None
            elif isinstance(event, Cancelled | Skipped) or time.monotonic() - told > INTERVAL:
                told = time.monotonic()
                yield Update(status, event.preview if isinstance(event, Step) else None)
    finally:
        job.cancel()
        sessions.remove(session, job)


def describe(event: Event | None, job: Job, jobs: Sequence[Job] = ()) -> Status | None:
    """An event as a sentence for the user, with the bar's percentage; None if nothing is new.

    `jobs` are those of the same page: while one of them runs, another does not report its waiting.
    """
    if isinstance(event, Queued):
        if jobs and jobs[0] is not job:
            return None
        return {"text": text.waiting(event.ahead), "percent": 0}
    if isinstance(event, Loading):
        return {"text": text.loading(event.message), "percent": round(100 * event.fraction)}
    if isinstance(event, Encoding):
        return {"text": say("reading"), "percent": 0}
    if isinstance(event, Step):
        more = max(len(jobs) - 1, 0)
        words = text.stepping(
            event.image, event.images, event.step, event.steps, event.seconds_per_step, event.seconds_left, more
        )
        return {"text": words, "percent": round(100 * event.step / event.steps)}
    if isinstance(event, Skipped):
        return {"text": say("skipped"), "percent": 0}
    if isinstance(event, Cancelled):
        return {"text": say("stopped"), "percent": 0}
    return None
