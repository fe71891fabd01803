"""The form as the browser remembers it, over a reload and a restart of the server; of a private one only that it is.

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
from uso_core.ui.browser_storage import carrier
from uso_core.ui.event_options import QUIET
from uso_core.ui.form import Form, Updates
from uso_core.ui.inputs import ChoiceInput, ImageInput, NumberInput, SliderInput
from uso_core.ui.services import Services

KEY = "uso-form"
# A tab that is loaded again has its own values; a new one those that were last changed in any.
READ = f"""
(_, model) => {{
  const typed = document.body.typed = new Map(); // while the old values are on their way: they do not undo it
  document.addEventListener("input", ({{ target }}) => typed.set(target, target.value), true);
  let kept = null;
  try {{
    kept = JSON.parse(sessionStorage.getItem("{KEY}") || localStorage.getItem("{KEY}"));
  }} catch {{ /* nothing is kept, or something else */ }}
  return [kept, model];
}}
"""
SAVE = f"""
(hidden, ...values) => {{
  const names = __NAMES__;
  if (!document.body.dataset.remembering) return;
  const kept = hidden ? {{}} : Object.fromEntries(names.map((name, place) => [name, values[place]]));
  try {{
    localStorage.setItem("{KEY}", JSON.stringify(kept));
    sessionStorage.setItem("{KEY}", JSON.stringify(hidden ? {{ private: true }} : kept));
  }} catch {{ /* private browsing */ }}
}}
"""  # until the old values are back, what the page shows first must not replace them
BEGIN = """
() => {
  document.body.dataset.remembering = "true";
  for (const [field, value] of document.body.typed) {
    if (!field.isConnected || !field.matches("textarea, input[type=number], input[type=range]")) continue;
    field.value = value;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  }
  document.body.typed.clear();
}
"""


def wire(page: gr.Blocks, form: Form, services: Services) -> None:
    """Puts the remembered values back when the page is opened, and stores every change."""
    fields = {name: field for name, field in form.fields.items() if name != "model"}

    def put_back(saved: Any, model: str, request: gr.Request) -> Updates:
        given = saved if isinstance(saved, dict) else {}
        values, _ = fitting(fields, given, get_model(model), services, request)
        images = {field: field.kept(given.get(name)) for name, field in fields.items() if isinstance(field, ImageInput)}
        values |= {field: path for field, path in images.items() if path}
        if given.get("private") is True:
            values[form.private] = True
        return form.with_aspect(values) or gr.skip()

    outputs = list(fields.values())
    loaded = page.load(put_back, [carrier(), form["model"]], [*outputs, form.aspect, form.private], js=READ, **QUIET)
    loaded.then(None, None, None, js=BEGIN, **QUIET)
    gr.on([each.change for each in [form.private, *outputs]], None, [form.private, *outputs], None,
          js=SAVE.replace("__NAMES__", json.dumps(list(fields))), **QUIET)  # fmt: skip


def fitting(
    fields: dict[str, Any], given: dict[str, Any], model: Model, services: Services, request: gr.Request
) -> tuple[Updates, list[str]]:
    """Values from outside for the fields that take them now, and the names of chosen LoRAs and styles that are gone.

    Their places are emptied: their strengths are no other one's.
    """
    stored = {entry.sha256 for entry in services.stores(request).styles.entries()}
    loras = set(find_loras(services.settings))
    values: Updates = {}
    gone = []
    for name, field in fields.items():
        value = given.get(name)
        if fits(name, field, value, model, stored if name.startswith("stored") else loras):
            values[field] = value
        elif isinstance(field, ChoiceInput) and isinstance(value, str):
            gone.append(name)
    for name in gone:
        values |= {fields[name]: ""}
        for beside in (f"{name}_strength", f"{name}_on"):
            values.pop(fields.get(beside), None)
    return values, gone


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
