"""Workflows in every form that ComfyUI saves, and what has no counterpart here."""

from __future__ import annotations

import copy
import json

import pytest
from PIL import Image, PngImagePlugin

from tests.comfy.workflows import (
    FORMATS,
    FULL,
    MODES,
    SUBJECT,
    advanced,
    api,
    definition,
    expected,
    inside,
    node,
    read,
    recipe,
    scope,
    values,
    with_subgraphs,
)
from uso_core.comfy import import_workflow, workflow_in_png_text
from uso_core.comfy.graph import Graph, Node, Origin
from uso_core.comfy.loras import LoRA
from uso_core.messages import message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_format(mode, form):
    given, wanted = MODES[mode]
    result = read(FORMATS[form](recipe(**given)))
    assert values(result) == expected(**wanted)
    assert result.images == 1
    assert result.schedule is None
    assert result.notes == (message("note_own_schedule"),)


@pytest.mark.parametrize(
    ("modes", "wanted"),
    [
        ({"style1": 4}, {"styles": ("2.png",)}),
        ({"style2": 4}, {"styles": ("1.png",)}),
        ({"style1": 4, "seen1": 4, "image1": 4, "style2": 4, "seen2": 4, "image2": 4}, {"styles": ()}),
        ({"image2": 4}, {"styles": ("1.png",)}),
        ({"seen2": 2}, {"styles": ("1.png",)}),
        ({"image": 4}, {"content": None, "content_size": None}),
        ({"image": 2}, {"content": None, "content_size": None}),
        ({"encode": 4}, {"content": None, "content_size": None}),
        ({"reference": 4}, {"content": None, "content_size": None}),
        ({"scale": 4}, {"content_size": None}),
        ({"scale": 2}, {"content": None, "content_size": None}),
        ({"guidance": 4}, {"guidance": None}),
        ({"method": 4, "lora": 4}, {}),
        ({"image": 4, "scale": 4, "encode": 4, "reference": 4, "method": 4}, {"content": None, "content_size": None}),
    ],
)
def test_bypassed_and_muted_nodes(modes, wanted):
    nodes = recipe(content="me.png", styles=("1.png", "2.png"))
    base = SUBJECT | {"styles": ("1.png", "2.png")}
    assert values(read(scope(nodes, modes=modes))) == expected(**(base | wanted))


@pytest.mark.parametrize(
    ("modes", "off"),
    [({"image": 2}, "image"), ({"image": 4}, "image"), ({"seen1": 2}, "seen1"), ({"image1": 2}, "image1"),
     ({"scale": 2}, "scale"), ({"reference": 2}, "reference"), ({"guidance": 2}, "guidance")],
)  # fmt: skip
def test_what_is_lost_with_a_node_that_is_off_is_told(modes, off):
    nodes = recipe(content="me.png", styles=("1.png", "2.png"))
    result = read(scope(nodes, modes=modes))
    (told,) = (note for note in result.notes if note.key == "note_node_off")
    assert told.values["node"] == nodes[off][0]
    whole = read(scope(nodes))
    assert not [note for note in whole.notes if note.key == "note_node_off"]


def test_of_two_workflows_on_one_canvas_the_active_one_counts():
    first, second = recipe(content="me.png", prompt="first"), recipe(styles=("a.png", "b.png"), prompt="second")
    rename = {key: f"x{key}" for key in second}
    second = {
        rename[key]: [kind, {n: (rename[v[0]], v[1]) if isinstance(v, tuple) else v for n, v in inputs.items()}]
        for key, (kind, inputs) in second.items()
    }
    both = {**first, **second}
    assert read(scope(both, modes=dict.fromkeys(first, 4))).prompt == "second"
    assert read(scope(both, modes=dict.fromkeys(second, 4))).prompt == "first"
    muted = read(scope(both, modes={"save": 2}))
    assert (muted.prompt, muted.content, muted.styles) == ("second", None, ("a.png", "b.png"))
    assert message("note_several_images") in read(scope(both)).notes


