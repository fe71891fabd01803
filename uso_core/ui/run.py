"""One run as the page and the API follow it: its texts, its previews, its images as files, and its end."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from uso_core.errors import InternalError, OutputError, UsoError
from uso_core.events import Cancelled, Encoding, Event, Failed, ImageReady, Loading, Queued, Skipped, Step
from uso_core.request import Result
from uso_core.runtime.engine import Job
from uso_core.ui import text
from uso_core.ui.form import Status
from uso_core.ui.language import say

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0  # for which a page's runs go on without it: it is loaded again, or the connection is lost
MOST_PAGES = 1000  # remembered
MOST_LEFT = 1000  # sessions remembered after their end
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
    """The active jobs of each open page, so that its Stop, or leaving it, ends them and no others.

    A page that is loaded again is a new session of the same page, which it tells by a secret of its own. Also whether
    the page's user looks at an image of their choice, which a run then leaves in its place.
    """

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self._jobs: dict[str, list[Job]] = {}  # by page
        self._brief: dict[Job, str] = {}  # the session that a job ends with
        self._looking: dict[str, str] = {}  # the image that a page's user has chosen
        self._pages: dict[str, str] = {}  # by session; other sessions are pages of their own
        self._left: dict[str, float] = {}  # when, by a monotonic clock
        self._over: deque[str] = deque(maxlen=MOST_LEFT)  # sessions that have ended
        self._grace = grace_seconds
        self._lock = threading.Lock()

    def page(self, session: str) -> str:
        """The page that a session shows."""
        with self._lock:
            return self._pages.get(session, session)

    def adopt(self, session: str, page: str) -> None:
        """Says that a session shows a page, which an earlier session may have shown."""
        with self._lock:
            self._pages[session] = page
            self._left.pop(page, None)

    def leave(self, session: str) -> None:
        """Ends a session, and the jobs that end with it. Its page may be loaded again within the grace period."""
        with self._lock:
            page = self._pages.pop(session, session)
            self._over.append(session)
            if page not in self._pages.values():  # else it was loaded again before the old session was missed
                self._looking.pop(page, None)
                now = time.monotonic()
                self._left = {each: when for each, when in self._left.items() if now - when <= self._grace} | {
                    page: now
                }
            jobs = [job for job in self._jobs.get(page, ()) if self._brief.get(job) == session]
        for job in jobs:
            job.cancel()

    def absent(self, session: str) -> bool:
        """Whether nobody has shown the session's page for longer than the grace period."""
        page = self.page(session)
        with self._lock:
            return page in self._left and time.monotonic() - self._left[page] > self._grace

    def add(self, session: str, job: Job, lasting: bool = False) -> None:
        """Counts a job among those of the session's page. One that is not `lasting` ends with the session."""
        page = self.page(session)
        with self._lock:
            self._jobs.setdefault(page, []).append(job)
            if not lasting:
                self._brief[job] = session
            late = not lasting and session in self._over
        if late:
            job.cancel()

    def remove(self, job: Job) -> None:
        with self._lock:
            self._brief.pop(job, None)
            self._jobs = {
                page: left for page, jobs in self._jobs.items() if (left := [j for j in jobs if j is not job])
            }

    def jobs(self, session: str) -> list[Job]:
        """The jobs of the session's page in the order of submission."""
        page = self.page(session)
        with self._lock:
            return list(self._jobs.get(page, ()))

    def look(self, session: str, path: str | None) -> None:
        """Which image the page's user has chosen since the last run began, if any."""
        page = self.page(session)
        with self._lock:
            if path is None:
                self._looking.pop(page, None)
            else:
                self._looking[page] = path

    def looking(self, session: str) -> str | None:
        """The image that the page's user looks at by choice."""
        page = self.page(session)
        with self._lock:
            return self._looking.get(page)


