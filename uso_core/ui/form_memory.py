"""The form as the browser remembers it, over a reload and a restart of the server; nothing of a private one.

What comes back was stored by the browser, so anything: a value that the form does not take now is left out.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import gradio as gr

from uso_core.catalog.loras import find_loras
from uso_core.catalog.models import Model, get_model
from uso_core.errors import RequestError
from uso_core.request import check_prompt
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Updates
from uso_core.ui.inputs import ChoiceInput, ImageInput, NumberInput, SliderInput
from uso_core.ui.services import Services

KEY = "uso-form"
SAVE = """
(kept, hidden, ...values) => {
  const names = __NAMES__;
  if (!document.body.dataset.remembering) return kept;
  return hidden ? {} : Object.fromEntries(names.map((name, place) => [name, values[place]]));
}
"""  # until the old values are back, what the page shows first must not replace them
BEGIN = "() => { document.body.dataset.remembering = 'true'; }"


def wire(page: gr.Blocks, form: Form, services: Services) -> None:
    """Puts the remembered values back when the page is opened, and stores every change."""
    kept = gr.BrowserState(None, storage_key=KEY, secret=KEY)  # readable by whoever uses the browser, as the page is
    fields = {name: field for name, field in form.fields.items() if name != "model"}

    def put_back(saved: Any, model: str, request: gr.Request) -> Updates:
        stored = {entry.sha256 for entry in services.stores(request).styles.entries()}
        loras = set(find_loras(services.settings))
        known = {name: stored if name.startswith("stored") else loras for name in fields}
        given = saved if isinstance(saved, dict) else {}
        values: Updates = {}
        for name, field in fields.items():
            value = given.get(name)
            if isinstance(field, ImageInput):
                values |= {field: path} if (path := field.kept(value)) else {}
            elif fits(name, field, value, get_model(model), known[name]):
                values[field] = value
        return form.with_aspect(values) or gr.skip()

    outputs = list(fields.values())
    loaded = page.load(put_back, [kept, form["model"]], [*outputs, form.aspect], **QUIET)
    loaded.then(None, None, None, js=BEGIN, **QUIET)
    gr.on([each.change for each in [form.private, *outputs]], None, [kept, form.private, *outputs], kept,
          js=SAVE.replace("__NAMES__", json.dumps(list(fields))), **QUIET)  # fmt: skip


def fits(name: str, field: Any, value: Any, model: Model, known: set[str]) -> bool:
    """Whether a field takes a value from outside now; `known` are the names or hashes it may be chosen from."""
    if isinstance(field, ChoiceInput):
        return value == "" or value in known if isinstance(value, str) else False
    if isinstance(field, NumberInput | SliderInput):
        low, high = model.sides if name in ("width", "height") else (field.minimum, field.maximum)
        return type(value) in (int, float) and (low is None or low <= value) and (high is None or value <= high)
    if isinstance(field, gr.Checkbox):
        return isinstance(value, bool)
    if isinstance(field, gr.Radio):
        return value in [choice for _, choice in field.choices]
    with contextlib.suppress(RequestError):
        check_prompt(value)
        return True
    return False
