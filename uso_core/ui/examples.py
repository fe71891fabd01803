"""The examples in the place of the result: a click fills every field, and starts the run if it takes only seconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from uso_core.catalog.examples import FOLDER, RESULT, Example, read_examples
from uso_core.catalog.models import Model, get_model
from uso_core.request import InputImage
from uso_core.ui.browser_storage import carrier
from uso_core.ui.card_grid import Card, cards, data_address, html, keys_of, pressed
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Updates
from uso_core.ui.language import label, say, say_on_load, texts

THUMBNAIL_SIDE = 64
FIRST = ("01-words", "03-subject", "07-style-wide", "10-layout", "11-layout-comic", "12-two-styles")  # shown large
ALL = "() => document.querySelector('#examples').classList.add('all')"
SHELF = "example-cards"
# Unless another one was chosen meanwhile, which follows.
START = f"""
(name) => {{
  const chosen = document.querySelector("#{SHELF} button[aria-pressed=true]")?.dataset.key;
  if (name && name === chosen) document.querySelector("#generate").click();
}}
"""


def lay_out(model: Model) -> gr.HTML:
    """The examples as cards: they fill the place of the first result, and are a row below it afterwards."""
    with gr.Column(elem_id="examples"):
        with gr.Row(elem_id="examples-title"):
            gr.Markdown(label("examples_run" if quick(model) else "examples_fill"))
            gr.Button(label("all_examples"), size="sm", elem_id="all-examples").click(None, None, None, js=ALL, **QUIET)
        return cards(SHELF, label("examples"), _cards(read_examples()))


def wire(page: gr.Blocks, shelf: gr.HTML, form: Form) -> None:
    """Puts the clicked example into the form."""
    read = read_examples()
    examples = {example.name: example for example in read}
    say_on_load(page, lambda: [_cards(read)], [shelf])
    picked, go = carrier(), gr.Textbox(visible=False)

    def fill(names: Any, name: str) -> Updates:
        model, example = get_model(name), next((examples[key] for key in keys_of(names) if key in examples), None)
        if example is None:
            return {go: ""}
        return {**form.updates(example.request(model), example.paths), go: example.name if quick(model) else ""}

    outputs = [*form.restorable, go]
    filled = shelf.click(fill, [picked, form["model"]], outputs, js=pressed(SHELF), trigger_mode="always_last", **QUIET)
    filled.then(None, go, None, js=START, **QUIET)


def quick(model: Model) -> bool:
    """Whether an image takes only seconds on any machine, so that a click may start one."""
    return model.folder is not None


def _cards(examples: Sequence[Example]) -> str:
    first = [example for name in FIRST for example in examples if example.name == name]
    return html([("", [_card(example) for example in (*first, *(each for each in examples if each not in first))])])


def _card(example: Example) -> Card:
    """The result, if it is known, with what it was made from."""
    given = tuple(_small(each) for each in (example.content, *example.styles) if each is not None)
    result = FOLDER / example.name / RESULT
    made = (data_address(result.read_bytes()),) if result.is_file() else ()
    return Card(example.name, titled(example), example.prompt or say("empty_prompt"), made + given)


def titled(example: Example) -> str:
    """An example's title, translated if it is one of ours."""
    return say(key) if (key := f"example_{example.name}") in texts() else example.title


def _small(given: InputImage) -> str:
    file = io.BytesIO()
    image = given.image or Image.new("RGB", (1, 1))
    ImageOps.fit(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)).save(file, "WEBP", quality=75)
    return data_address(file.getvalue())
