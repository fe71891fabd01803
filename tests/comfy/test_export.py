"""Our own exports: whole, judged by ComfyUI's definitions, and read again."""

from __future__ import annotations

import json
import random

import pytest

from tests.comfy.definitions import DEFINITIONS
from tests.comfy.workflows import WIDGETS, api, read, recipe, values
from uso_core.comfy import MODEL_FILES, export_api, export_workflow, import_workflow, schedule
from uso_core.comfy.nodes import SIGNATURES
from uso_core.messages import message
from uso_core.request import MAX_SEED, SAMPLERS, SCHEDULES, GenerationRequest, InputImage, LoRA, StoredStyle

PROMPTS = (
    "",
    "a fox",
    'A "quoted" line,\nand another \\ one',
    "日本語 🦊",
    "x" * 3000,
    "A cat (sleeping) on a chair; f(x)=y, \\(so\\)",
    "A {red|blue} mug // of /* two */ | colours",
    "https://example.com ((very)) {odd",
)


def some_request(number):
    draw = random.Random(number)
    content = InputImage(f"c{number}.png", f"{number:064x}") if draw.random() < 0.6 else None
    styles = tuple(
        InputImage(f"{draw.random()}.webp", f"{draw.getrandbits(200):064x}") for _ in range(draw.randint(0, 5))
    )
    return GenerationRequest(
        prompt=draw.choice(PROMPTS),
        content=content,
        styles=styles,
        width=draw.randint(16, 4096),
        height=draw.randint(16, 4096),
        steps=draw.randint(1, 500),
        guidance=draw.choice((0.0, 1.0, 3.5, 4.0, 12.25)),
        seed=draw.choice((0, 3407, draw.randint(0, MAX_SEED - 64))),
        content_size=draw.randint(16, 4096),
        content_strength=draw.choice((1.0, 1.0, 0.5, 0.0)),
        style_strengths=tuple(draw.choice((1.0, 1.0, 0.0, 1.7)) for _ in styles),
        schedule=draw.choice(SCHEDULES),
        sampler=SAMPLERS[number % 2],
        images=draw.randint(1, 8),
        keep_size=content is not None and draw.random() < 0.3,
        fast=draw.random() < 0.3,
        loras=tuple(LoRA(f"style {n}", f"{n:064x}", draw.choice((1.0, -0.5, 1.25))) for n in range(draw.randint(0, 2))),
        model=draw.choice((None, "flux-dev", "flux-schnell", "uso-tiny")),
    )


@pytest.mark.parametrize("export", [export_workflow, export_api])
def test_an_exported_request_comes_back(export):
    for number in range(150):
        request = some_request(number)
        result = read(export(request))
        strengths = request.style_strengths or (1.0,) * len(request.styles)
        styles = [style for style, strength in zip(request.styles, strengths, strict=True) if strength]
        content = request.content if request.content_strength else None
        follows = request.keep_size and content is not None
        assert values(result) == {
            "prompt": request.prompt,
            "seed": request.seed,
            "steps": request.steps,
            "guidance": request.guidance,
            "width": None if request.keep_size else request.width,
            "height": None if request.keep_size else request.height,
            "content_size": request.content_size if content else None,
            "content": content.name if content else None,
            "styles": tuple(style.name for style in styles),
        }
        assert (result.images, result.schedule, bool(result.fast)) == (request.images, request.schedule, request.fast)
        assert result.sampler == request.sampler
        assert bool(result.keep_size) == follows
        assert result.content_sha256 == (content.sha256 if content else "")
        assert result.styles_sha256 == tuple(style.sha256 for style in styles)
        allowed = {"note_batch", "note_size_of_content", "note_size_of_content_here", "note_fast", "note_prompt_braces"}
        allowed |= {"note_sampler"} if request.sampler == "ab2" else set()  # ComfyUI's lms is of another order
        allowed |= {"note_lora_ignored"} if request.loras else set()
        allowed |= {"note_size_of_image"} if request.keep_size and not content else set()
        assert {note.key for note in result.notes} <= allowed


def test_another_image_chosen_in_comfyui_is_not_taken_for_ours():
    request = GenerationRequest(content=InputImage("a.png", "5" * 64))
    for data, change in ((export_api(request), change_prompt), (export_workflow(request), change_canvas)):
        assert read(data).content_sha256 == "5" * 64
        change(data)
        assert (read(data).content, read(data).content_sha256) == ("other.png", "")


def change_prompt(prompt):
    next(one for one in prompt.values() if one["class_type"] == "LoadImage")["inputs"]["image"] = "other.png"


def change_canvas(workflow):
    next(one for one in workflow["nodes"] if one["type"] == "LoadImage")["widgets_values"][0] = "other.png"


