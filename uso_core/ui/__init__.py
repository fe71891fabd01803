"""The page. The only place that imports Gradio."""

from __future__ import annotations

from typing import Any

import gradio as gr

from uso_core.engine import Engine
from uso_core.settings import Settings
from uso_core.ui import generate, text

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#result img { width: 100%; height: 100%; object-fit: contain; }
#status { min-height: 3.2rem; }
#status .sentence { margin: 0 0 .4rem 0; }
#status .track { height: 4px; border-radius: 2px; background: var(--border-color-primary); overflow: hidden; }
#status .bar { height: 100%; background: var(--primary-500); transition: width .2s linear; }
footer { display: none !important; }
"""
SHORTCUT = """
() => document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) document.querySelector("#generate").click();
})
"""


def build(engine: Engine, settings: Settings) -> gr.Blocks:
    """The page over one engine; nothing is loaded until somebody generates."""
    with gr.Blocks(title=text.TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        gr.Markdown(f"# {text.TITLE}\n{text.TAGLINE}")
        gr.Markdown(text.model_line(engine.model.title, engine.reason, engine.model.note))
        generate.build(page, engine, settings)
    return page


def launch(page: gr.Blocks, settings: Settings, **options: Any) -> Any:
    """Serves the page, as `gr.Blocks.launch` does. The engine queues, so Gradio lets every request through."""
    page.queue(default_concurrency_limit=None)
    return page.launch(
        server_name=settings.host, server_port=settings.port, theme=gr.themes.Default(), css=CSS, js=SHORTCUT,
        allowed_paths=[settings.output], max_file_size="200mb", show_error=True, ssr_mode=False, **options,
    )  # fmt: skip
