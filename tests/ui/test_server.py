"""The public endpoints of the running app: the same files by gradio_client, plain HTTP and MCP; refusals."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mcp
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.serving import REPLY_SECONDS, Served, serve
from uso_core.images import open_image
from uso_core.request import GenerationRequest
from uso_core.storage.png import read_request

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2}
LONG: dict[str, Any] = {"prompt": "a long walk", "width": 128, "height": 128, "steps": 100, "images": 8}
FLAGS = ("--mcp",)


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.png"
    levels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((96, 64), Image.Resampling.NEAREST).save(path)
    return path


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def by_client(client: Client, **values: Any) -> tuple[list[bytes], dict[str, Any]]:
    job = client.submit(**values, api_name="/generate")
    images, settings, _, _ = job.result(timeout=REPLY_SECONDS)
    return [Path(path).read_bytes() for path in images], settings


def post(url: str, body: dict[str, Any]) -> Any:
    call = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(call, timeout=REPLY_SECONDS) as reply:
        return json.load(reply)


def by_http(served: Served, name: str, **values: Any) -> tuple[str, Any]:
    """The last event's name and data, parameters by name."""
    return answer(served, name, post(f"{served.url}/gradio_api/call/v2/{name}", values)["event_id"])


def answer(served: Served, name: str, event: str) -> tuple[str, Any]:
    with urllib.request.urlopen(f"{served.url}/gradio_api/call/{name}/{event}", timeout=REPLY_SECONDS) as stream:
        lines = [line for line in stream.read().decode().splitlines() if line]
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def files(data: Any) -> list[bytes]:
    bodies = []
    for each in data[0]:
        with urllib.request.urlopen(each["url"], timeout=REPLY_SECONDS) as reply:
            bodies.append(reply.read())
    return bodies


