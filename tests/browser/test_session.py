"""What one keeps at hand: this session, the lightbox, the queue, ideas, presets; and a reload loses nothing."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Locator, Page, expect

from tests.browser.conftest import OpenPage, eventually, held_back, visit
from tests.browser.test_create import seed_used
from tests.browser.test_page import ask_for_much, image, of_seed, press, prompt, set_number, shown, status
from tests.browser.test_page import wait_until_stepping as wait_until_stepping_on
from tests.browser.test_studio import generate, slot, tab, upload
from tests.ui.test_app import Served
from uso_core.catalog.examples import FOLDER
from uso_core.storage.png import read_request
from uso_core.ui.ideas import SMALL

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def page(served: Served, open_page: OpenPage) -> Page:
    return open_page(served)


def strip(page: Page) -> Locator:
    return page.locator("#visit button")


def lightbox(page: Page) -> Locator:
    return page.locator("dialog.lightbox")


def little(page: Page, seed: int) -> None:
    for name, value in (("Steps", 2), ("Width", 64), ("Height", 64), ("Seed", seed)):
        set_number(page, name, value)


def generate_three(page: Page, words: str, seed: int) -> None:
    little(page, seed)
    set_number(page, "Images", 3)
    prompt(page).fill(words)
    press(page, "Generate")
    expect(status(page)).to_contain_text("Done in")
    expect(strip(page)).to_have_count(3)


def test_a_reload_finds_its_run_and_its_images_again(served: Served, page: Page) -> None:
    little(page, 9101)
    generate(page, served, "a red house")
    ask_for_much(page, seed=9102)
    press(page, "Generate")
    wait_until_stepping_on(page)
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    expect(strip(page).first).to_be_visible()
    expect(status(page)).to_have_text(re.compile(r"Step \d+ of|Done in"))  # it goes on, and is told
    expect(status(page)).to_contain_text("Done in")
    seed_used(page, 9102)
    expect(strip(page)).to_have_count(2)
    assert len(of_seed(served, 9102)) == 1  # once


def test_a_reload_finds_its_grid_again(served: Served, page: Page) -> None:
    little(page, 9107)
    set_number(page, "Steps", 60)
    prompt(page).fill("a {red|blue} boat on a lake")
    press(page, "Comparison grid ▼")
    page.get_by_label("Across", exact=True).click()
    page.get_by_role("option", name="Guidance value", exact=True).click()
    page.get_by_label("Values across", exact=True).fill("1..4")
    press(page, "Make the grid")
    expect(strip(page).first).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    expect(image(page)).to_be_visible()
    expect(status(page)).to_have_text(re.compile(r"^Cell \d of 4:"))  # it goes on, and is told
    expect(strip(page)).to_have_count(10)  # two sheets, and each image
    expect(status(page)).to_contain_text("The grid of 4 images is done")
    assert len(of_seed(served, 9107)) == 8  # each once
    page.wait_for_function("() => document.querySelector('#result img').naturalWidth > 256")  # the last sheet, whole
    strip(page).nth(5).click()  # the first one
    eventually(lambda: shown(page).prompt == "a red boat on a lake")


def test_a_page_that_is_left_for_good_ends_its_runs_in_the_end(served: Served, open_page: OpenPage) -> None:
    """Another tab is another page: it neither takes over nor shows what the first one runs."""
    page, other = open_page(served), open_page(served)
    ask_for_much(page, seed=9111)
    press(page, "Generate")
    wait_until_stepping_on(page)
    expect(strip(other)).to_have_count(0)
    expect(status(other)).to_contain_text("Ready")
    page.locator("#stop").click()
    expect(status(page)).to_contain_text("Stopped")


def test_choices_in_the_prompt_are_runs_of_their_own_which_can_be_ended_one_by_one(served: Served, page: Page) -> None:
    ask_for_much(page, seed=9121)
    prompt(page).fill("a {red|blue|green} boat on a lake")
    press(page, "Generate")
    queue = page.locator("#queue button")
    expect(queue).to_have_count(3)
    expect(queue.locator("b")).to_have_text([f"a {colour} boat on a lake" for colour in ("red", "blue", "green")])
    queue.nth(1).click()
    expect(queue.locator("b")).to_have_text(["a red boat on a lake", "a green boat on a lake"])
    expect(status(page)).to_contain_text("Done in")
    eventually(lambda: len(of_seed(served, 9121)) == 2)
    expect(queue).to_have_count(0)
    expect(strip(page)).to_have_count(2)


def test_nothing_that_is_shown_is_copied(served: Served, page: Page) -> None:
    before = set(served.results)
    upload(page, "Content image", FOLDER / "03-subject" / "content.png")
    generate_three(page, "a mug in the forest", 9126)
    press(page, "Compare with the content image ▼")
    expect(page.locator("#compare img")).to_have_count(2)
    uploads = served.output.parent / "uploads"
    made = {path.name for path in set(served.results) - before}
    assert len(made) == 3
    assert {path.name for path in uploads.rglob("*.png")}.isdisjoint(made)


def test_the_lightbox_selects_stars_and_deletes(served: Served, page: Page) -> None:
    generate_three(page, "a mushroom in the forest", 9131)
    image(page).click()
    expect(lightbox(page)).to_be_visible()
    for key, seed in (("ArrowRight", 9132), ("ArrowRight", 9131), ("ArrowRight", 9131), ("ArrowLeft", 9132)):
        page.keyboard.press(key)
        expect(lightbox(page).locator("img")).to_have_attribute("src", re.compile(f"-{seed}-"))
    page.keyboard.press("s")
    expect(lightbox(page).get_by_role("button", name=re.compile("Star"))).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(lightbox(page)).to_have_count(0)
    seed_used(page, 9132)  # what was shown is selected
    assert shown(page).seed == 9132
    (starred,) = of_seed(served, 9132)
    eventually(starred.with_suffix(".star").is_file)
    expect(strip(page).nth(1)).to_have_attribute("data-starred", "true")

    tab(page, "History")
    page.get_by_label("Only starred").check()
    cards = page.locator("#history-images button")
    expect(cards.locator("img").first).to_have_attribute("src", re.compile("-9132-"))
    page.get_by_label("Only starred").uncheck()
    page.locator("#history-images button", has=page.locator("img[src*='-9133-']")).click()
    page.keyboard.press("Delete")
    expect(lightbox(page).get_by_role("button", name="Delete permanently?")).to_be_visible()
    page.keyboard.press("Delete")
    eventually(lambda: not of_seed(served, 9133))
    page.keyboard.press("c")  # the next one, as content
    expect(slot(page, "Content image").locator("img")).to_be_visible()
    expect(strip(page)).to_have_count(2)


def test_several_images_are_downloaded_or_deleted_at_once(served: Served, page: Page) -> None:
    generate_three(page, "a tree in the desert", 9141)
    tab(page, "History")
    page.get_by_label("Search").fill("tree desert")
    cards = page.locator("#history-images button")
    expect(cards).to_have_count(3)
    page.get_by_label("Select several").check()
    with held_back(page):
        for place in (0, 2):
            cards.nth(place).click()
    expect(lightbox(page)).to_have_count(0)
    with page.expect_download() as download:
        press(page, "Download selected (zip)")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert sorted(name.split("-")[2] for name in archive.namelist()) == ["9141", "9143"]
    press(page, "Delete selected")
    press(page, "Delete permanently?")
    expect(cards).to_have_count(1)
    assert [bool(of_seed(served, seed)) for seed in (9141, 9142, 9143)] == [False, True, False]
    tab(page, "Create")
    expect(strip(page)).to_have_count(1)
    expect(image(page)).to_have_count(0)  # it was one of the deleted
    page.reload()
    expect(strip(page)).to_have_count(1)
    seed_used(page, 9142)


def test_the_large_image_opens_by_keyboard_and_closes_with_back(served: Served, page: Page) -> None:
    little(page, 9161)
    generate(page, served, "a boat for the keyboard")
    page.locator("#result button", has=page.locator("img")).last.focus()
    page.keyboard.press("Enter")
    expect(lightbox(page)).to_be_visible()
    page.keyboard.press("Escape")
    expect(lightbox(page)).to_have_count(0)
    strip(page).first.focus()
    page.keyboard.press("Enter")
    expect(lightbox(page)).to_be_visible()
    page.keyboard.press("Escape")
    tab(page, "History")
    page.locator("#history-images button").first.click()
    expect(lightbox(page)).to_be_visible()
    page.go_back()
    expect(lightbox(page)).to_have_count(0)


def test_on_a_phone_every_button_of_the_large_image_is_in_sight(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, viewport={"width": 390, "height": 844})
    little(page, 9162)
    generate(page, served, "a boat on a phone")
    image(page).click()
    for button in lightbox(page).locator("button, a").all():
        expect(button).to_be_in_viewport(ratio=1)


def test_a_private_image_is_not_left_without_a_question(served: Served, page: Page) -> None:
    little(page, 9163)
    page.get_by_label("Private: don't save").check()
    prompt(page).fill("a house in the forest")
    press(page, "Generate")
    expect(strip(page)).to_have_count(1)
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.once("dialog", stay)
    page.get_by_label("Language").select_option("de")
    eventually(lambda: page.wait_for_timeout(50) is None and asked == ["beforeunload"])
    expect(strip(page)).to_have_count(1)


def test_neither_a_double_click_nor_a_key_that_is_held_deletes(served: Served, page: Page) -> None:
    generate_three(page, "a boat to be kept", 9151)
    image(page).click()
    for _ in range(20):
        page.keyboard.down("Delete")  # again and again, without going up
    page.keyboard.up("Delete")
    sure = lightbox(page).get_by_role("button", name="Delete permanently?")
    expect(sure).to_be_visible()
    page.keyboard.press("ArrowRight")
    lightbox(page).get_by_role("button", name="Delete", exact=True).dblclick()
    expect(sure).to_be_visible()
    page.keyboard.press("Escape")
    tab(page, "History")
    page.get_by_label("Search").fill("boat to be kept")
    cards = page.locator("#history-images button")
    expect(cards).to_have_count(3)
    page.get_by_label("Select several").check()
    cards.first.click()
    delete = page.get_by_role("button", name="Delete selected", exact=True)
    expect(delete).to_be_enabled()
    delete.dblclick(delay=200)
    expect(page.get_by_role("button", name="Delete permanently?", exact=True)).to_be_visible()
    page.wait_for_timeout(300)
    expect(cards).to_have_count(3)
    assert all(len(of_seed(served, seed)) == 1 for seed in (9151, 9152, 9153))


def test_a_private_image_is_deleted_and_has_no_star(served: Served, page: Page) -> None:
    little(page, 9147)
    page.get_by_label("Private: don't save").check()
    prompt(page).fill("a house in the forest")
    press(page, "Generate")
    expect(strip(page)).to_have_count(1)
    image(page).click()
    expect(lightbox(page).get_by_role("button", name=re.compile("Star"))).to_be_hidden()
    for _ in range(2):
        page.keyboard.press("Delete")
    expect(strip(page)).to_have_count(0)
    expect(image(page)).to_have_count(0)


def test_an_image_in_a_slot_outlives_the_one_in_the_history(served: Served, page: Page) -> None:
    little(page, 9148)
    first = generate(page, served, "a boat to go on with")
    press(page, "Use as content")
    expect(slot(page, "Content image").locator("img")).to_be_visible()
    image(page).click()
    for _ in range(2):
        page.keyboard.press("Delete")
    eventually(lambda: not first.exists())
    expect(lightbox(page)).to_have_count(0)
    second = generate(page, served, "goes on")
    assert read_request(second).content is not None


def test_a_private_image_is_gone_after_a_reload(served: Served, page: Page) -> None:
    little(page, 9145)
    page.get_by_label("Private: don't save").check()
    prompt(page).fill("a house in the forest")
    press(page, "Generate")
    expect(status(page)).to_contain_text("Done in")
    page.reload()
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    page.wait_for_timeout(3000)
    page.reload()
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    page.wait_for_timeout(1000)
    expect(strip(page)).to_have_count(0)
    expect(page.get_by_test_id("toast-body")).to_have_count(0)


def test_an_image_of_this_session_is_dragged_into_a_slot(served: Served, page: Page) -> None:
    little(page, 9151)
    generate(page, served, "a boat on the beach")
    strip(page).first.drag_to(page.locator(".slot.column").nth(1))
    expect(slot(page, "Style image 1").locator("img")).to_be_visible()


def test_ideas_fit_the_mode_and_recent_prompts_come_back(served: Served, page: Page) -> None:
    little(page, 9161)
    generate(page, served, "a rocket in space")
    page.locator("#ideas summary").click()
    ideas = page.locator("#ideas button")
    expect(ideas.filter(has_text="a rocket in space")).not_to_have_count(0)
    expect(ideas.first).to_have_text(SMALL["text"][0])
    ideas.first.click()
    expect(prompt(page)).to_have_value(SMALL["text"][0])
    expect(ideas.first).to_be_hidden()


def test_presets_keep_settings_over_a_reload_and_travel_as_a_file(page: Page, tmp_path: Path) -> None:
    set_number(page, "Steps", 7)
    set_number(page, "Guidance", 2.5)
    page.get_by_role("button", name=re.compile("Presets")).click()
    page.get_by_label("Name of the preset").fill("quick <b>look</b>")
    press(page, "Save")
    expect(status(page)).to_contain_text("quick <b>look</b>")
    with page.expect_download() as download:
        press(page, "Export")
    exported = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert exported["uso_presets"]["quick <b>look</b>"]["steps"] == 7
    assert not {"prompt", "seed", "content", "style_1"} & set(exported["uso_presets"]["quick <b>look</b>"])
    exported["uso_presets"]["other"] = {"steps": 9, "guidance": "strange", "width": 10**9}
    changed = tmp_path / "presets.json"
    changed.write_text(json.dumps(exported), encoding="utf-8")
    page.locator("#presets input[type=file]").set_input_files(changed)
    expect(status(page)).to_contain_text("other")
    page.reload()
    expect(page.locator("body[data-script=ready]")).to_be_attached()
    set_number(page, "Steps", 30)
    page.get_by_role("button", name=re.compile("Presets")).click()
    for name, steps in (("quick <b>look</b>", "7"), ("other", "9")):
        page.get_by_label("Preset", exact=True).click()
        page.get_by_role("option", name=name, exact=True).click()
        expect(page.get_by_role("spinbutton", name="Steps", exact=True)).to_have_value(steps)
    expect(page.get_by_role("spinbutton", name="Guidance", exact=True)).to_have_value("2.5")
    expect(page.get_by_role("spinbutton", name="Width", exact=True)).to_have_value("128")


def test_what_two_tabs_store_is_kept(served: Served, page: Page) -> None:
    other = page.context.new_page()
    visit(other, served)
    for each, steps in ((page, 11), (other, 12)):
        expect(each.locator("body[data-remembering]")).to_be_attached()
        set_number(each, "Steps", steps)
        each.get_by_role("button", name=re.compile("Presets")).click()
        each.get_by_label("Name of the preset").fill(f"with {steps}")
        press(each, "Save")
        expect(status(each)).to_contain_text(f"with {steps}")
    page.get_by_label("Preset", exact=True).click()
    page.get_by_role("option", name="with 12", exact=True).click()
    expect(page.get_by_role("spinbutton", name="Steps", exact=True)).to_have_value("12")
    set_number(page, "Steps", 13)
    page.wait_for_function("JSON.parse(sessionStorage.getItem('uso-form')).steps === 13")
    for each, steps in ((page, "13"), (other, "12")):  # each its own form, a new one the latest
        each.reload()
        expect(each.locator("body[data-remembering]")).to_be_attached()
        expect(each.get_by_role("spinbutton", name="Steps", exact=True)).to_have_value(steps)
        each.get_by_role("button", name=re.compile("Presets")).click()
        each.get_by_label("Preset", exact=True).click()
        for name in ("with 11", "with 12"):
            expect(each.get_by_role("option", name=name, exact=True)).to_be_visible()


def test_a_dropdown_applies_what_is_chosen_and_nothing_when_it_is_left(page: Page) -> None:
    page.get_by_role("button", name=re.compile("Presets")).click()
    expect(page.locator("body[data-remembering]")).to_be_attached()
    for steps in (11, 12):
        set_number(page, "Steps", steps)
        page.get_by_label("Name of the preset").fill(f"with {steps}")
        press(page, "Save")
        expect(status(page)).to_contain_text(f"with {steps}")
    preset = page.get_by_label("Preset", exact=True)
    preset.press("ArrowUp")
    preset.press("Enter")  # by the keyboard as by a press
    expect(page.get_by_role("spinbutton", name="Steps", exact=True)).to_have_value("11")
    set_number(page, "Steps", 13)
    preset.click()
    preset.press("Escape")
    preset.blur()
    set_number(page, "Width", 256)
    set_number(page, "Height", 192)
    aspect = page.get_by_label("Aspect", exact=True)
    expect(aspect).to_have_value("4:3")  # of other sides than those that are set
    aspect.click()
    aspect.press("Escape")
    aspect.blur()
    page.get_by_label("Name of the preset").fill("after that")
    press(page, "Save")
    expect(status(page)).to_contain_text("after that")
    for name, value in (("Steps", "13"), ("Width", "256"), ("Height", "192")):
        expect(page.get_by_role("spinbutton", name=name, exact=True)).to_have_value(value)
    preset.click()
    page.get_by_role("option", name="with 11", exact=True).click()  # chosen anew, it counts anew
    expect(page.get_by_role("spinbutton", name="Steps", exact=True)).to_have_value("11")
    prompt(page).fill("a boat on a lake")
    kept = aspect.input_value()
    aspect.click()
    aspect.press("ArrowDown")
    aspect.press("Control+Enter")  # starts a run, and chooses nothing
    expect(status(page)).to_contain_text("Done in")
    expect(aspect).to_have_value(kept)


def test_a_question_mark_lists_the_keys(page: Page) -> None:
    prompt(page).press("?")
    expect(prompt(page)).to_have_value("?")
    expect(page.locator("dialog.keys")).to_have_count(0)
    prompt(page).blur()
    page.keyboard.press("Shift+?")
    expect(page.locator("dialog.keys kbd").first).to_have_text("Ctrl + Enter")
    page.keyboard.press("Escape")
    expect(page.locator("dialog.keys")).to_have_count(0)


def test_a_notification_comes_when_an_image_is_done_elsewhere(served: Served, open_page: OpenPage) -> None:
    page = open_page(served, permissions=["notifications"])
    page.evaluate("""() => {
      window.told = [];
      window.Notification = class extends EventTarget {
        static permission = "granted";
        static requestPermission = async () => "granted";
        constructor(title, options) { super(); window.told.push([title, options.body]); }
      };
      Object.defineProperty(document, "hidden", { get: () => true });
    }""")
    little(page, 9171)
    generate(page, served, "a car in the city")
    assert page.evaluate("window.told") == []  # off by default
    page.locator("#switches summary").click()
    page.get_by_label("Notify me if I look elsewhere").check()
    page.locator("#generate").click()
    page.wait_for_function("window.told.length == 1")
    title, body = page.evaluate("window.told[0]")
    assert title == "Your image is ready"
    assert body.startswith("Done in")
