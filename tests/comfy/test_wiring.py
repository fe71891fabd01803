"""Links without a wire: broadcasts, contexts, switches, group nodes, and what cannot be followed."""

from __future__ import annotations

import copy

import pytest

from tests.comfy.workflows import OUTPUTS, TYPES, api, expected, node, notes, read, recipe, scope, values
from uso_core.errors import RequestError
from uso_core.messages import message


def unwired(*places, **more):
    """A canvas of which some inputs, as (node, input), are left open; and the links that they had."""
    nodes = recipe() | more
    origins = [nodes[key][1].pop(name) for key, name in places]
    data = scope(nodes)
    for key, name in places:
        node(data, key)["inputs"].append({"name": name, "type": TYPES[name], "link": None})
    return data, origins


def broadcast(data, kind, *origins, saved=()):
    """Adds a broadcasting node fed by outputs."""
    key = f"ue{len(data['nodes'])}"
    slots = []
    for place, (origin, slot) in enumerate(origins):
        data["links"].append([900 + len(data["links"]), origin, slot, key, place, "*"])
        slots.append({"name": f"in{place}", "type": "*", "link": data["links"][-1][0]})
    data["nodes"].append({"id": key, "type": kind, "mode": 0, "inputs": slots, "outputs": [],
                          "widgets_values": list(saved)})  # fmt: skip


MODEL, PROMPTS = ("sampler", "model"), (("sampler", "positive"), ("sampler", "negative"))


def test_a_broadcast_feeds_open_inputs_of_its_type():
    data, (model,) = unwired(MODEL)
    broadcast(data, "Anything Everywhere", model)
    result = read(data)
    assert values(result) == expected()
    assert notes(result) == ["note_own_schedule"]


def test_prompts_are_broadcast_by_name():
    data, (positive, negative) = unwired(*PROMPTS)
    broadcast(data, "Prompts Everywhere", positive, negative)
    assert values(read(data)) == expected()
    data, (positive, negative) = unwired(*PROMPTS)
    broadcast(data, "Prompts Everywhere", negative, positive)
    assert message("note_prompt_blanked") in read(data).notes


def test_saved_links_decide_what_a_pattern_meant():
    data, (model,) = unwired(MODEL)
    broadcast(data, "Anything Everywhere?", model, saved=["KSampler", "model", ".*"])
    result = read(data)
    assert message("note_broadcast", node="Anything Everywhere?") in result.notes
    assert "note_no_uso_lora" not in notes(result)  # who knows
    place = [slot["name"] for slot in node(data, "sampler")["inputs"]].index("model")
    data["extra"] = {"ue_links": [{"downstream": "sampler", "downstream_slot": place, "upstream": model[0],
                                   "upstream_slot": model[1], "controller": "ue", "type": "MODEL"}]}  # fmt: skip
    assert notes(read(data)) == ["note_own_schedule"]


def test_of_two_broadcasts_of_a_type_neither_is_taken():
    data, (model,) = unwired(MODEL)
    broadcast(data, "Anything Everywhere", model)
    broadcast(data, "Anything Everywhere", ("loader", 0))
    assert message("note_broadcast", node="Anything Everywhere") in read(data).notes
    data["nodes"][-1]["mode"] = 4
    assert notes(read(data)) == ["note_own_schedule"]


def test_a_context_repeats_its_inputs():
    nodes = recipe()
    sampler = nodes["sampler"][1]
    nodes["one"] = ["Context (rgthree)", {"model": sampler["model"], "positive": sampler["positive"]}]
    nodes["two"] = ["Context (rgthree)", {"base_ctx": ("one", 0), "seed": ("seed", 0)}]
    nodes["seed"] = ["Seed (rgthree)", {"seed": 31}]
    sampler |= {"model": ("two", 1), "positive": ("two", 4), "seed": ("two", 8)}
    result = read(api(nodes))
    assert values(result) == expected(seed=31)
    assert notes(result) == ["note_own_schedule"]


def test_what_lies_behind_a_bundle_is_told():
    nodes = recipe(styles=("a.png",)) | {"pipe": ["Pipe Of Nobody", {"pipe": ("style1", 0)}]}
    nodes["sampler"][1]["model"] = ("pipe", 0)
    result = read(api(nodes))
    assert message("note_chain_ends", node="Pipe Of Nobody") in result.notes
    nodes = recipe(styles=("a.png",))
    nodes["seen1"] = ["Vision Of Nobody", {"picture": ("image1", 0)}]
    result = read(api(nodes))
    assert result.styles == ()
    told = message("note_image_unnamed", what=message("what_style_image"), node="Vision Of Nobody")
    assert told in result.notes


def test_a_switch_of_images_and_conditioning():
    nodes = recipe(content="me.png") | {"other": ["LoadImage", {"image": "other.png"}]}
    nodes["switch"] = ["ComfySwitchNode", {"switch": False, "on_false": ("image", 0), "on_true": ("other", 0)}]
    nodes["scale"][1]["image"] = ("switch", 0)
    assert read(api(nodes)).content == "me.png"
    nodes["switch"][1]["switch"] = ("flag", 0)
    nodes["flag"] = ["PrimitiveBoolean", {"value": True}]
    assert read(api(nodes)).content == "other.png"
    nodes["flag"] = ["StringCompare", {"string_a": "a", "string_b": "b"}]
    result = read(api(nodes))
    assert result.content is None
    told = message("note_image_unnamed", what=message("what_content_image"), node="ComfySwitchNode")
    assert told in result.notes


