"""ComfyUI workflows in every form, untrusted ones and our own."""

from __future__ import annotations

import copy
import json
import random

import pytest
from PIL import Image, PngImagePlugin

from uso_core.comfy import (
    MODEL_FILES,
    ComfyImport,
    export_api,
    export_workflow,
    formats,
    graph,
    import_workflow,
    schedule,
    workflow_in_png_text,
)
from uso_core.comfy.nodes import SIGNATURES
from uso_core.errors import RequestError
from uso_core.messages import message
from uso_core.request import MAX_SEED, SCHEDULES, GenerationRequest, InputImage

# What ComfyUI's classes look like, written down independently of the code under test: widgets in the order in which
# they are saved ("*" is the control after a seed), types of the linked inputs, types of the outputs.
WIDGETS = {
    "CheckpointLoaderSimple": ["ckpt_name"],
    "LoraLoaderModelOnly": ["lora_name", "strength_model"],
    "ModelPatchLoader": ["name"],
    "CLIPVisionLoader": ["clip_name"],
    "CLIPVisionEncode": ["crop"],
    "LoadImage": ["image", "upload"],
    "ImageScaleToMaxDimension": ["upscale_method", "largest_size"],
    "ImageScale": ["upscale_method", "width", "height", "crop"],
    "ImageScaleBy": ["upscale_method", "scale_by"],
    "FluxKontextMultiReferenceLatentMethod": ["reference_latents_method"],
    "FluxGuidance": ["guidance"],
    "CLIPTextEncode": ["text"],
    "CLIPTextEncodeFlux": ["clip_l", "t5xxl", "guidance"],
    "EmptySD3LatentImage": ["width", "height", "batch_size"],
    "EasyCache": ["reuse_threshold", "start_percent", "end_percent", "verbose"],
    "ModelSamplingFlux": ["max_shift", "base_shift", "width", "height"],
    "KSampler": ["seed", "*", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    "RandomNoise": ["noise_seed", "*"],
    "KSamplerSelect": ["sampler_name"],
    "BasicScheduler": ["scheduler", "steps", "denoise"],
    "SaveImage": ["filename_prefix"],
    "PrimitiveNode": ["value", "*"],
    "PrimitiveInt": ["value", "*"],
    "PrimitiveStringMultiline": ["value"],
    "StringConcatenate": ["string_a", "string_b", "delimiter"],
}
TYPES = {
    "model": "MODEL", "clip": "CLIP", "vae": "VAE", "positive": "CONDITIONING", "negative": "CONDITIONING",
    "conditioning": "CONDITIONING", "latent": "LATENT", "latent_image": "LATENT", "samples": "LATENT",
    "image": "IMAGE", "images": "IMAGE", "pixels": "IMAGE", "model_patch": "MODEL_PATCH",
    "clip_vision": "CLIP_VISION", "clip_vision_output": "CLIP_VISION_OUTPUT", "noise": "NOISE", "guider": "GUIDER",
    "sampler": "SAMPLER", "sigmas": "SIGMAS", "any": "*",
}  # fmt: skip
OUTPUTS = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "LoadImage": ["IMAGE", "MASK"],
    "GetImageSize": ["INT", "INT", "INT"],
    "SaveImage": [],
    "Reroute": ["*"],
}
for types, kinds in {
    "MODEL": "LoraLoaderModelOnly USOStyleReference EasyCache ModelSamplingFlux",
    "CONDITIONING": "CLIPTextEncode CLIPTextEncodeFlux FluxGuidance ReferenceLatent ConditioningZeroOut "
    "FluxKontextMultiReferenceLatentMethod",
    "LATENT": "VAEEncode EmptySD3LatentImage KSampler SamplerCustomAdvanced",
    "IMAGE": "ImageScaleToMaxDimension ImageScale ImageScaleBy VAEDecode",
    "MODEL_PATCH": "ModelPatchLoader", "CLIP_VISION": "CLIPVisionLoader", "CLIP_VISION_OUTPUT": "CLIPVisionEncode",
    "NOISE": "RandomNoise", "GUIDER": "BasicGuider", "SAMPLER": "KSamplerSelect", "SIGMAS": "BasicScheduler",
    "INT": "PrimitiveInt", "STRING": "PrimitiveStringMultiline StringConcatenate", "*": "PrimitiveNode",
}.items():  # fmt: skip
    OUTPUTS |= {kind: [types] for kind in kinds.split()}


