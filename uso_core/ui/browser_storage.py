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


def change(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What an event sets the carrier to, for `write`: the entries that differ, and the names of those that are gone."""
    put = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return {"put": put, "gone": [name for name in before if name not in after]}


def write(event: Any, kept: gr.JSON, key: str) -> Any:
    """After an event that set the carrier to a `change`, unless it failed: the browser keeps it; returns that event.

    What other events and other tabs stored since the event began stays.
    """
    script = f"""
(change) => {{
  if (!change) return;
  try {{
    const kept = {{ ...JSON.parse(localStorage.getItem("{key}")), ...change.put }};
    for (const name of change.gone) delete kept[name];
    localStorage.setItem("{key}", JSON.stringify(kept));
  }} catch {{ /* private browsing */ }}
}}
"""
    return event.success(None, kept, None, js=script, api_visibility="private", show_progress="hidden")
