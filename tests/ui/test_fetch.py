"""Untrusted addresses: only public hosts are contacted, redirects included, and nothing beyond an image is taken."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio
import gradio as gr
import httpcore
import pytest
from anyio import to_thread

from uso_core.errors import RequestError
from uso_core.ui import fetch as module
from uso_core.ui import inputs
from uso_core.ui.fetch import fetch, is_public

BODY = b"not an image, but bytes"
OVER = threading.Event()  # after which servers that keep their callers waiting give up


def encoded(reply: BaseHTTPRequestHandler) -> None:
    body = zlib.compress(bytes(10**7))
    reply.send_response(200)
    reply.send_header("Content-Encoding", reply.path.rpartition("?")[2])
    reply.end_headers()
    reply.wfile.write(body)


def dripping(reply: BaseHTTPRequestHandler, start: bytes) -> None:
    reply.wfile.write(start)
    with contextlib.suppress(OSError):
        while not OVER.wait(0.05):
            reply.wfile.write(b"x")


def endless(reply: BaseHTTPRequestHandler) -> None:
    reply.send_response(200)
    reply.end_headers()
    with contextlib.suppress(OSError):
        while not OVER.is_set():
            reply.wfile.write(bytes(2**16))


def boastful(reply: BaseHTTPRequestHandler) -> None:
    reply.send_response(200)
    reply.send_header("Content-Length", str(10**12))
    reply.end_headers()
    OVER.wait(10)


ODD: dict[str, Callable[[Handler], None]] = {
    "/encoded": encoded,
    "/drips": lambda reply: dripping(reply, b"HTTP/1.1 200 OK\r\n\r\n"),
    "/drips-headers": lambda reply: dripping(reply, b"HTTP/1.1 200 OK\r\nX-A: "),
    "/drips-status": lambda reply: dripping(reply, b""),
    "/silent": lambda reply: OVER.wait(10),
    "/endless": endless,
    "/boastful": boastful,
    "/shows": lambda reply: reply.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(reply.headers)),
}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        port, path = self.server.server_address[1], self.path.partition("?")[0]
        if path in ODD:
            ODD[path](self)
            return
        places = {
            "/moved": f"http://127.0.0.1:{port}/a%20mug.png",
            "/inside": f"http://127.0.0.2:{port}/a.png",
            "/round": "/round",
        }
        self.send_response(302 if path in places else 200 if path.startswith("/a") else 404)
        if path in places:
            self.send_header("Location", places[path])
        self.end_headers()
        self.wfile.write(BODY + self.headers["Host"].encode())


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on 127.0.0.1, the only address that counts as public here."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    OVER.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    OVER.set()
    server.shutdown()
    server.server_close()


def test_the_content_with_its_name(address: str) -> None:
    host = address.removeprefix("http://").encode()
    assert fetch(f"{address}/a%20mug.png?size=1") == ("a mug.png", BODY + host)
    assert fetch(f"{address}/moved") == ("a mug.png", BODY + host)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/inside", "not on the public internet"), ("/round", "redirects more"), ("/gone", "answered with status 404")],
)
def test_refused_answers(address: str, path: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        fetch(f"{address}{path}?token=secret")
    assert "secret" not in str(caught.value)


def test_no_more_than_an_image(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(RequestError, match="larger than"):
        fetch(f"{address}/a.png")


@pytest.mark.parametrize(
    "address", ["ftp://example.org/a.png", "http://", "http://[::1", "http://host:port/", "file:///a"]
)
def test_invalid_addresses(address: str) -> None:
    with pytest.raises(RequestError, match="is not a web address"):
        fetch(address)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("::ffff:93.184.216.34", False),
        ("2002:0a00:0001::1", False),
        ("64:ff9b::a00:1", False),
        ("8.8.8.8", True),
        ("2a00:1450:4001:80b::200e", True),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("64:ff9b::5db8:d822", False),
        ("64:ff9b:1::7f00:1", False),
        ("fec0::1", False),
        ("5f00::1", False),
        ("ff02::1", False),
        ("100::1", False),
        ("2001::1", False),
        ("2001:0:5ef5:79fd::1", False),
        ("2001:db8::1", False),
        ("3fff::1", False),
        ("4000::1", False),
        ("::", False),
        ("192.0.0.8", False),
        ("192.0.0.192", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("203.0.113.1", False),
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("100.100.100.200", False),
        ("240.0.0.1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_no_encoding_is_requested(address: str) -> None:
    headers = fetch(f"{address}/shows")[1].lower()
    assert b"accept-encoding: identity" in headers
    assert b"user-agent: uso" in headers


@pytest.mark.parametrize("encoding", ["br", "gzip", "deflate", "zstd", "GZIP", "identity,gzip", "unheard-of"])
def test_an_encoded_answer_is_not_unpacked(address: str, encoding: str) -> None:
    with pytest.raises(RequestError, match="compressed"):
        fetch(f"{address}/encoded?{encoding}")


def test_an_answer_encoded_by_nothing_is_used_unchanged(address: str) -> None:
    assert fetch(f"{address}/encoded?identity")[1] == zlib.compress(bytes(10**7))


@pytest.mark.parametrize("path", ["/endless", "/boastful"])
def test_too_large_an_answer_is_not_read_to_its_end(address: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 2**20)
    with pytest.raises(RequestError, match="larger than"):
        fetch(f"{address}{path}")


@pytest.mark.parametrize("path", ["/drips", "/drips-headers", "/drips-status", "/silent"])
def test_a_host_that_drips_is_not_waited_for(address: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    begun = time.monotonic()
    with pytest.raises(RequestError, match="takes too long"):
        fetch(f"{address}{path}")
    assert time.monotonic() - begun < 9  # the silent one gives up after 10


def test_a_name_that_is_not_found_in_time_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(module, "LOOKUP_SECONDS", 0.1)
    monkeypatch.setattr(module, "_lookups", threading.BoundedSemaphore(2))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: over.wait(10) and [])
    for _ in range(3):  # the last of them finds every lookup taken
        with pytest.raises(RequestError, match=r"The host of http://example\.org/a\.png cannot be found"):
            fetch("http://example.org/a.png?x")
    over.set()
    for thread in threading.enumerate():  # they give back what they took from the semaphore of this test
        if thread.name == "lookup":
            thread.join()


class Names:
    """Stands for the name service: each name has the addresses given to it, one list after another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: list[list[str]]) -> None:
        self.asked: list[str] = []
        self.connected: list[str] = []
        self._addresses = addresses
        self._connect = httpcore.SyncBackend.connect_tcp
        self._look = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look)
        monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", lambda *arguments: self.connect(*arguments))

    def look(self, host: str, port: int, *arguments: int, **options: int) -> list[tuple]:
        if host not in self._addresses:  # an address, to connect to
            return self._look(host, port, *arguments, **options)
        self.asked.append(host)
        lists = self._addresses[host]
        found = lists.pop(0) if len(lists) > 1 else lists[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def connect(self, backend: httpcore.SyncBackend, host: str, port: int, timeout: float) -> httpcore.NetworkStream:
        self.connected.append(host)
        return self._connect(backend, host, port, timeout)


def test_the_address_that_was_checked_is_the_one_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, changing=[["127.0.0.1"], ["10.0.0.1"]])
    port = address.rpartition(":")[2]
    assert fetch(f"http://changing:{port}/a.png")[1] == BODY + f"changing:{port}".encode()
    assert (names.asked, names.connected) == (["changing"], ["127.0.0.1"])
    with pytest.raises(RequestError, match="not on the public internet"):
        fetch(f"http://changing:{port}/a.png")
    assert names.connected == ["127.0.0.1"]


