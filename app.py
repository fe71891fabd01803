"""The page: python app.py [--name NAME] [--device D] [--offload] [--port 7860] [--host 127.0.0.1]"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from uso_core.errors import UsageError, UsoError, exit_code
from uso_core.runtime.engine import Engine
from uso_core.runtime.startup import gc_paused
from uso_core.settings import Parser, Settings, add_arguments, load_settings, settle_proxies
from uso_core.storage.files import check_writable
from uso_core.storage.scratch import Scratch

NAMES = (
    "name", "executor", "workers", "idle_minutes", "device", "dtype", "offload", "vram_limit", "compile", "host",
    "port", "root_path", "weights", "models_dir", "output", "allow_switch", "allow_download", "mcp", "auth",
    "allow_host", "share", "shared_history", "log", "metrics", "background",
)  # fmt: skip
END_SECONDS = 3.0  # for a running step to end
TELL_SECONDS, CLOSE_SECONDS = 0.8, 0.7  # to send last messages, and to close connections


class Stop:
    """Listens for SIGTERM (systemctl, docker) and Ctrl+C at any moment; a second one ends the program at once."""

    def __init__(self) -> None:
        self.code: int | None = None
        self._heard = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)

    def wait(self) -> None:
        """Returns when the program should stop."""
        while not self._heard.wait(0.5):  # on Windows an endless wait hears no signal
            pass

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard.is_set():
            os._exit(130)
        self.code = 130 if number == signal.SIGINT else 0
        self._heard.set()


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until it is stopped; returns the exit code (2: something the user can fix)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = Parser(prog="app.py", description=__doc__)
    add_arguments(parser, *NAMES)
    try:
        args = parser.parse_args(argv)
        settings = load_settings({name: getattr(args, name) for name in NAMES})
        if settings.log:
            logging.getLogger("uso_core").setLevel(logging.INFO)
        settle_proxies(settings.host)
        check_writable(settings.output_folder)
        given = os.environ.get("GRADIO_TEMP_DIR")
        scratch = Scratch.claim(Path(given) if given else None)
    except UsoError as error:
        return exit_code(error)
    os.environ["GRADIO_TEMP_DIR"] = str(scratch.path)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # both before Gradio is imported: no look-ups
    scratch.keep_below(settings.cache_gb * 10**9)
    try:
        return serve(settings)
    except UsoError as error:
        return exit_code(error)
    except OSError as error:  # Gradio's error if the port is taken, or the host is none
        return exit_code(_not_served(settings, error))
    finally:
        scratch.remove()


def _not_served(settings: Settings, error: OSError) -> UsageError:
    """Why nothing can be served there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as reason:
        return UsageError("host", host=settings.host, reason=reason.strerror or reason)
    if error.errno is None:  # Gradio found no port
        return UsageError("port", port=settings.port)
    return UsageError("not_served", reason=error.strerror or error)


def serve(settings: Settings) -> int:
    """Serves until a signal comes, then ends what runs and tells those who wait; returns the exit code."""
    stop, engine = Stop(), Engine(settings)
    with gc_paused():
        from uso_core import ui
    page = ui.build(engine, settings)
    ui.launch(page, engine, settings)
    stop.wait()
    engine.close(END_SECONDS)
    time.sleep(TELL_SECONDS)  # Gradio's threads pass the messages on
    closing = threading.Thread(target=page.close, kwargs={"verbose": False}, daemon=True)
    closing.start()  # waits for connections that browsers hold open
    closing.join(CLOSE_SECONDS)
    return stop.code or 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a thread may still be inside PyTorch, which aborts when Python exits around it
