"""The page in the languages of its visitors, on screens of any size."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_page import image, status
from tests.ui.test_app import Served

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PHONE: ViewportSize = {"width": 390, "height": 844}
TABLET: ViewportSize = {"width": 820, "height": 1180}
# Prompt, width, a style slot, Generate, the history's tab; the mode of an empty form, the end of a run, today.
SPOKEN = {
    "de-DE": ("Prompt", "Breite", "Stilbild 2", "Generieren", "Verlauf",
              "Text zu Bild", r"^\s*Fertig in \d.* s, Seed \d+\.$", "Heute"),
    "zh-CN": ("提示词", "宽度", "风格图 2", "生成", "历史记录",
              "文生图", r"^\s*完成，用时 .* 秒，种子 \d+。$", "今天"),
    "ja-JP": ("プロンプト", "幅", "スタイル画像 2", "生成", "履歴",
              "テキストから画像", r"^\s*完了：.* 秒、シード \d+。$", "今日"),
    "fr-FR": ("Prompt", "Width", "Style image 2", "Generate", "History",
              "Text to image", r"^\s*Done in \d.* s, seed \d+\.$", "Today"),
}  # fmt: skip


@pytest.mark.parametrize("locale", SPOKEN)
def test_a_visitor_sees_their_language(
    locale: str, served: Served, open_page: OpenPage, shot: Callable[[Page, str], None]
) -> None:
    prompt, width, slot, generate, history, mode, done, today = SPOKEN[locale]
    page = open_page(served, locale=locale)
    expect(page.get_by_role("textbox", name=prompt, exact=True)).to_be_visible()
    expect(page.get_by_role("spinbutton", name=width, exact=True)).to_be_visible()
    expect(page.get_by_role("group", name=slot, exact=True)).to_be_visible()
    expect(page.locator("#mode")).to_contain_text(mode)
    page.get_by_role("textbox", name=prompt, exact=True).fill("a red house in the snow")
    page.get_by_role("button", name=generate, exact=True).click()
    expect(image(page)).to_be_visible()
    expect(status(page)).to_have_text(re.compile(done))
    shot(page, f"language-{locale}")
    page.get_by_role("tab", name=history, exact=True).click()
    expect(page.locator("#history-images h3").first).to_have_text(today)
    expect(page.locator("body")).not_to_contain_text("i18n")


@pytest.mark.parametrize("viewport", [PHONE, TABLET], ids=["phone", "tablet"])
@pytest.mark.parametrize("locale", ["de-DE", "ja-JP"])
def test_long_words_fit_on_small_screens(
    locale: str, viewport: ViewportSize, served: Served, open_page: OpenPage, shot: Callable[[Page, str], None]
) -> None:
    page = open_page(served, locale=locale, viewport=viewport)
    expect(page.get_by_role("tab", name=SPOKEN[locale][4], exact=True)).to_be_visible()
    page.evaluate("for (const closed of document.querySelectorAll('#form .label-wrap:not(.open)')) closed.click()")
    expect(page.locator("#form .label-wrap:not(.open)")).to_have_count(0)
    shot(page, f"{viewport['width']}-{locale}")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    cut = """(all) => all.filter((each) => each.scrollWidth > each.clientWidth + 1
        || each.scrollHeight > each.clientHeight + 1).map((each) => each.innerText)"""
    assert page.locator("#model-line, #start button, #actions button").evaluate_all(cut) == []
    beyond = """(all) => all.filter((each) => each.checkVisibility()).map((each) => [each, each.closest(".block")])
        .filter(([each, block]) => each.getBoundingClientRect().right > block.getBoundingClientRect().right + 1)
        .map(([each]) => each.innerText)"""
    assert page.locator("#form .max_value").evaluate_all(beyond) == []
