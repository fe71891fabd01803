"""Sentences to begin with, for the mode of the form, and the prompts of this visitor's last images.

USO's prompts come in three kinds: what the subject does (its layout is new), an instruction (its layout is kept), and
what is to be seen (beside style images). They are English in every language: the text encoders read it best.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from uso_core.catalog.models import get_model
from uso_core.storage.history import History
from uso_core.ui import text
from uso_core.ui.card_grid import chosen
from uso_core.ui.event_options import QUIET
from uso_core.ui.language import say

if TYPE_CHECKING:
    from uso_core.ui.form import Form
    from uso_core.ui.services import Services

RECENT = 6
READ = 60  # of the newest images, until so many different prompts are found
CHOOSE = """
element.addEventListener("click", (event) => {
  const idea = event.target.closest("button[data-key]");
  if (!idea) return;
  element.querySelector("details").open = false;
  trigger("click", { key: idea.dataset.key });
});
element.addEventListener("toggle", (event) => { if (event.target.open) trigger("expand"); }, true);
"""
PHRASES: dict[str, tuple[str, ...]] = {
    "text": (
        "A lighthouse on a rocky cliff at dusk, waves breaking below.",
        "An old bicycle leans against a yellow wall in the morning light.",
        "A fox sleeps in a hollow tree while snow falls outside.",
        "A glass teapot on a wooden table, steam rising, soft window light.",
        "A narrow street after rain, neon signs reflected in the puddles.",
        "A hot-air balloon drifts over green terraces at sunrise.",
    ),
    "subject": (
        "The man reads a book in a café.",
        "The dog runs along the beach at sunset.",
        "The cup stands on a mossy rock beside a waterfall.",
        "The woman rides a bicycle through a field of sunflowers.",
        "Transform the image into a watercolour painting.",
        "Transform the style of the image into a pencil sketch.",
    ),
    "style": (
        "A cat sleeping on a chair.",
        "A sailing boat on a calm lake.",
        "A bowl of fruit beside an open window.",
        "An astronaut walking through a forest.",
        "A small village below snowy mountains.",
        "A girl holding a red umbrella in the rain.",
    ),
    "style_subject": (
        "The man plays the guitar on a stage.",
        "The dog sits in front of a fireplace.",
        "The toy stands on a shelf full of books.",
        "The woman walks through a market at night.",
        "The car drives along the coast.",
        "",
    ),
}
SMALL: dict[str, tuple[str, ...]] = {  # in the words of the embedded model
    "text": (
        "a happy red boat on the beach",
        "a sleepy orange cat in the living room",
        "a blue house in the snow",
        "a yellow car in the city at night",
        "a green fish underwater",
        "a purple rocket in space",
    ),
    "subject": (
        "a mug in the snow",
        "a cat in the city at night",
        "a boat on the beach",
        "a tree in the desert",
        "transform into pencil drawing style",
        "transform into watercolour style",
    ),
    "style": (
        "a house in the forest",
        "a fish underwater",
        "a car in the city",
        "a rocket in space",
        "a tree in the snow",
        "a boat on the beach at night",
    ),
    "style_subject": (
        "an alarm clock on the beach",
        "a car in the forest",
        "a cat in the living room",
        "a mushroom in the snow",
        "a mug in the desert",
        "",
    ),
}


def phrases(model: str, mode: str) -> tuple[str, ...]:
    """Six sentences for a model and a mode without its `_empty`; an empty one keeps the content's layout."""
    return (SMALL if get_model(model).folder is not None else PHRASES)[mode]


def recent(history: History) -> list[str]:
    """The prompts of the newest images, each once."""
    found = dict.fromkeys(entry.prompt for entry in history.entries()[:READ] if entry.prompt.strip())
    return list(found)[:RECENT]


def wire(form: Form, services: Services) -> None:
    """Fills the list when it is opened, and puts the chosen sentence into the prompt."""

    def offer(given: dict[Any, Any], request: gr.Request) -> str:
        content, styles = bool(given[form["content"]]), [field for field in form.style_slots if given[field]]
        mode = text.mode_key(content, len(styles), "x")
        last = recent(services.stores(request).history)
        return html(phrases(given[form["model"]], mode), last, True)

    def choose(event: gr.EventData) -> str:
        return chosen(event)

    form.ideas.expand(offer, {form["model"], *form.slots}, form.ideas, **QUIET)
    form.ideas.click(choose, None, form["prompt"], trigger_mode="multiple", **QUIET)


def lay_out() -> gr.HTML:
    """A closed list beside the prompt's name."""
    return gr.HTML(html((), ()), show_label=False, js_on_load=CHOOSE, elem_id="ideas")


def html(offered: tuple[str, ...], last: list[str] | tuple[str, ...], opened: bool = False) -> str:
    """The component's value."""
    groups = ((say("phrases"), offered), (say("recent_prompts"), last))
    lists = "".join(
        f"<h3>{escape(heading)}</h3>{''.join(map(_button, prompts))}" for heading, prompts in groups if prompts
    )
    return (
        f"<details class='menu'{' open' * opened}><summary>{escape(say('ideas'))}</summary><div>{lists}</div></details>"
    )


def _button(prompt: str) -> str:
    shown = prompt[: text.SHOWN_CHARACTERS] or say("empty_prompt")
    return f'<button type="button" data-key="{escape(prompt)}">{escape(shown)}</button>'
