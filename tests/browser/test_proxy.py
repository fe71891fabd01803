"""The page below a path of a real nginx, configured by the block in the documents: nothing leaves that path."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.browser.conftest import PATIENCE_MS
from tests.browser.test_studio import fill, generate, press, tab
from tests.ui.test_app import REPLY_SECONDS, Served, free_port, serve, wait_until_it_answers
from tests.ui.test_server import by_mcp
from uso_core.settings import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]
INNER = "127.0.0.1:7860"  # of the documents' block


@dataclass(frozen=True)
class Proxied:
    """An app behind nginx; `inner` is its own address, which nothing may mention."""

    served: Served
    inner: str


def block() -> str:
    """The documents' block for nginx."""
    (found,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/deployment.md").read_text(encoding="utf-8"), re.DOTALL)
    assert INNER in found
    return found


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None and "REQUIRE_BROWSER" not in os.environ:
        pytest.skip("there is no nginx on the PATH")
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    with serve(folder / "app", "--root-path", "/uso", "--mcp") as inner:
        host = urlsplit(inner.url).netloc
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        places = "".join(f"{name}_temp_path {folder}/{name};" for name in names)
        configuration = folder / "nginx.conf"
        configuration.write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log {folder}/access.log; {places}\n"
            f"server {{ listen 127.0.0.1:{port};\n{block().replace(INNER, host)} }} }}\n"
        )
        process = subprocess.Popen([str(nginx), "-c", str(configuration), "-e", f"{folder}/error.log"])
        try:
            url = f"http://127.0.0.1:{port}/uso/"
            wait_until_it_answers(url, process, folder / "error.log")
            yield Proxied(Served(url, inner.output, inner.log, 0.0, inner.process), host)
        finally:
            process.terminate()
            process.wait(10)


def photo(path: Path) -> Path:
    """A file of several megabytes."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)).save(path)
    assert path.stat().st_size > 2 * 2**20
    return path


def test_everything_works_below_the_path(proxied: Proxied, chromium: Browser, tmp_path: Path) -> None:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    addresses: list[str] = []
    failures: list[tuple[str, int]] = []
    errors: list[str] = []
    context.on("request", lambda request: addresses.append(request.url))
    context.on("response", lambda reply: reply.status >= 400 and failures.append((reply.url, reply.status)))
    context.on("weberror", lambda error: errors.append(str(error.error)))
    page = context.new_page()
    page.goto(proxied.served.url)
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    page.evaluate(
        "window.texts = new Set(); new MutationObserver(() => {"
        "const text = document.querySelector('#status')?.innerText; if (text) window.texts.add(text); })"
        ".observe(document.body, {subtree: true, childList: true, characterData: true})"
    )
    page.get_by_label("Content image").locator("input[type=file]").first.set_input_files(photo(tmp_path / "photo.png"))
    expect(page.get_by_label("Content image").locator("img")).to_be_visible()
    fill(page, "Steps", 60)
    generate(page, proxied.served, "a red mug on a table")
    expect(page.locator("#result img")).to_have_js_property("complete", True)
    page.wait_for_function("() => document.querySelector('#result img').naturalWidth > 0")
    assert len(page.evaluate("[...window.texts]")) >= 5

    with page.expect_download() as waiting:
        page.locator("#result").hover()
        page.locator("#result [title=Download], #result a[download]").first.click()
    waiting.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as saved:
        assert "uso" in saved.info

    tab(page, "History")
    thumbnail = page.locator("#history-images img").first
    expect(thumbnail).to_be_visible()
    expect(thumbnail).to_have_js_property("complete", True)
    assert thumbnail.evaluate("image => image.naturalWidth") > 0
    page.locator("#history-images button", has=page.locator("img")).first.click()
    press(page, "Restore settings")
    expect(page.get_by_label("Prompt")).to_have_value("a red mug on a table")
    context.close()

    fetched = [urlsplit(address) for address in addresses if address.startswith("http")]
    assert {each.netloc for each in fetched} == {urlsplit(proxied.served.url).netloc}
    assert [each.path for each in fetched if not each.path.startswith("/uso/")] == []
    assert (failures, errors) == ([], [])


def test_programs_work_below_the_path(proxied: Proxied, tmp_path: Path) -> None:
    url = proxied.served.url
    client = Client(url, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
    job = client.submit(
        prompt="a mug", content=handle_file(str(photo(tmp_path / "photo.png"))), width=64, height=64, steps=2,
        api_name="/generate",
    )  # fmt: skip
    images, settings, _, _ = job.result(timeout=REPLY_SECONDS)
    client.close()
    assert Path(images[0]).read_bytes().startswith(b"\x89PNG")
    assert settings["content"]["name"] == "photo.png"

    outside = Served(url.rstrip("/"), proxied.served.output, proxied.served.log, 0.0, proxied.served.process)
    with ThreadPoolExecutor(1) as pool:  # this thread's event loop is Chromium's
        values = {"width": 64, "height": 64, "steps": 2}
        result = pool.submit(by_mcp, outside, lambda session: session.call_tool("generate", values)).result()
    assert not result.isError
    assert any(content.type == "image" for content in result.content)
    assert proxied.inner not in result.model_dump_json()
    with urllib.request.urlopen(f"{url}readyz", timeout=30) as reply:
        assert reply.status == 200
    with urllib.request.urlopen(url, timeout=30) as reply:
        assert proxied.inner not in reply.read().decode()
