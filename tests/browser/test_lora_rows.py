"""LoRAs on the page: rows by name, restored by hash, taken from a ComfyUI workflow, and Turbo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_models import golden
from tests.browser.test_page import press, prompt, status
from tests.browser.test_studio import fill, generate
from tests.runtime.test_loras import ATTENTION, MLP, write_lora
from tests.ui.test_app import Served, serve
from uso_core.comfy import export_workflow
from uso_core.request import GenerationRequest
from uso_core.storage.png import read_request

pytestmark = [pytest.mark.browser, pytest.mark.slow]
RESTORE = "input[type=file][accept*=json]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds two LoRAs of the embedded model."""
    write_lora(tmp_path / "models" / "loras" / "ink.safetensors", ATTENTION)
    write_lora(tmp_path / "models" / "loras" / "Clay.safetensors", ATTENTION, MLP, seed=1)
    return tmp_path / "models"


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[Served]:
    with serve(tmp_path / "app", "--models-dir", str(folder)) as running:
        yield running


def choose(page: Page, place: int, name: str) -> None:
    page.get_by_role("combobox", name=f"LoRA {place}", exact=True).click()
    page.get_by_role("option", name=name, exact=True).last.click()  # the list of the row above may still be closing


def names(page: Page) -> list[str]:
    rows = page.locator("#loras [role=combobox]")
    expect(rows.first).to_be_visible()
    return [row.input_value() for row in rows.all() if row.is_visible()]


def test_rows_reach_the_request_and_come_back_from_the_file(
    served: Served, open_page: OpenPage, folder: Path, tmp_path: Path
) -> None:
    page = open_page(served)
    press(page, "LoRAs ▼")
    assert names(page) == ["none"]
    choose(page, 1, "ink")
    fill(page, "LoRA 1 strength", 0.5)
    choose(page, 2, "Clay")
    page.get_by_label("LoRA 2 on").uncheck()
    expect(page.get_by_role("combobox", name="LoRA 3", exact=True)).to_be_visible()
    made = generate(page, served, "a boat on a lake")
    assert [(lora.name, lora.strength) for lora in read_request(made).loras] == [("ink", 0.5)]

    other = open_page(served)
    press(other, "LoRAs ▼")
    other.locator(RESTORE).set_input_files(made)
    expect(status(other)).to_contain_text("All settings are restored.")
    expect(other.get_by_role("combobox", name="LoRA 1", exact=True)).to_have_value("ink")
    expect(other.get_by_label("LoRA 1 strength", exact=True)).to_have_value("0.5")

    workflow = tmp_path / "workflow.json"
    graph = export_workflow(read_request(made))
    workflow.write_text(json.dumps(graph))
    write_lora(folder / "loras" / "ink.safetensors", MLP)
    missing = open_page(served)
    missing.locator(RESTORE).set_input_files(made)
    expect(status(missing)).to_contain_text("The LoRA ink here is another file than the one that was used.")


def test_a_workflows_loras_are_found_by_file_name(served: Served, open_page: OpenPage, tmp_path: Path) -> None:
    asked = GenerationRequest("a fox", width=128, height=96, steps=12, seed=9)
    graph = export_workflow(asked)
    loader = next(node for node in graph["nodes"] if node["type"] == "LoraLoaderModelOnly")
    last = max(node["id"] for node in graph["nodes"])
    for place, (name, strength) in enumerate((("styles\\\\INK.safetensors", 0.7), ("wool.safetensors", 1.0)), 1):
        link = max(each[0] for each in graph["links"]) + 1
        (source,) = loader["outputs"]
        after = {**loader, "id": last + place, "widgets_values": [name, strength]}
        after["inputs"] = [{"name": "model", "type": "MODEL", "link": link}]
        after["outputs"] = [{**source}]
        for each in graph["links"]:
            if each[1] == loader["id"]:
                each[1] = after["id"]
        loader["outputs"] = [{**source, "links": [link]}]
        graph["links"].append([link, loader["id"], 0, after["id"], 0, "MODEL"])
        graph["nodes"].append(after)
        loader = after
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(graph))
    page = open_page(served)
    press(page, "LoRAs ▼")
    page.locator(RESTORE).set_input_files(path)
    expect(status(page)).to_contain_text("LoRA wool.safetensors (strength 1) is not found here and is left out.")
    expect(status(page)).not_to_contain_text("INK")
    expect(page.get_by_role("combobox", name="LoRA 1", exact=True)).to_have_value("ink")
    expect(page.get_by_label("LoRA 1 strength", exact=True)).to_have_value("0.7")


def test_turbo_says_how_to_get_it_and_sets_what_it_needs(open_page: OpenPage, tmp_path: Path) -> None:
    with serve(tmp_path / "app", name="flux-dev", USO_WEIGHTS=str(tmp_path / "weights"), **golden()) as served:
        page = open_page(served)
        expect(page.locator("#loras")).to_be_hidden()
        page.get_by_label("Turbo: 8 steps").check()
        expect(page.get_by_test_id("toast-body")).to_contain_text("downloader.py --variant flux-dev --only turbo")
        expect(page.get_by_label("Turbo: 8 steps")).not_to_be_checked()
        place = tmp_path / "weights" / "FLUX.1-Turbo-Alpha" / "diffusion_pytorch_model.safetensors"
        write_lora(place, ATTENTION)
        page.reload()
        prompt(page).fill("a boat")
        page.get_by_label("Turbo: 8 steps").check()
        expect(page.get_by_label("Steps", exact=True)).to_have_value("8")
        expect(page.get_by_label("Guidance", exact=True)).to_have_value("3.5")
        press(page, "LoRAs ▼")
        assert names(page)[0] == "FLUX.1-Turbo-Alpha"
        page.get_by_label("Turbo: 8 steps").uncheck()
        expect(page.get_by_label("Steps", exact=True)).to_have_value("25")
        expect(page.get_by_role("combobox", name="LoRA 2", exact=True)).to_be_hidden()
        assert names(page) == ["none"]
