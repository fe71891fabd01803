"""ComfyUI's own page in a browser: its static files and the little that it asks of a server."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, WebSocketRoute

from tests.comfy.definitions import object_info

STATUS = {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "test"}}
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingNodesWarning": False,
            "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.Release.Status": "skip",
            "Comfy.VueNodes.Enabled": False}  # fmt: skip
READY = "() => window.app?.graph && window.app?.extensionManager?.workflow && document.querySelector('canvas')"
LOAD = """
async ([workflow]) => {
  await window.app.loadGraphData(workflow, true, true);
  return (await window.app.graphToPrompt()).output;
}
"""


def static_folder() -> Path:
    """The frontend's static files in its Python package."""
    spec = find_spec("comfyui_frontend_package")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "static"


def answers(files: tuple[str, ...]) -> dict[str, Any]:
    """What the page asks at its start, by path."""
    return {
        "/object_info": object_info(files),
        "/settings": SETTINGS,
        "/users": {"storage": "server", "migrated": True},
        "/system_stats": {"system": {"os": "posix", "comfyui_version": "0", "python_version": "3", "argv": [],
                                     "embedded_python": False, "pytorch_version": "2", "ram_total": 1, "ram_free": 1},
                          "devices": []},
        "/extensions": [], "/embeddings": [], "/i18n": {}, "/features": {}, "/queue": {}, "/history": {},
        "/workflow_templates": {}, "/experiment/models": [], "/models": [], "/userdata": [], "/v2/userdata": [],
        "/global_subgraphs": {}, "/node_replacements": {}, "/jobs": {"jobs": [], "pagination": {}},
    }  # fmt: skip


@contextmanager
def served(files: tuple[str, ...] = (), port: int = 0) -> Iterator[str]:
    """Serves the page on loopback; yields its address."""
    said = {path: json.dumps(value).encode() for path, value in answers(files).items()}

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(static_folder()))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if not path.startswith("/api/"):
                super().do_GET()
                return
            body = said.get(path.removeprefix("/api"))
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Canvas:
    """The page with an empty canvas."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page

        def greet(socket: WebSocketRoute) -> None:
            socket.send(json.dumps(STATUS))

        page.route_web_socket("**/ws*", greet)
        page.route(lambda address: not address.startswith(url), lambda route: route.abort())  # nothing outside
        page.goto(url)
        page.wait_for_function(READY)

    def prompt_of(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """Opens a workflow, and returns what the page would send to run it."""
        return self.page.evaluate(LOAD, [workflow])


def has_packages() -> bool:
    """Whether ComfyUI's page and templates are installed; where a browser is required, they are too."""
    there = all(find_spec(name) for name in ("comfyui_frontend_package", "comfyui_workflow_templates_json"))
    return there or "REQUIRE_BROWSER" in os.environ


def template(name: str) -> dict[str, Any]:
    """One of the workflows that ComfyUI offers, as its Python package holds it."""
    spec = find_spec("comfyui_workflow_templates_json")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "templates" / f"{name}.json").read_text(encoding="utf-8"))
