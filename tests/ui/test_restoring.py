"""What the form holds after an import or a restore: what the file says, and nothing of what was there before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from tests.runtime.test_loras import ATTENTION, write_lora
from uso_core.catalog import scan
from uso_core.catalog.models import MODELS
from uso_core.comfy import export_api, import_workflow
from uso_core.errors import RequestError
from uso_core.images import open_image
from uso_core.request import GenerationRequest, LoRA, Result
from uso_core.runtime.engine import Engine
from uso_core.settings import Settings
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore
from uso_core.ui import presets, results, text
from uso_core.ui.form import STYLES, Form, build_form
from uso_core.ui.lora_rows import by_file_name
from uso_core.ui.results import restored
from uso_core.ui.services import Services, Stores

SETTINGS = Settings(name="uso-tiny")
SERVICES = Services.of(Engine(SETTINGS), SETTINGS)
RED, BLUE = (open_image(Image.new("RGB", (20, 30), colour), f"{colour}.png") for colour in ("red", "blue"))
WORDS = GenerationRequest(prompt="a red fox in snow", seed=7, width=1216, height=832)


@pytest.fixture
def form() -> Form:
    with gr.Blocks() as page:
        return build_form(page, MODELS["flux-dev"], SERVICES)


def test_a_workflow_of_words_alone_leaves_no_image_behind(form):
    values = form.imported(import_workflow(json.dumps(export_api(WORDS))), {})
    named = {name: values[field] for name, field in form.fields.items() if field in values}
    assert all(named[f"style_{number}"] is None for number in range(1, STYLES + 1))
    assert (named["content"], named["stored_1"], named["stored_2"]) == (None, "", "")
    assert (named["keep_size"], named["fast"]) == (False, False)
    assert {value for name, value in named.items() if name.endswith("_strength")} == {1.0}
    assert [named[f"lora_{place}"] for place in (1, 2)] == ["", ""]
    assert (named["prompt"], named["width"], values[form.aspect]) == (WORDS.prompt, 1216, "custom")


def test_a_workflows_images_take_the_places_of_others(form, tmp_path):
    request = dataclasses.replace(WORDS, content=RED, styles=(BLUE,), keep_size=True, fast=True)
    values = form.imported(import_workflow(json.dumps(export_api(request))), {BLUE.sha256: tmp_path / "blue.png"})
    assert values[form["content"]] is None  # it is not kept: to be chosen
    assert [values[slot] for slot in form.style_slots] == [str(tmp_path / "blue.png"), None, None, None]
    assert (values[form["keep_size"]], values[form["fast"]]) == (True, True)


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [("flux1-dev-fp8.safetensors", "flux-dev", False), ("flux1-dev-Q4_K_S.gguf", "flux-dev-fp8", False),
     ("FLUX/flux1-krea-dev_fp8_scaled.safetensors", "flux-krea-dev", False),
     ("flux1-schnell-fp8.safetensors", "flux-dev", True), ("flux1-krea-dev.safetensors", "flux-dev", True),
     ("flux1-dev-kontext_fp8_scaled.safetensors", "flux-dev", True), ("sd_xl_base_1.0.safetensors", "flux-dev", True),
     ("sd_xl_base_1.0.safetensors", "uso-tiny", False)],
)  # fmt: skip
@pytest.mark.parametrize(("kind", "field"), [("CheckpointLoaderSimple", "ckpt_name"), ("UnetLoaderGGUF", "unet_name")])
def test_a_workflow_of_another_model_says_so(name, model, said, kind, field):
    workflow = export_api(WORDS)
    loader = next(node for node in workflow.values() if node["class_type"] == "CheckpointLoaderSimple")
    loader |= {"class_type": kind, "inputs": {field: name}}
    found = import_workflow(json.dumps(workflow))
    assert found.model_file == Path(name).name
    assert (Path(name).name in text.imported(found, {}, STYLES, [], MODELS[model])) == said


def test_a_workflows_loras_are_taken_or_it_says_why_not(tmp_path: Path) -> None:
    settings = Settings(name="uso-tiny", weights=tmp_path)
    for name in ("ink", "a/twin", "b/twin", "one", "two", "three", "four"):
        (tmp_path / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        write_lora(tmp_path / "loras" / f"{name}.safetensors", ATTENTION)

    def found(*names: tuple[str, float | None]) -> list[object]:
        workflow = export_api(WORDS)
        last = next(key for key, each in workflow.items() if each["class_type"] == "LoraLoaderModelOnly")
        rows = {f"lora_{n}": {"on": True, "lora": name, "strength": value} for n, (name, value) in enumerate(names)}
        for each in workflow.values():
            if each["inputs"].get("model") == [last, 0]:
                each["inputs"]["model"] = ["rows", 0]
        workflow["rows"] = {"class_type": "Power Lora Loader (rgthree)", "inputs": {"model": [last, 0], **rows}}
        read = import_workflow(json.dumps(workflow))
        here = by_file_name(read.loras, read.lora_folders, settings)
        said = text.imported(read, {}, STYLES, here, MODELS["uso-tiny"])
        assert ("is not found here" in said) == (None in here)
        return [each.name if isinstance(each, LoRA) else each and str(each) in said and each.key
                for each in here]  # fmt: skip

    assert found(("elsewhere/INK.safetensors", 0.5), ("none.safetensors", 1)) == ["ink", None]
    assert found(("twin.safetensors", 1), ("B\\twin.safetensors", 1), ("x/a/twin.safetensors", 1)) == [
        "lora_twins", "b/twin", "twin"]  # fmt: skip
    assert found(("c/twin.safetensors", 1), ("ink.safetensors", 9)) == ["lora_twins", "lora_too_strong"]
    write_lora(tmp_path / "loras/a/ink.safetensors", ATTENTION)
    scan._scan.cache_clear()
    assert found(("ink.safetensors", 1), ("a/ink.safetensors", 1)) == ["ink", "a/ink"]
    five = [(f"{name}.safetensors", 1.0) for name in ("one", "two", "three", "four", "ink")]
    assert found(*five) == ["one", "two", "three", "four", "lora_beyond"]


@pytest.mark.parametrize(("model", "said"), [("uso-tiny", False), ("flux-dev", True), ("of-tomorrow", True)])
def test_an_image_of_another_model_says_so(form, tmp_path, model, said):
    history = History(tmp_path / "output", 10, 10**9)
    path = history.add(Image.new("RGB", (32, 32)), Result(WORDS, 7, model, "cpu", "float32", 0.5))
    words = restored(form, SERVICES, Stores(history, StyleStore(tmp_path / "styles")), path)[1]
    assert (words != text.restored([], [])) == said
    assert (MODELS[model].title if model in MODELS else model) in words or not said


def test_the_record_beside_an_image_restores_it_and_presets_are_sent_to_their_button(form, tmp_path):
    history = History(tmp_path / "output", 10, 10**9)
    path = history.add(Image.new("RGB", (32, 32)), Result(WORDS, 7, "uso-tiny", "cpu", "float32", 0.5))
    beside = path.with_suffix(".json")
    by_command_line = tmp_path / "0_0.json"
    by_command_line.write_text(json.dumps({"prompt": "other", "uso": json.loads(beside.read_text())}))
    stores = Stores(history, StyleStore(tmp_path / "styles"))
    for file in (beside, by_command_line):
        assert results._workflow(file) is None
        assert restored(form, SERVICES, stores, file) == restored(form, SERVICES, stores, path)
    kept = tmp_path / "presets.json"
    kept.write_text(json.dumps({presets.IN_FILE: {"mine": {"steps": 5}}}))
    with pytest.raises(RequestError) as caught:
        results._workflow(kept)
    assert caught.value.key == "presets_file"


def of_presets(name):
    """A function of the panel, and the form's fields by component."""
    with gr.Blocks() as page:
        form = build_form(page, MODELS["uso-tiny"], SERVICES)
        presets.build(page, form, SERVICES)
    functions = {each.fn.__name__: each.fn for each in page.fns.values() if each.fn is not None}
    return functions[name], form


