"""The page. The only place that imports Gradio."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from uso_core.catalog.examples import FOLDER as EXAMPLES_FOLDER
from uso_core.errors import SettingsError
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings, given_path
from uso_core.text_files import decoded
from uso_core.ui import api, create_tab, health, history_tab, mcp, model_tab, styles_tab, text
from uso_core.ui.choice_of_language import ChoiceOfLanguage
from uso_core.ui.event_options import TOLD
from uso_core.ui.guard import HANDLERS, Guard
from uso_core.ui.language import label, languages, translations
from uso_core.ui.services import Services
from uso_core.ui.theme import theme

CSS_PATH = Path(__file__).parent / "page.css"
MOST_SESSIONS = 1000  # pages and calls whose state is held at once, at about 0.4 MB each
MOST_EVENTS = 10_000  # in Gradio's own queue, which on ZeroGPU would else hold one
POLL_SECONDS = 0.02  # how often Gradio's queue looks for a call; its own 0.001 keeps 7 % of a core busy for nobody
SCRIPTS = ("stream.js", "page.js", "crop.js", "arrive.js", "lightbox.js", "attention.js", "known_words.js")
# The texts that the scripts show; the buttons of the lightbox are called as those on the page.
WORDS = (
    "crop", "crop_box", "crop_apply", "cancel", "light_or_dark", "language", "image_for", "content", "style", "image",
    "restore_settings", "use_as_content", "use_as_style", "star", "download", "delete", "delete_sure", "close",
    "previous", "next", "notify", "notify_me", "notify_refused", "play_sound", "image_is_ready", "shortcuts",
    "please_change", "stop_hint", "skip_hint", "no_connection",
    "keys_run", "keys_list", "keys_lightbox", "keys_move", "keys_leave", "keys_delete", "keys_star", "keys_use",
)  # fmt: skip
SHARED = """
const languages = __WORDS__;
const words = languages[navigator.language] || languages[navigator.language.split("-")[0]] || languages.en;
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const openDialog = (dialog) => {
  document.querySelector(".gradio-container .contain").append(dialog); // Gradio scopes rules for small screens to it
  dialog.showModal();
};
const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* private browsing */ } };
"""


def build(engine: Engine, settings: Settings) -> gr.Blocks:
    """The page for one engine; nothing is loaded until somebody generates."""
    if settings.mcp:
        mcp.require_mcp()
    if settings.metrics:
        health.require_metrics()
    services, status = Services.of(engine, settings), engine.status()
    with api.Page(title=text.TITLE, analytics_enabled=False, delete_cache=(3600, 24 * 3600)) as page:
        with gr.Row(elem_id="header"):
            gr.Markdown(f"# {text.TITLE} <small>{label('tagline')}</small>", elem_id="title")
            line = gr.Button(text.model_line(status.model), size="sm", elem_id="model-line")
            gr.HTML("", elem_id="switches")  # page.js fills it
            nudge = gr.Button("", elem_id="nudge", visible="hidden")
        nudge.click(lambda: None, None, None, **TOLD)  # see stream.js
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(label("tab_create"), id="create"):
                form, results = create_tab.build(page, services)
            with gr.Tab(label("tab_history"), id="history") as tab:
                history_tab.build(tabs, tab, services, form, results)
            with gr.Tab(label("tab_styles"), id="styles") as tab:
                styles_tab.build(tabs, tab, services, form)
            with gr.Tab(label("tab_model"), id="model") as tab:
                model_tab.build(page, tab, tabs, services, line, form)
        api.build(services)
    return page


def script() -> str:
    """The page's own JavaScript, with its texts in every language."""
    parts = [(CSS_PATH.parent / name).read_text(encoding="utf-8") for name in SCRIPTS]
    words = json.dumps({language: {name: texts[name] for name in WORDS} for language, texts in languages().items()})
    return f"() => {{ {SHARED.replace('__WORDS__', words)} {''.join(f'({part})();' for part in parts)} }}"


def launch(page: gr.Blocks, engine: Engine, settings: Settings, **options: Any) -> Any:
    """Serves the page in its own threads, like `gr.Blocks.launch`, and returns.

    The engine queues, so Gradio lets every request through.
    """
    page.queue(default_concurrency_limit=None, max_size=MOST_EVENTS)
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = POLL_SECONDS
    middleware = [Middleware(Guard, settings=settings), Middleware(ChoiceOfLanguage)]
    launched = page.launch(
        server_name=settings.host, server_port=settings.port, root_path=settings.root_path or None,
        theme=theme(),
        css=CSS_PATH.read_text(encoding="utf-8"), js=script(), auth=logins(settings.auth), share=settings.share,
        allowed_paths=[str(settings.output_folder), str(EXAMPLES_FOLDER)], max_file_size="200mb", show_error=True,
        ssr_mode=False, i18n=translations(), mcp_server=settings.mcp, prevent_thread_lock=True,
        state_session_capacity=MOST_SESSIONS,
        app_kwargs={
            "middleware": middleware, "exception_handlers": HANDLERS, "routes": health.routes(engine, settings),
        }, **options,
    )  # fmt: skip
    if settings.mcp:
        mcp.serve_files(page)
    return launched


def _pair(line: str) -> tuple[str, str, str]:
    """User, colon and password; without the space around both, which nobody would type when they log in."""
    user, separator, password = line.partition(":")
    return user.strip(), separator, password.strip()


def logins(text: str | None) -> list[tuple[str, str]] | None:
    """User names and passwords out of USER:PASSWORD, or of a file with one a line; raises `SettingsError`."""
    if text is None:
        return None
    path = given_path(text)
    if not os.path.isfile(path):
        user, separator, password = _pair(text)
        if not (user and separator and password) or re.match(r"[A-Za-z]:[\\/]", text):  # a path on Windows
            raise SettingsError("auth")  # its words may be a password
        return [(user, password)]
    try:
        lines = decoded(path.read_bytes()).splitlines()
    except OSError as error:
        raise SettingsError("file_unreadable", path=path, reason=error.strerror) from None
    except ValueError:
        raise SettingsError("text_encoding", name=path) from None
    pairs: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, password = _pair(line)
        if not (user and password) or user in pairs:  # its words may be a password
            raise SettingsError("auth_line", hint="auth", path=path, line=number)
        pairs[user] = password
    if not pairs:
        raise SettingsError("auth_empty", hint="auth", path=path)
    return list(pairs.items())
