"""Saved styles on the page: named, used without their pictures, still there after a restart, passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_studio import fill, generate, press, slot, status, upload
from tests.test_app import pixels, serve
from uso_core.examples import FOLDER
from uso_core.metadata import read_request
from uso_core.request import SavedStyle

pytestmark = pytest.mark.browser
STYLE = FOLDER / "06-style" / "style1.png"


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def said(page: Page, words: str) -> None:
    expect(page.locator("#styles-status")).to_contain_text(words)


def save(page: Page, name: str) -> None:
    tab(page, "Styles")
    page.get_by_label("Name of the style", exact=True).fill(name)
    press(page, "Save style")


def test_a_style_is_used_without_its_picture_after_a_restart(tmp_path: Path, open_page: OpenPage) -> None:
    with serve(tmp_path / "app") as served:
        page = open_page(served)
        expect(page.get_by_label("Saved style 1", exact=True)).to_be_hidden()
        upload(page, "Style image 1", STYLE)
        fill(page, "Style 1 strength", 0.8)
        fill(page, "Seed", 7)
        first = generate(page, served, "a cottage in the woods")
        save(page, "Wood & <b>ink</b>")
        said(page, "The style Wood & <b>ink</b> is saved.")
        save(page, "Again")
        said(page, "saved already, as Wood & <b>ink</b>")

    with serve(tmp_path / "app") as served:
        page = open_page(served)
        tab(page, "Styles")
        page.locator("#style-cards button").click()
        expect(page.get_by_label("Chosen style", exact=True)).to_have_value("Wood & <b>ink</b>")
        press(page, "Use in slot")
        expect(page.get_by_label("Saved style 1", exact=True)).to_have_value("Wood & <b>ink</b>")
        expect(page.locator(".saved-picture img").first).to_be_visible()
        expect(page.locator("#mode")).to_contain_text("Style, without a prompt")
        fill(page, "Seed", 7)
        second = generate(page, served, "a cottage in the woods")
        assert pixels(second) == pixels(first)
        (style,) = read_request(second).styles
        assert isinstance(style, SavedStyle)

        other = open_page(served)
        other.locator("input[type=file][accept*=json]").set_input_files(second)
        status(other, "Every setting is restored.")
        expect(other.get_by_label("Saved style 1", exact=True)).to_have_value("Wood & <b>ink</b>")

        tab(page, "Styles")
        page.get_by_label("Chosen style", exact=True).fill("Lino")
        press(page, "Rename")
        said(page, "The style is now called Lino.")
        with page.expect_download() as waiting:
            press(page, "Export")
        exported = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(exported)
        press(page, "Delete style")
        press(page, "Delete for good?")
        said(page, "The style Lino is deleted.")
        expect(page.get_by_text("No style is saved yet.")).to_be_visible()
        other.locator("input[type=file][accept*=json]").set_input_files([])
        other.locator("input[type=file][accept*=json]").set_input_files(second)
        status(other, "choose them again: Wood & <b>ink</b>")

        page.locator("input[type=file][accept*=safetensors]").set_input_files(exported)
        said(page, "The style Lino is saved.")
        expect(page.locator("#style-cards button")).to_have_count(1)


def test_saving_without_a_picture_or_a_name_is_told(served, open_page: OpenPage) -> None:
    page = open_page(served)
    save(page, "Nothing")
    said(page, "no style picture in the slots")
    tab(page, "Create")
    upload(page, "Style image 1", STYLE)
    expect(slot(page, "Style image 1").locator("img").first).to_be_visible()
    save(page, " ")
    said(page, "The style has no name.")