@pytest.mark.parametrize("nested", [False, True])
def test_subgraphs(nested):
    data = with_subgraphs(nested=nested)
    assert values(read(data)) == expected(**FULL, guidance=2.5)
    node(data, "guidance")["widgets_values"] = []  # nothing set outside: the inner widget counts
    node(inside(data, "condition-id"), "guidance")["widgets_values"] = [4.5]
    if nested:
        node(inside(data, "outer-id"), "in1")["widgets_values"] = []
    assert values(read(data)) == expected(**FULL, guidance=4.5)


def test_a_bypassed_subgraph_passes_its_inputs_on():
    data = with_subgraphs()
    node(data, "style1")["mode"] = 4
    assert read(data).styles == ("2.png",)
    node(data, "guidance")["mode"] = 4
    result = read(data)
    assert (result.prompt, result.guidance, result.content) == ("A fox in a library", None, None)


def test_a_node_bypassed_inside_a_subgraph():
    data = with_subgraphs()
    for key in ("see", "use"):
        node(inside(data, "style-id"), key)["mode"] = 4
    node(inside(data, "condition-id"), "reference")["mode"] = 4
    assert values(read(data)) == expected(guidance=2.5)


def test_a_whole_workflow_in_one_subgraph_with_promoted_widgets():
    nodes = {key: one for key, one in recipe(styles=("1.png",)).items() if key != "save"}
    nodes["text"][1]["text"] = ("in", "text")
    data = scope({"run": ["all-id", {}], "save": ["SaveImage", {"images": ("run", 0), "filename_prefix": "x"}]})
    data["definitions"] = {"subgraphs": [definition("all-id", nodes, {"text": "STRING"}, {"IMAGE": ("decode", 0)})]}
    run = node(data, "run")
    run["properties"] = {"proxyWidgets": [["sampler", "steps"], ["-1", "text"], ["sampler", "seed"],
                                          ["image1", "image"],
                                          ["save", "$$canvas-image-preview"]]}  # fmt: skip
    run["widgets_values"] = [33, "Promoted words", None, "other.png"]
    assert values(read(data)) == expected(prompt="Promoted words", steps=33, styles=("other.png",))
    run["widgets_values"] = ["out of step", "Promoted words", "no seed", 7]
    assert values(read(data)) == expected(prompt="Promoted words", styles=("1.png",))


def test_named_widget_values_and_dictionaries():
    data = scope(recipe())
    node(data, "sampler")["widgets_values_named"] = {"seed": 77, "steps": 8}
    node(data, "text")["widgets_values"] = {"text": "by name"}
    assert values(read(data)) == expected(seed=77, steps=8, prompt="by name")
    node(data, "latent")["widgets_values"] = [512, 640]
    noise = node(data, "sampler")
    del noise["widgets_values_named"]
    noise["widgets_values"] = [55, 9, 1, "euler", "simple", 1]  # saved without the control after the seed
    assert values(read(data)) == expected(seed=55, steps=9, prompt="by name", width=512, height=640)


@pytest.mark.parametrize("form", ["0.4", "1.0"])
def test_values_fed_by_primitives_and_reroutes(form):
    nodes = recipe(content="me.png", styles=("1.png",))
    nodes |= {
        "seed": ["PrimitiveNode", {"value": 42, "*": "fixed"}],
        "steps": ["PrimitiveInt", {"value": 12, "*": "fixed"}],
        "words": ["PrimitiveStringMultiline", {"value": "a heron"}],
        "both": ["StringConcatenate", {"string_a": ("words", 0), "string_b": "in fog", "delimiter": ", "}],
        "hop": ["Reroute", {"any": ("both", 0)}],
        "model": ["Reroute", {"any": ("style1", 0)}],
        "model2": ["Reroute", {"any": ("model", 0)}],
        "pixels": ["Reroute", {"any": ("image", 0)}],
    }
    nodes["sampler"][1] |= {"seed": ("seed", 0), "steps": ("steps", 0), "model": ("model2", 0)}
    nodes["text"][1]["text"] = ("hop", 0)
    nodes["scale"][1] |= {"image": ("pixels", 0), "largest_size": ("steps", 0)}
    nodes["steps"][1]["value"] = 64
    wanted = {"seed": 42, "steps": 64, "prompt": "a heron, in fog", "content_size": 64}
    assert values(read(FORMATS[form](nodes))) == expected(**(FULL | {"styles": ("1.png",)} | wanted))