class Run:
    """What a page has asked for, in a thread of its own: what is made is kept, whether or not the page is there to see.

    `prompt`, and `thumbnail`, the path of an image, stand for it; `paths` are what it has shown so far. One that is not
    `lasting` ends with the session that began it. It begins with `start`, whose updates come from `follow`.
    """

    def __init__(
        self, sessions: Sessions, session: str, prompt: str, lasting: bool = True, thumbnail: str | None = None
    ) -> None:
        self.key, self.prompt, self.thumbnail = secrets.token_hex(8), prompt, thumbnail
        self.paths: list[Path] = []
        self.error: UsoError | None = None
        self._sessions, self._page, self._lasting = sessions, sessions.page(session), lasting
        self._owner = self._page if lasting else session  # the session may be over before the next job comes
        self._job: Job | None = None
        self._latest: Update | None = None
        self._told = 0  # how often there was news
        self._ending = self._ended = self.seen = False  # seen: that it has ended, by the page
        self._news = threading.Condition()

    def start(self, updates: Generator[Update | None]) -> None:
        """Begins to follow."""
        context = copy_context()  # whose language its texts are in
        threading.Thread(target=context.run, args=(self._run, updates), name=f"run-{self.key}", daemon=True).start()

    def follow(self, job: Job, keep: Keep) -> Generator[Update | None]:
        """The updates of one of its jobs, as the function of this name; after `end` there is only the job's end."""
        with self._news:
            self._job = job
            late = self._ending
        if late:
            job.cancel()
        return follow(job, self._sessions, self._owner, keep, self._lasting)

    def end(self) -> None:
        """Ends the job that is followed, and those that would come."""
        with self._news:
            self._ending, job = True, self._job
        if job is not None:
            job.cancel()

    @property
    def ended(self) -> bool:
        with self._news:
            return self._ended

    def updates(self) -> Iterator[Update | None]:
        """The latest news as it comes, None if there is none for a while; raises the `UsoError` it failed with."""
        heard = 0
        while True:
            with self._news:
                if self._told == heard and not self._ended:
                    self._news.wait(PATIENCE)
                latest = self._latest if self._told != heard else None
                heard, ended = self._told, self._ended
            yield latest
            if ended:
                self.seen = True
                if self.error is not None:
                    raise self.error
                return

    def _run(self, updates: Generator[Update | None]) -> None:
        try:
            for update in updates:
                if self._sessions.absent(self._page):
                    updates.close()
                    return
                if update is not None:
                    with self._news:
                        self._latest, self._told = update, self._told + 1
                        if update.path is not None:
                            self.paths.append(update.path)
                        self._news.notify_all()
        except UsoError as error:
            self.error = error
        except Exception:
            code = secrets.token_hex(4)
            log.exception("report %s", code)
            self.error = InternalError("internal", code=code)
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()


class Runs:
    """The runs of each page, and the images that it has made: what a page that is loaded again goes on with."""

    def __init__(self) -> None:
        self._pages: OrderedDict[str, list[Run]] = OrderedDict()
        self._made: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, page: str, run: Run) -> None:
        with self._lock:
            self._pages[page] = [*(each for each in self._pages.pop(page, []) if not each.seen), run]
            while len(self._pages) > MOST_PAGES:
                oldest, _ = self._pages.popitem(last=False)
                self._made.pop(oldest, None)

    def unseen(self, page: str) -> list[Run]:
        """The page's runs whose end it has not seen, in the order of submission."""
        with self._lock:
            return [run for run in self._pages.get(page, ()) if not run.seen]

    def made(self, page: str, path: str | None = None) -> list[str]:
        """The images that the page has made and that are still there, oldest first; now with the given one."""
        with self._lock:
            paths = [each for each in self._made.get(page, ()) if Path(each).is_file()]
            if path is not None:
                self._pages.setdefault(page, [])
                self._made[page] = paths = [*paths, path]
            return paths

    def active(self, page: str) -> list[Run]:
        """The page's runs that have not ended."""
        return [run for run in self.unseen(page) if not run.ended]


def follow(
    job: Job, sessions: Sessions, session: str, keep: Keep, lasting: bool = False
) -> Generator[Update | None]:  # fmt: skip
    """The updates of a job while it runs, None if nothing is new; raises the `UsoError` it failed with.

    Stopping the iteration ends the job; so does the end of the session, unless it is `lasting`. A page has one status
    line for all its jobs: while one of them runs, those that wait show nothing.
    """
    sessions.add(session, job, lasting)
    return _updates(job, sessions, session, keep)


def _updates(job: Job, sessions: Sessions, session: str, keep: Keep) -> Generator[Update | None]:
    told = 0.0
    try:
        for event in job.events(PATIENCE):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, ImageReady):
                words = text.ready(event, job.request.images)
                path = _kept(keep, event)
                percent = round(100 * (event.index + 1) / job.request.images)
                yield Update({"text": words, "percent": percent}, path=path, result=event.result)
            elif event is None and job.cancelled:
                yield Update({"text": say("stopping"), "percent": 0})
            elif (status := describe(event, job, sessions.jobs(session))) is None:
                yield None
            elif isinstance(event, Cancelled | Skipped) or time.monotonic() - told > INTERVAL:
                told = time.monotonic()
                yield Update(status, event.preview if isinstance(event, Step) else None)
    finally:
        job.cancel()
        sessions.remove(job)


def _kept(keep: Keep, ready: ImageReady) -> Path:
    """Keeps an image; raises the `OutputError` with its seed, by which it can be made again."""
    try:
        return keep(ready.image, ready.result)
    except OutputError as error:
        values = error.values | {"seed": ready.result.seed, "reason": error.problem}
        raise OutputError("image_unsaved", hint=error.hint_key, **values) from None


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
        done = (event.image - 1) * event.steps + event.step
        return {"text": words, "percent": round(100 * done / (event.images * event.steps))}
    if isinstance(event, Skipped):
        return {"text": say("skipped"), "percent": 0}
    if isinstance(event, Cancelled):
        return {"text": say("stopped"), "percent": 0}
    return None
