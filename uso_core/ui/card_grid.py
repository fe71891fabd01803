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
from urllib.parse import quote

import gradio as gr

# A click chooses one, or, where several are chosen, adds or removes it; "act" comes from the lightbox.
CHOOSE = """
const all = () => [...element.querySelectorAll("button[data-key]")];
const press = (card, on) => card.setAttribute("aria-pressed", String(on));
let chosen = null;
element.addEventListener("click", (event) => {
  const card = event.target.closest("button[data-key]");
  if (!card) return;
  if (element.closest(".several")) {
    press(card, card.getAttribute("aria-pressed") !== "true");
    const keys = all().filter((each) => each.getAttribute("aria-pressed") === "true").map((each) => each.dataset.key);
    trigger("select", { keys });
    return;
  }
  chosen = card.dataset.key;
  for (const each of all()) press(each, each === card);
  trigger("click", { key: chosen });
});
element.addEventListener("act", (event) => trigger("apply", event.detail));
new MutationObserver(() => {
  const given = all().find((each) => each.getAttribute("aria-pressed") === "true");
  if (given) chosen = given.dataset.key;
  else for (const each of all()) if (each.dataset.key === chosen && !element.closest(".several")) press(each, true);
}).observe(element, { childList: true, subtree: true });
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
    chosen: bool = False
    passing: bool = False


def cards(elem_id: str, label: str, value: str = "") -> gr.HTML:
    """The component; its click carries an `EventData` for `chosen`."""
    return gr.HTML(value, label=label, show_label=False, js_on_load=CHOOSE, elem_id=elem_id, elem_classes="cards")


def chosen(event: gr.EventData) -> str:
    """The key of the clicked card, as sent by the browser."""
    return str(getattr(event, "key", ""))


def all_chosen(event: gr.EventData) -> list[str]:
    """The keys of all chosen cards, as sent by the browser."""
    keys = getattr(event, "keys", None)
    return [str(key) for key in keys] if isinstance(keys, list) else []


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
        f'<button type="button" data-key="{escape(card.key)}"{full}{star} aria-pressed="{str(card.chosen).lower()}"'
        f' title="{escape(said)}"><span class="images">{images}</span><b>{escape(card.title)}</b> '
        f"<small>{escape(card.words)}</small></button>"
    )
