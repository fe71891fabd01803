"""Workflows to read, built from a few nodes in each of ComfyUI's formats."""

from __future__ import annotations

import json
import random

from tests.comfy.definitions import DEFINITIONS
from tests.comfy.definitions import WIDGETS as WIDGET_TYPES
from uso_core.comfy import import_workflow

# Widgets in the order in which they are saved ("*" is the control after a seed), and the types of the outputs; for
# classes that are not ComfyUI's own, and the frontend's, said here.
WIDGETS = {
    kind: [each for name, one in definition.inputs.items() if one.type in WIDGET_TYPES
           for each in ([name, "*"] if "+" in one.marks else [name])]
    for kind, definition in DEFINITIONS.items()
}  # fmt: skip
WIDGETS |= {
    "LoadImage": ["image", "upload"],
    "PrimitiveNode": ["value", "*"],
    "ImageScale": ["upscale_method", "width", "height", "crop"],
    "ImageScaleBy": ["upscale_method", "scale_by"],
}
OUTPUTS = {kind: list(definition.outputs) for kind, definition in DEFINITIONS.items()}
OUTPUTS |= {"Reroute": ["*"], "PrimitiveNode": ["*"], "ImageScale": ["IMAGE"], "ImageScaleBy": ["IMAGE"]}
TYPES = {name: one.type for definition in DEFINITIONS.values() for name, one in definition.inputs.items()}
TYPES |= {"any": "*", "value": "INT", "steps": "INT"}


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


def notes(result):
    """The keys of an import's notes."""
    return [note.key for note in result.notes]