def by_mcp(served: Served, act: Callable[[Any], Awaitable[Any]], path: str = "/gradio_api/mcp/") -> Any:
    """What `act` returns for a session of the MCP client."""
    from mcp.client.streamable_http import streamablehttp_client

    async def run() -> Any:
        async with (
            streamablehttp_client(f"{served.url}{path}") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await act(session)

    return asyncio.run(asyncio.wait_for(run(), REPLY_SECONDS))


def call_tool(served: Served, tool: str, **values: Any) -> list[Any]:
    result = by_mcp(served, lambda session: session.call_tool(tool, values))
    assert not result.isError, result.content
    return result.content


def test_every_way_makes_the_same_file(served: Served, client: Client, drawing: Path) -> None:
    asked = {**SMALL, "prompt": "a boat", "seed": 7, "images": 2}
    (one, two), settings = by_client(client, **asked, content=handle_file(drawing), style_1=handle_file(drawing))
    ours = sorted(path.read_bytes() for path in served.results)
    assert ours == sorted([one, two])

    given = {"url": data_url(drawing), "orig_name": "drawing.png"}
    name, data = by_http(served, "generate", **asked, content=given, style_1=given)
    assert name == "complete"
    assert files(data) == [one, two]
    assert {**data[1], "seconds": 0} == {**settings, "seconds": 0}

    with urllib.request.urlopen(f"{served.url}/gradio_api/info", timeout=REPLY_SECONDS) as reply:
        names = [each["parameter_name"] for each in json.load(reply)["named_endpoints"]["/generate"]["parameters"]]
    defaults = {"schedule": "uso", "keep_size": False, "fast": False, "private": False} | {
        name: 1 for name in names if name.endswith("_strength")
    }
    in_order = [{**defaults, **asked, "content": given, "style_1": given}.get(name) for name in names]
    event = post(f"{served.url}/gradio_api/call/generate", {"data": in_order})["event_id"]
    with urllib.request.urlopen(f"{served.url}/gradio_api/call/generate/{event}", timeout=REPLY_SECONDS) as stream:
        assert files(json.loads(stream.read().decode().strip().rpartition("data: ")[2])) == [one, two]

    uploaded = uploaded_address(client, drawing)
    content = call_tool(served, "generate", **asked, content=uploaded, style_1=uploaded)
    images = [base64.b64decode(each.data) for each in content if each.type == "image"]
    assert images == [one, two]
    texts = [json.loads(each.text) for each in content if each.type == "text" and each.text.startswith("{")]
    assert texts[0]["seeds"] == [7, 8]


def uploaded_address(client: Client, path: Path) -> str:
    """The address of an uploaded file, as given by a program without files of its own."""
    from gradio_client.utils import encode_file_path

    boundary = "frontier"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    body = head + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    call = urllib.request.Request(
        f"{client.src}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    with urllib.request.urlopen(call, timeout=REPLY_SECONDS) as reply:
        (place,) = json.load(reply)
    return f"{client.src}gradio_api/file={encode_file_path(place)}"


def test_the_settings_are_complete_and_come_back(client: Client, drawing: Path, tmp_path: Path) -> None:
    asked = {**SMALL, "prompt": "a fish", "seed": 3, "guidance": 2.5, "content_strength": 0.5, "schedule": "flux"}
    (image,), settings = by_client(client, **asked, content=handle_file(drawing))
    assert asked.items() <= settings.items()
    assert (settings["model"], settings["device"]) == ("uso-tiny", "cpu")
    assert settings["dtype"] in ("float32", "bfloat16")
    assert settings["seconds"] > 0
    assert settings["seeds"] == [3]
    path = tmp_path / "ours.png"
    path.write_bytes(image)
    values = client.predict(image=handle_file(path), api_name="/settings_from_image")
    assert GenerationRequest.from_dict(values) == read_request(path)
    assert values["content"] == open_image(drawing).to_dict()


def test_settings_come_back_by_http_and_mcp(served: Served, client: Client, tmp_path: Path) -> None:
    (image,), _ = by_client(client, **SMALL, prompt="a cat", seed=9)
    path = tmp_path / "ours.png"
    path.write_bytes(image)
    name, (values,) = by_http(served, "settings_from_image", image=data_url(path))
    assert (name, values["prompt"], values["seed"]) == ("complete", "a cat", 9)
    (content,) = call_tool(served, "settings_from_image", image=uploaded_address(client, path))
    assert json.loads(content.text) == values


def test_a_foreign_image_has_no_settings(client: Client, drawing: Path) -> None:
    with pytest.raises(AppError, match="drawing.png holds no USO settings"):
        client.predict(image=handle_file(drawing), api_name="/settings_from_image")
    with pytest.raises(AppError, match="No image was given"):
        client.predict(image=None, api_name="/settings_from_image")


def test_models_are_listed_with_what_they_lack(served: Served, client: Client) -> None:
    rows = {row["name"]: row for row in client.predict(api_name="/models")}
    tiny, dev = rows["uso-tiny"], rows["flux-dev"]
    assert (tiny["complete"], tiny["missing"], tiny["at_work"], tiny["size"]) == (True, [], True, 128)
    assert dev["missing"] == ["transformer", "lora", "projector", "vae", "t5", "clip", "siglip"]
    assert dev["download"] == "python weights/downloader.py --variant flux-dev"
    assert dev["licences"][0] == "FLUX.1 [dev] Non-Commercial"
    assert [row["name"] for row in json.loads(call_tool(served, "models")[0].text)] == list(rows)


def test_a_model_without_its_files_is_refused_by_name(client: Client) -> None:
    with pytest.raises(AppError, match="flux-schnell lacks 7 of 7 weight files"):
        by_client(client, **SMALL, model="flux-schnell")
    with pytest.raises(AppError, match="no model named 'flux-3'"):
        by_client(client, **SMALL, model="flux-3")
    assert by_client(client, **SMALL, model="uso-tiny", seed=1)[1]["model"] == "uso-tiny"


def test_a_private_call_leaves_nothing_in_the_history(served: Served, client: Client) -> None:
    kept = set(served.output.rglob("*"))
    (image,), _ = by_client(client, **SMALL, prompt="a secret", seed=77, private=True)
    assert set(served.output.rglob("*")) == kept
    (public,), _ = by_client(client, **SMALL, prompt="a secret", seed=77)
    assert image == public


def test_previews_and_status_come_while_it_runs(client: Client) -> None:
    job = client.submit(**{**LONG, "steps": 50, "images": 1}, seed=4, api_name="/generate")
    seen = list(job)
    previews = [preview for _, _, _, preview in seen if preview is not None]
    assert len(previews) > 2
    assert len({Path(preview).read_bytes() for preview in previews}) > 2
    with Image.open(previews[0]) as preview:
        assert preview.size == (16, 16)
    assert seen[0][0] == []
    assert seen[-1][2] == {"text": seen[-1][2]["text"], "percent": 100}


def test_http_streams_while_it_runs_and_a_disconnecting_caller_ends_the_run(served: Served, client: Client) -> None:
    event = post(f"{served.url}/gradio_api/call/v2/generate", {**LONG, "seed": 600})["event_id"]
    with urllib.request.urlopen(f"{served.url}/gradio_api/call/generate/{event}", timeout=REPLY_SECONDS) as stream:
        assert any(b", step " in line for line in stream)
    expect_ended(served, client, 600)


def test_a_client_that_cancels_ends_the_run(served: Served, client: Client) -> None:
    job = client.submit(**LONG, seed=700, api_name="/generate")
    deadline = time.monotonic() + REPLY_SECONDS
    while not any(", step" in status["text"] for _, _, status, _ in job.outputs()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.cancel()
    expect_ended(served, client, 700)


@pytest.mark.parametrize(("seed", "progress"), [(800, False), (900, True)])
def test_a_tools_caller_who_leaves_ends_the_run(served: Served, client: Client, seed: int, progress: bool) -> None:
    async def tell(*_: Any) -> None: ...

    async def begin_and_go(session: Any) -> None:
        call = asyncio.create_task(
            session.call_tool("generate", {**LONG, "seed": seed}, progress_callback=tell if progress else None)
        )
        while not any(read_request(path).seed == seed for path in served.results):
            await asyncio.sleep(0.1)
        call.cancel()

    by_mcp(served, begin_and_go)
    expect_ended(served, client, seed)


def expect_ended(served: Served, client: Client, seed: int) -> None:
    """A short run succeeds and finds that the long one before it did not continue to its last image."""
    by_client(client, **SMALL, seed=1)
    made = [read_request(path).seed for path in served.results]
    assert seed + 7 not in made


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:22/x.png",
        "http://localhost/x.png",
        "http://[::1]/x.png",
        "http://[::ffff:127.0.0.1]/x.png",
        "http://0x7f000001/x.png",
        "http://10.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[64:ff9b::a00:1]/x.png",
    ],
)
def test_nothing_inside_the_network_is_fetched(served: Served, address: str) -> None:
    for given in (address, {"url": address}, {"path": address, "meta": {"_type": "gradio.FileData"}}):
        name, reply = by_http(served, "generate", content=given, **SMALL)
        assert name == "error"
        assert "not on the public internet" in reply["error"]


def test_no_path_given_by_a_caller_is_opened(served: Served, drawing: Path) -> None:
    for given in (str(drawing), {"path": str(drawing)}, {"url": str(drawing)}, {"path": "uploads/../../drawing.png"}):
        name, reply = by_http(served, "generate", content=given, **SMALL)
        assert name == "error"
        assert "was not uploaded to this server" in reply["error"]
    name, reply = by_http(
        served, "generate", content={"path": str(drawing), "meta": {"_type": "gradio.FileData"}}, **SMALL
    )
    assert name == "error"


def test_an_upload_that_is_gone_is_named(served: Served, client: Client, drawing: Path) -> None:
    place = unquote(uploaded_address(client, drawing).partition("file=")[2])
    Path(place).unlink()
    name, reply = by_http(served, "generate", content={"path": place, "orig_name": "mine.png"}, **SMALL)
    assert (name, reply["error"]) == ("error", "The image mine.png is no longer on the server. Choose it again.")


@pytest.mark.parametrize("given", ["data:image/png;base64,!!!", "data:image/png;base64,AAAA", "x" * 200, {"url": None},
                                   {"path": ""}, 5, [], [1, 2], True])  # fmt: skip
def test_a_file_that_is_not_an_image_is_reported_in_a_sentence(served: Served, given: Any) -> None:
    before = len(served.log.read_text())
    name, reply = by_http(served, "generate", content=given, **SMALL)
    assert name == "error"
    assert reply["error"].endswith(".")
    assert "pydantic" not in reply["error"]
    assert "Traceback" not in served.log.read_text()[before:]


def test_what_of_a_file_is_not_taken_is_told_at_the_end(served: Served, drawing: Path) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    given = {"url": f"data:image/gif;base64,{base64.b64encode(file.getvalue()).decode()}", "orig_name": "dance.gif"}
    told = "Of the animation dance.gif only the first frame is used."
    name, data = by_http(served, "generate", content=given, style_1=data_url(drawing), **SMALL)
    assert (name, data[2]["text"].count(told)) == ("complete", 1)
    name, data = by_http(served, "grid", across="guidance=2, 3", content=given, **SMALL)
    assert (name, data[3]["text"].count(told)) == ("complete", 1)


def test_base64_alone_works(served: Served, drawing: Path) -> None:
    name, data = by_http(served, "generate", content=base64.b64encode(drawing.read_bytes()).decode(), seed=2, **SMALL)
    assert name == "complete"
    with Image.open(io.BytesIO(files(data)[0])) as image:
        assert json.loads(image.info["uso"])["content"]["sha256"] == open_image(drawing).sha256


def test_a_short_call_by_position_takes_defaults_for_the_rest(served: Served) -> None:
    """As a program does that was written for fewer parameters, or the official client with a short list."""
    values = ["a boat", None, None, None, None, None, 64, 64, 7, 1, 2]
    event = post(f"{served.url}/gradio_api/call/generate", {"data": values})["event_id"]
    name, data = answer(served, "generate", event)
    assert name == "complete", data
    assert (data[1]["seed"], data[1]["steps"], data[1]["guidance"]) == (7, 2, 4.0)


@pytest.mark.parametrize(("values", "said"), [({"loras": "ink:0.5, clay"}, "There is no LoRA named 'ink'."),
                                              ({"turbo": True}, "uso-tiny has no Turbo")])  # fmt: skip
def test_loras_are_asked_for_by_name(served: Served, values: dict[str, Any], said: str) -> None:
    name, reply = by_http(served, "generate", **SMALL, **values)
    assert name == "error"
    assert said in reply["error"]
    assert by_http(served, "models")[1][0][0]["loras"] == []


def test_a_grid_by_every_way(served: Served, client: Client, drawing: Path) -> None:
    asked = {
        **SMALL,
        "prompt": "a {red|blue} boat",
        "seed": 31,
        "across": "style_strength=0, 1",
        "down": "guidance=2,4",
    }
    job = client.submit(**asked, style_1=handle_file(drawing), api_name="/grid")
    seen = list(job)
    sheet, images, settings, status, preview = seen[-1]
    assert [(each["row"], each["column"]) for each in settings] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [(each["guidance"], each["style_strengths"]) for each in settings] == [(2, [0]), (2, []), (4, [0]), (4, [])]
    assert {len(each[1]) for each in seen} == {0, 1, 2, 3, 4}  # as they come
    assert (status["percent"], preview) == (100, None)
    made = [Path(path).read_bytes() for path in images]
    requests = [read_request(Path(path)) for path in images]
    assert [(each.prompt, each.seed, each.guidance) for each in requests] == [
        ("a {red|blue} boat", 31, each) for each in (2, 2, 4, 4)
    ]
    assert read_request(Path(sheet)) == requests[0]
    assert set(made) <= {path.read_bytes() for path in served.results}

    given = {"url": data_url(drawing), "orig_name": "drawing.png"}
    name, data = by_http(served, "grid", **asked, style_1=given)
    assert name == "complete"
    assert files(data[1:]) == made
    content = call_tool(served, "grid", **asked, style_1=uploaded_address(client, drawing))
    shown = [base64.b64decode(each.data) for each in content if each.type == "image"]
    assert [shown[0], *shown[1:]] == [Path(sheet).read_bytes(), *made]


@pytest.mark.parametrize(
    ("values", "said"),
    [({}, "A grid cannot vary ''"), ({"across": "width=64"}, "A grid cannot vary 'width'"),
     ({"across": "style"}, "nothing here that style could change"), ({"across": "seed=1", "down": "seed=2"}, "twice"),
     ({"across": "guidance=2,x"}, "'x' is not a number"), ({"across": None, "down": "seed=1"}, "cannot vary"),
     ({"across": "guidance=4,101"}, "guidance is 101")],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_a_sentence(served: Served, values: dict[str, Any], said: str) -> None:
    name, reply = by_http(served, "grid", **SMALL, **values)
    assert name == "error"
    assert said in reply["error"]


def test_a_client_that_leaves_ends_the_grid(served: Served, client: Client) -> None:
    asked = {name: value for name, value in LONG.items() if name != "images"} | {"across": "seed=950..957"}
    job = client.submit(**asked, api_name="/grid")
    deadline = time.monotonic() + REPLY_SECONDS
    while not any(each[4] for each in job.outputs()):  # a preview
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.cancel()
    counts = []
    for _ in range(3):  # a grid that goes on would make a cell between two short runs
        by_client(client, **SMALL, seed=1)
        counts.append(sum(read_request(path).seed in range(950, 958) for path in served.results))
    assert counts[0] == counts[-1] < 8


def test_the_whole_grid_counts_on_an_open_server(tmp_path: Path) -> None:
    with serve(tmp_path / "app", "--host", "0.0.0.0", USO_MAX_WORK="0.02") as served:  # two cells of 64 x 64 x 2 steps
        assert by_http(served, "grid", **SMALL, across="seed=1,2", private=True)[0] == "complete"
        name, reply = by_http(served, "grid", **SMALL, across="seed=1..3")
        assert name == "error"
        assert "megapixel" in reply["error"]
        assert not list(served.output.rglob("*.png"))


def test_tools_say_what_they_do(served: Served) -> None:
    tools = by_mcp(served, lambda session: session.list_tools()).tools
    assert [tool.name for tool in tools] == ["generate", "grid", "settings_from_image", "models"]
    for tool in tools[:2]:
        assert all(each.get("description") for each in tool.inputSchema["properties"].values())
        assert "required" not in tool.inputSchema
    assert all(tool.description for tool in tools)


def test_tools_take_null_for_a_default_and_images_as_base64(served: Served, drawing: Path) -> None:
    (tool, *_) = by_mcp(served, lambda session: session.list_tools()).tools
    nothing = dict.fromkeys(tool.inputSchema["properties"])
    bare = base64.b64encode(drawing.read_bytes()).decode()
    for image in (bare, data_url(drawing)):
        asked = nothing | SMALL | {"prompt": "a boat", "seed": 4, "content": image, "style_1": bare}
        content = call_tool(served, "generate", **asked)
        texts = [json.loads(each.text) for each in content if each.type == "text" and each.text.startswith("{")]
        made = next(each for each in texts if "seeds" in each)
        assert made["content"]["sha256"] == made["styles"][0]["sha256"] == open_image(drawing).sha256
    result = by_mcp(served, lambda session: session.call_tool("generate", {"content": str(drawing)}))
    assert result.isError
    assert "was not uploaded to this server" in result.content[0].text


@pytest.mark.parametrize("path", ["/gradio_api/mcp", "/gradio_api/mcp/mcp", "/gradio_api/mcp//mcp"])
def test_the_address_as_clients_write_it(served: Served, path: str) -> None:
    """Some leave its last slash out, and the official inspector adds /mcp to any address that does not end in it."""
    assert len(by_mcp(served, lambda session: session.list_tools(), path).tools) == 4
    request = urllib.request.Request(f"{served.url}{path}", b"{}", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=REPLY_SECONDS)
    assert refused.value.code == 406  # the server's own answer to a client that takes no stream: no redirect


def test_a_tools_error_is_the_sentence(served: Served) -> None:
    result = by_mcp(served, lambda session: session.call_tool("generate", {"steps": 0}))
    assert result.isError
    assert "steps is 0, which is out of range" in result.content[0].text


def test_without_the_flag_there_are_no_tools_and_network_visitors_may_not_switch(tmp_path: Path) -> None:
    with serve(tmp_path / "app", "--host", "0.0.0.0") as served:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{served.url}/gradio_api/mcp/", timeout=REPLY_SECONDS)
        name, reply = by_http(served, "generate", model="flux-dev", **SMALL)
        assert name == "error"
        assert "--allow-switch" in reply["error"]


def test_mcp_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from uso_core.errors import UsageError
    from uso_core.ui.mcp import require_mcp

    with contextlib.suppress(KeyError):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        require_mcp()
    assert "requirements-mcp.txt" in caught.value.hint


@pytest.mark.parametrize("flag", ["private", "turbo", "fast"])
def test_a_flag_given_as_text_is_refused(served: Served, flag: str) -> None:
    name, reply = by_http(served, "generate", prompt="a mug", **SMALL, **{flag: "false"})
    assert name == "error"
    assert f"{flag} is 'false'" in str(reply)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"prompt": ["a cat", "in snow"]}, "prompt is ['a cat', 'in snow']"), ({"prompt": True}, "prompt is True"),
     ({"prompt": {"text": "a cat"}}, "not a text"), ({"loras": ["ink"]}, "loras is ['ink']"),
     ({"model": 5}, "model is 5"), ({"schedule": 1}, "schedule is 1"),
     ({"content_strength": 0.3}, "there is no content"),
     ({"style_1_strength": 0.3}, "there is no style_1"), ({"style_4_strength": "abc"}, "there is no style_4")],
)  # fmt: skip
def test_what_would_be_misread_or_left_out_is_refused(served: Served, values: dict[str, Any], said: str) -> None:
    name, reply = by_http(served, "generate", **{"prompt": "a mug", **SMALL, **values})
    assert name == "error"
    assert said in str(reply).replace('\\"', '"')


def test_more_values_than_parameters_are_refused(served: Served) -> None:
    body = {"data": ["a mug", *[None] * 40]}
    name, reply = answer(served, "generate", post(f"{served.url}/gradio_api/call/generate", body)["event_id"])
    assert name == "error"
    assert "41 values by position" in str(reply)
