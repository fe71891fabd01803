"""A real Chromium in front of the real app. If it is missing, CI fails; other machines skip and say so."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from tests.serving import Served, serve

PATIENCE_MS = int(
    os.environ.get("PATIENCE_MS", "240000")
)  # for what takes a second on an idle machine and a minute on a slow, busy one
LATENCY_MS = int(os.environ.get("LATENCY_MS", "0"))  # for every page, to find what a slow network breaks
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
ASKS = re.compile(r"/gradio_api/(queue/join|run)")
DESKTOP = {"width": 1280, "height": 900}
OURS = ("127.0.0.1", "")  # data: and blob: addresses have no host

OpenPage = Callable[..., Page]


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for a condition that the page does not show."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def visit(page: Page, app: Served) -> None:
    """Opens the address and waits until the page is usable."""
    page.goto(app.url)
    expect(page.locator("#generate")).to_be_visible()
    expect(page.locator("body[data-script=ready]")).to_be_attached()


@contextmanager
def held_back(page: Page) -> Iterator[list[Route]]:
    """What the page asks the server within, uploads apart, reaches it only at the end, as over a slow network."""
    held: list[Route] = []
    page.route(ASKS, lambda route: held.append(route))
    yield held
    for each in held:
        each.continue_()
    page.unroute(ASKS)


def find_chromium() -> str | None:
    """The system's; rather the one without a window, which spares the second that a full one's toolbar takes a page."""
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        path = find_chromium()
        if path is None and "REQUIRE_BROWSER" not in os.environ:
            pytest.skip("there is no chromium on the PATH")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("app")) as running:
        yield running


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """An app that has not loaded anything yet, started as users do."""
    with serve(tmp_path / "app", fork=False) as running:
        yield running


@pytest.fixture
def open_page(chromium: Browser) -> Iterator[OpenPage]:
    """Opens the page as another visitor; at the end neither it nor the server may have met an error.

    Nor may it have contacted another host.
    """
    contexts: list[BrowserContext] = []
    outside: list[str] = []
    errors: list[str] = []
    logs: dict[Path, int] = {}  # of the servers, and their lengths before

    def watch(address: str) -> None:
        if urlsplit(address).hostname not in (*OURS, None):
            outside.append(address)

    def open_one(app: Served, **options: Any) -> Page:
        logs.setdefault(app.log, app.log.stat().st_size)
        context = chromium.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        context.on("request", lambda request: watch(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.on("websocket", lambda socket: watch(socket.url))
        visit(page, app)
        if LATENCY_MS:
            conditions = {"offline": False, "latency": LATENCY_MS, "downloadThroughput": -1, "uploadThroughput": -1}
            context.new_cdp_session(page).send("Network.emulateNetworkConditions", conditions)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []
    for log, before in logs.items():
        assert b"Traceback" not in log.read_bytes()[before:]


@pytest.fixture
def shot() -> Callable[[Page, str], None]:
    """Saves a screenshot in the folder named by SCREENSHOTS, for people to look at; without it does nothing."""
    folder = os.environ.get("SCREENSHOTS")

    def save(page: Page, name: str) -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, animations="disabled")

    return save