@pytest.mark.parametrize("prefix", ["", "easy "])
def test_set_and_get_nodes(prefix):
    nodes = recipe()
    setter, getter = (f"{prefix}{'set' if prefix else 'Set'}Node", f"{prefix}{'get' if prefix else 'Get'}Node")
    nodes |= {"set": [setter, {"any": ("text", 0), "Constant": "cond"}], "get": [getter, {"Constant": "cond"}]}
    nodes |= {"other": ["CLIPTextEncode", {"text": "ugly, blurry", "clip": nodes["text"][1]["clip"]}]}
    nodes |= {"set2": [setter, {"any": ("other", 0), "Constant": "bad"}]}
    nodes["guidance"][1]["conditioning"] = ("get", 0)
    assert values(read(scope(nodes))) == expected()


def test_a_name_that_is_set_counts_in_its_own_subgraph():
    def node(key: str, kind: str, name: str, links: dict[str, Origin]) -> Node:
        return Node(key, kind, values={"name": name}, links=links)

    graph = Graph()
    for each in (node("1", "SetNode", "cond", {"any": Origin("8", 0)}),
                 node("5:2", "SetNode", "cond", {"any": Origin("5:9", 0)}),
                 node("5:3", "GetNode", "cond", {}), node("6:3", "GetNode", "cond", {}),
                 node("4", "GetNode", "cond", {}), node("5:4", "GetNode", "none", {})):  # fmt: skip
        graph.add(each)
    found = {key: graph._set_as(graph.nodes[key]) for key in ("5:3", "6:3", "4", "5:4")}
    assert found == {"5:3": Origin("5:9", 0), "6:3": Origin("8", 0), "4": Origin("8", 0), "5:4": None}


@pytest.mark.parametrize("form", FORMATS)
def test_a_sampler_split_into_parts(form):
    nodes = advanced(recipe(content="me.png", styles=("1.png", "2.png")))
    assert values(read(FORMATS[form](nodes))) == expected(**FULL)
    nodes["sigmas"][1] |= {"scheduler": "beta", "denoise": 0.6}
    nodes["select"][1]["sampler_name"] = "dpmpp_2m"
    result = read(FORMATS[form](nodes))
    notes = result.notes
    assert result.sampler == "ab2"  # of second order too
    assert message("note_sampler", name="dpmpp_2m") in notes
    assert message("note_scheduler", scheduler="beta") in notes
    assert message("note_denoise", denoise=0.6) in notes


@pytest.mark.parametrize("form", FORMATS)
def test_what_has_no_counterpart_is_noted(form):
    nodes = recipe(content="me.png", styles=("1.png",), prompt="a (red:1.3) fox")
    nodes |= {
        "cache": ["EasyCache", {"model": ("style1", 0), "reuse_threshold": 0.2}],
        "other": [
            "LoraLoaderModelOnly",
            {"model": ("cache", 0), "lora_name": "grain.safetensors", "strength_model": 1},
        ],
        "bad": ["CLIPTextEncode", {"clip": ("loader", 1), "text": "blurry"}],
        "big": ["ImageUpscaleWithModel", {"image": ("decode", 0)}],
    }
    nodes["sampler"][1] |= {"model": ("other", 0), "negative": ("bad", 0), "cfg": 3.5, "seed": 2**64 - 1}
    nodes["latent"][1]["batch_size"] = 4
    nodes["scale"][1]["upscale_method"] = "area"
    nodes["seen1"][1]["crop"] = "center"
    nodes["method"][1]["reference_latents_method"] = "index"
    nodes["save"][1]["images"] = ("big", 0)
    result = read(FORMATS[form](nodes))
    assert (result.images, result.seed, result.prompt, result.fast) == (4, None, "a (red:1.3) fox", True)
    assert result.loras == (LoRA("grain.safetensors", 1.0),)
    assert message("note_fast", node="EasyCache", fast=message("fast")) in result.notes
    for part in ("LoRA grain.safetensors (strength 1) is not found here", "Negative prompt is ignored.",
                 "CFG 3.5 is ignored", "Batch size 4", "content image with area", "crops style images",
                 '"index"',
                 "ImageUpscaleWithModel after the sampling is ignored.", "Weights in the prompt",
                 f"Seed {2**64 - 1} is out of range"):  # fmt: skip
        assert sum(part in str(note) for note in result.notes) == 1, part
    assert all(str(note).endswith(".") and "\n" not in str(note) for note in result.notes)