def recipe(content=None, styles=(), prompt="A fox in a library", size=(1024, 768), content_size=512):
    """A USO workflow as {id: [class, {input: value or (id, slot)}]}; names as ids, for the tests to refer to."""
    nodes = {
        "loader": ["CheckpointLoaderSimple", {"ckpt_name": "flux1-dev-fp8.safetensors"}],
        "lora": ["LoraLoaderModelOnly", {"model": ("loader", 0), "lora_name": "uso-flux1-dit-lora-v1.safetensors",
                                         "strength_model": 1}],
        "text": ["CLIPTextEncode", {"clip": ("loader", 1), "text": prompt}],
        "zero": ["ConditioningZeroOut", {"conditioning": ("text", 0)}],
        "guidance": ["FluxGuidance", {"conditioning": ("text", 0), "guidance": 3.5}],
        "latent": ["EmptySD3LatentImage", {"width": size[0], "height": size[1], "batch_size": 1}],
        "sampler": ["KSampler", {"model": ("lora", 0), "positive": ("guidance", 0), "negative": ("zero", 0),
                                 "latent_image": ("latent", 0), "seed": 1234567890123456, "steps": 20, "cfg": 1,
                                 "sampler_name": "euler", "scheduler": "simple", "denoise": 1}],
        "decode": ["VAEDecode", {"samples": ("sampler", 0), "vae": ("loader", 2)}],
        "save": ["SaveImage", {"images": ("decode", 0), "filename_prefix": "ComfyUI"}],
    }  # fmt: skip
    if content:
        nodes |= {
            "image": ["LoadImage", {"image": content, "upload": "image"}],
            "scale": ["ImageScaleToMaxDimension", {"image": ("image", 0), "upscale_method": "lanczos",
                                                   "largest_size": content_size}],
            "encode": ["VAEEncode", {"pixels": ("scale", 0), "vae": ("loader", 2)}],
            "reference": ["ReferenceLatent", {"conditioning": ("text", 0), "latent": ("encode", 0)}],
            "method": ["FluxKontextMultiReferenceLatentMethod",
                       {"conditioning": ("reference", 0), "reference_latents_method": "uso"}],
        }  # fmt: skip
        nodes["guidance"][1]["conditioning"] = ("method", 0)
    for number, style in enumerate(styles, 1):
        nodes |= {
            "patch": ["ModelPatchLoader", {"name": "uso-flux1-projector-v1.safetensors"}],
            "vision": ["CLIPVisionLoader", {"clip_name": "sigclip_vision_patch14_384.safetensors"}],
            f"image{number}": ["LoadImage", {"image": style, "upload": "image"}],
            f"seen{number}": ["CLIPVisionEncode", {"clip_vision": ("vision", 0), "image": (f"image{number}", 0),
                                                   "crop": "none"}],
            f"style{number}": ["USOStyleReference", {"model": nodes["sampler"][1]["model"], "model_patch": ("patch", 0),
                                                     "clip_vision_output": (f"seen{number}", 0)}],
        }  # fmt: skip
        nodes["sampler"][1]["model"] = (f"style{number}", 0)
    return nodes


def api(nodes):
    return {
        key: {
            "class_type": kind,
            "inputs": {name: list(v) if isinstance(v, tuple) else v for name, v in inputs.items() if name != "upload"},
        }
        for key, (kind, inputs) in nodes.items()
    }


