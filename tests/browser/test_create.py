"""The Create tab: what is seen at once, one selection for everything, and nothing lost."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from transformers import AutoTokenizer

from tests.browser.conftest import PATIENCE_MS, OpenPage, eventually
from tests.browser.test_page import image, of_seed, press, prompt, set_number, shown, status
from tests.browser.test_studio import generate, slot, tab, upload
from tests.ui.test_app import Served
from uso_core.catalog.examples import FOLDER
from uso_core.model.unread import unread
from uso_core.settings import ROOT
from uso_core.storage.png import read_request
from uso_core.ui.known_words import OFFERED

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CONTENT, STYLE = FOLDER / "03-subject" / "content.png", FOLDER / "06-style" / "style1.png"
SHIFTS = """
() => { window.shifts = 0; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
}).observe({ type: "layout-shift", buffered: true }); }
"""
ARRIVE = """
async ([kind, data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type }));
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent("paste", { ...options, clipboardData: files })
                                 : new DragEvent("drop", { ...options, dataTransfer: files });
  document.querySelector("#status").dispatchEvent(event);
}
"""
SEVERAL = """
([target, given]) => {
  const files = new DataTransfer();
  for (const [data, name] of given) {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    files.items.add(new File([bytes], name, { type: "image/png" }));
  }
  const options = { bubbles: true, cancelable: true, dataTransfer: files };
  document.querySelector(target).dispatchEvent(new DragEvent("drop", options));
}
"""


def seed_used(page: Page, seed: int) -> None:
    expect(page.get_by_label("Seed used", exact=True)).to_have_value(str(seed))


@pytest.mark.parametrize("size", [(1440, 900), (1366, 768), (1920, 1080)])
def test_a_first_run_needs_no_scrolling_and_nothing_shifts(
    served: Served, open_page: OpenPage, size: tuple[int, int]
) -> None:
    width, height = size
    page = open_page(served, viewport={"width": width, "height": height})
    page.evaluate(SHIFTS)
    for part in (prompt(page), page.locator("#generate"), status(page), page.locator("#result"),
                 page.locator("#actions"), page.locator("#example-cards button").first):  # fmt: skip
        expect(part).to_be_in_viewport(ratio=1)
    cards = page.locator("#example-cards button")
    for place in range(6):  # large; the others by scrolling, or all at once
        expect(cards.nth(place).locator("img").first).to_be_in_viewport(ratio=0.9)
    expect(cards.last).not_to_be_in_viewport()
    press(page, "All examples")
    expect(cards.last).to_be_in_viewport()
    form, session = page.locator("#form").bounding_box(), page.locator("#session").bounding_box()
    assert form is not None
    assert session is not None
    assert session["x"] + session["width"] - form["x"] >= min(width, 1680) - 40
    prompt(page).fill("a boat on a lake")
    page.evaluate("window.shifts = 0")
    press(page, "Generate")
    expect(status(page)).to_contain_text("Done in")
    expect(image(page)).to_be_in_viewport(ratio=1)
    page.wait_for_timeout(300)
    assert page.evaluate("window.shifts") < 0.05
    shows = image(page).evaluate("image => [image.width / image.naturalWidth, image.height / image.naturalHeight]")
    assert shows[0] == shows[1] == int(shows[0]) >= 2  # a small image is sharp
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_chosen_image_stays_while_others_are_made(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    prompt(page).fill("a boat on a lake")
    for name, value in (("Steps", 60), ("Seed", 8140), ("Images", 4)):
        set_number(page, name, value)
    press(page, "Generate")
    expect(status(page)).to_have_text(re.compile(r"Image 1 of 4 is ready|Image 2 of 4"))
    page.locator("#visit button", has=page.locator("img")).last.click()
    seed_used(page, 8140)
    expect(image(page)).to_have_attribute("src", re.compile("-8140-"))
    chosen = image(page).get_attribute("src")
    expect(page.locator("#visit img")).to_have_count(4)
    expect(status(page)).to_contain_text("Done in")
    assert image(page).get_attribute("src") == chosen
    seed_used(page, 8140)
    assert shown(page).seed == 8140
    press(page, "Use as content")
    expect(slot(page, "Content image").locator("img")).to_be_visible()
    set_number(page, "Images", 1)
    set_number(page, "Steps", 2)
    set_number(page, "Seed", 8150)
    press(page, "Generate")  # looks at the newest again
    seed_used(page, 8150)


def test_stop_leaves_the_image_before_in_place_of_the_preview(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    set_number(page, "Seed", 8201)
    generate(page, served, "a boat on a lake")
    seed_used(page, 8201)
    for name, value in (("Steps", 100), ("Width", 256), ("Height", 256), ("Seed", 8202), ("Images", 8)):
        set_number(page, name, value)
    before = image(page).get_attribute("src")
    press(page, "Generate")
    expect(image(page)).not_to_have_attribute("src", before or "")  # a preview
    page.locator("#stop").click()
    expect(status(page)).to_contain_text("Stopped")
    made = of_seed(served, 8202)
    last = 8202 + len(made) - 1 if made else 8201
    expect(image(page)).to_have_attribute("src", re.compile(f"-{last}-"))
    assert shown(page).seed == last


def test_a_restored_image_is_the_one_that_everything_is_about(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    for seed, words in ((8301, "a red house, the first"), (8302, "a boat, the second")):
        set_number(page, "Seed", seed)
        generate(page, served, words)
    tab(page, "History")
    page.get_by_label("Search").fill("house first")
    expect(page.locator("#history-images button")).to_have_count(1)
    page.locator("#history-images button").click()
    press(page, "Restore settings")
    seed_used(page, 8301)
    page.get_by_role("button", name="Settings of this image ▼").click()
    expect(page.get_by_label("Settings", exact=True)).to_have_value(re.compile("a red house, the first"))
    assert shown(page).seed == 8301


def test_a_run_needs_something_to_go_on(served: Served, open_page: OpenPage) -> None:
    page, before = open_page(served), set(served.results)
    press(page, "Generate")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("There is nothing to make an image from yet.")
    expect(status(page)).to_contain_text("Describe the image in a sentence, or add an image.")
    expect(toast).to_have_count(0, timeout=PATIENCE_MS)  # it leaves by itself
    prompt(page).fill("a boat")
    tab(page, "History")
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(500)
    assert set(served.results) == before


def test_the_form_is_remembered_unless_it_is_private(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    expect(page.locator("body[data-remembering]")).to_be_attached()
    prompt(page).fill("to be remembered")
    upload(page, "Content image", CONTENT)
    for name, value in (("Steps", 7), ("Seed", 99), ("Width", 96)):
        set_number(page, name, value)
    page.reload()
    expect(prompt(page)).to_have_value("to be remembered")
    for name, value in (("Steps", "7"), ("Seed", "99"), ("Width", "96")):
        expect(page.get_by_label(name, exact=True)).to_have_value(value)
    expect(page.get_by_label("Aspect", exact=True)).to_have_value("3:4")
    expect(slot(page, "Content image").locator("img")).to_be_visible()
    expect(page.locator("body[data-remembering]")).to_be_attached()
    page.get_by_label("Private: don't save").check()
    prompt(page).fill("a secret")
    prompt(page).press("Tab")
    page.wait_for_timeout(300)
    page.reload()
    expect(page.locator("body[data-remembering]")).to_be_attached()
    expect(prompt(page)).to_have_value("")
    expect(page.get_by_label("Private: don't save")).to_be_checked()  # the next image is no less private


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_that_arrives_anywhere_asks_what_it_is_for(served: Served, open_page: OpenPage, kind: str) -> None:
    page, file = open_page(served), io.BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "JPEG")
    data = base64.b64encode(file.getvalue()).decode()
    for answer, place in (("Content image", "Content image"), ("Style image", "Style image 1")):
        page.evaluate(ARRIVE, [kind, data, "beach.jpg", "image/jpeg"])
        page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()
        expect(slot(page, place).locator("img")).to_be_visible()
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


@pytest.mark.parametrize("target", ["#status", ".slot.column"])
def test_of_several_files_each_has_its_turn(served: Served, open_page: OpenPage, tmp_path: Path, target: str) -> None:
    page = open_page(served)
    made = generate(page, served, "a boat that holds its settings")
    prompt(page).fill("what I am writing")
    named = [(CONTENT, "a.png"), (made, "b.png"), (STYLE, "c.png")]
    page.evaluate(SEVERAL, [target, [[base64.b64encode(path.read_bytes()).decode(), name] for path, name in named]])
    dialog = page.get_by_role("dialog")
    answers = ["Content image", "Style image", "Style image"][target != "#status" :]
    for name, answer in zip(["a.png", "b.png", "c.png"][-len(answers) :], answers, strict=True):
        expect(dialog.locator("img")).to_have_attribute("alt", name)
        dialog.get_by_role("button", name=answer, exact=True).click()
    for place in ("Content image", "Style image 1", "Style image 2"):
        expect(slot(page, place).locator("img")).to_be_visible()
    expect(prompt(page)).to_have_value("what I am writing")
    expect(dialog).to_have_count(0)


def test_a_drop_on_a_filled_slot_replaces_its_image_and_no_text_empties_it(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    upload(page, "Content image", CONTENT)
    shown = slot(page, "Content image").locator("img").first
    before = shown.get_attribute("src") or ""
    words = [".slot.column", [[base64.b64encode(b"no image").decode(), "notes.txt"]]]
    page.evaluate(SEVERAL.replace("image/png", "text/plain"), words)
    expect(page.get_by_test_id("toast-body")).to_be_visible()
    expect(shown).to_have_attribute("src", before)
    page.evaluate(SEVERAL, [".slot.column", [[base64.b64encode(STYLE.read_bytes()).decode(), "other.png"]]])
    expect(shown).to_have_attribute("src", re.compile(r"other\.png$"))


def test_an_empty_form_keeps_the_examples_and_points_to_the_prompt(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, locale="de-DE")
    page.locator("#generate").click()
    expect(page.locator(".toast-title")).to_have_text(re.compile("Das hat nicht geklappt"))
    expect(page.locator("#prompt textarea")).to_be_focused()
    expect(page.locator("#create.ran")).to_have_count(0)
    expect(page.locator("#example-cards button").first).to_be_in_viewport(ratio=1)
    page.locator("#prompt textarea").fill("a boat by the sea")
    page.locator("#generate").click()
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    expect(image(page)).to_be_visible()


def test_a_double_click_is_one_wish(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    set_number(page, "Seed", 9311)
    prompt(page).fill("a boat that is wished for once")
    page.locator("#generate").dblclick()
    expect(status(page)).to_contain_text("Done in")
    page.wait_for_timeout(500)
    assert len(of_seed(served, 9311)) == 1


@pytest.mark.parametrize("size", [(1366, 768), (820, 1180), (390, 844)])
def test_a_strength_is_set_by_its_slider_over_its_whole_range(
    served: Served, open_page: OpenPage, size: tuple[int, int]
) -> None:
    page = open_page(served, viewport={"width": size[0], "height": size[1]})
    upload(page, "Content image", CONTENT)
    slider = page.locator(".strength input[type=range]").first
    box = slider.bounding_box()
    assert box is not None
    slider.click(position={"x": box["width"] - 3, "y": box["height"] / 2})
    expect(page.get_by_label("Content strength", exact=True).first).to_have_value("2")


def test_ideas_open_inside_a_phones_screen(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, viewport={"width": 390, "height": 844})
    page.locator("#ideas summary").click()
    for place in (page.locator("#ideas .menu > div"), page.locator("#ideas button").first):
        expect(place).to_be_in_viewport(ratio=1)


def test_light_dark_and_the_language_are_chosen_on_the_page(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, color_scheme="light")
    page.get_by_role("button", name="Light or dark").click()
    expect(page.locator("body.dark")).to_be_attached()
    page.get_by_label("Language").select_option("de")
    expect(page.get_by_role("button", name="Generieren", exact=True)).to_be_visible()
    expect(page.locator("body.dark")).to_be_attached()
    expect(page.locator("#mode")).to_contain_text("Text zu Bild")
    assert page.evaluate("document.documentElement.lang") == "de"
    page.get_by_label("Sprache").select_option("en")
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible()


def test_a_style_saved_from_the_slots_does_not_count_twice(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    upload(page, "Style image 1", STYLE)
    tab(page, "Styles")
    page.get_by_label("Style name", exact=True).fill("Lines")
    press(page, "Save style")
    expect(page.locator("#styles-status")).to_contain_text("The style Lines is saved.")
    page.locator("#style-cards button").first.click()
    press(page, "Use in slot")
    expect(page.get_by_label("Saved style 1", exact=True)).to_have_value("Lines")
    expect(slot(page, "Style image 1").locator("img")).to_have_count(0)
    expect(page.locator("#mode")).not_to_contain_text("2 blended")


def test_every_kept_image_is_reached_by_scrolling(served: Served, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(served)
    made = generate(page, served, "one of many")
    for place in range(60):
        copy = made.with_name(f"20260101-000000-{place}-{900000 + place}.png")
        copy.write_bytes(made.read_bytes())
        copy.with_suffix(".json").write_bytes(made.with_suffix(".json").read_bytes())
    try:
        tab(page, "History")
        page.get_by_label("Search").fill("one of many")
        cards = page.locator("#history-images button")
        expect(cards).to_have_count(61)
        page.mouse.move(600, 600)
        for _ in range(40):
            page.mouse.wheel(0, 900)
        expect(cards.last).to_be_in_viewport(ratio=0.9)
        cards.last.click()
        expect(page.get_by_role("button", name="Restore settings")).to_be_in_viewport()
    finally:
        for copy in served.output.glob("20260101-000000-*"):
            copy.unlink()


def test_a_grid_makes_an_image_for_each_pair_of_values(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    upload(page, "Style image 1", STYLE)
    prompt(page).fill("a boat on a lake")
    set_number(page, "Steps", 2)
    set_number(page, "Seed", 8401)
    press(page, "Comparison grid ▼")
    page.get_by_label("Values across", exact=True).fill("0.5, 1")
    page.get_by_label("Down", exact=True).click()
    page.get_by_role("option", name="Guidance value", exact=True).click()
    page.get_by_label("Values down", exact=True).fill("2..4/2")
    press(page, "Make the grid")
    expect(status(page)).to_contain_text("The grid of 4 images is done")
    expect(page.locator("#visit img")).to_have_count(5)  # the sheet, and each image
    made = [read_request(path) for path in of_seed(served, 8401)]
    assert sorted((each.guidance, *each.style_strengths) for each in made) == [(2.0,), (2.0, 0.5), (4.0,), (4.0, 0.5)]
    page.wait_for_function("() => document.querySelector('#result img').naturalWidth > 256")
    page.locator("#visit button", has=page.locator("img")).last.click()
    eventually(lambda: (shown(page).guidance, shown(page).style_strengths) == (2.0, (0.5,)))


def test_a_grid_of_styles_and_of_choices(served: Served, open_page: OpenPage) -> None:
    """Each style alone, for each prompt that the prompt stands for."""
    page = open_page(served)
    upload(page, "Style image 1", STYLE)
    upload(page, "Style image 2", CONTENT)
    prompt(page).fill("a {boat|house} on a lake")
    set_number(page, "Steps", 2)
    set_number(page, "Seed", 8402)
    press(page, "Comparison grid ▼")
    page.get_by_label("Across", exact=True).click()
    page.get_by_role("option", name="Style image alone", exact=True).click()
    expect(page.get_by_label("Values across", exact=True)).to_have_value("all")
    press(page, "Make the grid")
    expect(page.locator("#visit img")).to_have_count(6)  # two sheets, and each image
    made = {(each.prompt, *(style.name for style in each.styles)) for each in map(read_request, of_seed(served, 8402))}
    names = (STYLE.name, CONTENT.name)
    assert made == {(f"a {what} on a lake", name) for what in ("boat", "house") for name in names}


def test_words_that_the_demo_model_does_not_know_are_named_while_typing(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    hint = page.locator("#known-words")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "weights" / "uso-tiny" / "t5")
    for words in ("A woman with LONG hair, in the café", "a Happy red boat!", "seven blue wolves: a cat"):
        prompt(page).fill(words)
        if expected := unread(tokenizer, 32, words).words:
            expect(hint.locator("b")).to_have_text(", ".join(expected))
        else:
            expect(hint.locator("b")).to_be_hidden()
    hint.get_by_role("button", name="robot", exact=True).click()
    expect(prompt(page)).to_have_value("robot blue wolves: a cat")
    expect(hint.locator("b")).to_have_text("wolves")
    prompt(page).fill(" ".join(OFFERED))
    expect(hint.locator("b")).to_be_hidden()
    hint.get_by_role("button", name="cat", exact=True).click()
    expect(prompt(page)).to_have_value(" ".join((*OFFERED, "cat")))
