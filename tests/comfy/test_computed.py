"""Values that come from other nodes: taken where the file alone decides them, else left out and told."""

from __future__ import annotations

import pytest

from tests.comfy.workflows import FORMATS, api, expected, node, read, recipe, scope, values
from uso_core.messages import message


def fed(name, kind, inputs, slot=0, of="text", **more):
    """A workflow with an input fed by another node."""
    nodes = recipe() | {"x": [kind, inputs], **more}
    nodes[of][1][name] = ("x", slot)
    return nodes


TEXTS = [
    ("PrimitiveStringMultiline", {"value": "a mug"}, 0, "a mug"),
    ("CR Text", {"text": "a mug"}, 0, "a mug"),
    ("String Literal", {"string": "a mug"}, 0, "a mug"),
    ("Text String", {"text": "a boat", "text_b": "a mug", "text_c": "", "text_d": ""}, 1, "a mug"),
    ("StringConcatenate", {"string_a": "a", "string_b": "mug", "delimiter": " "}, 0, "a mug"),
    ("CR Text Concatenate", {"text1": "a", "text2": "mug", "separator": " "}, 0, "a mug"),
    ("Text Concatenate", {"delimiter": " ", "clean_whitespace": "true", "text_a": " a ", "text_c": "mug"}, 0, "a mug"),
    ("StringReplace", {"string": "a SUBJ", "find": "SUBJ", "replace": "mug"}, 0, "a mug"),
    ("Text Find and Replace", {"text": "a SUBJ", "find": "SUBJ", "replace": "mug"}, 0, "a mug"),
    ("StringSubstring", {"string": "not a mug", "start": 4, "end": 9}, 0, "a mug"),
    ("StringTrim", {"string": " a mug\n", "mode": "Both"}, 0, "a mug"),
    ("CaseConverter", {"string": "A MUG", "mode": "lowercase"}, 0, "a mug"),
    ("Text Multiline", {"text": "# of clay\na mug"}, 0, "a mug"),
    ("StringConstantMultiline", {"string": "a\n mug", "strip_newlines": True}, 0, "a mug"),
    ("ShowText|pysssss", {"text": ("p", 0), "text_0": "shown before"}, 0, "a mug"),
    ("ComfySwitchNode", {"switch": True, "on_true": ("p", 0), "on_false": "a boat"}, 0, "a mug"),
    ("easy ifElse", {"boolean": False, "on_true": "a boat", "on_false": "a mug"}, 0, "a mug"),
    ("ImpactSwitch", {"select": 2, "sel_mode": True, "input1": "a boat", "input2": ("p", 0)}, 0, "a mug"),
    ("Any Switch (rgthree)", {"any_01": ("gone", 0), "any_02": ("p", 0)}, 0, "a mug"),
]
OPEN_TEXTS = [
    ("DPRandomGenerator", {"text": "a {red|blue} mug", "seed": 5}, 0, None),
    ("RegexReplace", {"string": "a b", "regex_pattern": "b", "replace": "mug"}, 0, None),
    ("Text Find and Replace", {"text": "a boat", "find": "b.*", "replace": "mug"}, 0, None),
    ("OllamaGenerate", {"prompt": "describe it", "model": "m"}, 0, None),
    ("Prompt Node Of Nobody", {"text": "words"}, 0, None),
    ("Text String", {"text": "at [time]"}, 0, None),
    ("PrimitiveString", {"value": "a mug"}, 1, None),
    ("StringTrim", {"string": "a", "mode": "Diagonal"}, 0, None),
    ("StringConcatenate", {"string_a": "a", "string_b": ("y", 0), "delimiter": ""}, 0, "DPMagicPrompt"),
    ("ComfySwitchNode", {"switch": ("y", 0), "on_true": "a", "on_false": "b"}, 0, None),
    ("ImpactSwitch", {"select": ("y", 0), "input1": "a", "input2": "b"}, 0, None),
    ("ImpactSwitch", {"select": 1, "input1": "a"}, 1, None),
    ("ImpactWildcardProcessor", {"wildcard_text": "{a|b}", "populated_text": "", "mode": "populate"}, 0, None),
    ("ImpactWildcardProcessor", {"wildcard_text": "x", "populated_text": "a __colour__ mug"}, 0, None),
]


@pytest.mark.parametrize(("kind", "inputs", "slot", "prompt"), TEXTS)
def test_a_text_that_the_file_decides(kind, inputs, slot, prompt):
    result = read(api(fed("text", kind, inputs, slot, p=["PrimitiveString", {"value": "a mug"}])))
    assert values(result) == expected(prompt=prompt)
    assert result.notes == (message("note_own_schedule"),)


@pytest.mark.parametrize(("kind", "inputs", "slot", "named"), OPEN_TEXTS)
def test_a_text_that_another_node_decides_is_left_out_and_told(kind, inputs, slot, named):
    result = read(api(fed("text", kind, inputs, slot, y=["DPMagicPrompt", {"text": "words"}])))
    assert values(result) == expected(prompt=None)
    assert message("note_prompt_computed", node=named or kind) in result.notes


def test_a_wildcard_gives_what_it_drew():
    inputs = {"wildcard_text": "a {red|blue} mug", "populated_text": "a red mug", "mode": "populate", "seed": 7}
    result = read(api(fed("text", "ImpactWildcardProcessor", inputs)))
    assert result.prompt == "a red mug"
    assert message("note_prompt_drawn", node="ImpactWildcardProcessor") in result.notes


