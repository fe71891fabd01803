"""The pictures of the page in README and docs: python -m tests.browser.screenshots --to docs

Taken from the real page with the embedded model, whose images differ a little between kinds of processors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import CHROMIUM_FLAGS, PATIENCE_MS, find_chromium, visit
from tests.serving import Served, serve

DESK, TELEPHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
COLOURS_KEPT = 255
SHOWN = ("11-layout-comic", "10-layout", "03-subject", "07-style-wide", "08-style-and-subject", "01-words", "06-style")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args().to
    expect.set_options(timeout=PATIENCE_MS)
    with tempfile.TemporaryDirectory() as base, serve(Path(base)) as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        page = _open(browser, app, DESK)
        _save(page, folder / "open.png")
        for name in reversed(SHOWN):
            _example(page, name)
        _save(page, folder / "page.png")
        page.get_by_role("tab", name="History", exact=True).click()
        page.locator("#history-images button").nth(1).click()
        expect(page.locator("dialog.lightbox img")).to_be_visible()
        _save(page, folder / "lightbox.png")
        dark = _open(browser, app, DESK, color_scheme="dark")
        _grid(dark)
        _save(dark, folder / "grid.png")
        telephone = _open(browser, app, TELEPHONE, has_touch=True, is_mobile=True)
        _example(telephone, "10-layout")
        _save(telephone, folder / "phone.png", at_top=False)
        browser.close()


def _open(browser: Browser, app: Served, viewport: dict[str, int], **options: object) -> Page:
    context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit(page, app)
    return page


def _example(page: Page, name: str) -> None:
    """Clicks an example and waits for its image."""
    before = page.locator("#visit button").count()
    page.locator(f"#example-cards button[data-key='{name}']").click()
    expect(page.locator("#visit button")).to_have_count(before + 1)
    expect(page.locator("#status")).to_contain_text("Done in")


def _grid(page: Page) -> None:
    _example(page, "10-layout")
    page.get_by_role("button", name="Comparison grid ▼").click()
    page.get_by_label("Values across", exact=True).fill("0, 0.5, 1, 1.5")
    page.get_by_label("Down", exact=True).click()
    page.get_by_role("option", name="Strength of the content", exact=True).click()
    page.get_by_label("Values down", exact=True).fill("0.5, 1")
    page.get_by_role("button", name="Make the grid").click()
    expect(page.locator("#status")).to_contain_text("is done")


def _save(page: Page, path: Path, at_top: bool = True) -> None:
    """Writes what is seen, with few colours, which keeps it small."""
    if at_top:
        page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(1000)  # until nothing moves
    page.screenshot(path=path, animations="disabled")
    with Image.open(path) as shot:
        small = shot.convert("RGB").quantize(COLOURS_KEPT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    print(path, os.path.getsize(path))


if __name__ == "__main__":
    main()
