"""Guards the page: which hosts and origins it answers, which output files it serves, how many calls it takes.

A foreign web page whose name is made to resolve to this machine must not use it (DNS rebinding), nor may one embed it
or call it from a browser. Other visitors' images are not served, even to those who know their names.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import logging
import math
import re
import secrets
import threading
import time
from collections import OrderedDict, deque
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from uso_core.errors import InternalError, RequestError, UsoError
from uso_core.messages import Bytes
from uso_core.settings import LOOPBACK, Settings
from uso_core.ui.visitors import COOKIE, VISITORS, folder_name, logged_in

log = logging.getLogger(__name__)
FILE_ROUTES = ("/gradio_api/file=", "/file=")
CALLS = re.compile(r"/(call|queue/join|run|api)(/|$)")
ANSWER = re.compile(r"(?:^|/gradio_api)/call/(?:v2/)?[^/]+/([^/]+)/?$")
ANSWERS = re.compile(r"/call/(?:v2/)?[^/]+/([0-9a-f]{32})$")  # the address of a call's answer, with its key
MCP = re.compile(r"(.*/gradio_api)/mcp(/+mcp)?/*")  # as clients write it: with or without its last slash, or /mcp added
SPACE_HOSTS = "*.hf.space"
PLATFORM_HOSTS = ("*.gradio.live", SPACE_HOSTS)  # a share link; a Space
HEADERS = {
    "content-security-policy": "frame-ancestors 'self' https://huggingface.co",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}
MOST_REMEMBERED = 10_000  # visitors whose calls are counted


class Guard:
    """ASGI middleware; see the module."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._output = settings.output_folder.resolve()
        own = [each.lower() for each in (*LOOPBACK, settings.host.strip()) if each not in ("", "0.0.0.0", "::")]
        self._hosts = [*own, *settings.allowed_hosts]
        self._folder = urlsplit(settings.root_path).path or "/"  # below which the browser shows the cookie
        self._calls, self._uploads = Window(60), Window(3600)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket" and not self._may(Headers(scope=scope)):
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        if self._settings.mcp and (found := MCP.fullmatch(scope["path"])):  # Gradio redirects, or does not find it
            path = f"{found[1]}/mcp/"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        headers = Headers(scope=scope)
        visitor = cookie_of(headers)
        refusal = self._refusal(scope, headers, visitor)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        fresh = secrets.token_hex(16) if self._settings.is_open and not visitor else ""

        begun = False

        async def answer(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    own.setdefault(name, value)
                if fresh:
                    own.append("set-cookie", self._cookie(fresh, headers))
            await send(message)

        if fresh and scope["method"] != "POST":  # known from the first request on; a program keeps no cookies
            scope["headers"] = [*scope["headers"], (b"cookie", f"{COOKIE}={fresh}".encode())]
        try:
            await self._app(scope, receive, answer)
        except (FileNotFoundError, RuntimeError) as error:
            # Deleted while it was fetched: a preview, an image of the history. Starlette says so in words alone.
            gone = isinstance(error, FileNotFoundError) or str(error).endswith("does not exist.")
            if not gone or not any(route in scope["path"] for route in FILE_ROUTES):
                raise
            if not begun:
                await PlainTextResponse("Not found.", 404)(scope, receive, send)
        finally:
            if answered := ANSWERS.search(scope["path"]):
                _close_session(scope.get("app"), answered[1])

    def _refusal(self, scope: Any, headers: Headers, visitor: str) -> PlainTextResponse | None:
        path = unquote(scope.get("path", ""))
        if not self._may(headers):
            host = headers.get("host", "")
            return _said(RequestError("host_not_allowed", host=host), 421)
        for route in FILE_ROUTES:
            if route in path and not self._serves(path.partition(route)[2], login_of(scope) or visitor):
                return PlainTextResponse("Not found.", 404)
        is_file = any(route in path for route in FILE_ROUTES)
        if (
            scope["method"] == "GET"
            and not is_file
            and (asked := ANSWER.search(path))
            and not _waits(scope.get("app"), asked[1])
        ):
            return _said(RequestError("call_unknown"), 404)
        if scope["method"] != "POST":
            return None
        who = visitor or (scope.get("client") or ("",))[0]
        calls, uploads = self._settings.limit("max_calls"), self._settings.limit("max_upload_mb") * 1e6
        if CALLS.search(path) and not self._calls.take(who, 1, calls):
            return _said(RequestError("too_many_calls", hint="try_later", most=round(calls)), 429)
        size = headers.get("content-length", "")
        if "/upload" in path and not size.isdigit() and math.isfinite(uploads):
            return _said(RequestError("upload_length"), 411)
        if "/upload" in path and not self._uploads.take(who, int(size) if size.isdigit() else 0, uploads):
            return _said(RequestError("too_many_uploads", hint="try_later", most=Bytes(uploads)), 429)
        return None

    def _cookie(self, value: str, headers: Headers) -> str:
        """Sets a visitor's secret. A Space's page stands in a frame of another site, to which only such cookies go."""
        framed = fnmatch.fnmatchcase(host_of(f"//{headers.get('host', '')}"), SPACE_HOSTS)
        site = "SameSite=None; Secure; Partitioned" if framed else "SameSite=Lax"
        return f"{COOKIE}={value}; Path={self._folder}; Max-Age=31536000; HttpOnly; {site}"

    def _may(self, headers: Headers) -> bool:
        """Whether the host and, if the browser sends it, the origin are ours."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if not self._knows(host_of(f"//{host}")):
            return False
        return origin is None or urlsplit(origin).netloc.lower() == host.lower() or self._knows(host_of(origin))

    def _knows(self, host: str) -> bool:
        """Whether the host is a name of ours or an address: a name made to resolve to us is neither."""
        try:
            ipaddress.ip_address(host)
            return True
        except ValueError:
            patterns = [*self._hosts, *(PLATFORM_HOSTS if self._settings.share else ())]
            return any(fnmatch.fnmatchcase(host, pattern) for pattern in patterns)

    def _serves(self, name: str, visitor: str) -> bool:
        """Whether a file may be served: outside the output folder Gradio decides; inside it only shown files."""
        try:
            path = Path(name).resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        if not path.is_relative_to(self._output):
            return True
        parts = path.relative_to(self._output).parts
        if parts[:1] == (VISITORS,):
            if len(parts) < 3 or parts[1] != folder_name(visitor):
                return False
            parts = parts[2:]
        elif self._settings.separates:
            return False
        return len(parts) <= 2 and path.suffix in SHOWN.get(parts[0] if len(parts) == 2 else "", ())


def _waits(app: Any, call: str) -> bool:
    """Whether a call has an answer that nobody has fetched."""
    queue = app.get_blocks()._queue
    pending = queue.pending_event_ids_session
    return call in queue.event_ids_to_events or call in pending or any(call in ids for ids in list(pending.values()))


def _close_session(app: Any, call: str) -> None:
    """Drops what Gradio keeps of a call as of a page: a copy of the whole page's configuration."""
    holder = getattr(app, "state_holder", None)
    if holder is not None:
        holder.session_data.pop(call, None)
        holder.time_last_used.pop(call, None)


SHOWN = {"": (".png",), "thumbnails": (".webp",), "inputs": (".png",), "styles": (".safetensors",)}  # by folder


class Window:
    """How much each visitor used within the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, who: str, amount: float, most: float) -> bool:
        """Takes an amount, unless that would exceed the limit."""
        now = time.monotonic()
        with self._lock:
            taken = self._taken.setdefault(who, deque())
            self._taken.move_to_end(who)
            while taken and now - taken[0][0] > self._seconds:
                taken.popleft()
            if sum(each for _, each in taken) + amount > most:
                return False
            taken.append((now, amount))
            while len(self._taken) > MOST_REMEMBERED:
                self._taken.popitem(last=False)
            return True


def host_of(address: str) -> str:
    """The host in an address, without its port; empty if there is none."""
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def cookie_of(headers: Headers) -> str:
    """The visitor's own secret, as sent back by the browser; empty if there is none in our form."""
    try:
        value = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return value.value if value is not None and re.fullmatch(r"[0-9a-f]{32}", value.value) else ""


def login_of(scope: Any) -> str:
    """The visitor whose login Gradio's own cookie proves; empty if there is none."""
    app = scope.get("app")
    tokens, key = getattr(app, "tokens", None) or {}, getattr(app, "cookie_id", "")
    cookies = Request(scope).cookies
    name = tokens.get(cookies.get(f"access-token-{key}") or cookies.get(f"access-token-unsecure-{key}"))
    return logged_in(name) if name else ""


async def unfit(request: Request, error: Exception) -> JSONResponse:
    """The reply to a call that Gradio stumbles over: a sentence, and no traceback.

    Only what Gradio says of parameters is passed on; other words may name what lies on this machine.
    """
    if CALLS.search(request.url.path):
        reason = str(error).partition(". ")[0] if isinstance(error, TypeError) else request.url.path
        return JSONResponse({"error": str(RequestError("call_unfit", reason=reason))}, 400)
    code = secrets.token_hex(4)
    log.error("report %s", code, exc_info=error)
    return JSONResponse({"error": str(InternalError("internal", code=code))}, 500)


# What Gradio raises for calls that it cannot take apart.
HANDLERS = dict.fromkeys((TypeError, ValueError, KeyError, AttributeError, AssertionError), unfit)


def _said(error: UsoError, status: int) -> PlainTextResponse:
    return PlainTextResponse(str(error), status)
