"""The Model tab: the current model, switching without a restart, missing files, and a download from the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_page import Shot, expect_image, number, press, prompt, set_number, shown
from tests.catalog import comfy_folder
from tests.catalog.hub_server import HubServer
from tests.catalog.test_download import LORA, PROJECTOR, TOKEN, USO, content
from tests.conftest import GOLDEN
from tests.ui.test_app import Served, serve

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FLUX = {
    "FLUX_DEV": "flux.safetensors",
    "AE": "ae.safetensors",
    "LORA": "dit_lora.safetensors",
    "PROJECTION_MODEL": "projector.safetensors",
    "T5": "t5",
    "CLIP": "clip",
    "SIGLIP_PATH": "siglip",
}
LORA_BYTES = 35_000_000  # the client passes on 10 MB at a time


def golden(*names: str) -> dict[str, str]:
    """Variables that point at the reduced weights, except those named."""
    return {name: str(GOLDEN / file) for name, file in FLUX.items() if name not in names}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An app that uses the embedded model and also has a complete flux-dev of reduced size."""
    with serve(tmp_path_factory.mktemp("models"), **golden()) as running:
        yield running


def open_tab(page: Page) -> None:
    page.get_by_role("tab", name="Model").click()
    expect(page.locator("#model-files table").first).to_be_visible()


def create(page: Page) -> None:
    page.get_by_role("tab", name="Create").click()


def choose(page: Page, title: str) -> None:
    page.get_by_label("Choose a model").click()
    page.get_by_role("option", name=re.compile(rf"{re.escape(title)} ·")).click()


def at_work(page: Page) -> Locator:
    return page.locator("#model-work")


