"""MCP tools: the public endpoints, which Gradio turns into tools, with their results as files and JSON.

Needs the package in requirements-mcp.txt.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import add_root_url
from gradio_client.utils import is_file_obj_with_meta

from uso_core.errors import UsageError

LOOK_SECONDS = 0.1  # between two checks whether a call has ended


def require_mcp() -> None:
    """Raises `UsageError` with the command to run if the package is missing."""
    if importlib.util.find_spec("mcp") is None:
        raise UsageError("mcp_missing", hint="install_mcp")


def serve_files(page: gr.Blocks) -> None:
    """Makes the tools of a launched page reply with each image's exact bytes and with JSON, and stop when abandoned.

    Gradio would re-save an image without the settings in it, write everything else as Python does, and continue a call
    that nobody waits for any more.
    """
    server = page.mcp_server_obj
    if server is None:
        raise UsageError("mcp_failed", hint="install_mcp")
    with_progress = server._execute_tool_with_progress

    async def wait(job: Any, *progress_token: Any) -> Any:
        try:
            if progress_token:
                return await with_progress(job, *progress_token)
            while not job.done():
                await asyncio.sleep(LOOK_SECONDS)
            return [job.result()]
        finally:
            if not job.done():  # it asks this very server, which must not wait for itself
                asyncio.get_running_loop().run_in_executor(None, job.cancel)

    simplified = server.simplify_filedata_schema

    def nullable(schema: dict[str, Any]) -> tuple[dict[str, Any], list[list[str | int]]]:
        """Null is the default of every parameter, as the meanings say."""
        schema, places = simplified(schema)
        for each in schema.get("properties", {}).values():
            if isinstance(each.get("type"), str):
                each["type"] = [each["type"], "null"]
        return schema, places

    server.simplify_filedata_schema = nullable
    server.convert_strings_to_filedata = lambda value, _: value  # `ImageInput` knows addresses, data URLs and base64
    server._execute_tool_without_progress = server._execute_tool_with_progress = wait
    server.postprocess_output_data = lambda data, root_url: list(_contents(add_root_url(data, root_url, None)))


def _contents(values: Any) -> Iterator[Any]:
    from mcp import types

    for value in values:
        if _holds_files(value):  # also if Gradio passes all results as one value
            yield from _contents(value)
        elif is_file_obj_with_meta(value):
            kind = mimetypes.guess_type(value["path"])[0] or "application/octet-stream"
            if kind.startswith("image/"):
                data = base64.b64encode(Path(value["path"]).read_bytes()).decode()
                yield types.ImageContent(type="image", data=data, mimeType=kind)
            yield types.TextContent(type="text", text=f"Image URL: {value['url']}")
        elif value is not None:
            yield types.TextContent(type="text", text=json.dumps(value, ensure_ascii=False))


def _holds_files(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(is_file_obj_with_meta(each) or _holds_files(each) for each in value)