def test_a_switch_that_chooses_itself():
    nodes = recipe() | {"x": ["ComfySwitchNode", {"switch": ("x", 0), "on_true": ("text", 0), "on_false": ("x", 0)}]}
    nodes["guidance"][1]["conditioning"] = ("x", 0)
    assert read(api(nodes)).prompt is None


# --- group nodes


def grouped():
    """A canvas whose prompt and sampling stand in a group node."""
    nodes = recipe()
    keys = ["text", "zero", "guidance", "latent", "sampler", "decode"]
    inner = scope({key: nodes[key] for key in keys}, shuffle=False)
    raws = inner["nodes"]
    links = [[keys.index(origin), slot, keys.index(target), place, 1, kind]
             for _, origin, slot, target, place, kind in inner["links"] if origin in keys]  # fmt: skip
    values = [value for raw in raws for value in raw["widgets_values"]]
    outer = {"loader": nodes["loader"], "lora": nodes["lora"],
             "group": ["workflow>Sampling", {"clip": ("loader", 1), "model": ("lora", 0), "vae": ("loader", 2)}],
             "save": ["SaveImage", {"images": ("group", 0), "filename_prefix": "x"}]}  # fmt: skip
    data = scope(outer, outputs={"workflow>Sampling": ["IMAGE"], "loader": [], "CheckpointLoaderSimple":
                                 ["MODEL", "CLIP", "VAE"], "LoraLoaderModelOnly": ["MODEL"]})  # fmt: skip
    node(data, "group")["widgets_values"] = values
    data["extra"] = {"groupNodes": {"Sampling": {"nodes": raws, "links": links, "external": [[5, 0, "IMAGE"]]}}}
    return data


@pytest.mark.parametrize("prefix", ["workflow/", "workflow>"])
def test_a_group_node_is_opened(prefix):
    data = grouped()
    node(data, "group")["type"] = f"{prefix}Sampling"
    result = read(data)
    assert values(result) == expected()
    assert notes(result) == ["note_own_schedule"]
    saved = node(data, "group")["widgets_values"]
    saved[saved.index("A fox in a library")] = "other words"  # the outer node's value counts
    assert read(data).prompt == "other words"
    node(data, "group")["mode"] = 2
    with pytest.raises(RequestError):
        read(data)


def test_values_of_a_group_node_that_do_not_fit_are_not_guessed():
    data = grouped()
    del node(data, "group")["widgets_values"][2]
    result = read(data)
    assert values(result) == expected(prompt=None, seed=None, steps=None, guidance=None, width=None, height=None)
    assert message("note_values_unread", node="KSampler") in result.notes


def test_a_group_node_that_cannot_be_opened_is_named():
    misfit, without, junk = grouped(), grouped(), grouped()
    node(misfit, "group")["outputs"][0]["type"] = "LATENT"
    del without["extra"]
    junk["extra"]["groupNodes"]["Sampling"] |= {"links": [[0, 0, 99, 0], "x", [[], 0, 1, 0]], "external": [[[], 0]]}
    for data in (misfit, without, junk):
        with pytest.raises(RequestError) as refused:
            read(copy.deepcopy(data))
        assert refused.value.key == "workflow_closed_group"


def test_a_sampler_that_cannot_be_read_is_named():
    nodes = recipe()
    nodes["sampler"] = ["easy fullkSampler", {"pipe": ("lora", 0), "seed": 5, "steps": 20}]
    with pytest.raises(RequestError) as refused:
        read(api(nodes))
    assert refused.value.key == "workflow_other_sampler"


# --- nodes that choose among inputs, of classes that are not known

CHOOSERS = [
    ("Switch conditioning [Crystools]", "CONDITIONING", "guidance", "conditioning"),
    ("Switch model [Crystools]", "MODEL", "sampler", "model"),
    ("Image Input Switch", "IMAGE", "scale", "image"),
]


@pytest.mark.parametrize(("kind", "role", "target", "name"), CHOOSERS)
def test_of_several_inputs_of_a_type_none_is_followed(kind, role, target, name):
    """On the canvas types are known, but not which of two inputs an unknown node passes on."""
    nodes = recipe(content="me.png") | {
        "other text": ["CLIPTextEncode", {"clip": ("loader", 1), "text": "not these words"}],
        "other model": ["LoraLoaderModelOnly", {"model": ("loader", 0), "lora_name": "x.safetensors",
                                                "strength_model": 1}],
        "other image": ["LoadImage", {"image": "not this.png", "upload": "image"}],
    }  # fmt: skip
    other = {"CONDITIONING": "other text", "MODEL": "other model", "IMAGE": "other image"}[role]
    nodes["choice"] = [kind, {"on_true": (other, 0), "on_false": nodes[target][1][name], "boolean": False}]
    nodes[target][1][name] = ("choice", 0)
    data = scope(nodes, outputs={**OUTPUTS, kind: [role]})
    for slot in node(data, "choice")["inputs"]:
        slot["type"] = role
    result = read(data)
    assert (result.prompt, result.loras, result.content) == {
        "CONDITIONING": (None, (), None), "MODEL": ("A fox in a library", (), "me.png"),
        "IMAGE": ("A fox in a library", (), None),
    }[role]  # fmt: skip
    assert kind in [each.values.get("node") for each in result.notes]
    assert "note_no_uso_lora" not in notes(result)
    slots = node(data, "choice")["inputs"]
    slots[0]["link"] = None  # the other input alone is passed on
    result = read(data)
    assert (result.prompt, result.loras, result.content) == ("A fox in a library", (), "me.png")
