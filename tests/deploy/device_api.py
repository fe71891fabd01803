"""ZeroGPU's device API on loopback, as the client in the package `spaces` speaks it: schedule, allow, release.

Facts from spaces 0.51.3, `zero/api.py` and `zero/client.py`: POST with everything in the query; a schedule answers 200
with the GPU and a token, or 429 with what is left of the quota and the header X-Approve-Result.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class DeviceAPI:
    """The server; `calls` holds each call's path and values in order. `refuse` makes it say that no quota is left."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.refuse = False
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                address = urlsplit(self.path)
                values = dict(parse_qsl(address.query))
                api.calls.append((address.path, values))
                if address.path != "/schedule":
                    self.answer(200)
                elif api.refuse:
                    body = {"left": 3, "wait": "PT3600S"}
                    self.answer(429, body, {"X-Approve-Result": "quota-exceeded", "X-Authenticated": "regular"})
                else:
                    token = f"token-{len(api.calls)}"
                    self.answer(200, {"idle": api.idle, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": token})

            def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
                data = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def idle(self) -> bool:
        """Whether a process has the GPU already, from an earlier call."""
        return bool(self.pids)

    @property
    def pids(self) -> list[int]:
        """The processes that were allowed to use the GPU."""
        return [int(values["pid"]) for path, values in self.calls if path == "/allow"]

    def of(self, path: str) -> list[dict[str, str]]:
        """The values of all calls to one path."""
        return [values for called, values in self.calls if called == path]
