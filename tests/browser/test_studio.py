"""A day's work: watching, skipping, reusing, dropping an image, looking back, coming from ComfyUI."""

from __future__ import annotations

import base64
import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage, eventually
from tests.ui.test_app import Served, pixels
from uso_core.catalog.examples import FOLDER
from uso_core.comfy import export_workflow
from uso_core.images import open_image
from uso_core.request import GenerationRequest
from uso_core.storage.png import read_request

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DROP = """
async ([data, name]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  const target = document.querySelector("#status");
  for (const kind of ["dragover", "drop"])
    target.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""


STYLE = FOLDER / "06-style" / "style1.png"


@pytest.fixture
def page(served: Served, open_page: OpenPage) -> Page:
    return open_page(served)


@pytest.fixture
def drawing(tmp_path: Path) -> Path:
    path = tmp_path / "drawing.png"
    Image.effect_mandelbrot((96, 96), (-2, -1, 1, 1), 20).convert("RGB").save(path)
    return path


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def fill(page: Page, label: str, value: object) -> None:
    field = page.get_by_label(label, exact=True).first
    field.fill(str(value))
    field.press("Tab")


def slot(page: Page, name: str) -> Locator:
    return page.get_by_role("group", name=name, exact=True)


def upload(page: Page, name: str, path: Path) -> None:
    slot(page, name).locator("input[type=file]").set_input_files(path)
    expect(slot(page, name).locator("img").first).to_be_visible()


def generate(page: Page, served: Served, prompt: str) -> Path:
    """Presses Generate and returns the resulting file."""
    before = set(served.results)
    page.get_by_label("Prompt").fill(prompt)
    press(page, "Generate")
    eventually(lambda: len(set(served.results) - before) == 1)
    expect(page.locator("#status")).to_contain_text("Done in")
    (made,) = set(served.results) - before
    expect(page.locator("#visit img")).not_to_have_count(0)
    return made


def status(page: Page, words: str) -> None:
    expect(page.locator("#status")).to_contain_text(words)


def test_the_mode_follows_from_what_is_filled_in(page, drawing):
    mode = page.locator("#mode")
    expect(mode).to_contain_text("Text to image")
    upload(page, "Content image", drawing)
    expect(mode).to_contain_text("Subject")
    upload(page, "Style image 1", drawing)
    expect(mode).to_contain_text("Subject in a style, layout kept: the prompt is empty")
    page.get_by_label("Prompt").fill("a mug")
    expect(mode).to_contain_text("new layout")
    upload(page, "Style image 2", drawing)
    expect(mode).to_contain_text("2 blended styles")


def test_previews_change_before_the_end(page, served):
    fill(page, "Width", 256)
    fill(page, "Height", 256)
    page.get_by_role("button", name="Advanced ▼", exact=True).click()
    fill(page, "Steps", 60)
    seen: set[str] = set()
    page.get_by_label("Prompt").fill("previews")
    press(page, "Generate")
    for _ in range(600):
        words, source = page.evaluate(
            "() => [document.querySelector('#status').innerText, document.querySelector('#result img')?.src ?? '']"
        )
        if words.startswith("Step") and source:
            seen.add(source)
        if words.startswith("Done"):
            break
        page.wait_for_timeout(50)
    assert len(seen) >= 2


def test_skip_leaves_one_of_several_out(page, served):
    fill(page, "Width", 256)
    fill(page, "Height", 256)
    page.get_by_role("button", name="Advanced ▼", exact=True).click()
    fill(page, "Steps", 100)
    fill(page, "Images", 2)
    before = set(served.results)
    page.get_by_label("Prompt").fill("two, of which one")
    press(page, "Generate")
    status(page, "Image 1 of 2, step")
    press(page, "Skip")
    status(page, "Image 2 of 2, step")
    status(page, "Done in")
    (made,) = set(served.results) - before
    assert read_request(made).prompt == "two, of which one"


def test_a_dropped_png_restores_every_field_and_gives_the_same_pixels(page, served, open_page, drawing):
    upload(page, "Content image", drawing)
    upload(page, "Style image 1", drawing)
    fill(page, "Style 1 strength", 0.5)
    fill(page, "Width", 96)
    fill(page, "Height", 64)
    fill(page, "Seed", 77)
    first = generate(page, served, "a boat at night")
    assert read_request(first).style_strengths == (0.5,)

    other = open_page(served)
    other.evaluate(DROP, [base64.b64encode(first.read_bytes()).decode(), first.name])
    status(other, "All settings are restored.")
    expect(other.get_by_label("Prompt")).to_have_value("a boat at night")
    expect(other.get_by_label("Width", exact=True).first).to_have_value("96")
    again = generate(other, served, "a boat at night")
    assert pixels(again) == pixels(first)
    assert read_request(again) == read_request(first)


def test_a_result_becomes_content_style_and_settings(page, served):
    fill(page, "Seed", 5)
    first = generate(page, served, "to be used again")
    press(page, "Use as content")
    expect(slot(page, "Content image").locator("img").first).to_be_visible()
    press(page, "Use as style")
    expect(slot(page, "Style image 1").locator("img").first).to_be_visible()
    second = generate(page, served, "used again")
    request = read_request(second)
    assert request.content == request.styles[0]
    assert request.content is not None
    assert request.content.sha256 == open_image(first).sha256
    page.locator("#visit button", has=page.locator("img")).nth(1).click()
    expect(page.locator("#result img")).to_have_attribute("src", re.compile(re.escape(first.name)))
    press(page, "Reuse settings")
    expect(page.get_by_label("Prompt")).to_have_value("to be used again")


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def said(page: Page, words: str) -> None:
    expect(page.locator("#styles-status")).to_contain_text(words)


def save(page: Page, name: str) -> None:
    """Saves the images in the style slots as a style with this name."""
    tab(page, "Styles")
    page.get_by_label("Style name", exact=True).fill(name)
    press(page, "Save style")


def test_a_style_without_an_image_or_a_name_is_reported(page, served):
    save(page, "Nothing")
    said(page, "No style image is in the slots")
    tab(page, "Create")
    upload(page, "Style image 1", STYLE)
    save(page, " ")
    said(page, "The style has no name.")


def test_history_has_a_heading_for_each_day(page, served):
    made = generate(page, served, "a <b>long</b> time ${1+1} ago {{value}}")
    long_ago = made.with_name("20200102-030405-1.png")
    long_ago.write_bytes(made.read_bytes())
    long_ago.with_suffix(".json").write_bytes(made.with_suffix(".json").read_bytes())
    os.utime(long_ago, (1_577_934_245, 1_577_934_245))
    tab(page, "History")
    page.get_by_label("Search").fill("ago {{value}}")
    expect(page.locator("#history-images b")).to_have_text(["a <b>long</b> time ${1+1} ago {{value}}"] * 2)
    expect(page.locator("#history-images h3")).to_have_text(["Today", re.compile(r"January 2020")])


def test_private_mode_writes_nothing_below_the_output_folder(page, served, tmp_path, drawing):
    before = set(served.output.rglob("*"))
    page.get_by_label("Private: don't save").check()
    upload(page, "Content image", drawing)
    page.get_by_label("Prompt", exact=True).fill("a secret")
    press(page, "Generate")
    status(page, "Done in")
    source = page.locator("#result img").get_attribute("src")
    reply = page.request.get(source)
    (tmp_path / "seen.png").write_bytes(reply.body())
    assert read_request(tmp_path / "seen.png").prompt == "a secret"
    with page.expect_download() as waiting:
        page.locator("#result").get_by_role("link", name="Download").click()
    assert read_request(waiting.value.path()).prompt == "a secret"
    assert set(served.output.rglob("*")) == before
    tab(page, "History")
    page.get_by_label("Search").fill("a secret")
    expect(page.get_by_text("No prompt contains “a secret”.")).to_be_visible()
    kept = list((served.output.parent / "uploads").rglob("private-*.png"))
    assert kept
    page.close()
    eventually(lambda: not any(path.exists() for path in kept))


def test_one_of_several_results_is_chosen_compared_and_downloaded(page, served, drawing):
    upload(page, "Content image", drawing)
    fill(page, "Images", 2)
    fill(page, "Seed", 40)
    before = set(served.results)
    press(page, "Generate")
    eventually(lambda: len(set(served.results) - before) == 2)
    status(page, "seed 41.")
    thumbnails = page.locator("#visit button", has=page.locator("img"))
    expect(thumbnails).to_have_count(2)
    expect(page.get_by_label("Seed used", exact=True)).to_have_value("41")
    thumbnails.nth(1).click()
    expect(page.get_by_label("Seed used", exact=True)).to_have_value("40")
    fill(page, "Seed", -1)
    press(page, "Reuse seed")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("40")
    page.get_by_role("button", name="Compare with the content image ▼").click()
    expect(page.locator("#compare img").first).to_be_visible()
    expect(page.locator("#compare img")).to_have_count(2)
    with page.expect_download() as waiting:
        press(page, "Download all (zip)")
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert sorted(archive.namelist()) == sorted(path.name for path in set(served.results) - before)


def test_the_names_that_scripts_rely_on_exist_once(page):
    names = {
        "textbox": ["Prompt"],
        "button": ["Generate", "Stop", "Skip", "Reuse settings", "Use as content", "Use as style"],
        "spinbutton": ["Width", "Height", "Steps", "Guidance", "Seed", "Images"],
        "tab": ["Create", "History", "Styles", "Model"],
        "group": ["Content image", "Style image 1", "Style image 2"],
    }
    for role, every in names.items():
        for name in every:
            expect(page.get_by_role(role, name=name, exact=True)).to_have_count(1)
            if role in ("textbox", "spinbutton", "group"):
                expect(page.get_by_label(name, exact=True)).to_have_count(1)
    expect(page.get_by_label("Prompt")).to_have_count(1)


def day(path: Path) -> str:
    from datetime import datetime

    return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"


def test_a_comfyui_workflow_fills_the_form(page, tmp_path):
    unseen = tmp_path / "unseen.png"  # the history does not have it
    Image.new("RGB", (96, 96), (1, 2, 3)).save(unseen)
    asked = GenerationRequest("a fox", open_image(unseen), width=128, height=96, steps=12, guidance=3.0, seed=9,
                              content_size=64)  # fmt: skip
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(export_workflow(asked)), encoding="utf-16")
    page.locator("input[type=file][accept*=json]").set_input_files(path)
    status(page, "Choose unseen.png as the content image.")
    expect(page.get_by_label("Prompt")).to_have_value("a fox")
    expect(page.get_by_label("Height", exact=True).first).to_have_value("96")
    expect(page.get_by_label("Seed", exact=True).first).to_have_value("9")


def test_an_exported_workflow_comes_back_with_every_setting(page, served, open_page, tmp_path, drawing):
    upload(page, "Content image", drawing)
    upload(page, "Style image 1", drawing)
    for label, value in (("Seed", 77), ("Steps", 5), ("Guidance", 2.5), ("Height", 96)):
        fill(page, label, value)
    generate(page, served, "a fox there and back")
    with page.expect_download() as waiting:
        press(page, "ComfyUI workflow")
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    other = open_page(served)
    other.locator("input[type=file][accept*=json]").set_input_files(path)
    status(other, "drawing.png, drawing.png: found in the history.")
    for name in ("Content image", "Style image 1"):
        expect(slot(other, name).locator("img").first).to_be_visible()
    expect(other.get_by_label("Prompt")).to_have_value("a fox there and back")
    for label, value in (("Seed", 77), ("Steps", 5), ("Guidance", 2.5), ("Width", 128), ("Height", 96)):
        expect(other.get_by_label(label, exact=True).first).to_have_value(str(value))
    expect(other.get_by_label("Aspect", exact=True)).to_have_value("4:3")


def test_an_aspect_sets_width_and_height(page):
    page.get_by_label("Aspect").click()
    page.get_by_role("option", name="16:9").click()
    expect(page.get_by_label("Width", exact=True).first).to_have_value("224")
    expect(page.get_by_label("Height", exact=True).first).to_have_value("128")
    fill(page, "Width", 144)
    expect(page.get_by_label("Aspect")).to_have_value("custom")
    fill(page, "Width", 128)
    expect(page.get_by_label("Aspect")).to_have_value("1:1")


def test_an_image_that_is_not_ours_is_reported(page, drawing):
    page.locator("input[type=file][accept*=json]").set_input_files(drawing)
    expect(page.get_by_test_id("toast-body")).to_contain_text("drawing.png holds no USO settings.")


def test_the_page_and_the_api_make_the_same_file(page, served, drawing):
    upload(page, "Content image", drawing)
    fill(page, "Seed", 4321)
    made = generate(page, served, "the same file")
    shown = page.request.get(page.locator("#result img").get_attribute("src") or "").body()
    client = Client(served.url, verbose=False, analytics_enabled=False)
    images, *_ = client.predict(prompt="the same file", content=handle_file(drawing), seed=4321, api_name="/generate")
    client.close()
    assert made.read_bytes() == shown == Path(images[0]).read_bytes()