def scope(nodes, version=0.4, modes=(), shuffle=True, outputs=OUTPUTS, entries=(), exits=()):
    """The nodes and links of one canvas. `entries` names a subgraph's inputs: a link from ("in", name)."""
    modes = dict(modes)
    raw, links = [], []
    for key, (kind, inputs) in nodes.items():
        slots = []
        for name, value in inputs.items():
            if isinstance(value, tuple):
                origin, slot = (-10, list(entries).index(value[1])) if value[0] == "in" else value
                link = [len(links) + 1, origin, slot, key, len(slots), TYPES.get(name, "INT")]
                links.append(link)
                widget = {"widget": {"name": name}} if name in WIDGETS.get(kind, ()) else {}
                slots.append({"name": name, "type": link[5], "link": link[0], **widget})
        named = {**dict.fromkeys(WIDGETS.get(kind, ()), 0), "*": "randomize"} | {
            name: value for name, value in inputs.items() if not isinstance(value, tuple)
        }
        raw.append({
            "id": key, "type": kind, "pos": [0, 0], "size": [200, 60], "flags": {}, "order": 0,
            "mode": modes.get(key, 0), "inputs": slots, "properties": {},
            "outputs": [{"name": t, "type": t, "links": []} for t in outputs.get(kind, ["*"])],
            "widgets_values": [named[name] for name in WIDGETS.get(kind, [n for n in named if n != "*"])],
        })  # fmt: skip
    for slot, (key, output) in enumerate(exits):
        links.append([len(links) + 1, key, output, -20, slot, "*"])
    if shuffle:  # the order in a file means nothing
        random.Random(5).shuffle(raw)
    if version == 1 or entries or exits:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        links = [dict(zip(names, link, strict=True)) for link in links]
    return {"nodes": raw, "links": links, "groups": [], "version": version}


def read(data):
    return import_workflow(json.dumps(data))


def values(result):
    return {
        name: getattr(result, name)
        for name in ("prompt", "seed", "steps", "guidance", "width", "height", "content_size", "content", "styles")
    }


def expected(**changes):
    base = {
        "prompt": "A fox in a library", "seed": 1234567890123456, "steps": 20, "guidance": 3.5, "width": 1024,
        "height": 768, "content_size": None, "content": None, "styles": (),
    }  # fmt: skip
    return base | changes


FORMATS = {"api": api, "0.4": scope, "1.0": lambda nodes: scope(nodes, version=1)}
SUBJECT = {"content": "me.png", "content_size": 512}
MODES = {
    "text": ({}, {}),
    "subject": ({"content": "me.png"}, SUBJECT),
    "style": ({"styles": ("ink.png",)}, {"styles": ("ink.png",)}),
    "two styles": ({"styles": ("ink.png", "oil.webp")}, {"styles": ("ink.png", "oil.webp")}),
    "style and subject": ({"content": "me.png", "styles": ("b.png",)}, SUBJECT | {"styles": ("b.png",)}),
    "three styles, empty prompt": (
        {"content": "me.png", "styles": ("3.png", "1.png", "2.png"), "prompt": ""},
        SUBJECT | {"styles": ("3.png", "1.png", "2.png"), "prompt": ""},
    ),
}


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


