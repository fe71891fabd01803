"""SSRF-safe image download."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

import httpx

from uso_core.errors import RequestError
from uso_core.images import MAX_FILE_BYTES
from uso_core.messages import Bytes

PATIENCE_SECONDS = 20.0  # for each answer, and for each piece of it
MAX_REDIRECTS = 4


def fetch(url: str) -> tuple[str, bytes]:
    """The name at the end of an http(s) address and what lies there.

    Only hosts of the public internet are asked, each by the very address that was checked, redirects included. Raises
    `RequestError` for any other host, an answer that is no success, and more than `MAX_FILE_BYTES`.
    """
    for _ in range(MAX_REDIRECTS + 1):
        host, address = _public_address(url)
        try:
            target = httpx.URL(url).copy_with(host=address)
            headers = {"host": httpx.URL(url).netloc.decode(), "accept": "image/*"}
            with (
                httpx.Client(timeout=PATIENCE_SECONDS, trust_env=False) as client,  # a proxy would choose the host
                client.stream("GET", target, headers=headers, extensions={"sni_hostname": host}) as reply,
            ):
                if reply.has_redirect_location:
                    url = urljoin(url, reply.headers["location"])
                    continue
                if reply.status_code != 200:
                    raise RequestError(
                        "address_answers", hint="image_instead", address=_short(url), status=reply.status_code
                    )
                return PurePosixPath(unquote(urlsplit(url).path)).name or "image", _body(reply, url)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise RequestError(
                "address_unreachable", hint="image_instead", address=_short(url), reason=type(error).__name__
            ) from None
    raise RequestError("too_many_redirects", hint="image_instead", address=_short(url), most=MAX_REDIRECTS)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also where it wraps an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip in _NAT64):
        return False
    return ip.is_global and not ip.is_multicast


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _public_address(url: str) -> tuple[str, str]:
    """The host of an address and its IP address to connect to; raises `RequestError` unless all of them are public."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError
        found = socket.getaddrinfo(host, port or 80, type=socket.SOCK_STREAM)
    except ValueError:
        raise RequestError("no_web_address", hint="image_instead", address=_short(url)) from None
    except OSError:
        raise RequestError("host_unknown", hint="image_instead", address=_short(url)) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise RequestError("address_not_public", hint="image_instead", address=_short(url))
    return host, addresses[0]


def _body(reply: httpx.Response, url: str) -> bytes:
    data = bytearray()
    for chunk in reply.iter_bytes():
        data += chunk
        if len(data) > MAX_FILE_BYTES:
            raise RequestError(
                "address_too_large", hint="smaller_image", address=_short(url), most=Bytes(MAX_FILE_BYTES)
            )
    return bytes(data)


def _short(url: str) -> str:
    """An address fit for a sentence: without the query, which may hold a secret, and not too long."""
    return url.partition("?")[0][:200]