def test_the_strength_of_what_is_gone_is_no_other_ones():
    apply, form = of_presets("apply")
    saved = {"mine": {"steps": 5, "lora_1": "gone", "lora_1_strength": 0.3, "lora_1_on": False, "stored_1": "0" * 64,
                      "stored_1_strength": 0.4, "lora_2": "", "lora_2_strength": 0.6}}  # fmt: skip
    values = apply(saved, "mine", "uso-tiny", None)
    named = {name: values[field] for name, field in form.fields.items() if field in values}
    assert named == {"steps": 5, "lora_1": "", "stored_1": "", "lora_2": "", "lora_2_strength": 0.6}
    assert values[form.status]["text"] == (
        "The preset's LoRAs gone are not here. A saved style of the preset no longer exists."
    )


def test_turbo_goes_with_its_lora_and_takes_no_others_place(tmp_path, monkeypatch):
    path = write_lora(tmp_path / "weights/loras/flux1-turbo.safetensors", ATTENTION)
    settings = Settings(name="uso-tiny", weights=str(tmp_path / "weights"), turbo_lora=str(path))
    services = Services.of(Engine(settings), settings)
    with gr.Blocks() as page:
        form = build_form(page, MODELS["flux-dev"], services)
    switch = next(each.fn for each in page.fns.values() if each.fn is not None and each.fn.__name__ == "switch")
    on = switch(True, "flux-dev", "", "", "", "")
    assert (on[form["lora_1"]], on[form["steps"]]) == ("flux1-turbo", 8)
    off = switch(False, "flux-dev", "flux1-turbo", "", "", "")
    assert (off[form["lora_1"]], off[form["steps"]]) == ("", MODELS["flux-dev"].steps)
    monkeypatch.setattr(gr, "Warning", lambda words, **options: None)
    assert switch(True, "flux-dev", "a", "b", "c", "mine") == {form.loras.turbo: False}


def test_an_import_replaces_no_preset(tmp_path):
    receive, _ = of_presets("receive")
    long = "x" * presets.LONGEST_NAME
    mine = {"mine": {"steps": 5, presets.DEFAULT_FOR: "uso-tiny"}, "same": {"steps": 1}}
    theirs = {"mine": {"steps": 9, presets.DEFAULT_FOR: "uso-tiny"}, "same": {"steps": 1}, f"{long}1": {"steps": 2},
              f"{long}2": {"steps": 3}}  # fmt: skip
    file = tmp_path / "presets.json"
    file.write_text(json.dumps({presets.IN_FILE: theirs}))
    (found,) = (value for value in receive(mine, str(file)).values() if isinstance(value, dict) and "put" in value)
    new = {"mine (2)": {"steps": 9}, long: {"steps": 2}, f"{long[:-4]} (2)": {"steps": 3}}
    assert found == {"put": new, "gone": []}


def test_presets_beyond_the_most_are_refused_before_any_goes(tmp_path):
    receive, _ = of_presets("receive")
    file = tmp_path / "presets.json"
    file.write_text(json.dumps({"uso_presets": {f"new {number}": {"steps": 5} for number in range(20)}}))
    saved = {f"mine {number}": {"steps": 5} for number in range(presets.MOST - 5)}
    with pytest.raises(gr.Error):
        receive(saved, str(file))
    assert any(
        len(value["put"]) == 20
        for value in receive(dict(list(saved.items())[:60]), str(file)).values()
        if isinstance(value, dict) and "put" in value
    )
