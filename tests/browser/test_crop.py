"""Cropping an image in its slot."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, eventually
from tests.browser.test_studio import slot, upload
from tests.ui.test_app import Served

pytestmark = pytest.mark.browser
PHONE = {"width": 390, "height": 800}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (100, 80), "red")
    image.paste("blue", (50, 0, 100, 80))
    path = tmp_path / "two colours.png"
    image.save(path)
    return path


def size(page: Page) -> list[int]:
    image = slot(page, "Content image").locator("img")
    return image.evaluate("image => [image.naturalWidth, image.naturalHeight]")


def open_crop(page: Page, photo: Path) -> None:
    upload(page, "Content image", photo)
    slot(page, "Content image").get_by_role("button", name="Crop").click()
    expect(page.locator("dialog.crop .bar span")).to_have_text("80 x 64")


def test_a_drawn_part_goes_into_the_slot(served: Served, open_page: OpenPage, photo: Path) -> None:
    page = open_page(served)
    expect(page.get_by_role("button", name="Crop")).to_have_count(0)
    open_crop(page, photo)
    area = page.locator("dialog.crop .stage").bounding_box()
    assert area is not None
    places = [(area["x"] + 2, area["y"] + 2), (area["x"] + area["width"] / 2, area["y"] + area["height"] / 2)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Use this part").click()
    eventually(lambda: max(abs(size(page)[0] - 50), abs(size(page)[1] - 40)) <= 2)
    address = slot(page, "Content image").locator("img").get_attribute("src") or ""
    assert address.endswith("-crop.png")
    pixels = slot(page, "Content image").locator("img").evaluate(
        "image => { const canvas = document.createElement('canvas'); canvas.width = 50; canvas.height = 40;"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " return [...context.getImageData(20, 20, 1, 1).data] }"
    )  # fmt: skip
    assert pixels == [255, 0, 0, 255]


def test_the_keyboard_crops_and_escape_leaves_the_image(served: Served, open_page: OpenPage, photo: Path) -> None:
    page = open_page(served, viewport=PHONE)
    open_crop(page, photo)
    page.keyboard.press("Escape")
    expect(page.locator("dialog.crop")).to_have_count(0)
    assert size(page) == [100, 80]
    slot(page, "Content image").get_by_role("button", name="Crop").click()
    for _ in range(5):
        page.keyboard.press("Shift+ArrowLeft")
    expect(page.locator("dialog.crop .bar span")).to_have_text("70 x 64")
    page.get_by_role("button", name="Use this part").focus()
    page.keyboard.press("Enter")
    eventually(lambda: size(page) == [70, 64])
