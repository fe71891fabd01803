"""What one does faster than the server answers: the last wish counts, and nothing is done to what was not meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, eventually, held_back
from tests.browser.test_page import press, prompt, set_number, shown, status
from tests.browser.test_session import generate_three, lightbox, little, strip
from tests.browser.test_studio import generate, slot, tab, upload
from tests.ui.test_app import Served
from uso_core.catalog.examples import FOLDER, read_examples

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def page(served: Served, open_page: OpenPage) -> Page:
    return open_page(served)


def choose(page: Page, field: str, name: str) -> None:
    page.get_by_label(field, exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def test_of_two_examples_the_last_one_runs(page: Page) -> None:
    last = next(each for each in read_examples() if each.name == "01-words")
    with held_back(page):
        for name in ("03-subject", last.name):
            page.locator(f"#example-cards button[data-key='{name}']").click()
    expect(status(page)).to_contain_text("Done in")
    expect(strip(page)).to_have_count(1)
    assert shown(page).prompt == last.prompt
    expect(page.locator("#example-cards button[aria-pressed=true]")).to_have_count(1)


def test_the_chosen_style_is_used_and_deleted(page: Page) -> None:
    for place, name in ((1, "First of two"), (2, "Second of two")):
        tab(page, "Create")
        upload(page, f"Style image {place}", FOLDER / "06-style" / "style1.png")
        tab(page, "Styles")
        page.get_by_label("Style name", exact=True).fill(name)
        press(page, "Save style")
        expect(page.locator("#styles-status")).to_contain_text(f"The style {name} is saved.")
    first, second = (page.locator("#style-cards button", has_text=name) for name in ("First of two", "Second of two"))
    first.click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value("First of two")
    with held_back(page):
        second.click()
        press(page, "Use in slot")
    expect(page.get_by_label("Saved style 1", exact=True)).to_have_value("Second of two")
    tab(page, "Styles")
    with held_back(page):
        first.click()
        second.click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value("Second of two")
    press(page, "Delete style")
    press(page, "Delete permanently?")
    expect(second).to_have_count(0)
    expect(first).to_have_count(1)
    first.click()
    press(page, "Delete style")
    press(page, "Delete permanently?")
    expect(first).to_have_count(0)


def test_what_was_chosen_stays_chosen_while_cards_are_renamed_and_filtered(page: Page) -> None:
    generate_three(page, "a chosen tree", 9401)
    tab(page, "History")
    search = page.get_by_label("Search")
    search.fill("chosen tree")
    cards, chosen = page.locator("#history-images button"), page.locator("#history-images button[aria-pressed=true]")
    expect(cards).to_have_count(3)
    page.get_by_label("Select several").check()
    cards.nth(1).click()
    key = cards.nth(1).get_attribute("data-key")
    delete = page.get_by_role("button", name="Delete selected", exact=True)
    expect(delete).to_be_enabled()
    search.fill("nothing that there is")
    expect(cards).to_have_count(0)
    expect(delete).to_be_disabled()
    search.fill("chosen tree")
    expect(chosen).to_have_count(1)
    assert chosen.get_attribute("data-key") == key
    expect(delete).to_be_enabled()
    page.get_by_label("Select several").uncheck()
    page.get_by_label("Select several").check()
    expect(chosen).to_have_count(0)
    expect(delete).to_be_disabled()


def test_an_image_that_took_the_place_of_a_bad_one_stays(page: Page, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.heic", tmp_path / "good.png"
    bad.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    Image.new("RGB", (64, 64), "teal").save(good)
    place = slot(page, "Content image")
    with held_back(page) as held:
        place.locator("input[type=file]").set_input_files(bad)
        eventually(lambda: page.wait_for_timeout(50) is None and bool(held))
        place.get_by_role("button", name="Remove Image").click()
        place.locator("input[type=file]").set_input_files(good)
        expect(place.locator("img")).to_be_visible()
    expect(page.get_by_test_id("toast-body")).to_contain_text("bad.heic")
    page.wait_for_timeout(1000)  # in which it would be emptied
    expect(place.locator("img")).to_be_visible()


def test_the_last_shape_counts(page: Page) -> None:
    with held_back(page):
        for name in ("16:9", "1:1"):
            choose(page, "Aspect", name)
    expect(page.get_by_label("Width", exact=True)).to_have_value("128")
    page.wait_for_timeout(500)
    assert page.get_by_label("Width", exact=True).input_value() == page.get_by_label("Height", exact=True).input_value()


def test_each_run_that_is_ended_ends(page: Page) -> None:
    set_number(page, "Steps", 100)
    prompt(page).fill("a {red|blue|green} boat that stops")
    press(page, "Generate")
    queue = page.locator("#queue button")
    expect(queue).to_have_count(3)
    with held_back(page):
        queue.nth(2).click()
        queue.nth(1).click()
    expect(queue).to_have_count(0)
    press(page, "Stop")
    expect(status(page)).to_contain_text("Stopped")


def test_the_shown_image_is_the_chosen_one(served: Served, page: Page) -> None:
    generate_three(page, "a passing boat", 9411)
    cards, chosen = strip(page), page.locator("#visit button[aria-pressed=true]")
    expect(chosen).to_have_attribute("data-key", re.compile("-9413-"))
    cards.nth(2).dblclick()
    expect(lightbox(page)).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    expect(chosen).to_have_attribute("data-key", re.compile("-9412-"))
    little(page, 9414)
    set_number(page, "Images", 1)
    generate(page, served, "another boat")
    expect(chosen).to_have_count(1)
    expect(chosen).to_have_attribute("data-key", re.compile("-9414-"))
    cards.nth(3).click()
    expect(chosen).to_have_attribute("data-key", re.compile("-9411-"))
    page.reload()
    expect(chosen).to_have_attribute("data-key", re.compile("-9414-"))  # the last one is shown
