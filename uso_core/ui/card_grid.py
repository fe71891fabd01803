"""A choice of captioned images in groups with headings: buttons, so that a keyboard reaches each.

The text may be untrusted: it is escaped here, and Gradio inserts a component's value into the page unchanged.
(Gradio evaluates the output of a handlebars template again as JavaScript.)
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

# A click chooses one, or, where several are chosen, adds or removes it; "act" and "press" come from the lightbox.
# What is chosen stays so while the cards change: Gradio puts others in, or writes others' values into the same ones.
CHOOSE = """
const all = () => [...element.querySelectorAll("button[data-key]")];
const several = () => element.closest(".several");
let keys = new Set(), told = "", focused = null, place = 0;
// The keyboard stays on its card, or where it was if that is gone.
const refocus = () => {
  const here = document.activeElement;
  if (focused === null || here !== document.body && !element.contains(here)) return;
  const card = all().find((each) => each.dataset.key === focused) || all()[Math.min(place, all().length - 1)];
  if (card && card !== here) card.focus({ preventScroll: true });
};
const press = () => {
  for (const each of all()) {
    const on = String(keys.has(each.dataset.key));
    if (each.getAttribute("aria-pressed") !== on) each.setAttribute("aria-pressed", on);
  }
  refocus();
  const shown = JSON.stringify(all().filter((each) => keys.has(each.dataset.key)).map((each) => each.dataset.key));
  if (!several() || shown === told) return;
  told = shown;
  trigger("select", {});
};
const choose = (some) => {
  keys = new Set(some);
  press();
};
element.addEventListener("click", (event) => {
  const key = event.target.closest("button[data-key]")?.dataset.key;
  if (key === undefined) return;
  if (several()) return choose(keys.has(key) ? [...keys].filter((each) => each !== key) : [...keys, key]);
  if (event.detail > 1) return; // a double click is one choice
  choose([key]);
  trigger("click", { key });
});
element.addEventListener("focusin", (event) => {
  focused = event.target.dataset.key ?? null;
  place = all().indexOf(event.target);
});
document.addEventListener("pointerdown", (event) => { if (!element.contains(event.target)) focused = null; });
element.addEventListener("act", (event) => trigger("apply", event.detail));
element.addEventListener("press", (event) => choose(event.detail));
new MutationObserver(press).observe(
  element, { childList: true, subtree: true, attributeFilter: ["aria-pressed", "data-key"] },
);
"""
WORDS_ONLY = "<i>Aa</i>"  # instead of images, if there are none


@dataclass(frozen=True)
class Card:
    """One item to choose: `key` comes back when chosen; `images` are addresses, and `full` of the whole image.

    One that is `passing` lies in no history.
    """

    key: str
    title: str
    words: str = ""
    images: tuple[str, ...] = ()
    full: str = ""
    starred: bool = False
    passing: bool = False


def cards(elem_id: str, label: str, value: str = "") -> gr.HTML:
    """The component; its click carries an `EventData` for `chosen`."""
    return gr.HTML(value, label=label, show_label=False, js_on_load=CHOOSE, elem_id=elem_id, elem_classes="cards")


def chosen(event: gr.EventData) -> str:
    """The key of the clicked card, as sent by the browser."""
    return str(getattr(event, "key", ""))


def pressed(elem_id: str) -> str:
    """JavaScript for an event whose first input is a carrier: puts in its place the keys of the chosen cards.

    They are what the page shows when the event begins, also where a choice is still on its way to the server.
    """
    return f"""
(_, ...rest) => [
  [...document.querySelectorAll('#{elem_id} button[aria-pressed=true]')].map((each) => each.dataset.key), ...rest
]
"""


def keys_of(carried: Any) -> list[str]:
    """What `pressed` put into a carrier, as sent by the browser."""
    return [str(key) for key in carried] if isinstance(carried, list) else []


def action(event: gr.EventData) -> str:
    """What shall be done with the card whose key is `chosen`, as sent by the browser."""
    return str(getattr(event, "action", ""))


def html(groups: Sequence[tuple[str, Sequence[Card]]]) -> str:
    """The component's value: each group with its heading, which may be empty."""
    return "".join(
        f"<section>{f'<h3>{escape(heading)}</h3>' if heading else ''}<div>{''.join(map(_html, group))}</div></section>"
        for heading, group in groups
    )


def file_address(path: Path) -> str:
    """The address, relative to the page, of a file that Gradio may show."""
    return f"gradio_api/file={quote(str(path.absolute()))}"


def data_address(data: bytes, kind: str = "image/webp") -> str:
    """A small file embedded in its own address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _html(card: Card) -> str:
    images = "".join(f'<img src="{escape(each)}" alt="" loading="lazy">' for each in card.images) or WORDS_ONLY
    said = f"{card.title}: {card.words}" if card.words else card.title
    full = f' data-full="{escape(card.full)}"' if card.full else ""
    star = ' data-starred="true"' if card.starred else ' data-passing="true"' if card.passing else ""
    return (
        f'<button type="button" data-key="{escape(card.key)}"{full}{star} aria-pressed="false"'
        f' title="{escape(said)}"><span class="images">{images}</span><b>{escape(card.title)}</b> '
        f"<small>{escape(card.words)}</small></button>"
    )
