"""What one does faster than the server answers: the last wish counts, and nothing is done to what was not meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import APIResponse, Page, Route, expect

from tests.browser.conftest import OpenPage, eventually, held_back
from tests.browser.test_create import seed_used
from tests.browser.test_page import of_seed, press, prompt, set_number, shown, status
from tests.browser.test_session import generate_three, lightbox, little, strip
from tests.browser.test_studio import generate, slot, tab, upload
from tests.ui.test_app import Served
from uso_core.catalog.examples import read_examples

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


def test_the_chosen_style_is_used_renamed_exported_and_deleted(page: Page, tmp_path: Path) -> None:
    for place, name in ((1, "First of two"), (2, "Second of two")):
        tab(page, "Create")
        Image.effect_mandelbrot((64, 64), (-2, -1, 1, place), 20).convert("RGB").save(tmp_path / f"{place}.png")
        upload(page, f"Style image {place}", tmp_path / f"{place}.png")
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
    first.click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value("First of two")
    with page.expect_download() as download, held_back(page):
        second.click()
        press(page, "Export")
    assert download.value.suggested_filename == "Second-of-two.safetensors"
    first.click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value("First of two")
    with held_back(page):
        second.click()
        page.get_by_label("Chosen style", exact=True).fill("Second renamed")
        press(page, "Rename")
    second = page.locator("#style-cards button", has_text="Second renamed")
    expect(second).to_have_attribute("aria-pressed", "true")
    expect(first).to_have_count(1)
    with held_back(page):
        first.click()
        second.click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value("Second renamed")
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
    width, height = page.get_by_label("Width", exact=True), page.get_by_label("Height", exact=True)
    choose(page, "Aspect", "16:9")
    expect(width).to_have_value("224")
    with held_back(page):
        for name in ("9:16", "1:1"):
            choose(page, "Aspect", name)
    expect(width).to_have_value("128")
    expect(height).to_have_value("128")


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


def test_a_call_that_meets_the_end_of_the_stream_is_told_too(page: Page) -> None:
    """The server closes the stream, then takes the next call, whose reply reaches the page before that end does."""
    little(page, 9421)
    prompt(page).fill("a boat that is told")
    streams: list[tuple[Route, APIResponse]] = []

    def hold(route: Route) -> None:
        if streams:
            route.continue_()
        else:
            streams.append((route, route.fetch()))

    page.route("**/queue/data*", hold)
    page.locator("#nudge").dispatch_event("click")  # a call that is answered at once
    eventually(lambda: page.wait_for_timeout(50) is None and bool(streams))
    with page.expect_response(re.compile("/queue/join")):
        press(page, "Generate")
    page.wait_for_timeout(500)
    (ended,) = streams
    ended[0].fulfill(response=ended[1])
    expect(status(page)).to_contain_text("Done in")
    seed_used(page, 9421)


def test_the_image_meant_is_used(page: Page) -> None:
    generate_three(page, "meant to be used", 9431)
    cards = strip(page)
    fields = {name: page.get_by_label(name, exact=True).first for name in ("Seed",)}
    cards.nth(2).click()
    seed_used(page, 9431)
    with held_back(page):
        cards.nth(1).click()
        press(page, "Reuse settings")
        cards.nth(0).click()
        press(page, "Reuse settings")
    expect(fields["Seed"]).to_have_value("9433")
    with held_back(page):
        for place in (1, 2):
            cards.nth(place).click()
            press(page, "Use as style")
    for number in (1, 2):
        expect(slot(page, f"Style image {number}").locator("img")).to_be_visible()


def test_presets_that_are_saved_and_removed_at_once_are_all_kept(page: Page) -> None:
    press(page, "Presets ▼")
    name, kept = (
        page.get_by_label("Name of the preset"),
        "() => Object.keys(JSON.parse(localStorage['uso-presets'] || '{}'))",
    )

    def save(title: str) -> None:
        name.fill(title)
        press(page, "Save")

    save("old")
    eventually(lambda: page.evaluate(kept) == ["old"])
    with held_back(page):
        for title in ("A", "B"):
            save(title)
    eventually(lambda: sorted(page.evaluate(kept)) == ["A", "B", "old"])
    choose(page, "Preset", "old")
    press(page, "Remove")
    page.get_by_role("button", name="Delete permanently?", exact=True).click()
    eventually(lambda: sorted(page.evaluate(kept)) == ["A", "B"])


def test_what_is_typed_while_the_page_loads_stays(page: Page) -> None:
    prompt(page).fill("the old words")
    set_number(page, "Seed", 77)
    eventually(lambda: "the old words" in page.evaluate("() => localStorage['uso-form'] || ''"))
    eventually(lambda: "77" in page.evaluate("() => localStorage['uso-form'] || ''"))
    with held_back(page):
        page.reload()
        prompt(page).fill("new words")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("77")
    page.wait_for_timeout(500)
    expect(prompt(page)).to_have_value("new words")


def test_a_grid_waits_for_the_one_before(served: Served, page: Page) -> None:
    little(page, 9441)
    set_number(page, "Steps", 40)
    prompt(page).fill("a boat in a grid")
    press(page, "Comparison grid ▼")
    page.get_by_label("Values across", exact=True).fill("0.5, 1")
    choose(page, "Across", "Guidance value")
    page.get_by_label("Values across", exact=True).fill("2, 3")
    press(page, "Make the grid")
    expect(status(page)).to_contain_text("Cell")
    set_number(page, "Seed", 9442)
    press(page, "Make the grid")
    eventually(lambda: all(len(of_seed(served, seed)) == 2 for seed in (9441, 9442)))
    expect(status(page)).to_contain_text("The grid of 2 images is done")


def test_a_key_that_is_held_is_one_run(served: Served, page: Page) -> None:
    little(page, 9451)
    prompt(page).fill("once")
    page.keyboard.down("Control")
    for _ in range(5):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    page.keyboard.up("Control")
    expect(status(page)).to_contain_text("Done in")
    page.wait_for_timeout(500)
    assert len(of_seed(served, 9451)) == 1
