"""What was kept is there after a restart: images with their settings, and stored styles without their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import DESKTOP, OpenPage, visit
from tests.browser.test_studio import STYLE, fill, generate, press, said, save, status, tab, upload
from tests.ui.test_app import Served, pixels, serve
from uso_core.request import StoredStyle
from uso_core.storage.png import read_request

pytestmark = [pytest.mark.browser, pytest.mark.slow]
REMEMBERED, STYLED = "a lighthouse to remember", "a cottage in the woods"
NAME = "Wood & <b>ink</b>"


@dataclass(frozen=True)
class Restarted:
    """The app as it runs now, and what was made before: an image, and the pixels of one in the style stored then."""

    served: Served
    made: Path
    styled: bytes


@pytest.fixture(scope="module")
def app(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarted]:
    folder = tmp_path_factory.mktemp("app")
    with serve(folder) as before:
        page = chromium.new_page(viewport=DESKTOP)
        visit(page, before)
        tab(page, "History")
        expect(page.locator("#history-note")).to_contain_text("Nothing here yet")
        tab(page, "Create")
        made = generate(page, before, REMEMBERED)
        expect(page.get_by_label("Saved style 1", exact=True)).to_be_hidden()
        upload(page, "Style image 1", STYLE)
        fill(page, "Style 1 strength", 0.8)
        fill(page, "Seed", 7)
        styled = pixels(generate(page, before, STYLED))
        save(page, NAME)
        said(page, f"The style {NAME} is saved.")
        save(page, "Again")
        said(page, f"saved already, as {NAME}")
        page.close()
    with serve(folder) as after:
        yield Restarted(after, made, styled)


def test_history_is_still_there(app: Restarted, open_page: OpenPage) -> None:
    page = open_page(app.served)
    tab(page, "History")
    page.get_by_label("Search").fill("lighthouse")
    expect(page.locator("#history-images b")).to_have_text([REMEMBERED])
    page.locator("#history-images button", has=page.locator("img")).first.click()
    expect(page.locator("dialog.lightbox p")).to_contain_text(REMEMBERED)
    press(page, "Restore settings")
    expect(page.get_by_label("Prompt")).to_have_value(REMEMBERED)
    tab(page, "History")
    page.locator("#history-images button", has=page.locator("img")).first.click()
    press(page, "Delete")
    press(page, "Delete permanently?")
    expect(page.get_by_text("No prompt contains “lighthouse”.")).to_be_visible()
    assert not app.made.exists()


def test_a_style_is_used_without_its_image(app: Restarted, open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(app.served)
    tab(page, "Styles")
    page.locator("#style-cards button").click()
    expect(page.get_by_label("Chosen style", exact=True)).to_have_value(NAME)
    press(page, "Use in slot")
    expect(page.get_by_label("Saved style 1", exact=True)).to_have_value(NAME)
    expect(page.locator(".saved-thumbnail img").first).to_be_visible()
    expect(page.locator("#mode")).to_contain_text("Style, without a prompt")
    fill(page, "Seed", 7)
    made = generate(page, app.served, STYLED)
    assert pixels(made) == app.styled
    (style,) = read_request(made).styles
    assert isinstance(style, StoredStyle)

    other = open_page(app.served)
    other.locator("input[type=file][accept*=json]").set_input_files(made)
    status(other, "All settings are restored.")
    expect(other.get_by_label("Saved style 1", exact=True)).to_have_value(NAME)

    tab(page, "Styles")
    page.get_by_label("Chosen style", exact=True).fill("Lino")
    press(page, "Rename")
    said(page, "The style is now called Lino.")
    with page.expect_download() as waiting:
        press(page, "Export")
    exported = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(exported)
    press(page, "Delete style")
    press(page, "Delete permanently?")
    said(page, "The style Lino is deleted.")
    expect(page.get_by_text("No saved styles yet.")).to_be_visible()
    other.locator("input[type=file][accept*=json]").set_input_files([])
    other.locator("input[type=file][accept*=json]").set_input_files(made)
    status(other, f"choose them again: {NAME}")

    page.locator("input[type=file][accept*=safetensors]").set_input_files(exported)
    said(page, "The style Lino is saved.")
    expect(page.locator("#style-cards button")).to_have_count(1)