SEEDS = [("PrimitiveInt", {"value": 7}, 7), ("Seed (rgthree)", {"seed": 7}, 7), ("CR Seed", {"seed": 7}, 7),
         ("Random Number", {"minimum": 0, "seed": 7}, None), ("SimpleMath+", {"value": "a", "a": 7}, None),
         ("Seed Of Nobody", {"seed": 7}, None)]  # fmt: skip


@pytest.mark.parametrize(("kind", "inputs", "seed"), SEEDS)
def test_a_seed_from_another_node(kind, inputs, seed):
    result = read(api(fed("seed", kind, inputs, of="sampler")))
    assert values(result) == expected(seed=seed)
    told = message("note_computed", what=message("what_seed"), node=kind)
    assert (told in result.notes) == (seed is None)


def test_a_seed_that_is_drawn_anew_is_told():
    result = read(api(fed("seed", "Seed (rgthree)", {"seed": -1}, of="sampler")))
    assert result.seed is None
    assert message("note_seed_drawn", node="Seed (rgthree)") in result.notes


@pytest.mark.parametrize("form", FORMATS)
def test_what_the_form_needs_and_nobody_gives_is_told(form):
    nodes = recipe()
    del nodes["text"], nodes["latent"], nodes["guidance"]
    nodes["sampler"][1]["steps"] = nodes["sampler"][1]["seed"] = ("gone", 0)
    data = FORMATS[form](nodes)
    if form != "api":  # a linked value counts if its link leads nowhere, as on the page
        node(data, "sampler")["widgets_values"] = []
    result = read(data)
    assert values(result) == expected(prompt=None, seed=None, steps=None, guidance=None, width=None, height=None)
    for name in ("prompt", "seed", "steps", "guidance", "width", "height"):
        assert message("note_missing", what=message(f"what_{name}")) in result.notes


def test_a_size_that_a_node_chooses_is_told():
    nodes = recipe()
    nodes["latent"] = ["CR Aspect Ratio", {"width": 1024, "height": 768, "aspect_ratio": "16:9", "batch_size": 1}]
    result = read(api(nodes))
    assert (result.width, result.height) == (None, None)
    assert message("note_size_computed", node="CR Aspect Ratio") in result.notes
    nodes = recipe(content="me.png") | {"m": ["GetImageSize", {"image": ("scale", 0)}]}
    nodes["latent"][1] |= {"width": ("m", 1), "height": ("m", 0)}  # turned
    result = read(api(nodes))
    assert (result.width, result.height, result.keep_size) == (None, None, None)
    assert message("note_computed", what=message("what_width"), node="GetImageSize") in result.notes


PROMPTS = [  # as an encoder holds it, what the canvas means, what the API means, the note of each
    (r"a \(fox\)", "a (fox)", "a (fox)", None, None),
    (r"a \\(fox\\)", r"a \(fox\)", r"a \(fox\)", None, None),
    ("a (fox)", "a (fox)", "a (fox)", "prompt_weights", "prompt_weights"),
    ("a (fox:1.3)", "a (fox:1.3)", "a (fox:1.3)", "prompt_weights", "prompt_weights"),
    ("a fox // of\nhere", "a fox \nhere", "a fox // of\nhere", "prompt_rewritten", None),
    ("a /* red */fox", "a fox", "a /* red */fox", "prompt_rewritten", None),
    ("a {red|blue} fox", None, "a {red|blue} fox", "prompt_choices", "prompt_braces"),
    ("a {red} fox", "a red fox", "a {red} fox", "prompt_rewritten", None),
    (r"a \{red\} fox", "a {red} fox", r"a \{red\} fox", "prompt_rewritten", None),
    ("an embedding:fox", "an embedding:fox", "an embedding:fox", "prompt_embedding", "prompt_embedding"),
]


@pytest.mark.parametrize(("text", "canvas", "sent", "canvas_note", "sent_note"), PROMPTS)
def test_a_prompt_is_read_as_comfyui_reads_it(text, canvas, sent, canvas_note, sent_note):
    for result, prompt, note in (
        (read(scope(recipe(prompt=text))), canvas, canvas_note),
        (read(api(recipe(prompt=text))), sent, sent_note),
    ):
        assert result.prompt == prompt
        told = [each.key for each in result.notes if each.key.startswith("note_prompt")]
        assert told == ([f"note_{note}"] if note else [])


def test_a_linked_text_on_the_canvas_is_sent_as_it_stands():
    nodes = fed("text", "PrimitiveStringMultiline", {"value": "a {red|blue} fox // here"})
    assert read(scope(nodes)).prompt == "a {red|blue} fox // here"
    nodes = fed("text", "PrimitiveNode", {"value": "a {red|blue} fox"})  # fills the encoder's own field
    assert read(scope(nodes)).prompt is None


def test_clips_text_alone_is_no_rewriting():
    nodes = recipe()
    nodes["text"] = ["CLIPTextEncodeFlux", {"clip": ("loader", 1), "clip_l": "a mug", "t5xxl": "", "guidance": 2.5}]
    for result in (read(api(nodes)), read(scope(nodes))):
        assert result.prompt == "a mug"
        assert "note_prompt_rewritten" not in [note.key for note in result.notes]