def test_the_current_model_is_shown_and_its_memory_given_back(served: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(served)
    open_tab(page)
    expect(at_work(page)).to_contain_text("Model: uso-tiny, embedded (not in memory)")
    expect(page.locator("#model-files")).to_contain_text("weights/uso-tiny/flux.safetensors")
    create(page)
    prompt(page).fill("a boat on a lake")
    press(page, "Generate")
    expect_image(page)
    open_tab(page)
    expect(at_work(page)).to_contain_text(re.compile(r"Model: uso-tiny, embedded \(cpu, (float32|bfloat16)\)"))
    shot(page, "model")
    press(page, "Unload")
    expect(at_work(page)).to_contain_text("not in memory")
    create(page)
    prompt(page).fill("a boat on a lake")
    press(page, "Generate")
    expect_image(page)


def test_the_demo_model_leads_to_a_better_one(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    expect(prompt(page)).to_have_attribute("placeholder", re.compile("a happy red boat"))
    page.get_by_role("button", name="Demo model · 128 px · Get FLUX.1-dev").click()
    expect(page.get_by_label("Choose a model")).to_have_value(re.compile("USO on FLUX.1-dev · .* GB"))
    expect(page.locator("#model-files")).to_contain_text("1024 by default")
    expect(at_work(page)).to_contain_text("uso-tiny")


def test_another_model_without_a_restart(served: Served, open_page: OpenPage) -> None:
    page, before = open_page(served), open_page(served)
    open_tab(page)
    choose(page, "USO on FLUX.1-dev")
    expect(page.locator("#model-files")).to_contain_text("All files are present.")
    press(page, "Use this model")
    expect(page.get_by_role("button", name="USO on FLUX.1-dev · 1024 px")).to_be_visible()
    expect(at_work(page)).to_contain_text("as chosen on the page")
    create(page)
    expect(number(page, "Width")).to_have_value("1024")
    other = open_page(served)
    expect(number(other, "Width")).to_have_value("1024")
    for each in (page, before):
        set_number(each, "Width", 256)
        set_number(each, "Height", 256)
        set_number(each, "Steps", 1)
        prompt(each).fill("a boat on a lake")
        press(each, "Generate")
        expect_image(each)
    assert shown(page).model == "flux-dev"
    assert shown(before).model == "uso-tiny"  # it shows that model's settings until it is reloaded
    prompt(page).fill("a boat on a lake")
    press(page, "Generate")
    open_tab(page)
    expect(at_work(page)).to_contain_text(re.compile(r"Model: USO on FLUX.1-dev \(cpu, (float32|bfloat16)\)"))
    choose(page, "uso-tiny, embedded")
    press(page, "Use this model")
    expect(page.get_by_role("button", name="In use")).to_be_disabled()
    create(page)
    expect(number(page, "Width")).to_have_value("128")


def test_a_preset_may_be_a_models_default(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    set_number(page, "Steps", 7)
    press(page, "Presets ▼")
    page.get_by_label("Name of the preset").fill("quick")
    press(page, "Save")
    expect(page.get_by_label("Preset", exact=True)).to_have_value("quick")
    page.get_by_label("Default for this model").check()
    for title, steps in (("USO on FLUX.1-dev", "25"), ("uso-tiny, embedded", "7")):
        open_tab(page)
        choose(page, title)
        press(page, "Use this model")
        expect(page.get_by_role("button", name="In use")).to_be_disabled()
        create(page)
        expect(number(page, "Steps")).to_have_value(steps)
    expect(page.get_by_label("Default for this model")).to_be_checked()
    page.get_by_label("Default for this model").uncheck()


def test_missing_files_and_the_command_that_gets_them(served: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(served)
    open_tab(page)
    choose(page, "USO on FLUX.1-schnell")
    expect(page.locator("#model-files")).to_contain_text("It cannot be used yet: 1 of 7 files missing, 23.78 GB")
    expect(page.locator("#model-command")).to_contain_text("python weights/downloader.py --variant flux-schnell")
    expect(page.get_by_role("button", name=re.compile("Download"))).to_have_count(0)
    shot(page, "model-missing")
    expect(page.get_by_role("button", name="Use this model")).to_be_disabled()
    create(page)
    expect(number(page, "Width")).to_have_value("128")


@pytest.mark.parametrize("width", [1280, 390])
def test_what_the_model_folders_hold(open_page: OpenPage, tmp_path: Path, shot: Shot, width: int) -> None:
    whole = comfy_folder.build(tmp_path / "ComfyUI")
    flags = ("--models-dir", str(whole), "--weights", str(tmp_path / "weights"))
    with serve(tmp_path / "app", *flags, name=None) as app:
        page = open_page(app, viewport={"width": width, "height": 844})
        open_tab(page)
        files = page.locator("#model-files")
        expect(files).to_contain_text("All files are present.")
        expect(files).to_contain_text(str(whole / comfy_folder.TOKENIZERS["t5"]))
        expect(files.locator("tr", has_text="flux1-dev")).to_contain_text("FLUX.1 transformer (dev, bf16)")
        files.locator("summary").click()
        expect(files.locator("tr", has_text="sdxl_vae").last).to_contain_text("does not fit this model")
        expect(files.locator("tr", has_text="a_style").last).to_contain_text("another LoRA than USO's")
        page.wait_for_timeout(2500)  # the tab looks for changes meanwhile
        expect(files.locator("tr", has_text="a_style").last).to_be_visible()
        shot(page, f"model-folders-{width}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_visitors_from_the_network_may_look_but_not_switch(open_page: OpenPage, tmp_path: Path) -> None:
    with serve(tmp_path / "app", "--host", "0.0.0.0", **golden()) as app:
        page = open_page(app)
        open_tab(page)
        choose(page, "USO on FLUX.1-dev")
        expect(page.locator("#model-files")).to_contain_text("All files are present.")
        expect(page.locator("#model-files")).not_to_contain_text(str(GOLDEN.parent.parent.parent))
        for name in ("Use this model", "Unload"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 390])
def test_the_tab_fits(served: Served, open_page: OpenPage, shot: Shot, width: int) -> None:
    page = open_page(served, viewport={"width": width, "height": 844}, color_scheme="dark")
    open_tab(page)
    shot(page, f"model-{width}-dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_download_is_visible_to_all_stopped_and_resumed(open_page: OpenPage, tmp_path: Path, shot: Shot) -> None:
    repo = {LORA: content(LORA, LORA_BYTES), PROJECTOR: content(PROJECTOR)}
    with HubServer({USO: repo}) as hub:
        hub.members.add(TOKEN)
        hub.stall[LORA] = 25_000_000
        variables = {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "40", "HF_TOKEN": TOKEN, "NO_PROXY": "*"}
        weights = tmp_path / "weights"
        with serve(
            tmp_path / "app", "--allow-download", "--weights", str(weights),
            **golden("LORA", "PROJECTION_MODEL"), **variables,
        ) as app:  # fmt: skip
            page, other = open_page(app), open_page(app)
            for each in (page, other):
                open_tab(each)
                choose(each, "USO on FLUX.1-dev")
                expect(each.locator("#model-files")).to_contain_text("2 of 7 files missing")
            press(page, "Download USO on FLUX.1-dev")
            assert hub.stalled.wait(30)
            for each in (page, other):
                expect(each.locator("#model-download")).to_contain_text("20.97 MB of 35.00 MB, 60 %")
            expect(other.get_by_role("button", name="Download USO on FLUX.1-dev")).to_be_disabled()
            shot(page, "model-download")
            press(other, "Cancel download")
            expect(page.locator("#model-download")).to_contain_text("Stopping after this piece")
            hub.release.set()
            expect(page.locator("#model-download")).to_contain_text("Stopped. What was downloaded is kept")
            (part,) = weights.rglob("*.part")
            assert 0 < part.stat().st_size < LORA_BYTES
            hub.body_bytes.clear()
            press(page, "Download USO on FLUX.1-dev")
            expect(page.locator("#model-download")).to_contain_text("All files of flux-dev are present.")
            expect(page.locator("#model-files")).to_contain_text("All files are present.")
            assert 0 < hub.body_bytes[LORA] < LORA_BYTES
            assert (weights / "USO" / LORA).read_bytes() == repo[LORA]

            assert TOKEN not in page.content() + app.log.read_text()
