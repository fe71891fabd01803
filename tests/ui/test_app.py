"""The served page as a program sees it: how soon it answers, and its one endpoint, through gradio_client and HTTP."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.serving import (  # noqa: F401  (tests/browser takes some from here)
    REPLY_SECONDS,
    Served,
    clean_environment,
    free_port,
    serve,
    wait_until_it_answers,
)
from uso_core.settings import ROOT
from uso_core.storage.png import read_request

START_SECONDS = 15.0  # of CPU: about 3 on an idle machine, more where processes share caches and cores


@pytest.fixture
def drawn(tmp_path: Path) -> dict[str, Path]:
    """Three thumbnails as files."""
    paths = {}
    for number, name in enumerate(("content", "style_1", "style_2")):
        levels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        paths[name] = tmp_path / f"{name}.png"
        Image.fromarray(levels).resize((96, 64), Image.Resampling.NEAREST).save(paths[name])
    return paths


def generate(client: Client, **values: Any) -> tuple[Path, dict[str, Any], int]:
    """One call of the endpoint by keyword: the PNG as a file here, the last status, the seed used."""
    job = client.submit(**values, api_name="/generate")
    (path,), settings, status, _ = job.result(timeout=REPLY_SECONDS)
    return Path(path), status, settings["seed"]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_the_page_answers_soon_and_without_the_model_stack(
    tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    with serve(tmp_path / "app", fork=False) as started:
        if sys.platform == "linux":
            loaded = Path(f"/proc/{started.process.pid}/maps").read_text()
            assert "/numpy/" in loaded
            assert not [name for name in ("/torch/", "/tokenizers/") if name in loaded]
            assert cpu_seconds(started.process.pid) < START_SECONDS
        record_property("seconds_to_first_answer", started.seconds)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far (proc(5): fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="it counts in /proc")
def test_a_page_without_visitors_sleeps(served: Served) -> None:
    began, before = time.monotonic(), wake_ups(served.process.pid)
    time.sleep(1)
    a_second = (wake_ups(served.process.pid) - before) / (time.monotonic() - began)
    assert a_second < 200  # 60; with Gradio's own value 600 to 1000


def wake_ups(pid: int) -> int:
    """How often a process's threads have waited for something so far (proc(5): voluntary_ctxt_switches)."""
    told = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    return sum(map(int, re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", told, re.MULTILINE)))


def test_pytorch_is_imported_while_the_visitor_looks_around(tmp_path: Path) -> None:
    """Triggered by the page load, it happens in the background; an unload meanwhile does not disturb it."""
    code = (
        "import sys, threading, time\n"
        "from uso_core.runtime.engine import Engine\n"
        "from uso_core.settings import Settings\n"
        "engine = Engine(Settings(name='uso-tiny', device='cpu'))\n"
        "engine.get_ready()\n"
        "at_once = hasattr(sys.modules.get('uso_core.runtime.load'), 'assemble')\n"
        "engine.unload()\n"
        "[thread.join(60) for thread in threading.enumerate() if thread.name == 'import']\n"
        "print(at_once, hasattr(sys.modules['uso_core.runtime.load'], 'assemble'), engine.status().loaded)\n"
    )
    environment = {**clean_environment(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "None"]


def test_four_endpoints_are_public(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert list(endpoints["named_endpoints"]) == ["/generate", "/grid", "/settings_from_image", "/models"]
    assert endpoints["unnamed_endpoints"] == {}
    parameters = [each["parameter_name"] for each in endpoints["named_endpoints"]["/generate"]["parameters"]]
    assert parameters == [
        "prompt", "content", "style_1", "style_2", "style_3", "style_4", "width", "height", "seed", "images", "steps",
        "guidance", "content_size", "schedule", "keep_size", "content_strength", "style_1_strength",
        "style_2_strength", "style_3_strength", "style_4_strength", "fast", "model", "private", "loras", "turbo",
        "sampler",
    ]  # fmt: skip
    assert all(each["label"].endswith(".") for each in endpoints["named_endpoints"]["/generate"]["parameters"])


def test_programs_get_english(served: Served, client: Client) -> None:
    """A script in a browser sends the browser's language along; this must not change what programs read."""
    german = Client(served.url, verbose=False, analytics_enabled=False, headers={"accept-language": "de"})
    try:
        assert german.view_api(return_format="dict", print_info=False) == client.view_api(
            return_format="dict", print_info=False
        )
        job = german.submit(prompt="a boat", steps=2, api_name="/generate")
        job.result(timeout=REPLY_SECONDS)
        told = [status["text"] for _, _, status, _ in job.outputs()]
        assert told[-1].startswith("Done in ")
        with urllib.request.urlopen(f"{served.url}/gradio_api/info", timeout=REPLY_SECONDS) as reply:
            assert b"i18n" not in reply.read()
    finally:
        german.close()


def test_a_prompt_alone_is_enough(client: Client) -> None:
    path, _, _ = generate(client, prompt="a boat")
    assert read_request(path).prompt == "a boat"


def test_the_png_holds_the_requested_settings(client: Client, served: Served) -> None:
    asked = {"width": 64, "height": 96, "steps": 3, "guidance": 2.5, "seed": 5, "content_size": 96}
    path, status, seed = generate(client, prompt="a red house by the sea", **asked)
    assert path.read_bytes().startswith(b"\x89PNG")
    request = read_request(path)
    assert request.prompt == "a red house by the sea"
    assert {name: getattr(request, name) for name in asked} == asked
    assert str(request.mode) == "text to image"
    assert seed == 5
    with Image.open(path) as image:
        assert image.size == (64, 96)
    assert "seed 5" in status["text"]
    assert any(pixels(result) == pixels(path) for result in served.results)


def test_content_and_styles_take_effect(client: Client, drawn: dict[str, Path]) -> None:
    small = {"prompt": "a boat", "seed": 3, "width": 64, "height": 64, "steps": 2}
    images = {name: handle_file(drawn[name]) for name in drawn}
    path, _, _ = generate(client, **small, **images)
    request = read_request(path)
    assert request.content is not None
    assert request.content.name == "content.png"
    assert [style.name for style in request.styles] == ["style_1.png", "style_2.png"]
    alone = {pixels(generate(client, **small, **{name: images[name]})[0]) for name in ("content", "style_1")}
    assert len({pixels(path), pixels(generate(client, **small)[0]), *alone}) == 4


def test_keep_size_takes_the_content_images_shape(client: Client, drawn: dict[str, Path]) -> None:
    path, _, _ = generate(client, prompt="", content=handle_file(drawn["content"]), keep_size=True, steps=2)
    with Image.open(path) as image:
        assert image.size == (128, 80)  # 96 x 64 becomes 128 x 85, of which 80 remain


def test_same_seed_same_pixels_and_a_drawn_seed_can_be_used_again(client: Client) -> None:
    first, _, seed = generate(client, prompt="a boat", width=64, height=64, steps=2)
    again, _, _ = generate(client, prompt="a boat", width=64, height=64, steps=2, seed=seed)
    other, _, _ = generate(client, prompt="a boat", width=64, height=64, steps=2, seed=seed + 1)
    assert pixels(first) == pixels(again)
    assert pixels(first) != pixels(other)


def test_the_status_counts_the_steps(client: Client) -> None:
    job = client.submit(prompt="a boat", steps=100, seed=1, api_name="/generate")
    job.result(timeout=REPLY_SECONDS)
    told = [status["text"] for _, _, status, _ in job.outputs()]
    assert any(text.startswith("Step ") and " of 100" in text for text in told)
    assert told[-1].startswith("Done in ")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"width": 0}, ["width", "0"]),
        ({"height": 10**9}, ["height", "1000000000"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"guidance": -1}, ["guidance", "-1"]),
        ({"seed": -5}, ["seed", "-5"]),
        ({"keep_size": True}, ["content image"]),
        ({"prompt": "x" * 20_001}, ["prompt", "20001"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_value_is_answered_by_a_sentence_that_names_it(
    client: Client, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(AppError) as caught:
        generate(client, **{"prompt": "a boat", **values})
    message = str(caught.value)
    assert [word for word in words if word not in message.lower()] == [], message


def test_a_file_that_is_not_an_image_is_named(client: Client, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>not found</html>")
    with pytest.raises(AppError) as caught:
        generate(client, prompt="a boat", content=handle_file(page))
    message = str(caught.value)
    assert "page.png" in message
    assert "image" in message
    assert "preprocess" not in message  # internals help nobody


def test_user_errors_leave_no_traceback_in_the_log(client: Client, served: Served) -> None:
    before = len(served.log.read_text())
    with pytest.raises(AppError):
        generate(client, prompt="a boat", keep_size=True)
    assert "Traceback" not in served.log.read_text()[before:]


def test_no_half_written_file_is_left(client: Client, served: Served) -> None:
    generate(client, prompt="a boat", width=64, height=64, steps=2)
    files = [path for path in served.output.rglob("*") if path.is_file() and path.name[0] != "."]
    assert {path.suffix for path in files} <= {".png", ".json", ".webp"}
    assert {f"{path.stem}.json" for path in served.results} <= {path.name for path in files}