def test_the_note_names_what_comfyui_cannot_do():
    request = GenerationRequest(
        prompt="A man.",
        content=InputImage("woman.jpg", "0"),
        styles=(InputImage("s1.png", "1"), InputImage("s2.png", "2")),
        content_strength=0.0,
        style_strengths=(0.0, 1.7),
        fast=True,
    )
    data = export_workflow(request)
    (words,) = next(one["widgets_values"] for one in data["nodes"] if one["type"] == "MarkdownNote")
    assert "Copy into ComfyUI's input folder, or choose in the nodes: s2.png." in words
    for said in ("strength was 0: woman.jpg, s1.png.", "They were: s2.png 1.7.", "EasyCache"):
        assert said in words
    kinds = [one["type"] for one in data["nodes"]]
    assert (kinds.count("LoadImage"), kinds.count("EasyCache"), kinds.count("ReferenceLatent")) == (1, 1, 0)


def test_comfyui_accepts_every_export():
    for number in range(150):
        prompt = export_api(some_request(number))
        for key, one in prompt.items():
            definition = DEFINITIONS[one["class_type"]]
            needed = {name for name, each in definition.inputs.items() if "?" not in each.marks}
            assert needed <= one["inputs"].keys() <= definition.inputs.keys(), key
            for name, value in one["inputs"].items():
                accepts(prompt, definition.inputs[name], value)
        clip = next(one for one in prompt.values() if one["class_type"] == "CLIPTextEncode")["inputs"]["clip"]
        assert prompt[clip[0]]["inputs"] | {"clip": None} == {"clip": None, "min_padding": 0, "min_length": 512}


def accepts(prompt, wanted, value):
    """Whether a value or link fits an input, as ComfyUI checks it before a run."""
    if isinstance(value, list):
        origin, slot = value
        assert DEFINITIONS[prompt[origin]["class_type"]].outputs[slot] == wanted.type
    elif wanted.type == "COMBO":
        assert isinstance(value, str)
        assert not wanted.choices or value in wanted.choices
    else:
        kinds = {"INT": int, "FLOAT": int | float, "STRING": str, "BOOLEAN": bool}
        assert isinstance(value, kinds[wanted.type])
        assert wanted.low is None or wanted.low <= value <= wanted.high


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
            assert len(one["widgets_values"]) == len(WIDGETS[one["type"]]), one["type"]
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


@pytest.mark.parametrize("export", [export_workflow, export_api])
@pytest.mark.parametrize("name", ["dit_lora", "uso", "USO_LoRA", "uso-dit-lora_v2"])
def test_a_lora_called_as_usos_comes_back_as_another(export, name):
    made = import_workflow(json.dumps(export(GenerationRequest(prompt="a fox", loras=(LoRA(name, "1" * 64, 0.8),)))))
    assert [(lora.name, lora.strength) for lora in made.loras] == [(f"{name}.safetensors", 0.8)]
    assert "note_lora_strength" not in {note.key for note in made.notes}  # that of USO's own


@pytest.mark.parametrize("export", [export_workflow, export_api])
def test_loras_come_back_by_name_and_strength(export):
    loras = (LoRA("ink", "1", 0.5), LoRA("styles/clay", "2", -1.0))
    made = import_workflow(json.dumps(export(GenerationRequest(prompt="a fox", loras=loras))))
    assert [(lora.name.removesuffix(".safetensors"), lora.strength) for lora in made.loras] == [
        ("ink", 0.5), ("clay", -1.0),
    ]  # fmt: skip


def test_files_of_one_name_have_names_of_their_own():
    """ComfyUI's folder holds one file of a name: content and style would be the same picture."""
    content, style = InputImage("image.png", "a" * 64), InputImage("Image.png", "b" * 64)
    loras = (LoRA("a/x", "1" * 64, 1.0), LoRA("b/x", "2" * 64, 0.5))
    request = GenerationRequest(prompt="x", content=content, styles=(style, content), seed=1, loras=loras)
    nodes = export_api(request).values()
    assert {node["inputs"]["image"] for node in nodes if node["class_type"] == "LoadImage"} == {
        "image.png",
        "Image-2.png",
    }
    names = [node["inputs"]["lora_name"] for node in nodes if node["class_type"] == "LoraLoaderModelOnly"]
    assert names[1:] == ["x.safetensors", "x-2.safetensors"]
    found = import_workflow(json.dumps(export_api(request)))
    assert found.content_sha256 == "a" * 64
    assert found.styles_sha256 == ("b" * 64, "a" * 64)
    note = json.dumps(export_workflow(request))
    assert "Image-2.png (yours is Image.png)" in note
    assert "x-2.safetensors (yours is b/x)" in note


def test_a_stored_style_is_no_file_to_copy_and_tells_its_strengths() -> None:
    stored = StoredStyle("my ink", "5" * 64, strengths=(1.0, 0.25))
    even = StoredStyle("wash", "6" * 64, strengths=(1.0, 1.0))
    request = GenerationRequest("a fox", styles=(InputImage("a.png", "1" * 64), stored, even))
    (note,) = (one for one in export_workflow(request)["nodes"] if one["type"] == "MarkdownNote")
    (words,) = note["widgets_values"]
    (copied,) = (line for line in words.split("\n\n") if line.startswith("Copy into ComfyUI's input folder"))
    (saved,) = (line for line in words.split("\n\n") if line.startswith("Saved styles"))
    assert "a.png" in copied
    assert "my ink" not in copied
    assert "wash" not in copied
    assert "my ink (of strengths 1, 0.25), wash." in saved
