"""Values that the browser keeps: read when they are needed, since another tab may have stored new ones meanwhile.

Gradio's own `BrowserState` reads when the page is loaded only, so of two tabs the last to store takes all.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


def carrier() -> gr.JSON:
    """What brings a kept value to the server and back; `reading` and `write` connect it to the browser."""
    return gr.JSON(visible=False)


def reading(key: str) -> str:
    """JavaScript for an event whose first input is a carrier: puts in its place what is kept now, or null."""
    return f"""
(_, ...rest) => {{
  let kept = null;
  try {{ kept = JSON.parse(localStorage.getItem("{key}")); }} catch {{ /* nothing is kept, or something else */ }}
  return [kept, ...rest];
}}
"""


def write(event: Any, kept: gr.JSON, key: str) -> None:
    """After an event that set the carrier, unless it failed: the browser keeps the value."""
    script = f"""
(value) => {{
  try {{ localStorage.setItem("{key}", JSON.stringify(value)); }} catch {{ /* private browsing */ }}
}}
"""
    event.success(None, kept, None, js=script, api_visibility="private", show_progress="hidden")
