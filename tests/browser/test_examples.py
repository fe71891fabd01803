"""The examples on the page: one click fills every field and starts."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, eventually
from tests.browser.test_studio import fill, slot, upload
from tests.ui.test_app import Served
from uso_core.catalog.examples import FOLDER, read_example, read_examples
from uso_core.catalog.models import MODELS
from uso_core.storage.png import read_request

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NAMES = ("14-strengths", "01-words")  # the second must leave nothing of the first


def choose(page: Page, name: str) -> None:
    page.locator(f"#example-cards button[data-key='{name}']").click()


def test_a_click_fills_every_field_and_starts(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    fill(page, "Steps", 3)
    fill(page, "Guidance", 7)
    fill(page, "Images", 2)
    upload(page, "Style image 2", FOLDER / "06-style" / "style1.png")
    for name in NAMES:
        example = read_example(FOLDER / name / "config.json")
        asked = example.request(MODELS["uso-tiny"])
        before = set(served.results)
        choose(page, name)
        eventually(lambda before=before: len(set(served.results) - before) == 1)
        expect(page.locator("#status")).to_have_text(re.compile(rf"^\s*Done in .*seed {example.seed}\."))
        (made,) = set(served.results) - before
        got = read_request(made)
        assert (got.prompt, got.seed, got.width, got.height) == (asked.prompt, asked.seed, asked.width, asked.height)
        assert (got.steps, got.guidance, got.content_size) == (asked.steps, asked.guidance, asked.content_size)
        assert (got.content, got.styles) == (asked.content, asked.styles)
        assert (got.content_strength, got.style_strengths) == (asked.content_strength, asked.style_strengths)
    expect(page.get_by_label("Aspect", exact=True)).to_have_value("1:1")
    expect(slot(page, "Content image").locator("img")).to_have_count(0)


def test_every_mode_is_one_click_away(served: Served, open_page: OpenPage) -> None:
    page, tiny = open_page(served), MODELS["uso-tiny"]
    examples = {str(each.request(tiny).mode): each for each in read_examples()}
    assert set(examples) == {
        "text to image", "subject", "style", "style + subject", "style + subject (layout kept)", "2 styles", "3 styles",
        "2 styles + subject",
    }  # fmt: skip
    for mode, example in examples.items():
        before = set(served.results)
        choose(page, example.name)
        eventually(lambda before=before: len(set(served.results) - before) == 1)
        (made,) = set(served.results) - before
        got = read_request(made)
        assert (str(got.mode), got.seed, got.styles) == (mode, example.seed, example.styles)


def test_the_cards_are_reached_with_the_keyboard(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    page.locator("#example-cards button").first.focus()
    before = set(served.results)
    page.keyboard.press("Enter")
    eventually(lambda: len(set(served.results) - before) == 1)
