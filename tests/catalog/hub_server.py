"""A small Hugging Face hub on loopback: what the real client asks of a hub, and the ways in which hubs fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"
LARGE = (".safetensors", ".model")  # kept as LFS: redirected to another host, known by sha256


class HubServer:
    """Serves `repos` (name -> file name -> content) at `url` during the `with` block.

    `gated` repositories require one of `members`; a token outside `members` and `strangers` is refused everywhere.
    `body_bytes` counts what was sent of each file, `storage_headers` records what the storage host received.
    Failures, by file name: `drop` (a list of byte counts, one per request, after which the connection breaks),
    `stall` (the byte count after which nothing more comes until `release` breaks the connection), `corrupt` (different
    content of the same size).
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.gated: set[str] = set()
        self.members: set[str] = set()
        self.strangers: set[str] = set()
        self.body_bytes: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.storage_headers: list[dict[str, str]] = []
        self.drop: dict[str, list[int]] = {}
        self.stall: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.login_page = False
        self.stalled = threading.Event()
        self.release = threading.Event()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def listing_entry(name: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub.closing.is_set():  # a connection kept alive beyond the `with` block
            self.close_connection = True
            return None
        path = unquote(urlsplit(self.path).path)
        if self.hub.login_page:
            return self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        if path.startswith("/storage/"):
            self.hub.storage_headers.append({key.lower(): value for key, value in self.headers.items()})
            repo, name = path.removeprefix("/storage/").split("//")
            return self._send_file(name, self.hub.repos[repo][name])
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.members | self.hub.strangers:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if path.startswith("/api/models/"):
            return self._send_listing(path.removeprefix("/api/models/"))
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        return self._resolve(repo, rest.partition("/")[2], token)

    def _send_listing(self, repo: str) -> None:
        if repo not in self.hub.repos:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        siblings = [listing_entry(name, content) for name, content in self.hub.repos[repo].items()]
        body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode()
        return self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, repo: str, name: str, token: str) -> None:
        if repo in self.hub.gated and token not in self.hub.members:
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        if name not in self.hub.repos.get(repo, {}):
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content = self.hub.repos[repo][name]
        if not name.endswith(LARGE):
            return self._send_file(name, content)
        headers = {
            "Location": f"http://localhost:{self.hub.port}/storage/{repo}//{name}",  # another host than 127.0.0.1
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        return self._send(302, b"", headers)

    def _send_file(self, name: str, content: bytes) -> None:
        if name in self.hub.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        status, asked = 200, self.headers.get("Range")
        if asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
            self.hub.ranges.append(asked)
        self._send(status, content, headers, name)

    def _send(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        drops = self.hub.drop.get(name)
        stop = drops.pop(0) if drops else self.hub.stall.pop(name, len(body))
        self.wfile.write(body[:stop])
        self.wfile.flush()
        if name:
            self.hub.body_bytes[name] += len(body[:stop])
        if stop < len(body):
            if drops is None:
                self.hub.stalled.set()
                self.hub.release.wait(30)
            self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(
            status, b"", {"X-Error-Code": code, "X-Error-Message": message} if code else {"X-Error-Message": message}
        )