def test_the_first_of_two_passes_counts():
    nodes = recipe(styles=("1.png",))
    second = copy.deepcopy(nodes["sampler"])
    second[1] |= {"latent_image": ("larger", 0), "steps": 9, "seed": 3, "denoise": 0.4}
    nodes |= {"larger": ["LatentUpscaleBy", {"samples": ("sampler", 0)}], "again": second}
    nodes["decode"][1]["samples"] = ("again", 0)
    for form in FORMATS.values():
        result = read(form(nodes))
        assert values(result) == expected(styles=("1.png",))
        assert message("note_several_passes") in result.notes


@pytest.mark.parametrize("form", FORMATS)
def test_a_size_that_follows_the_content(form):
    nodes = recipe(content="me.png")
    nodes["measure"] = ["GetImageSize", {"image": ("scale", 0)}]
    nodes["latent"][1] |= {"width": ("measure", 0), "height": ("measure", 1)}
    result = read(FORMATS[form](nodes))
    assert values(result) == expected(**SUBJECT, width=None, height=None)
    assert result.keep_size is True
    assert any(note.key.startswith("note_size_of_content") for note in result.notes)
    nodes["sampler"][1]["latent_image"] = ("encode", 0)
    assert values(read(FORMATS[form](nodes))) == expected(**SUBJECT, width=None, height=None)


def test_a_size_from_a_scaled_image():
    nodes = recipe(content="me.png")
    nodes["scale"] = ["ImageScale", {"image": ("image", 0), "upscale_method": "lanczos", "width": 640, "height": 448,
                                     "crop": "center"}]  # fmt: skip
    nodes["sampler"][1]["latent_image"] = ("encode", 0)
    result = read(scope(nodes))
    assert (result.width, result.height, result.content_size) == (640, 448, 640)
    nodes["half"] = ["ImageScaleBy", {"image": ("scale", 0), "upscale_method": "area", "scale_by": 0.5}]
    nodes["encode"][1]["pixels"] = ("half", 0)
    assert read(scope(nodes)).content_size == 320


def test_flux_prompts_and_unknown_nodes():
    nodes = recipe()
    nodes["text"] = ["CLIPTextEncodeFlux", {"clip": ("loader", 1), "clip_l": "fox", "t5xxl": "A long fox",
                                            "guidance": 2.0}]  # fmt: skip
    del nodes["guidance"]
    nodes["odd"] = ["Mystery\nNode <b>", {"conditioning": ("text", 0)}]
    nodes["sampler"][1]["positive"] = ("odd", 0)
    for form in FORMATS.values():
        result = read(form(nodes))
        assert (result.prompt, result.guidance) == ("A long fox", 2.0)
        assert message("note_node_ignored", node="Mystery Node <b>") in result.notes
        assert message("note_clip_prompt") in result.notes
    nodes["text"][1]["t5xxl"] = ("writer", 0)
    nodes["writer"] = ["LanguageModel", {"image": ("loader", 0)}]
    result = read(api(nodes))
    assert result.prompt is None
    assert any("LanguageModel" in str(note) for note in result.notes)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("a.png", "a.png"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("sub/dir/b.png [input]", "b.png"),
        ("http://example.com/x/c.png", "c.png"),
        ("nul\0l.png", "null.png"),
        ("a/..", None),
        ("", None),
        ("x" * 5000, None),
        (7, None),
        ({"a": 1}, None),
    ],
)
def test_file_names_are_bare(given, wanted):
    assert read(api(recipe(content="x.png") | {"image": ["LoadImage", {"image": given}]})).content == wanted


