"""Runs in a process of its own: the executor under the real package `spaces`, which forks.

Writes JSON, a line a test, into the file it is given: processes of the platform print into the same output.

PyTorch is hidden while `spaces` is imported: the package then uses its process model without emulating CUDA.
"""

from __future__ import annotations

import base64
import contextvars
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.deploy.device_api import DeviceAPI

API = DeviceAPI()
os.environ |= {"SPACES_ZERO_GPU": "1", "SPACES_ZERO_DEVICE_API_URL": API.url, "OMP_NUM_THREADS": "1"}
sys.modules["torch"] = None  # type: ignore[assignment]
import spaces  # noqa: E402, F401
from spaces.zero import client  # noqa: E402
from spaces.zero import utils as zero_utils  # noqa: E402

zero_utils.self_cgroup_device_path = lambda: "/"  # type: ignore[attr-defined]
del sys.modules["torch"]

from gradio.context import LocalContext  # noqa: E402

from uso_core.catalog.models import get_model  # noqa: E402
from uso_core.events import Event, Failed, ImageReady, Skipped, Step  # noqa: E402
from uso_core.request import GenerationRequest  # noqa: E402
from uso_core.runtime.engine import Engine, Job  # noqa: E402
from uso_core.runtime.executors.zerogpu import ZeroGPUExecutor  # noqa: E402
from uso_core.settings import Settings  # noqa: E402

REPORTS = Path(sys.argv[1])
SMALL = GenerationRequest(prompt="a red house", width=64, height=64, steps=4, seed=7)
LONG = dataclasses.replace(SMALL, width=256, height=256, steps=200)


class Headers(dict[str, str]):
    """A visitor's headers, as Gradio's request has them."""


@dataclasses.dataclass
class Visitor:
    headers: Headers


def token() -> str:
    """A visitor's quota token: a JWT whose content nobody checks here."""
    part = base64.urlsafe_b64encode(json.dumps({"user": "ann"}).encode()).decode().rstrip("=")
    return f"{part}.{part}.x"


def heard(job: Job) -> list[Event]:
    return [event for event in job.events() if event is not None]


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def report(name: str, test: Callable[[], Any]) -> None:
    line = json.dumps({"test": name, "result": test()})
    with REPORTS.open("a") as file:
        file.write(line + "\n")


def main() -> None:
    settings = Settings(name="uso-tiny", device="cpu", dtype="float32", compile="off")
    executor = ZeroGPUExecutor(settings)
    executor.load(get_model("uso-tiny"))
    engine = Engine(settings, executor)

    def steps() -> Any:
        job = engine.submit(SMALL, previews=True)
        events = heard(job)
        previews = [event.preview is not None for event in events if isinstance(event, Step)]
        return {"names": names(events), "previews": previews, "loaded": engine.status().loaded is not None}

    def again() -> Any:
        events = heard(engine.submit(dataclasses.replace(SMALL, images=2)))
        return {"ready": [event.index for event in events if isinstance(event, ImageReady)], "pids": len(API.pids)}

    def stop() -> Any:
        job = engine.submit(LONG)
        for event in job.events():
            if isinstance(event, Step):
                began = time.monotonic()
                job.cancel()
                rest = names(heard(job))
                until = time.monotonic() + 10
                released = len(API.of("/release"))
                while len(API.of("/release")) < len(API.of("/schedule")) and time.monotonic() < until:
                    time.sleep(0.01)
                return {"last": rest[-1], "seconds": time.monotonic() - began, "released": released}
        return None

    def skip() -> Any:
        job = engine.submit(dataclasses.replace(LONG, images=2, steps=20))
        events, asked = [], False
        for event in job.events():
            events.append(event)
            if isinstance(event, Step) and not asked:
                asked = True
                job.skip()
        return {
            "skipped": [event.index for event in events if isinstance(event, Skipped)],
            "ready": [event.index for event in events if isinstance(event, ImageReady)],
        }

    def killed() -> Any:
        job = engine.submit(LONG)
        for event in job.events():
            if isinstance(event, Step):
                os.kill(API.pids[-1], signal.SIGKILL)
                break
        last = heard(job)[-1]
        assert isinstance(last, Failed), last
        before = len(API.pids)
        events = heard(engine.submit(SMALL))
        return {"key": last.error.key, "words": last.error.values["words"], "after": names(events)[-1],
                "new": len(API.pids) - before}  # fmt: skip

    def quota() -> Any:
        API.refuse = True
        last = heard(engine.submit(SMALL))[-1]
        API.refuse = False
        assert isinstance(last, Failed), last
        return {"key": last.error.key, "words": last.error.values["words"]}

    def visitor() -> Any:
        def submit() -> list[str]:
            LocalContext.request.set(Visitor(Headers({client.TOKEN_HEADER.lower(): token()})))  # type: ignore[arg-type]
            return names(heard(engine.submit(SMALL)))

        before = [values.get("token") for values in API.of("/schedule")]
        contextvars.copy_context().run(submit)
        return {"before": any(before), "sent": API.of("/schedule")[-1].get("token") == token()}

    def elsewhere() -> Any:
        last = heard(engine.submit(dataclasses.replace(SMALL, model="flux-dev")))[-1]
        assert isinstance(last, Failed), last
        return {"key": last.error.key}

    for test in (steps, again, stop, skip, killed, quota, visitor, elsewhere):
        report(test.__name__, test)


if __name__ == "__main__":
    threading.Timer(400, os.killpg, (0, signal.SIGKILL)).start()
    try:
        main()
    finally:
        os.killpg(0, signal.SIGKILL)  # the platform's processes, which would hold our output open
