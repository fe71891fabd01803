"""LoRAs: which one is USO's, and those of stacks, lists and tags."""

from __future__ import annotations

import pytest

from tests.comfy.workflows import api, node, notes, read, recipe, scope
from uso_core.comfy.loras import LoRA, is_uso, loras_of
from uso_core.messages import message

USO = "uso-flux1-dit-lora-v1.safetensors"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (USO, True),
        (f"flux\\uso/{USO}", True),
        ("uso_flux1_dit_lora_v1_fp8.safetensors", True),
        ("uso_flux_v1.0/dit_lora.safetensors", True),
        ("dit_lora.safetensors", True),
        ("USO.safetensors", True),
        ("UNO/dit_lora.safetensors", False),
        ("casauso.safetensors", False),
        ("mouse_uso.safetensors", False),
        ("not-uso-style.safetensors", False),
        ("my_dit_lora_portraits.safetensors", False),
        ("v1.safetensors", False),
    ],
)
def test_the_whole_name_tells_usos_own(name, ours):
    assert is_uso(name) == ours
    nodes = recipe()
    nodes["lora"][1]["lora_name"] = name
    result = read(api(nodes))
    assert ("note_no_uso_lora" in notes(result)) != ours
    assert len(result.loras) == (not ours)


ROWS = {"lora_1": {"on": True, "lora": USO, "strength": 0.8}, "lora_2": {"on": False, "lora": "off", "strength": 1},
        "lora_3": {"on": True, "lora": "sub/ink.safetensors", "strength": 0.5}}  # fmt: skip
LOADERS = {
    "LoraLoader": {"clip": ("loader", 1), "lora_name": "ink.safetensors", "strength_model": 0.5, "strength_clip": 1},
    "LoraLoader|pysssss": {"lora_name": "ink.safetensors", "strength_model": 0.5, "strength_clip": 1},
    "Power Lora Loader (rgthree)": {"PowerLoraLoaderHeaderWidget": {"type": "x"}, **ROWS},
    "Lora Loader Stack (rgthree)": {"lora_01": USO, "strength_01": 1, "lora_02": "ink.safetensors", "strength_02": 0.5,
                                    "lora_03": "None", "strength_03": 1},
    "Lora Loader (LoraManager)": {"text": "<lora:x:1>", "loras": {"__value__": [
        {"name": "ink.safetensors", "strength": "0.5", "active": True}, {"name": "c", "active": False}]}},
    "LoraTagLoader": {"text": "words <lora:ink.safetensors:0.5> and <lora:uso-flux1-dit-lora-v1:1>"},
    "Loader Of Nobody": {"lora": "ink.safetensors", "lora_weight": 0.5},
}  # fmt: skip
STACKS = {
    "CR LoRA Stack": {"switch_1": "On", "lora_name_1": USO, "model_weight_1": 1, "clip_weight_1": 1,
                      "switch_2": "Off", "lora_name_2": "off", "model_weight_2": 1, "clip_weight_2": 1,
                      "switch_3": "On", "lora_name_3": "ink.safetensors", "model_weight_3": 0.5, "clip_weight_3": 1},
    "LoRA Stacker": {"input_mode": "simple", "lora_count": 1, "lora_name_1": "ink.safetensors", "lora_wt_1": 0.5,
                     "model_str_1": 0.1, "clip_str_1": 1, "lora_name_2": "off", "lora_wt_2": 1},
    "easy loraStack": {"toggle": True, "mode": "advanced", "num_loras": 1, "lora_1_name": "ink.safetensors",
                       "lora_1_strength": 1, "lora_1_model_strength": 0.5, "lora_1_clip_strength": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*LOADERS, *STACKS])
def test_loaders_and_stacks(kind):
    nodes = recipe()
    if kind in LOADERS:
        nodes["more"] = [kind, {"model": ("lora", 0), **LOADERS[kind]}]
    else:
        nodes["more"] = ["CR Apply LoRA Stack", {"model": ("lora", 0), "lora_stack": ("stack", 0)}]
        nodes["stack"] = [kind, STACKS[kind]]
    nodes["sampler"][1]["model"] = ("more", 0)
    result = read(api(nodes))
    assert result.loras == (LoRA("ink.safetensors", 0.5),)
    assert message("note_lora_ignored", name="ink.safetensors", strength=0.5) in result.notes
    assert "note_no_uso_lora" not in notes(result)