def test_wrapped_prompts_and_text_of_a_png(tmp_path):
    prompt = api(recipe())
    assert values(read({"client_id": "x", "prompt": prompt})) == expected()
    text = PngImagePlugin.PngInfo()
    text.add_text("prompt", json.dumps(prompt))
    text.add_text("workflow", json.dumps(scope(recipe(prompt="from the canvas"))))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    with Image.open(tmp_path / "a.png") as image:
        assert values(import_workflow(workflow_in_png_text(image.info))) == expected()  # what ran
    assert workflow_in_png_text({"prompt": json.dumps(prompt), "workflow": b"no"}) == json.dumps(prompt)
    assert workflow_in_png_text({"parameters": "a fox, steps: 20", "prompt": "a fox"}) is None
    assert workflow_in_png_text({}) is None


def changed(**inputs):
    """What is read of a recipe with content and a style, some nodes' inputs or whole nodes being others."""
    nodes = recipe("subject.png", ("ink.png",))
    for name, given in inputs.items():
        given = dict(given)
        kind = given.pop("kind", None)
        nodes.setdefault(name, [kind, {}])
        nodes[name] = [kind or nodes[name][0], {**({} if kind else nodes[name][1]), **given}]
    return read(api(nodes))


@pytest.mark.parametrize(
    ("kind", "values", "shape"),
    [("ImageScale", {"width": 512, "height": 512, "crop": "disabled"}, (512, 512)),
     ("ImageScale", {"width": 512, "height": 256, "crop": "center"}, (512, 256)),
     ("ImageScale", {"width": 512, "height": 0, "crop": "disabled"}, None),
     ("ImageResizeKJ", {"width": 768, "height": 256, "keep_proportion": False}, (768, 256)),
     ("ImageResizeKJ", {"width": 768, "height": 256, "keep_proportion": True}, None),
     ("ImageResizeKJv2", {"width": 768, "height": 256, "keep_proportion": "crop"}, (768, 256)),
     ("ImageResizeKJv2", {"width": 768, "height": 256, "keep_proportion": "resize"}, None),
     ("ImageResize+", {"width": 640, "height": 640, "method": "stretch"}, (640, 640)),
     ("ImageResize+", {"width": 640, "height": 640, "method": "keep proportion"}, None)],
)  # fmt: skip
def test_a_content_image_of_another_shape_is_told(kind, values, shape):
    found = changed(scale={"kind": kind, "image": ("image", 0), "upscale_method": "lanczos", **values})
    told = [note for note in found.notes if note.key == "note_content_shape"]
    assert [(note.values["width"], note.values["height"]) for note in told] == ([shape] if shape else [])


@pytest.mark.parametrize(
    ("kind", "values", "side", "told"),
    [("ImageResizeKJv2", {"keep_proportion": "stretch"}, 1024, "note_content_shape"),
     ("ImageResizeKJv2", {"keep_proportion": "pad"}, 1024, "note_content_padded"),
     ("ImageResizeKJv2", {"keep_proportion": "pillarbox_blur"}, 1024, "note_content_padded"),
     ("ImageResizeKJv2", {"keep_proportion": "resize"}, None, "note_no_content_size"),
     ("ImageResizeKJv2", {"keep_proportion": "resize", "height": 1024}, 1024, None),
     ("ImageResizeKJv2", {"keep_proportion": "total_pixels", "height": 1024}, None, "note_no_content_size"),
     ("ImageResizeKJ", {"keep_proportion": True}, None, "note_no_content_size"),
     ("ImageResize+", {"method": "pad", "condition": "always"}, 1024, "note_content_padded"),
     ("ImageResize+", {"method": "keep proportion", "condition": "always"}, None, "note_no_content_size"),
     ("ImageResize+", {"method": "keep proportion", "condition": "always", "height": 1024}, 1024, None),
     ("ImageResize+", {"method": "stretch", "condition": "downscale if bigger"}, None, "note_content_shape")],
)  # fmt: skip
def test_the_long_side_of_a_content_image_follows_from_how_it_is_scaled(kind, values, side, told):
    scale = {"kind": kind, "image": ("image", 0), "upscale_method": "lanczos", "width": 1024, "height": 768}
    found = changed(scale=scale | values)
    assert found.content_size == side
    about = {"note_content_shape", "note_content_padded", "note_no_content_size"}
    assert {note.key for note in found.notes} & about == ({told} if told else set()) | (
        set() if side else {"note_no_content_size"}
    )


