"""The page in use: first visit, images, Stop, a queue of two, mistakes, phones, dark mode, no mouse."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage, eventually
from tests.ui.test_app import Served
from uso_core.errors import RequestError
from uso_core.request import GenerationRequest
from uso_core.storage.png import read_request

pytestmark = pytest.mark.browser

DONE = re.compile(r"^\s*Done in ")
WAITING = re.compile(r"Waiting: \d+ ahead of you")
STOPPED = re.compile(r"^\s*Stopped")
PAINTED = """
(element, colour) => {
  const painted = (each) => getComputedStyle(each)[colour]
  while (element.parentElement && /, 0\\)$/.test(painted(element))) element = element.parentElement
  return painted(element).match(/[\\d.]+/g).slice(0, 3).map(Number)
}
"""
Shot = Callable[[Page, str], None]


def prompt(page: Page) -> Locator:
    return page.get_by_role("textbox", name="Prompt")


def number(page: Page, name: str) -> Locator:
    """A number's box; a slider has one beside it."""
    return page.get_by_role("spinbutton", name=name, exact=True)


DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def press(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()
    if button.endswith("▼"):
        page.evaluate(DRAWN)  # what was closed comes into being now: a field filled at once may lose it again


def status(page: Page) -> Locator:
    return page.locator("#status [role=status]")


def image(page: Page) -> Locator:
    return page.locator("#result img")


def set_number(page: Page, name: str, value: float) -> None:
    number(page, name).fill(str(value))
    number(page, name).press("Tab")


def ask_for_much(page: Page, seed: int = -1) -> None:
    """A run of some seconds with the embedded model, on an idle machine."""
    prompt(page).fill("a boat on a lake")
    set_number(page, "Steps", 40)
    set_number(page, "Width", 256)
    set_number(page, "Height", 256)
    set_number(page, "Seed", seed)


def press_often(page: Page, times: int) -> None:
    """Presses Generate often enough that others have time to meet the active runs."""
    page.evaluate("(times) => { while (times--) document.querySelector('#generate').click() }", times)


def wait_until_stepping(page: Page, then_press: str | None = None) -> None:
    """Waits until a step is reported; presses the button with that id from within the page, before the run can end."""
    page.wait_for_function(
        """(id) => {
            const stepping = /step \\d+ of/i.test(document.querySelector("#status [role=status]").textContent)
            if (stepping && id) document.getElementById(id).click()
            return stepping
        }""",
        arg=then_press,
        polling="raf",
    )


def ask_for_little(page: Page) -> None:
    set_number(page, "Steps", 2)
    set_number(page, "Width", 64)
    set_number(page, "Height", 64)


def shown(page: Page) -> GenerationRequest:
    """The settings inside the PNG that the page shows."""
    source = image(page).get_attribute("src")
    assert source is not None
    reply = page.request.get(source)
    with Image.open(io.BytesIO(reply.body())) as opened:
        assert opened.format == "PNG"
        values = json.loads(opened.info["uso"])
    return GenerationRequest.from_dict(
        {name: value for name, value in values.items() if name not in ("device", "dtype")}
    )


def expect_image(page: Page) -> None:
    expect(status(page)).to_have_text(DONE)
    expect(image(page)).to_be_visible()
    page.wait_for_function("() => document.querySelector('#result img').naturalWidth > 0")


def of_seed(app: Served, seed: int) -> list[Path]:
    """The PNGs in the output folder made with this seed, but for one that is just being deleted."""
    found = []
    for path in app.results:
        try:
            if read_request(path).seed == seed:
                found.append(path)
        except RequestError:
            assert not path.exists()
    return found


def images(folder: Path) -> dict[str, Path]:
    paths = {}
    for seed, (name, size) in enumerate({"subject": (120, 90), "ink": (64, 64), "silk": (64, 96)}.items()):
        levels = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        paths[name] = folder / f"{name}.png"
        Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(paths[name])
    return paths


def put(page: Page, slot: str, path: Path) -> None:
    """Puts a file into an image slot and waits until the slot shows it."""
    block = page.locator(".block").filter(has=page.get_by_text(slot, exact=True))
    block.locator("input[type=file]").set_input_files(path)
    expect(block.locator("img")).to_be_visible()


def test_a_bad_image_is_told_in_its_slot_by_the_users_name(served: Served, open_page: OpenPage, tmp_path: Path) -> None:
    (tmp_path / "holiday.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    moving = tmp_path / "dance.gif"
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(moving, save_all=True, append_images=frames[1:], duration=50)
    page = open_page(served)
    slot = page.locator(".block").filter(has=page.get_by_text("Content image", exact=True))
    slot.locator("input[type=file]").set_input_files(tmp_path / "holiday.heic")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text("holiday.heic is damaged")
    expect(slot.locator("img")).to_have_count(0)
    page.get_by_test_id("toast-close").click()
    expect(toast).to_have_count(0)
    put(page, "Style image 1", moving)
    expect(toast).to_contain_text("Of the animation dance.gif only the first frame is used.")


def test_first_visit_to_first_image_without_touching_settings(fresh: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(fresh)
    expect(status(page)).to_have_text(re.compile("Ready"))
    shot(page, "first-visit")
    prompt(page).fill("A red house by the sea")
    press(page, "Generate")
    expect(status(page)).to_contain_text("Loading the model")
    shot(page, "loading")
    expect_image(page)
    shot(page, "first-image")
    request = shown(page)
    assert request.prompt == "A red house by the sea"
    expect(page.get_by_label("Seed used", exact=True)).to_have_value(str(request.seed))
    assert [read_request(path).seed for path in fresh.results] == [request.seed]


def test_stop_during_loading_then_a_run_that_succeeds(fresh: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(fresh)
    prompt(page).fill("A red house by the sea")
    press(page, "Generate")
    expect(status(page)).to_contain_text("Loading the model")
    press(page, "Stop")
    expect(status(page)).to_have_text(STOPPED)
    shot(page, "stopped-while-loading")
    assert fresh.results == []
    press(page, "Generate")
    expect_image(page)
    assert len(fresh.results) == 1


def test_stop_during_steps_then_a_run_that_succeeds(served: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(served)
    prompt(page).fill("A long walk")
    ask_for_much(page, seed=101)
    set_number(page, "Images", 8)  # a single one might end before the click has come through

    def made() -> int:
        return sum(len(of_seed(served, seed)) for seed in range(101, 109))

    press(page, "Generate")
    wait_until_stepping(page, then_press="stop")
    expect(status(page)).to_have_text(STOPPED)
    shot(page, "stopped")
    before = made()
    assert before < 8
    ask_for_little(page)
    set_number(page, "Images", 1)
    press(page, "Generate")
    expect_image(page)
    assert shown(page).steps == 2
    assert made() == before + 1  # nothing continued in the background


def test_stop_when_nothing_runs_says_so(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    press(page, "Stop")
    expect(status(page)).to_contain_text("Nothing is running")


def test_control_enter_generates(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    prompt(page).fill("A boat on a lake")
    prompt(page).press("Control+Enter")
    expect_image(page)
    assert shown(page).prompt == "A boat on a lake"
    expect(prompt(page)).to_have_value("A boat on a lake")


def test_content_and_style_images(served: Served, open_page: OpenPage, shot: Shot, tmp_path: Path) -> None:
    page, files = open_page(served), images(tmp_path)
    put(page, "Content image", files["subject"])
    put(page, "Style image 1", files["ink"])
    put(page, "Style image 2", files["silk"])
    prompt(page).fill("The subject walks through a market")
    press(page, "Generate")
    expect_image(page)
    shot(page, "content-and-styles")
    request = shown(page)
    assert request.content is not None
    assert request.content.name == "subject.png"
    assert [style.name for style in request.styles] == ["ink.png", "silk.png"]


def test_nothing_moves_when_the_first_image_comes(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)

    def places() -> list[dict[str, float] | None]:
        parts = (prompt(page), page.locator("#generate"), page.locator("#result"), page.locator("#status"))
        return [part.bounding_box() for part in parts]

    before = places()
    prompt(page).fill("A boat on a lake")
    press(page, "Generate")
    expect_image(page)
    assert places() == before


def test_a_second_run_waits_its_turn(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    prompt(page).fill("Twice")
    ask_for_much(page)
    before = set(served.results)
    press(page, "Generate")
    wait_until_stepping(page, then_press="generate")
    eventually(lambda: len(set(served.results) - before) == 2)
    first, second = sorted(set(served.results) - before, key=ended)
    assert began(second) > (began(first) + ended(first)) / 2  # one after the other, give or take the saving
    expect(page.get_by_label("Seed used", exact=True)).to_have_value(str(read_request(second).seed))
    expect_image(page)
    assert shown(page) == read_request(second)


def ended(result: Path) -> float:
    return result.stat().st_mtime


def began(result: Path) -> float:
    return ended(result) - json.loads(result.with_suffix(".json").read_text())["seconds"]


def test_a_second_visitor_waits_stops_only_their_own_run_and_is_served(
    served: Served, open_page: OpenPage, shot: Shot
) -> None:
    first, second = open_page(served), open_page(served)
    ask_for_much(first, seed=301)
    prompt(second).fill("a boat on a lake")
    set_number(second, "Seed", 302)
    press_often(first, 3)
    wait_until_stepping(first)
    press(second, "Generate")
    expect(status(second)).to_have_text(WAITING)
    shot(second, "waiting")
    press(second, "Stop")
    expect(status(second)).to_have_text(STOPPED)
    set_number(second, "Seed", 303)
    press(second, "Generate")
    expect_image(second)
    expect_image(first)
    assert (shown(first).seed, shown(second).seed) == (301, 303)
    assert [len(of_seed(served, seed)) for seed in (301, 302, 303)] == [3, 0, 1]
    third, (last,) = max(of_seed(served, 301), key=ended), of_seed(served, 303)
    assert began(last) > (began(third) + ended(third)) / 2  # a file is saved while the next run is active


def test_a_bad_value_is_reported_and_the_form_stays(served: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(served)
    prompt(page).fill("A boat on a lake")
    press(page, "Generate")
    expect_image(page)
    set_number(page, "Width", 0)
    press(page, "Generate")
    toast = page.get_by_test_id("toast-body")
    expect(toast).to_contain_text(re.compile("width is 0", re.IGNORECASE))
    shot(page, "bad-value")
    expect(prompt(page)).to_have_value("A boat on a lake")
    expect(number(page, "Width")).to_have_value("0")
    expect(status(page)).not_to_have_text(DONE)  # the text of the run before would read as if this one had succeeded
    set_number(page, "Width", 64)
    press(page, "Generate")
    expect_image(page)
    assert shown(page).width == 64


def test_no_request_leaves_this_machine(served: Served, open_page: OpenPage) -> None:
    addresses: list[str] = []
    page = open_page(served)
    page.on("request", lambda request: addresses.append(request.url))
    page.reload()
    expect(prompt(page)).to_be_visible()
    press(page, "Advanced ▼")
    press(page, "More styles ▼")
    prompt(page).fill("a boat on a lake")
    press(page, "Generate")
    expect_image(page)
    assert len(addresses) > 10  # the page, its scripts and the image were seen
    strangers = [each for each in addresses if not each.startswith((f"{served.url}/", "data:", "blob:"))]
    assert strangers == []


def test_a_phone_shows_everything_without_scrolling_sideways(served: Served, open_page: OpenPage, shot: Shot) -> None:
    page = open_page(served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    press(page, "Advanced ▼")
    press(page, "More styles ▼")
    expect(page.get_by_role("group", name="Style image 4")).to_be_visible()
    prompt(page).fill("A boat on a lake")
    page.get_by_role("button", name="Generate").tap()
    expect_image(page)
    shot(page, "phone")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in (prompt(page), page.locator("#generate"), page.locator("#stop"), image(page), status(page)):
        box = part.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_on_a_phone_the_image_scrolls_into_view_from_anywhere(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.get_by_text("Words alone", exact=True).tap()
    expect_image(page)
    expect(image(page)).to_be_in_viewport(ratio=1)
    seen, ask = image(page).bounding_box(), page.locator("#ask").bounding_box()
    assert seen is not None
    assert ask is not None
    assert ask["y"] + ask["height"] == 844  # the prompt sticks to the bottom, and nothing is behind it
    assert seen["y"] + seen["height"] <= ask["y"]
    number(page, "Width").scroll_into_view_if_needed()
    expect(prompt(page)).to_be_in_viewport()
    expect(page.locator("#generate")).to_be_in_viewport()


@pytest.mark.parametrize(("scheme", "dark"), [("dark", True), ("light", False)])
def test_the_page_follows_dark_and_light(
    served: Served, open_page: OpenPage, shot: Shot, scheme: str, dark: bool
) -> None:
    page = open_page(served, color_scheme=scheme)
    prompt(page).fill("a boat on a lake")
    press(page, "Generate")
    expect_image(page)
    shot(page, scheme)
    ground = luminance(page, ".gradio-container", "backgroundColor")
    for part in ("#status [role=status]", "textarea", "h1"):
        words = luminance(page, part, "color")
        assert (words > ground) == dark
        assert contrast(words, ground) > 4.5, part


def luminance(page: Page, selector: str, colour: str) -> float:
    """Relative luminance (WCAG 2) of an element's colour; if it is transparent, of its first coloured ancestor."""
    levels = page.locator(selector).first.evaluate(PAINTED, colour)
    linear = [level / 255 / 12.92 if level <= 10 else ((level / 255 + 0.055) / 1.055) ** 2.4 for level in levels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: float, two: float) -> float:
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


def test_the_keyboard_alone_suffices(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    tab_to(page, prompt(page))
    page.keyboard.type("A lighthouse")
    page.keyboard.press("Control+Enter")
    expect_image(page)
    assert shown(page).prompt == "A lighthouse"
    seed_before = shown(page).seed
    tab_to(page, page.locator("#generate"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Seed used", exact=True)).not_to_have_value(str(seed_before))
    tab_to(page, page.locator("#stop"))


def tab_to(page: Page, target: Locator) -> None:
    for _ in range(40):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("forty presses of Tab did not get there")


def test_back_leads_to_the_tab_before_and_a_reload_stays(served: Served, open_page: OpenPage) -> None:
    page = open_page(served)
    for name in ("History", "Model"):
        page.get_by_role("tab", name=name, exact=True).click()
        expect(page).to_have_url(re.compile(f"#{name.lower()}$"))
    page.go_back()
    expect(page.get_by_role("tab", name="History", exact=True)).to_have_attribute("aria-selected", "true")
    page.reload()
    expect(page.get_by_label("Only starred")).to_be_visible()
    page.get_by_role("tab", name="Create", exact=True).click()
    expect(prompt(page)).to_be_visible()