def with_subgraphs(promoted=2.5, nested=False):
    """The same workflow with style and conditioning folded into subgraphs, as ComfyUI's USO template does."""
    nodes = recipe(content="me.png", styles=("1.png", "2.png"))
    style = {
        "see": ["CLIPVisionEncode", {"clip_vision": ("in", "vision"), "image": ("in", "image"),
                                     "crop": ("in", "crop")}],
        "use": ["USOStyleReference", {"model": ("in", "model"), "model_patch": ("in", "patch"),
                                      "clip_vision_output": ("see", 0)}],
    }  # fmt: skip
    condition = {
        "reference": ["ReferenceLatent", {"conditioning": ("in", "conditioning"), "latent": ("in", "latent")}],
        "method": ["FluxKontextMultiReferenceLatentMethod", {"conditioning": ("reference", 0),
                                                             "reference_latents_method": "uso"}],
        "guidance": ["FluxGuidance", {"conditioning": ("method", 0), "guidance": ("in", "guidance")}],
    }  # fmt: skip
    definitions = [
        definition("style-id", style, {"vision": "CLIP_VISION", "image": "IMAGE", "model": "MODEL",
                                       "patch": "MODEL_PATCH", "crop": "COMBO"}, {"MODEL": ("use", 0)}),
        definition("condition-id", condition, {"conditioning": "CONDITIONING", "latent": "LATENT", "guidance": "FLOAT"},
                   {"CONDITIONING": ("guidance", 0)}),
    ]  # fmt: skip
    kind = "condition-id"
    if nested:
        kind = "outer-id"
        inner = {"in1": ["condition-id", {"conditioning": ("in", "conditioning"), "latent": ("in", "latent"),
                                          "guidance": ("in", "guidance")}]}  # fmt: skip
        definitions.append(
            definition("outer-id", inner,
                       {"conditioning": "CONDITIONING", "latent": "LATENT", "guidance": "FLOAT"},
                       {"CONDITIONING": ("in1", 0)})
        )  # fmt: skip
    for key in ("reference", "method", "seen1", "seen2"):
        del nodes[key]
    for number, model in ((1, "lora"), (2, "style1")):
        nodes[f"style{number}"] = ["style-id", {"vision": ("vision", 0), "image": (f"image{number}", 0),
                                                "model": (model, 0), "patch": ("patch", 0)}]  # fmt: skip
    nodes["guidance"] = [kind, {"conditioning": ("text", 0), "latent": ("encode", 0)}]
    data = scope(nodes, outputs={**OUTPUTS, "style-id": ["MODEL"], "condition-id": ["CONDITIONING"],
                                 "outer-id": ["CONDITIONING"]})  # fmt: skip
    types = {"vision": "CLIP_VISION", "patch": "MODEL_PATCH"}
    for node in data["nodes"]:
        for slot in node["inputs"]:
            slot["type"] = types.get(slot["name"], slot["type"])
        if node["id"] == "guidance":
            node["widgets_values"] = [promoted]
    return {**data, "definitions": {"subgraphs": definitions}}


def definition(key, nodes, inputs, outputs):
    inside = scope(nodes, entries=list(inputs), exits=list(outputs.values()))
    return {
        **inside,
        "id": key,
        "name": key,
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "inputs": [{"id": name, "name": name, "type": kind, "linkIds": []} for name, kind in inputs.items()],
        "outputs": [{"id": name, "name": name, "type": name, "linkIds": []} for name in outputs],
    }


def node(data, key):
    return next(one for one in data["nodes"] if one["id"] == key)


def inside(data, key):
    return next(one for one in data["definitions"]["subgraphs"] if one["id"] == key)


FULL = SUBJECT | {"styles": ("1.png", "2.png")}


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


def test_set_and_get_nodes():
    nodes = recipe()
    nodes |= {"set": ["SetNode", {"any": ("text", 0), "Constant": "cond"}], "get": ["GetNode", {"Constant": "cond"}]}
    nodes["guidance"][1]["conditioning"] = ("get", 0)
    assert values(read(scope(nodes))) == expected()


def advanced(nodes):
    """The same workflow with the sampler split into parts."""
    sampler = nodes["sampler"][1]
    nodes |= {
        "noise": ["RandomNoise", {"noise_seed": sampler["seed"]}],
        "guider": ["BasicGuider", {"model": sampler["model"], "conditioning": sampler["positive"]}],
        "select": ["KSamplerSelect", {"sampler_name": "euler"}],
        "sigmas": ["BasicScheduler", {"model": sampler["model"], "scheduler": "simple", "steps": 20, "denoise": 1}],
        "sampler": ["SamplerCustomAdvanced", {"noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("select", 0),
                                              "sigmas": ("sigmas", 0), "latent_image": ("latent", 0)}],
    }  # fmt: skip
    return nodes