@pytest.mark.parametrize("form", [api, scope])
def test_a_sampler_that_goes_through_lists_gives_the_first_of_each(form):
    nodes = recipe(size=(1024, 1024))
    nodes["sampler"] = ["FluxSamplerParams+", {
        "model": ("lora", 0), "conditioning": ("guidance", 0), "latent_image": ("latent", 0), "seed": "12, 13",
        "sampler": "euler", "scheduler": "simple", "steps": "8...20+4", "guidance": "2.5", "max_shift": "",
        "base_shift": "", "denoise": "1.0"}]  # fmt: skip
    found = read(form(nodes))
    assert (found.seed, found.steps, found.guidance, found.sampler, found.schedule) == (12, 8, 2.5, "euler", "flux")
    assert {note.key for note in found.notes} == {"note_several_images"}
    nodes["rows"] = ["LoadLoraParams+", {"lora_1": "ink.safetensors", "strength_model_1": "0.5, 1"}]
    nodes["sampler"][1] |= {"loras": ("rows", 0), "seed": "?", "sampler": "ddim\neuler", "steps": "", "guidance": ""}
    nodes["sampler"][1]["max_shift"] = "3"
    found = read(form(nodes))
    assert (found.seed, found.steps, found.guidance, found.sampler, found.schedule) == (None, 20, 3.5, "euler", None)
    assert {note.key for note in found.notes} == {
        "note_several_images", "note_seed_drawn", "note_sampler", "note_shift", "note_lora_unnamed"}  # fmt: skip


def test_batches_multiply_and_lie_behind_a_size():
    repeated = {"kind": "RepeatLatentBatch", "samples": ("latent", 0), "amount": 3}
    found = changed(latent={"batch_size": 2}, more=repeated, sampler={"latent_image": ("more", 0)})
    assert found.images == 6
    larger = {"kind": "LatentUpscale", "samples": ("latent", 0), "width": 1216, "height": 832, "crop": "disabled",
              "upscale_method": "area"}  # fmt: skip
    found = changed(latent={"batch_size": 4}, more=larger, sampler={"latent_image": ("more", 0)})
    assert (found.images, found.width, found.height) == (4, 1216, 832)
    many = changed(latent={"batch_size": 60}, more=repeated, sampler={"latent_image": ("more", 0)})
    assert many.images is None
    assert "note_range" in {note.key for note in many.notes}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [("denoise_strength", 0.5, True), ("denoise_strength", 1.0, False), ("image_to_image_strength", 0.6, True),
     ("true_gs", 4.0, True), ("variation_strength", 0.7, True), ("variation_strength", 0, False), ("eta", 0.5, True),
     ("sampler_mode", "unsample", True), ("sampler_mode", "standard", False)],
)  # fmt: skip
def test_a_samplers_further_values_are_told(name, value, told):
    found = changed(sampler={name: value})
    assert [note.values["name"] for note in found.notes if note.key == "note_sampler_value"] == [name] * told


@pytest.mark.parametrize(("first", "second", "sum_of_both"), [(1, 1, 2), (0.5, 0.5, None), (0.25, 0.5, 0.75)])
def test_usos_lora_twice_is_its_sum(first, second, sum_of_both):
    name = "uso-flux1-dit-lora-v1.safetensors"
    again = {"kind": "LoraLoaderModelOnly", "model": ("loader", 0), "lora_name": name, "strength_model": first}
    found = changed(again=again, lora={"model": ("again", 0), "strength_model": second})
    told = [note.values["strength"] for note in found.notes if note.key == "note_lora_strength"]
    assert told == ([sum_of_both] if sum_of_both else [])
