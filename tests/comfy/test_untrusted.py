"""Workflows from untrusted files: cycles, junk, and files without end."""

from __future__ import annotations

import contextlib
import copy
import random
import time

import pytest

from tests.comfy.workflows import (
    FORMATS,
    advanced,
    api,
    definition,
    read,
    recipe,
    scope,
    values,
    with_subgraphs,
)
from uso_core.comfy import ComfyImport, formats, graph, import_workflow
from uso_core.errors import RequestError
from uso_core.request import GenerationRequest


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
    for i in range(18):
        nodes[f"join{i}"] = ["StringConcatenate", {"string_a": (f"join{i + 1}", 0), "string_b": (f"join{i + 1}", 0),
                                                   "delimiter": ""}]  # fmt: skip
    nodes["join18"] = ["PrimitiveString", {"value": "a"}]
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


LONG = 300_000
HOSTILE_TEXTS = {"comments": "/*" * LONG, "slashes": "/" * LONG, "braces": "{" * LONG, "choices": "{" + "|" * LONG,
                 "parentheses": "(" * LONG, "tags": "<lora:" * LONG, "brackets": r"\(" * LONG}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_TEXTS)
def test_a_hostile_text_costs_time_in_proportion(what):
    text = HOSTILE_TEXTS[what]
    drawn = recipe(prompt=("x", 0)) | {"x": ["ImpactWildcardProcessor", {"populated_text": text}]}
    tagged = recipe() | {"lora": ["Lora Of Nobody", {"model": ("loader", 0), "lora_text": text, "lora": text}]}
    began = time.process_time()
    for data in (scope(recipe(prompt=text)), api(recipe(prompt=text)), api(drawn), api(tagged)):
        check_in_range(read(data))
    assert time.process_time() - began < 3


def wide(kind, **more):
    return {"id": "w", "type": kind, "mode": 0, "outputs": [{"type": "MODEL"}], **more}


def test_hostile_wiring_costs_time_in_proportion():
    many = 30_000
    loras = {f"lora_{number}": "a.safetensors" for number in range(many)}
    switches = {f"s{number}": ["ComfySwitchNode", {"switch": (f"s{number + 1}", 0)}] for number in range(3000)}
    group = {"nodes": [{"inputs": [{"name": "a", "type": "A"}] * many, "outputs": [{"type": "A"}] * many}],
             "links": [[0, number, 0, number] for number in range(many)],
             "external": [[0, number] for number in range(many)]}  # fmt: skip
    canvas = scope(recipe())
    everywhere = [wide("Anything Everywhere", id=f"u{number}", inputs=[{"name": "a", "type": f"T{number}", "link": 1}])
                  for number in range(5000)]  # fmt: skip
    cases = [
        api(recipe() | {"lora": ["Lora Of Nobody", {"model": ("loader", 0), **loras}]}),
        api(recipe(prompt=("s0", 0)) | switches),
        api(recipe(prompt=("x", 0)) | {"x": ["Any Switch (rgthree)", {f"a{n}": ("gone", 0) for n in range(many)}]}),
        {**canvas, "nodes": [*canvas["nodes"], wide("workflow>G")], "extra": {"groupNodes": {"G": group}}},
        {**canvas, "nodes": [*canvas["nodes"], *everywhere]},
        {**canvas, "extra": {"ue_links": [{"downstream": "sampler", "downstream_slot": 0, "upstream": "x"}] * many}},
    ]
    for place, data in enumerate(cases):
        began = time.process_time()
        with contextlib.suppress(RequestError):
            check_in_range(read(data))
        assert time.process_time() - began < 3, place