@pytest.mark.parametrize("form", FORMATS)
def test_a_sampler_split_into_parts(form):
    nodes = advanced(recipe(content="me.png", styles=("1.png", "2.png")))
    assert values(read(FORMATS[form](nodes))) == expected(**FULL)
    nodes["sigmas"][1] |= {"scheduler": "beta", "denoise": 0.6}
    nodes["select"][1]["sampler_name"] = "dpmpp_2m"
    notes = read(FORMATS[form](nodes)).notes
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
    assert (result.images, result.seed, result.prompt) == (4, None, "a (red:1.3) fox")
    for part in ("EasyCache is ignored.", "LoRA grain.safetensors is ignored.", "Negative prompt is ignored.",
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
        assert import_workflow(workflow_in_png_text(image.info)).prompt == "from the canvas"
    assert workflow_in_png_text({"prompt": json.dumps(prompt), "workflow": b"no"}) == json.dumps(prompt)
    assert workflow_in_png_text({"parameters": "a fox, steps: 20", "prompt": "a fox"}) is None
    assert workflow_in_png_text({}) is None


# --- strangers


def loop():
    nodes = recipe(content="me.png", styles=("1.png",))
    nodes["loader"][1]["model"] = ("style1", 0)
    nodes["lora"][1]["model"] = ("style1", 0)
    nodes["text"][1]["text"] = ("both", 0)
    nodes["both"] = ["StringConcatenate", {"string_a": ("both", 0), "string_b": ("both", 0), "delimiter": ("both", 0)}]
    return nodes


@pytest.mark.parametrize("form", FORMATS)
def test_a_cycle_ends(form):
    nodes = loop()
    nodes["both"][1] = {"string_a": ("both", 0), "string_b": "x", "delimiter": "y"}
    assert read(FORMATS[form](nodes)).styles == ("1.png",)
    nodes["one"], nodes["two"] = ["Reroute", {"any": ("two", 0)}], ["Reroute", {"any": ("one", 0)}]
    nodes["sampler"][1]["model"] = ("one", 0)
    assert read(FORMATS[form](nodes)).styles == ()
    result = read(FORMATS[form](loop()))
    assert (result.prompt, result.styles) == (None, ("1.png",))


def test_texts_that_double_without_end():
    nodes = recipe()
    nodes["text"][1]["text"] = ("join0", 0)
    for i in range(30):
        nodes[f"join{i}"] = ["StringConcatenate", {"string_a": (f"join{i + 1}", 0), "string_b": (f"join{i + 1}", 0),
                                                   "delimiter": ""}]  # fmt: skip
    with pytest.raises(RequestError, match="tangled"):
        read(api(nodes))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ("9" * 100_000, "not JSON"),
        ("null", "no ComfyUI workflow"),
        ("[]", "no ComfyUI workflow"),
        ("{}", "no ComfyUI workflow"),
        ('{"version": 1, "prompt": "a fox"}', "no ComfyUI workflow"),
        ('{"nodes": []}', "No sampler"),
        ('{"nodes": [1, null, {}, {"id": 1}], "links": {"a": 1}}', "No sampler"),
        ('{"1": {"class_type": "KSampler", "inputs": []}}', "No sampler"),
        ('{"nodes": [' + "{}," * 1_000_000 + "{}]}", "more links"),
        (" " * (formats.MAX_TEXT_CHARACTERS + 1), "larger than"),
    ],
    ids=lambda value: value[:24] if len(value) > 24 else None,
)
def test_text_without_a_workflow_is_refused_in_a_sentence(text, match):
    with pytest.raises(RequestError, match=match) as refused:
        import_workflow(text)
    assert refused.value.hint
    assert len(str(refused.value)) < 300


def test_subgraphs_that_contain_themselves_or_grow_without_end():
    twice = scope({"a": ["b-id", {}], "b": ["b-id", {}]})
    for inner in ({"c": ["b-id", {}]}, {f"c{i}": ["b-id", {}] for i in range(10)}):
        with pytest.raises(RequestError, match="deep|more than"):
            read({**twice, "definitions": {"subgraphs": [definition("b-id", inner, {}, {})]}})
    chain = [definition(f"{i}-id", {f"c{j}": [f"{i + 1}-id", {}] for j in range(10)}, {}, {}) for i in range(10)]
    with pytest.raises(RequestError, match=f"more than {graph.MAX_NODES} nodes"):
        read({**scope({"a": ["0-id", {}]}), "definitions": {"subgraphs": chain}})


