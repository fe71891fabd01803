"""Addresses that strangers give: only public hosts are asked, redirects included, no more than an image taken."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from uso_core.errors import RequestError
from uso_core.ui import fetch as module
from uso_core.ui.fetch import fetch, is_public

BODY = b"not an image, but bytes"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        port, path = self.server.server_address[1], self.path.partition("?")[0]
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
    """A server on 127.0.0.1, which alone counts as public here."""
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_what_lies_there_with_its_name(address: str) -> None:
    host = address.removeprefix("http://").encode()
    assert fetch(f"{address}/a%20mug.png?size=1") == ("a mug.png", BODY + host)
    assert fetch(f"{address}/moved") == ("a mug.png", BODY + host)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/inside", "not on the public internet"), ("/round", "leads on more"), ("/gone", "answers 404")],
)
def test_what_is_not_taken(address: str, path: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        fetch(f"{address}{path}?token=secret")
    assert "secret" not in str(caught.value)


def test_no_more_than_a_image(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(RequestError, match="has more than"):
        fetch(f"{address}/a.png")


@pytest.mark.parametrize(
    "address", ["ftp://example.org/a.png", "http://", "http://[::1", "http://host:port/", "file:///a"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(RequestError, match="is no address of the web"):
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
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public
