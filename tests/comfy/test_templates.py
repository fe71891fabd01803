"""The workflows that ComfyUI itself offers for FLUX.1: every field is read, or a note says why not."""

from __future__ import annotations

import pytest

from tests.comfy.frontend import has_packages, template
from tests.comfy.workflows import notes, read

pytestmark = pytest.mark.skipif(not has_packages(), reason="ComfyUI's templates are not installed")
USO = "flux1_dev_uso_reference_image_gen"
DEPTH = "flux_depth_lora_example"
TEMPLATES = (USO, DEPTH, "flux1_krea_dev", "flux_canny_model_example", "flux_dev_checkpoint_example",
             "flux_dev_full_text_to_image", "flux_fill_inpaint_example", "flux_fill_outpaint_example",
             "flux_kontext_dev_basic", "flux_redux_model_example", "flux_schnell",
             "flux_schnell_full_text_to_image")  # fmt: skip
SIZES = {"note_size_of_image", "note_size_of_other", "note_size_of_content_here", "note_size_computed"}
WHY = {"guidance": {"note_no_guidance"}, "width": SIZES, "height": SIZES}


def kept(data, kind):
    """The saved values of the active nodes of a class, wherever they stand."""
    scopes = [data, *data.get("definitions", {}).get("subgraphs", [])]
    nodes = [each for scope in scopes for each in scope["nodes"]]
    return [each["widgets_values"] for each in nodes if each["type"] == kind and each.get("mode", 0) == 0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_field_is_read_or_explained(name):
    result = read(template(name))
    for field in ("prompt", "seed", "steps", "guidance", "width", "height"):
        assert getattr(result, field) is not None or WHY[field] & set(notes(result)), field
    assert "note_missing" not in notes(result)


def test_usos_own_template():
    data = template(USO)
    result = read(data)
    assert result.prompt in [text for (text,) in kept(data, "CLIPTextEncode")]
    assert [result.seed, result.steps] in [[seed, steps] for seed, _, steps, *_ in kept(data, "KSampler")]
    assert result.content in [image for image, *_ in kept(data, "LoadImage")]
    assert [result.width, result.height] in [sides[:2] for sides in kept(data, "EmptyLatentImage")]
    assert "note_no_uso_lora" not in notes(result)


def test_the_sampler_of_the_depth_template_is_not_the_depth_estimators():
    data = template(DEPTH)
    ((seed, _, steps, *_),) = kept(data, "KSampler")
    result = read(data)
    assert (result.seed, result.steps) == (seed, steps)
    assert [lora.name for lora in result.loras] == [name for name, *_ in kept(data, "LoraLoaderModelOnly")]