def test_many_links_through_one_subgraph_are_capped():
    wide = definition("w-id", {"a": ["Reroute", {}]}, {}, {})
    wide["links"] = [{"id": i, "origin_id": "a", "origin_slot": 0, "target_id": -20, "target_slot": 0}
                     for i in range(5000)]  # fmt: skip
    with pytest.raises(RequestError, match="more links"):
        read({**scope({f"n{i}": ["w-id", {}] for i in range(500)}), "definitions": {"subgraphs": [wide]}})


JUNK = (None, True, -1, 0, 3.7, 1e308, float("nan"), 10**30, 10**400, "", "x", "-10", "sampler", [], {}, [1], ["a", 0],
        [[[]]], {"a": {"b": []}}, {"name": 3}, [{"name": "model", "link": 1}], "\ud800", "randomize", 2, 4)  # fmt: skip


def places(value, path=()):
    """The paths of all parts of a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def test_junk_anywhere_gives_a_refusal_or_an_import():
    bases = [with_subgraphs(nested=True), scope(advanced(recipe("c.png", ("s.png",))), version=1),
             api(recipe("c.png", ("a.png", "b.png")))]  # fmt: skip
    everywhere = [list(places(base)) for base in bases]
    outcomes = set()
    for seed in range(900):
        draw = random.Random(seed)
        which = seed % len(bases)
        data = copy.deepcopy(bases[which])
        for _ in range(draw.choice((1, 1, 2, 8))):
            path = draw.choice(everywhere[which])
            try:
                part = data
                for key in path[:-1]:
                    part = part[key]
                part[path[-1]] = copy.deepcopy(draw.choice(JUNK))
            except (KeyError, IndexError, TypeError):  # an earlier draw took that place away, or it is the whole
                continue
        try:
            result = read(data)
        except RequestError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            check_in_range(result)
    assert outcomes == {"refused", "read"}


def check_in_range(result):
    """The imported values make a valid request."""
    assert isinstance(result, ComfyImport)
    fields = {name: value for name, value in values(result).items() if value is not None}
    content, styles = fields.pop("content", None), fields.pop("styles")
    images = [name for name in (content, *styles) if name is not None]
    assert all(name and not set(name) & set("/\\\0\n") and len(name) <= 255 for name in images)
    GenerationRequest(**fields, images=1 if result.seed else result.images or 1)
    assert all(len(str(note)) < 400 for note in result.notes)


# --- our own


def some_request(seed):
    draw = random.Random(seed)
    content = InputImage(f"c{seed}.png", "0") if draw.random() < 0.6 else None
    prompt = draw.choice(("", "a fox", 'A "quoted" line,\nand another \\ one', "日本語 🦊", "x" * 3000))
    return GenerationRequest(
        prompt=prompt,
        content=content,
        styles=tuple(InputImage(f"{draw.random()}.webp", "1") for _ in range(draw.randint(0, 5))),
        width=draw.randint(16, 4096),
        height=draw.randint(16, 4096),
        steps=draw.randint(1, 500),
        guidance=draw.choice((0.0, 1.0, 3.5, 4.0, 12.25)),
        seed=draw.choice((0, 3407, draw.randint(0, MAX_SEED - 64))),
        content_size=draw.randint(16, 4096),
        schedule=draw.choice(SCHEDULES),
        images=draw.randint(1, 8),
        keep_size=content is not None and draw.random() < 0.3,
        model=draw.choice((None, "flux-dev", "flux-schnell", "uso-tiny")),
    )


@pytest.mark.parametrize("export", [export_workflow, export_api])
def test_an_exported_request_comes_back(export):
    for number in range(150):
        request = some_request(number)
        result = read(export(request))
        size = (None, None) if request.keep_size else (request.width, request.height)
        assert values(result) == {
            "prompt": request.prompt,
            "seed": request.seed,
            "steps": request.steps,
            "guidance": request.guidance,
            "width": size[0],
            "height": size[1],
            "content_size": request.content_size if request.content else None,
            "content": request.content.name if request.content else None,
            "styles": tuple(style.name for style in request.styles),
        }
        assert (result.images, result.schedule) == (request.images, request.schedule)
        assert bool(result.keep_size) == request.keep_size
        left = [note for note in result.notes if not note.key.startswith(("note_batch", "note_size_of"))]
        assert left == []


def test_an_exported_workflow_is_whole():
    """Both ends of every link are known, every widget has its value, and no nodes overlap."""
    request = GenerationRequest(prompt="a", content=InputImage("/home/a/c.png", "0"), keep_size=True, seed=1,
                                styles=tuple(InputImage(f"{i}.png", "0") for i in range(3)))  # fmt: skip
    data = export_workflow(request, {"checkpoint": "mine.safetensors"})
    nodes = {one["id"]: one for one in data["nodes"]}
    assert data["version"] == 0.4
    assert len(nodes) == len(data["nodes"]) == data["last_node_id"]
    for key, origin, slot, target, place, kind in data["links"]:
        assert nodes[target]["inputs"][place]["link"] == key
        assert key in nodes[origin]["outputs"][slot]["links"]
        assert nodes[origin]["outputs"][slot]["type"] == nodes[target]["inputs"][place]["type"] == kind
        assert nodes[origin]["order"] < nodes[target]["order"]
    for one in data["nodes"]:
        if one["type"] in SIGNATURES:
            assert len(one["widgets_values"]) == len(WIDGETS.get(one["type"], ())), one["type"]
            assert all(slot["link"] is not None or "widget" in slot for slot in one["inputs"])
    boxes = [(*one["pos"], *one["size"]) for one in data["nodes"]]
    for i, (x, y, width, height) in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert (x + width <= other[0] or other[0] + other[2] <= x or y + height + 30 <= other[1]
                    or other[1] + other[3] + 30 <= y)  # fmt: skip
    assert "/home" not in json.dumps(data)
    assert [one["widgets_values"] for one in data["nodes"] if one["type"] == "LoadImage"][-1] == ["c.png", "image"]
    assert nodes[1]["widgets_values"] == ["mine.safetensors"]
    note = next(one for one in data["nodes"] if one["type"] == "MarkdownNote")
    assert "c.png, 0.png, 1.png, 2.png" in note["widgets_values"][0]


def test_a_request_without_a_seed_lets_comfyui_draw_one():
    data = export_workflow(GenerationRequest())
    sampler = next(one for one in data["nodes"] if one["type"] == "KSampler")
    assert sampler["widgets_values"][:2] == [0, "randomize"]
    assert MODEL_FILES["checkpoint"] in json.dumps(export_api(GenerationRequest()))


def test_the_schedules_in_terms_of_comfyui():
    """ModelSamplingFlux gives the mu that the reference computes: 0.4675 and 1.15 at 1024 x 1024."""
    assert schedule.shifts("flux") == (1.15, 0.5)
    assert schedule.mu(*schedule.shifts("uso"), 1024, 1024) == pytest.approx(0.4675, abs=1e-5)
    for width, height in ((512, 512), (832, 1216), (2048, 1024), (272, 1520)):
        tokens = (width // 8) * (height // 8) // 256
        reference = 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)
        assert schedule.mu(*schedule.shifts("uso"), width, height) == pytest.approx(reference, abs=2e-4)
    nodes = recipe()
    nodes["timing"] = ["ModelSamplingFlux", {"model": ("lora", 0), "max_shift": 3.0, "base_shift": 0.5, "width": 1024,
                                             "height": 1024}]  # fmt: skip
    nodes["sampler"][1]["model"] = ("timing", 0)
    result = read(api(nodes))
    assert result.schedule is None
    assert message("note_shift") in result.notes
