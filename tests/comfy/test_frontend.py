"""ComfyUI is the judge: its own page opens workflows, and says what it would run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import chromium  # noqa: F401
from tests.comfy.frontend import Canvas, has_packages, served, template
from tests.comfy.test_export import some_request
from tests.comfy.workflows import read, recipe, scope
from uso_core.comfy import export_api, export_workflow

pytestmark = [
    pytest.mark.browser, pytest.mark.slow,
    pytest.mark.skipif(not has_packages(), reason="ComfyUI's frontend is not installed"),
]  # fmt: skip
TEMPLATES = (
    "flux1_dev_uso_reference_image_gen",
    "flux1_krea_dev",
    "flux_dev_checkpoint_example",
    "flux_dev_full_text_to_image",
    "flux_kontext_dev_basic",
    "flux_redux_model_example",
    "flux_schnell",
    "flux_schnell_full_text_to_image",
)


@pytest.fixture(scope="module")
def canvas(chromium: Browser) -> Iterator[Canvas]:  # noqa: F811
    with served() as url:
        page = chromium.new_page()
        yield Canvas(page, url)
        page.close()


def bare(prompt):
    """A prompt without the titles."""
    return {key: {"class_type": one["class_type"], "inputs": one["inputs"]} for key, one in prompt.items()}


def test_the_page_would_run_every_export_as_the_api_does(canvas):
    for number in range(24):
        request = some_request(number)
        assert bare(canvas.prompt_of(export_workflow(request))) == bare(export_api(request))


def test_an_export_that_the_page_has_saved_again_is_still_ours(canvas):
    request = some_request(1)
    canvas.prompt_of(export_workflow(request))
    saved = canvas.page.evaluate("() => window.app.graph.serialize()")
    assert read(saved) == read(export_workflow(request))
    assert read(saved).content_sha256 or read(saved).styles_sha256


def test_without_a_linked_text_the_page_would_rewrite_the_prompt(canvas):
    """What our reading of a canvas, and the linked text of our export, take care of."""
    texts = {
        "a /* small */ fox // here": "a  fox ",
        r"a \{fox\} in {one place}": "a {fox} in one place",
        "{}a } fox | {": "a } fox | ",
        r"a \(fox\) (tame)": r"a \(fox\) (tame)",
    }
    for text, sent in texts.items():
        workflow = scope(recipe(prompt=text), shuffle=False)
        prompt = canvas.prompt_of(numbered(workflow))
        (encoder,) = (one for one in prompt.values() if one["class_type"] == "CLIPTextEncode")
        assert encoder["inputs"]["text"] == sent
        assert read(workflow).prompt == read(prompt).prompt


def numbered(workflow):
    """The same with the numbers that the page wants for names."""
    numbers = {one["id"]: place for place, one in enumerate(workflow["nodes"], 1)}
    nodes = [{**one, "id": numbers[one["id"]]} for one in workflow["nodes"]]
    links = [[key, numbers[a], b, numbers[c], d, kind] for key, a, b, c, d, kind in workflow["links"]]
    return {**workflow, "nodes": nodes, "links": links}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_means_what_the_page_would_run(canvas, name):
    """Every value that the import reads on the canvas is the one in the prompt that the page makes of it."""
    workflow = template(name)
    assert read(workflow) == read(canvas.prompt_of(workflow))