def test_one_private_address_among_others_is_enough(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, mixed=[["127.0.0.1", "10.0.0.1"]])
    with pytest.raises(RequestError, match="not on the public internet"):
        fetch(f"http://mixed:{address.rpartition(':')[2]}/a.png")
    assert names.connected == []


def test_only_a_few_are_fetched_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_places", threading.BoundedSemaphore(1))
    monkeypatch.setattr(module, "QUEUE_SECONDS", 0.1)
    waiting = threading.Thread(target=refused, args=(f"{address}/silent",))
    waiting.start()
    while module._places._value:
        OVER.wait(0.01)
    with pytest.raises(RequestError, match="Too many images"):
        fetch(f"{address}/a.png")
    OVER.set()
    waiting.join(10)
    assert fetch(f"{address}/a.png")


def refused(url: str) -> None:
    with pytest.raises(RequestError):
        fetch(url)


def test_a_fetch_uses_none_of_the_threads_that_all_visitors_share(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gr.Blocks():
        slot = inputs.ImageInput()

    async def ask(path: str) -> None:
        with pytest.raises(gr.Error):
            await slot.async_move_resource_to_block_cache(f"{address}{path}")

    async def check() -> None:
        monkeypatch.setattr(inputs, "FETCHING", anyio.CapacityLimiter(2))
        to_thread.current_default_thread_limiter().total_tokens = 1
        async with anyio.create_task_group() as group:
            group.start_soon(ask, "/silent")
            group.start_soon(ask, "/silent")
            while inputs.FETCHING.available_tokens:
                await anyio.sleep(0.01)
            with anyio.fail_after(5):
                await to_thread.run_sync(lambda: None)
            with anyio.fail_after(5):
                await ask("/a.png")  # refused at once
            OVER.set()

    anyio.run(check)
