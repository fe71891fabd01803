"""Fetches images from web addresses given by visitors: public hosts only, a few at once, limited in size and time."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from pathlib import PurePosixPath
from typing import Any

import httpcore
import httpx

from uso_core.errors import RequestError
from uso_core.messages import Bytes

PATIENCE_SECONDS = 10.0  # for each answer, and for each piece of it
PATIENCES = 3  # for everything together: names, redirects and all pieces
LOOKUP_SECONDS = 5.0
MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 4
MAX_ADDRESSES = 4  # of a host, tried one after another
FETCHES = 8  # at once
QUEUE_SECONDS = 5.0  # to wait for a free place among them
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS: dict[bytes | str, bytes | str] = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "uso"}

_places, _lookups = threading.BoundedSemaphore(FETCHES), threading.BoundedSemaphore(4 * FETCHES)


def fetch(url: str) -> tuple[str, bytes]:
    """Returns the name at the end of an http(s) address and its content, unchanged: no encoding is requested or undone.

    Connects only to hosts of the public internet, each by exactly the address that was checked, redirects included.
    Raises `RequestError` for any other host, for an answer that is unsuccessful or encoded, beyond `MAX_BYTES` or the
    total time, and if `FETCHES` others do not end within `QUEUE_SECONDS`.
    """
    if not _places.acquire(timeout=QUEUE_SECONDS):
        raise RequestError("too_many_fetches")
    try:
        return _followed(url, time.monotonic() + PATIENCES * PATIENCE_SECONDS)
    finally:
        _places.release()


def is_public(address: str) -> bool:
    """Whether an IP address can belong to a host on the public internet.

    IPv4: unicast without the ranges reserved by IANA. IPv6: global unicast without those; so no address that stands for
    an IPv4 address, which could be any (mapped, compatible, NAT64, 6to4, Teredo).
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in _GLOBAL_UNICAST and not any(ip in network for network in _SET_ASIDE_6)
    return ip.is_global and not any(ip in network for network in _SET_ASIDE_4)


# IANA's registries of special-purpose addresses: what Python calls global depends on its version.
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SET_ASIDE_6 = [
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20")
]
_SET_ASIDE_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
        "168.63.129.16/32",  # the platform itself, on every Azure machine
    )
]  # fmt: skip


class _NotPublic(Exception):
    """A host has an address outside the public internet."""


class _HostUnknown(Exception):
    """No address was found for a host, or not in time."""


class _TooSlow(Exception):
    """The total time is over."""


def _followed(url: str, deadline: float) -> tuple[str, bytes]:
    for _ in range(MAX_REDIRECTS + 1):
        target, about = _web_address(url), {"hint": "image_instead", "address": _short(url)}
        try:
            answer = _answer(target, deadline)
        except _NotPublic:
            raise RequestError("address_not_public", **about) from None
        except _HostUnknown:
            raise RequestError("host_unknown", **about) from None
        except (_TooSlow, httpcore.TimeoutException):
            raise RequestError("address_too_slow", **about) from None
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            raise RequestError("address_unreachable", reason=type(error).__name__, **about) from None
        if isinstance(answer, bytes):
            return PurePosixPath(target.path).name or "image", answer
        try:
            url = str(target.join(answer))
        except (httpx.InvalidURL, ValueError):
            raise RequestError("no_web_address", hint="image_instead", address=_short(answer)) from None
    raise RequestError("too_many_redirects", hint="image_instead", address=_short(url), most=MAX_REDIRECTS)


def _answer(target: httpx.URL, deadline: float) -> bytes | str:
    """The content at an address, or the address to which it redirects."""
    url = httpcore.URL(
        scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path
    )  # fmt: skip
    with (
        httpcore.ConnectionPool(network_backend=_PublicNetwork(deadline)) as pool,
        pool.stream("GET", url, headers=HEADERS) as reply,
    ):
        headers = {name.lower(): value.decode("latin-1").strip() for name, value in reply.headers}
        if reply.status in REDIRECTS and b"location" in headers:
            return headers[b"location"]
        about = {"hint": "image_instead", "address": _short(str(target))}
        if reply.status != 200:
            raise RequestError("address_answers", status=reply.status, **about)
        if headers.get(b"content-encoding", "identity").lower() not in ("", "identity"):
            raise RequestError("address_encoded", **about)
        return _body(reply.iter_stream(), headers.get(b"content-length", ""), about["address"])


def _body(pieces: Iterable[bytes], announced: str, address: str) -> bytes:
    data = bytearray()
    too_large = RequestError("address_too_large", hint="smaller_image", address=address, most=Bytes(MAX_BYTES))
    if announced.isdecimal() and int(announced[:20]) > MAX_BYTES:
        raise too_large
    for piece in pieces:
        data += piece
        if len(data) > MAX_BYTES:
            raise too_large
    return bytes(data)


class _PublicNetwork(httpcore.NetworkBackend):
    """Connects to hosts of the public internet, only by addresses that were checked, until a deadline."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def connect_tcp(self, host: str, port: int, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        failure: Exception = _HostUnknown()
        for address in _addresses(host, port, self._deadline)[:MAX_ADDRESSES]:
            try:
                stream = httpcore.SyncBackend().connect_tcp(address, port, _patience(self._deadline))
                return _TimedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _TimedStream(httpcore.NetworkStream):
    """A connection on which every read and write ends by the deadline, however little each transfers."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _patience(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _patience(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _patience(self._deadline))
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _patience(deadline: float) -> float:
    """Seconds to wait for the next piece; raises `_TooSlow` after the deadline."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise _TooSlow
    return min(left, PATIENCE_SECONDS)


def _addresses(host: str, port: int, deadline: float) -> list[str]:
    """The IP addresses of a host; raises `_NotPublic` unless all are public, or `_HostUnknown`."""
    if not _lookups.acquire(blocking=False):
        raise _HostUnknown
    found: Future[list[Any]] = Future()

    def look() -> None:  # in its own thread, since a lookup cannot be aborted
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            found.set_exception(error)
        finally:
            _lookups.release()

    threading.Thread(target=look, name="lookup", daemon=True).start()
    try:
        entries = found.result(min(LOOKUP_SECONDS, _patience(deadline)))
    except (OSError, ValueError, OverflowError, NotInTime):
        raise _HostUnknown from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not all(map(is_public, addresses)):
        raise _NotPublic
    return addresses


def _web_address(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        target = httpx.URL("")
    if target.scheme not in ("http", "https") or not target.host:
        raise RequestError("no_web_address", hint="image_instead", address=_short(url))
    return target


def _short(url: str) -> str:
    """An address for use in a sentence: not too long, without the query, which may hold a secret."""
    return url.partition("?")[0][:200]
