"""Workflows from untrusted files: cycles, junk, and files without end."""

from __future__ import annotations

import copy
import random

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
