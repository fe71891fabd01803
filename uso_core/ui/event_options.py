"""How the page's own events reach the server: no names in the API, no spinner, a queue only to tell something."""

from __future__ import annotations

from typing import Any

QUIET: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
TOLD = {**QUIET, "queue": True}  # Gradio shows an event's errors and infos only if it went through the queue
