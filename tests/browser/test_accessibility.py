"""Everybody can use it: axe-core finds nothing serious, and a keyboard is enough for a whole run."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_page import image, prompt, set_number, status
from tests.browser.test_studio import generate, tab
from tests.ui.test_app import Served

pytestmark = pytest.mark.browser
STANDARDS = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
GRAVE = ("serious", "critical")


def faults(page: Page) -> list[tuple[str, str]]:
    """Axe's grave findings: the rule, and the elements' HTML."""
    found: list[dict[str, Any]] = Axe().run(page, options=STANDARDS).response["violations"]
    return [(each["id"], node["html"][:200]) for each in found if each["impact"] in GRAVE for node in each["nodes"][:5]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(served: Served, open_page: OpenPage, scheme: str) -> None:
    page = open_page(served, viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    found = {"first": faults(page)}
    prompt(page).fill("a woman on the beach")
    for name in ("More styles ▼", "Advanced ▼", "Comparison grid ▼", "Presets ▼", "Settings of this image ▼"):
        page.get_by_role("button", name=name).click()
    for menu in page.locator("details.menu").all():
        menu.locator("summary").click()
    page.wait_for_timeout(500)
    found["unfolded"] = faults(page)
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    expect(page.locator("dialog[open]")).to_be_visible()
    found["keys"] = faults(page)
    page.keyboard.press("Escape")
    for name, value in (("Steps", 2), ("Width", 64), ("Height", 64)):
        set_number(page, name, value)
    generate(page, served, "a boat on a lake")
    found["ran"] = faults(page)
    image(page).click()
    found["lightbox"] = faults(page)
    page.keyboard.press("Escape")
    for name in ("History", "Styles", "Model"):
        tab(page, name)
        page.wait_for_timeout(500)
        found[name] = faults(page)
    assert {place: each for place, each in found.items() if each} == {}


def test_a_whole_run_by_keyboard(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    for _ in range(60):
        page.keyboard.press("Tab")
        if prompt(page).evaluate("field => field === document.activeElement"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where the keys go is seen
    page.keyboard.type("a red house in the snow")
    page.keyboard.press("Control+Enter")
    expect(status(page)).to_contain_text("Done in")
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#visit') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#visit button[aria-pressed=true]")).to_have_count(1)
