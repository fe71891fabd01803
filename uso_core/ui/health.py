"""What watchers ask: /healthz (the program answers), /readyz (it can make images) and /metrics (for Prometheus)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from uso_core.catalog.locate import find_weights
from uso_core.errors import RequestError, SettingsError, UsoError
from uso_core.events import Cancelled, Event, Failed, ImageReady
from uso_core.request import GenerationRequest
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings

SECONDS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)  # upper bounds of the histogram's buckets


def require_metrics() -> None:
    """Raises `SettingsError` if metrics are asked for and their package is missing."""
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingsError("metrics_missing")


def routes(engine: Engine, settings: Settings) -> list[Route]:
    """The endpoints, to be served before Gradio's: they need no login and show nothing of any request."""
    served = [Route("/healthz", healthz), Route("/readyz", _readyz(engine, settings))]
    return [*served, Route("/metrics", _metrics(engine))] if settings.metrics else served


async def healthz(request: Request) -> Response:
    """Whether the program answers at all; nothing is looked up."""
    return PlainTextResponse("ok\n")


def _readyz(engine: Engine, settings: Settings) -> Any:
    async def readyz(request: Request) -> Response:
        """Whether a request would be taken now, and by whom: 200, or 503 with the reason."""
        state, reason = await run_in_threadpool(_state, engine, settings)
        return JSONResponse(state | ({"reason": str(reason)} if reason else {}), 503 if reason else 200)

    return readyz


def _state(engine: Engine, settings: Settings) -> tuple[dict[str, Any], UsoError | None]:
    status = engine.status()
    workers = [
        {"place": place, "model": held.model.name if held is not None else None}
        for place, held in zip(status.places or ("",), status.workers, strict=False)
    ]
    reason = status.trouble
    try:
        find_weights(status.model, settings).require()
        if status.waiting >= settings.limit("max_waiting"):
            raise RequestError("queue_full", hint="try_later", count=status.waiting)
    except UsoError as error:
        reason = reason or error
    state = {"ready": reason is None, "model": status.model.name, "waiting": status.waiting,
             "running": status.running, "workers": workers}  # fmt: skip
    return state, reason


def _metrics(engine: Engine) -> Any:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
    from prometheus_client.core import GaugeMetricFamily

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # memory, processor time and open files of this process
    labels = ("model", "outcome")
    requests = Counter("uso_requests", "Requests that ended", labels, registry=registry)
    seconds = Histogram(
        "uso_request_seconds", "From the beginning of the work to its end", labels, buckets=SECONDS, registry=registry
    )
    images = Counter("uso_images", "Images made", ("model",), registry=registry)

    class State:
        """What holds now, read when it is asked for."""

        def collect(self) -> Iterator[GaugeMetricFamily]:
            status = engine.status()
            for name, text, value in (
                ("uso_waiting_requests", "Requests that wait", status.waiting),
                ("uso_running_requests", "Requests at work", status.running),
                ("uso_workers", "Workers at hand", len(status.workers)),
            ):
                yield GaugeMetricFamily(name, text, value)
            memory = GaugeMetricFamily(
                "uso_model_bytes",
                "Planned peak memory of a worker's model",
                labels=("worker", "place", "model", "device"),
            )
            for number, held in enumerate(status.workers):
                if held is not None:
                    place = status.places[number] if number < len(status.places) else ""
                    memory.add_metric([str(number), place, held.model.name, held.device], held.plan.peak_bytes)
            yield memory

    registry.register(State())

    def heard(request: GenerationRequest, event: Event, elapsed: float) -> None:
        name = str(request.model)
        if isinstance(event, ImageReady):
            images.labels(name).inc()
            return
        outcome = "failed" if isinstance(event, Failed) else "stopped" if isinstance(event, Cancelled) else "done"
        requests.labels(name, outcome).inc()
        seconds.labels(name, outcome).observe(elapsed)

    engine.listener = heard

    async def metrics(request: Request) -> Response:
        """The numbers in Prometheus' text format."""
        text = await run_in_threadpool(generate_latest, registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return metrics
