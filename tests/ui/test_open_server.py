"""A server that others can reach: whom it answers, whose images it shows, and how it ends."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from gradio_client import Client
from starlette.responses import FileResponse
from starlette.testclient import TestClient

from benchmarks import soak
from tests.serving import Served, serve
from uso_core.errors import SettingsError
from uso_core.settings import ROOT, Settings
from uso_core.ui import logins
from uso_core.ui.guard import Guard, Window
from uso_core.ui.visitors import visitor_of

SMALL = {"prompt": "A red mug.", "width": 64, "height": 64, "steps": 2, "seed": 1}
SLOW = {"prompt": "x", "width": 256, "height": 256, "steps": 500, "images": 8}
END_SECONDS = 10.0  # after which Docker kills


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def ask(url: str, name: str = "generate", cookies: dict[str, str] | None = None, **values: object) -> str:
    """Submits a call over plain HTTP and returns the address of its answer."""
    reply = httpx.post(f"{url}/gradio_api/call/v2/{name}", json=values, cookies=cookies, timeout=240)
    return f"{url}/gradio_api/call/{name}/{reply.json()['event_id']}"


def answer(address: str, cookies: dict[str, str] | None = None) -> str:
    return httpx.get(address, cookies=cookies, timeout=240).text


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("open"), "--host", "0.0.0.0", "--allow-host", "art.example,*.lan") as running:
        yield running


@pytest.mark.parametrize(
    ("host", "status"),
    [("evil.example", 421), ("art.example", 200), ("art.example:7860", 200), ("box.lan", 200), ("127.0.0.1:1", 200),
     ("localhost", 200), ("[::1]:7860", 200), ("192.168.3.4:7860", 200), ("art.example.evil", 421), ("", 421),
     ("127.0.0.1.evil.example", 421)],
)  # fmt: skip
def test_only_its_own_names_are_answered(opened, host, status):
    for path in ("/", "/gradio_api/info"):
        assert httpx.get(f"{opened.url}{path}", headers={"host": host}, timeout=240).status_code == status


def test_other_pages_may_neither_call_nor_frame_it(opened):
    own = {"origin": opened.url}
    assert httpx.get(f"{opened.url}/config", headers=own, timeout=240).status_code == 200
    reply = httpx.get(f"{opened.url}/config", headers={"origin": "http://evil.example"}, timeout=240)
    assert reply.status_code == 421
    assert "access-control-allow-origin" not in reply.headers
    page = httpx.get(opened.url, timeout=240)
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_each_visitor_sees_only_their_own_images(opened):
    """By cookie: histories are separate, and nobody gets a file by its name."""
    visitors = []
    for _ in range(2):
        cookie = httpx.get(opened.url, timeout=240).cookies["uso_visitor"]
        visitors.append({"uso_visitor": cookie})
    assert visitors[0] != visitors[1]
    made = {}
    for number, cookies in enumerate(visitors):
        answer(ask(opened.url, cookies=cookies, **{**SMALL, "seed": number}), cookies)
        made[number] = set(opened.output.rglob("*.png")) - set().union(*made.values())
        assert len(made[number]) == 1
    (first,), (second,) = made.values()
    assert first.parent != second.parent
    for number, (own, other) in enumerate(((first, second), (second, first))):
        for path, status in ((own, 200), (other, 404)):
            reply = httpx.get(f"{opened.url}/gradio_api/file={path}", cookies=visitors[number], timeout=240)
            assert reply.status_code == status
    assert httpx.get(f"{opened.url}/gradio_api/file={first}", timeout=240).status_code == 404


def test_only_shown_files_of_the_output_folder_are_served(tmp_path):
    (tmp_path / ".env").write_text("HF_TOKEN=hf_secret")
    (tmp_path / "notes.txt").write_text("mine")
    with serve(tmp_path / "app", "--output", str(tmp_path)) as served:
        answer(ask(served.url, **SMALL))
        (image,) = tmp_path.glob("*.png")
        assert httpx.get(f"{served.url}/gradio_api/file={image}", timeout=240).status_code == 200
        for name in (
            ".env",
            "notes.txt",
            image.with_suffix(".json").name,
            "app/../.env",
            "./.env",
            "thumbnails/../.env",
        ):
            reply = httpx.get(f"{served.url}/gradio_api/file={tmp_path}/{name}", timeout=240)
            assert reply.status_code in (403, 404), name
            assert "hf_secret" not in reply.text


def test_everybody_needs_a_login(tmp_path):
    with serve(tmp_path, "--auth", "ann:tea", "--mcp") as served:
        assert httpx.post(f"{served.url}/gradio_api/call/v2/models", json={}, timeout=240).status_code == 401
        assert httpx.get(f"{served.url}/config", timeout=240).status_code == 401
        with pytest.raises(Exception, match=r"(?i)auth|credential|401"):
            Client(served.url, verbose=False, analytics_enabled=False)
        client = Client(served.url, auth=("ann", "tea"), verbose=False, analytics_enabled=False)
        assert client.predict(api_name="/models")
        client.close()
        assert "tea" not in served.log.read_text()


def test_who_logs_in_sees_the_images_of_that_login_and_no_others(tmp_path):
    users = tmp_path / "users"
    users.write_text("ann:tea\n bob : milk \n")
    with serve(tmp_path, "--host", "0.0.0.0", "--auth", str(users)) as served:
        visitors = {}
        for name, password in (("ann", "tea"), ("bob", "milk")):
            visitors[name] = httpx.Client(base_url=served.url, timeout=240)
            reply = visitors[name].post("/login", data={"username": name, "password": password})
            assert reply.status_code == 200, name
        event = visitors["ann"].post("/gradio_api/call/v2/generate", json=SMALL).json()["event_id"]
        assert "complete" in visitors["ann"].get(f"/gradio_api/call/generate/{event}").text
        made = [path for path in files(served.output) if path.suffix in (".png", ".json")]
        assert {path.suffix for path in made} == {".png", ".json"}
        for path in made:
            codes = {name: each.get(f"/gradio_api/file={path}").status_code for name, each in visitors.items()}
            assert codes == {"ann": 200 if path.suffix == ".png" else 404, "bob": 404}, path
        strange = {"cookie": "; ".join(f"{name}=x" for name in visitors["ann"].cookies)}
        png = next(path for path in made if path.suffix == ".png")
        assert httpx.get(f"{served.url}/gradio_api/file={png}", headers=strange, timeout=240).status_code in (401, 404)
        for each in visitors.values():
            each.close()


def test_logins_are_read_from_a_file_too(tmp_path):
    path = tmp_path / "users"
    path.write_text("# who may in\nann:tea\n\nbob:a:b\n")
    assert logins(str(path)) == [("ann", "tea"), ("bob", "a:b")]
    assert logins("ann:tea") == logins("ann : tea ") == [("ann", "tea")]
    assert logins(None) is None
    for wrong in ("ann", ":tea", "ann:", "C:\\uso\\users.txt", "c:/uso/users.txt", str(tmp_path / "none")):
        with pytest.raises(SettingsError):
            logins(wrong)
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_text("bob:très secret\n", encoding=encoding)
        assert logins(str(path)) == [("bob", "très secret")]
    path.write_bytes("bob:très\n".encode("latin-1"))
    with pytest.raises(SettingsError) as caught:
        logins(str(path))
    assert caught.value.key == "text_encoding"
    for lines in ("ann:tea\nTopSecretLine\n", "ann:tea\nann:TopSecretLine\n"):
        path.write_text(lines)
        with pytest.raises(SettingsError) as caught:
            logins(str(path))
        assert caught.value.values["line"] == 2
        assert "TopSecret" not in caught.value.message + caught.value.hint
    assert "tea" not in repr(Settings(auth="ann:tea"))


@pytest.mark.parametrize("text", ["TopSecret", "bob TopSecret", "bob:", ":TopSecret", "no/such/TopSecret.txt"])
def test_a_login_that_is_none_is_not_quoted(text):
    with pytest.raises(SettingsError) as caught:
        logins(text)
    assert caught.value.key == "auth"
    assert "TopSecret" not in caught.value.message + caught.value.hint


def test_hosts_may_be_given_as_addresses():
    given = Settings(allow_host="https://Art.example.org/, *.lan,[::2]:80 , box:7860,2001:db8::1")
    assert given.allowed_hosts == ("art.example.org", "*.lan", "::2", "box", "2001:db8::1")
    for wrong in ("https://art.example.org/page", "a b", "ftp://x"):
        with pytest.raises(SettingsError) as caught:
            Settings(allow_host=f"good.example,{wrong}")
        assert (caught.value.key, caught.value.values["value"]) == ("host_name", wrong)


@pytest.mark.parametrize("host", ["nobody.invalid", "192.0.2.1"])
def test_a_host_that_is_none_of_ours_is_named(host, tmp_path):
    line = [sys.executable, "app.py", "--host", host, "--output", str(tmp_path)]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert f"'{host}'" in ended.stderr
    assert "port" not in ended.stderr


def test_files_below_a_folder_called_call_are_served(tmp_path):
    with serve(tmp_path / "call") as served:
        answer(ask(served.url))
        (small,) = served.output.glob("thumbnails/*.webp")
        assert httpx.get(f"{served.url}/gradio_api/file={small}", timeout=240).status_code == 200


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGTERM, {0}), (signal.SIGINT, {130})])
def test_a_signal_ends_it_cleanly_within_seconds(tmp_path, number, codes):
    """During a step: those who wait are told, no file is left, nothing aborts."""
    with serve(tmp_path) as served:
        address = ask(served.url, **SLOW)
        told: list[str] = []
        listener = threading.Thread(target=lambda: told.append(answer(address)))
        listener.start()
        deadline = time.monotonic() + 240
        while not [path for path in files(tmp_path / "uploads") if path.suffix == ".png"]:  # a preview
            assert time.monotonic() < deadline
            time.sleep(0.1)
        began = time.monotonic()
        served.process.send_signal(number)
        assert served.process.wait(120) in codes
        assert time.monotonic() - began < END_SECONDS
        listener.join(120)
        assert "Stopped." in told[0]
        assert "Traceback" not in served.log.read_text()
    assert files(tmp_path / "uploads") == []


def test_nothing_of_a_private_run_remains(tmp_path):
    with serve(tmp_path) as served:
        words = answer(ask(served.url, private=True, **SMALL))
        values = json.loads(words.rpartition("data: ")[2])
        assert values[0], words
        image = httpx.get(values[0][0]["url"], timeout=240)  # it can be fetched at once
        assert image.content.startswith(b"\x89PNG")
        deadline = time.monotonic() + 120
        while files(tmp_path / "uploads"):
            assert time.monotonic() < deadline, files(tmp_path / "uploads")
            time.sleep(0.1)
        assert not served.output.exists() or not [
            each for each in files(served.output) if not each.name.startswith(".")
        ]


def test_calls_and_uploads_are_counted_per_visitor():
    window = Window(60)
    assert [window.take("a", 1, 2) for _ in range(3)] == [True, True, False]
    assert window.take("b", 1, 2)
    assert Window(0.0).take("a", 5, 5)
    assert not Window(60).take("a", 6, 5)


def test_an_open_server_says_when_somebody_calls_too_often(tmp_path):
    with serve(tmp_path, "--host", "0.0.0.0", USO_MAX_CALLS="3", USO_MAX_UPLOAD_MB="1") as served:
        codes = [
            httpx.post(f"{served.url}/gradio_api/call/v2/models", json={}, timeout=240).status_code for _ in range(5)
        ]
        assert codes == [200, 200, 200, 429, 429]
        small, large = {"files": ("a.png", b"0" * 1000)}, {"files": ("b.png", b"0" * 1_000_000)}
        assert httpx.post(f"{served.url}/gradio_api/upload", files=small, timeout=240).status_code == 200
        reply = httpx.post(f"{served.url}/gradio_api/upload", files=large, timeout=240)
        assert reply.status_code == 429
        assert "1 MB" in reply.text


def test_a_call_gets_more_images_than_the_history_keeps(tmp_path):
    with serve(tmp_path, USO_HISTORY_IMAGES="2") as served:
        client = Client(served.url, verbose=False, download_files=str(tmp_path / "downloads"))
        images, *_ = client.predict(prompt="a boat", width=64, height=64, steps=2, images=4, api_name="/generate")
        assert len({Path(each).read_bytes() for each in images}) == 4
        assert len(served.results) == 2


def test_a_program_without_cookies_is_one_visitor(tmp_path):
    with serve(tmp_path, "--host", "0.0.0.0") as served:
        for seed in (1, 2):
            answer(ask(served.url, **{**SMALL, "seed": seed}))
        made = list(served.output.rglob("*.png"))
    assert (len(made), len({path.parent for path in made})) == (2, 1)


def test_pages_without_cookies_are_strangers_behind_one_address():
    one, other = (SimpleNamespace(session_hash=name, client=SimpleNamespace(host="10.0.0.1")) for name in ("a", "b"))
    assert visitor_of(one, True) != visitor_of(other, True)
    assert visitor_of(one, True, program=True) == visitor_of(other, True, program=True)
    assert visitor_of(one, False) == visitor_of(other, False) == ""


def test_an_upload_says_how_long_it_is(opened):
    reply = httpx.post(f"{opened.url}/gradio_api/upload", content=iter([b"0" * 1000] * 10), timeout=240)
    assert reply.status_code == 411
    assert "Content-Length" in reply.text


def test_a_name_that_leads_out_of_the_folder_is_left_to_gradio(tmp_path):
    guard = Guard(None, Settings(output=str(tmp_path)))
    assert guard._serves("/etc/passwd", "")  # not ours to judge: Gradio refuses it
    assert not guard._serves(f"{tmp_path}/.env", "")
    assert not guard._serves("\0", "")


@pytest.mark.parametrize(("looked", "status"), [(False, 404), (True, 200)])
def test_a_file_that_is_deleted_while_it_is_fetched_is_no_error(tmp_path, looked, status):
    """Gradio saw it, and it went before Starlette looked at it, or opened it, when its headers are sent already."""
    path = tmp_path / "preview.png"
    path.write_bytes(b"x")
    stat = path.stat() if looked else None
    path.unlink()
    client = TestClient(Guard(FileResponse(path, stat_result=stat), Settings(output=str(tmp_path / "out"))))
    assert client.get(f"/gradio_api/file={path}", headers={"host": "localhost"}).status_code == status
    with pytest.raises((RuntimeError, FileNotFoundError)):
        client.get("/elsewhere", headers={"host": "localhost"})


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [("generate", {"bogus": 1}, "bogus"), ("nothing", {}, "/call/v2/nothing"), ("models", {"a": 1}, "a")],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_a_sentence(served, name, body, says):
    reply = httpx.post(f"{served.url}/gradio_api/call/v2/{name}", json=body, timeout=240)
    assert reply.status_code == 400
    assert says in reply.json()["error"]


def test_an_answer_that_nobody_waits_for_is_a_sentence(served):
    before = len(served.log.read_text())
    for address in ("generate/nonexistent", f"generate/{'0' * 32}", f"v2/generate/{'0' * 32}"):
        reply = httpx.get(f"{served.url}/gradio_api/call/{address}", timeout=240)
        assert reply.status_code == 404
        assert "no call of this key" in reply.text
    assert "Traceback" not in served.log.read_text()[before:]


def test_null_stands_for_every_default(served):
    known = httpx.get(f"{served.url}/gradio_api/info", timeout=240).json()["named_endpoints"]["/generate"]["parameters"]
    nothing = dict.fromkeys(each["parameter_name"] for each in known)
    sizes = {name: SMALL[name] for name in ("width", "height", "steps")}
    made = json.loads(answer(ask(served.url, **nothing | sizes)).rpartition("data: ")[2])[1]
    assert (made["images"], made["schedule"], made["content_strength"], made["fast"]) == (1, "uso", 1.0, False)


def test_whatever_is_sent_gets_a_sentence_and_never_a_bare_500(served):
    """Mutated calls, of few bytes and many; none breaks the server or quotes at length."""
    chance = random.Random(5)
    assert [
        wrong for _ in range(80) if (wrong := soak.call(served.url, served.output.parent, *soak.mutated(chance)))
    ] == []


def test_a_call_by_position_that_is_too_short_is_not_quoted(served):
    body = json.dumps({"data": ["9" * 10**5]}).encode()
    assert soak.call(served.url, served.output.parent, "call/generate", body) == ""
