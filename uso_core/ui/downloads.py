"""Downloads that visitors start: one at a time, visible to all, stoppable by anyone, resumed where they stopped."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass

from uso_core.catalog.download import download
from uso_core.catalog.hub import Hub
from uso_core.catalog.models import Model
from uso_core.errors import DownloadError, InternalError, UsoError
from uso_core.messages import Message, message
from uso_core.settings import Settings

log = logging.getLogger(__name__)
SPEED_OVER_SECONDS = 10.0


@dataclass(frozen=True)
class Download:
    """The state of a download. `file` is the current one, sizes are in bytes; `outcome` is set at its end.

    `failed` says whether the outcome is an error.
    """

    model: Model
    file: str = ""
    done: int = 0
    total: int = 0
    bytes_per_second: float = 0.0
    stopping: bool = False
    outcome: Message | None = None
    failed: bool = False

    @property
    def running(self) -> bool:
        return self.outcome is None

    @property
    def seconds_left(self) -> float | None:
        """None while it cannot be estimated."""
        return (self.total - self.done) / self.bytes_per_second if self.bytes_per_second and self.total else None


class Downloads:
    """The only download that may run, and the outcome of the last one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._recent: deque[tuple[float, int]] = deque()  # (monotonic seconds, bytes there)
        self.now: Download | None = None

    def start(self, model: Model) -> None:
        """Starts fetching what a model lacks; raises `DownloadError` if one is running or visitors may not."""
        if not self._settings.allow_download:
            raise DownloadError("may_not_download")
        with self._lock:
            if self.now is not None and self.now.running:
                raise DownloadError("download_running", model=self.now.model.name)
            self._stop.clear()
            self._recent.clear()
            self.now = Download(model)
        threading.Thread(target=self._run, args=(model,), name="download", daemon=True).start()

    def cancel(self) -> None:
        """Stops the download at its next piece; what came is kept."""
        with self._lock:
            if self.now is not None and self.now.running:
                self._stop.set()
                self.now = dataclasses.replace(self.now, stopping=True)

    def _run(self, model: Model) -> None:
        failed = True
        try:
            hub = Hub(self._settings.hf_token)
            download(model, self._settings, hub, say=lambda sentence: None, progress=self._progress)
            failed, outcome = False, message("download_done", model=model.name)
        except _Stopped:
            failed, outcome = False, message("download_stopped")
        except UsoError as error:
            outcome = error.told
        except Exception:
            code = secrets.token_hex(4)
            log.exception("report %s", code)
            outcome = InternalError("internal", code=code).told
        with self._lock:
            self.now = dataclasses.replace(self.now or Download(model), outcome=outcome, failed=failed)

    def _progress(self, file: str, done: int, total: int) -> None:
        with self._lock:
            if self.now is not None:
                speed = self._speed(done)
                self.now = dataclasses.replace(self.now, file=file, done=done, total=total, bytes_per_second=speed)
        if self._stop.is_set():
            raise _Stopped

    def _speed(self, done: int) -> float:
        """Bytes per second over the last pieces."""
        moment = time.monotonic()
        self._recent.append((moment, done))
        while len(self._recent) > 2 and moment - self._recent[0][0] > SPEED_OVER_SECONDS:
            self._recent.popleft()
        began, had = self._recent[0]
        return max(done - had, 0) / (moment - began) if moment > began else 0.0


class _Stopped(Exception):
    """Raised in the download's thread when somebody stopped it."""