def test_rows_on_the_canvas():
    nodes = recipe()
    nodes["lora"] = ["Power Lora Loader (rgthree)", {"model": ("loader", 0)}]
    data = scope(nodes)
    node(data, "lora")["widgets_values"] = [{}, {"type": "PowerLoraLoaderHeaderWidget"}, *ROWS.values(), {}, ""]
    result = read(data)
    assert result.loras == (LoRA("ink.safetensors", 0.5),)
    assert message("note_lora_strength", strength=0.8) in result.notes


@pytest.mark.parametrize(
    "node",
    [
        ["Power Lora Loader (rgthree)", {"lora_1": {"on": False, "lora": "ink.safetensors", "strength": 1}}],
        ["LoraLoader", {"lora_name": "ink.safetensors", "strength_model": 0, "strength_clip": 0}],
        ["LoraLoader", {"lora_name": "None", "strength_model": 1, "strength_clip": 1}],
    ],
)
def test_a_lora_that_is_off_is_nothing_to_tell(node):
    nodes = recipe()
    kind, inputs = node
    nodes["off"] = [kind, {"model": ("lora", 0), **inputs}]
    nodes["sampler"][1]["model"] = ("off", 0)
    assert "note_lora_unnamed" not in notes(read(api(nodes)))
    assert "note_no_uso_lora" not in notes(read(api(nodes)))
    nodes["off"][1]["model"] = ("loader", 0)
    assert "note_no_uso_lora" in notes(read(api(nodes)))


def test_the_order_is_that_of_the_model():
    nodes = recipe()
    for number, before in enumerate(("lora", "l0", "l1")):
        name = f"{number}.safetensors"
        nodes[f"l{number}"] = ["LoraLoaderModelOnly", {"model": (before, 0), "lora_name": name, "strength_model": 1}]
    nodes["sampler"][1]["model"] = ("l2", 0)
    assert [lora.name for lora in read(api(nodes)).loras] == ["0.safetensors", "1.safetensors", "2.safetensors"]


def test_the_rows_of_a_node_keep_their_order_and_folders():
    nodes = recipe() | {"rows": ["Power Lora Loader (rgthree)", {"model": ("lora", 0)}]}
    for number, name in enumerate(("a/one.safetensors", "a\\b\\two.safetensors", "three.safetensors")):
        nodes["rows"][1][f"lora_{number}"] = {"on": True, "lora": name, "strength": 1}
    last = {"model": ("rows", 0), "lora_name": "four.safetensors", "strength_model": 2}
    nodes["last"] = ["LoraLoaderModelOnly", last]
    nodes["sampler"][1]["model"] = ("last", 0)
    result = read(api(nodes))
    strengths = {"one": 1, "two": 1, "three": 1, "four": 2}
    assert result.loras == tuple(LoRA(f"{name}.safetensors", strength) for name, strength in strengths.items())
    assert result.lora_folders == ("a", "a/b", "", "")


def test_loras_that_cannot_be_read_are_told():
    nodes = recipe() | {"more": ["LoRA Loader Of Nobody", {"model": ("lora", 0)}]}
    nodes["sampler"][1]["model"] = ("more", 0)
    data = scope(nodes)
    node(data, "more")["widgets_values"] = ["ink.safetensors", 0.5]
    result = read(data)
    assert message("note_lora_unnamed", node="LoRA Loader Of Nobody") in result.notes
    nodes["more"] = ["LoraLoaderModelOnly", {"model": ("lora", 0), "lora_name": ("choice", 0), "strength_model": 1}]
    nodes["choice"] = ["Random Choice", {"seed": 1}]
    told = message("note_computed", what=message("what_lora"), node="Random Choice")
    assert told in read(api(nodes)).notes


def test_a_strength_that_another_node_computes_is_told():
    nodes = recipe() | {"x": ["SimpleMath+", {"value": "a / 2", "a": 1}]}
    nodes["lora"][1]["strength_model"] = ("x", 0)
    told = message("note_computed", what=message("what_lora_strength"), node="SimpleMath+")
    assert told in read(api(nodes)).notes
    nodes["lora"][1] |= {"strength_model": 1, "strength_clip": ("x", 0)}
    assert told not in read(api(nodes)).notes


@pytest.mark.parametrize(
    ("written", "strength"),
    [(".8", 0.8), (" 0.8", 0.8), ("-.5", -0.5), ("+0.5", 0.5), ("1.", 1.0), ("0.5:0.25", 0.5), ("2", 2.0)],
)
def test_a_tag_has_the_strength_that_it_says(written, strength):
    assert list(loras_of({"text": f"a mug <lora:ink:{written}>"})) == [LoRA("ink", strength)]
