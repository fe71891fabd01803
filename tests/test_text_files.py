"""Text as people save it, JSON that names its faults, and eval files."""

from __future__ import annotations

import codecs
import json

import pytest

from uso_core.errors import RequestError
from uso_core.eval_file import read_tasks
from uso_core.text_files import decoded, parsed_json, parsed_json_lines

ENCODINGS = {
    "utf-8": "utf-8", "with a mark": "utf-8-sig", "utf-16": "utf-16", "little endian": "utf-16-le",
    "big endian": "utf-16-be", "utf-32": "utf-32",
}  # fmt: skip


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_unicode_encoding_is_read(encoding):
    data = '[{"prompt": "Müsli, 猫"}]'.encode(ENCODINGS[encoding])
    assert parsed_json(data, "a.json") == [{"prompt": "Müsli, 猫"}]


def test_other_encodings_are_named():
    with pytest.raises(RequestError) as caught:
        parsed_json('["Müsli"]'.encode("cp1252"), "a.json")
    assert (caught.value.key, caught.value.values["name"]) == ("text_encoding", "a.json")
    assert decoded(codecs.BOM_UTF8) == ""


FAULTS = {  # text: (line, column, reason)
    '[\n {"prompt": "a"},\n]': (2, 17, "json_comma"),
    '{"a": 1,\n}': (1, 8, "json_comma"),
    '["C:\\models"]': (1, 5, "json_backslash"),
    "[1,\n2]\n[3]": (3, 1, "json_more"),
    '["a': (1, 2, "json_quote"),
    '["a\nb"]': (1, 4, "json_control"),
    "{'a': 1}": (1, 2, "json_quotes"),
    "[\u201ca\u201d]": (1, 2, "json_quotes"),
    '{"a" 1}': (1, 6, "json_colon"),
    '[{"a": "x"\n "b": 2}]': (2, 2, "json_no_comma"),
    "[1, // one\n2]": (1, 5, "json_comment"),
    '{"a": [1': (1, 9, "json_ends"),
    "prompt: a": (1, 1, "json_other"),
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_told_with_its_place(text):
    with pytest.raises(RequestError) as caught:
        parsed_json(text, "a.json")
    values = caught.value.values
    assert caught.value.key == "json_wrong"
    assert (values["line"], values["column"], values["reason"].key) == FAULTS[text]


@pytest.mark.parametrize(
    ("text", "key"),
    [("", "json_empty"), (" \n", "json_empty"), ("[" * 100_000, "json_nested"), ("[" + "9" * 9000 + "]", "json_number"),
     ('{"a": 1, "a": 2}', "json_twice")],
)  # fmt: skip
def test_what_python_would_drop_or_break_on_is_refused(text, key):
    with pytest.raises(RequestError) as caught:
        parsed_json(text, "a.json")
    assert caught.value.key == key


def test_json_lines():
    assert parsed_json_lines('{"a": 1}\n\n{"a": 2}\n', "a") == [{"a": 1}, {"a": 2}]
    assert parsed_json_lines('{"a": 1}', "a") == [{"a": 1}]
    assert parsed_json_lines('[{"a": 1}]', "a") == [{"a": 1}]
    with pytest.raises(RequestError) as caught:
        parsed_json_lines('{"a": 1}\n{"a": 2,}', "a")
    assert (caught.value.values["line"], caught.value.values["column"]) == (2, 8)
    with pytest.raises(RequestError) as caught:  # one object over several lines
        parsed_json_lines('{"a": 1,\n"b": 2,\n}', "a")
    assert (caught.value.values["line"], caught.value.values["column"]) == (2, 7)


@pytest.fixture
def eval_file(tmp_path):
    def write(*entries):
        path = tmp_path / "eval.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        return path

    return write


def test_an_entry_carries_fields_by_either_name(eval_file):
    first, second = read_tasks(eval_file(
        {"prompt": "a", "seed": 5, "width": 64, "num_steps": 3, "content_ref": 96, "guidance": None, "fast": True},
        {"prompt": "b", "steps": 4, "style_strengths": [0.5, 1], "images": 2, "model_type": "uso-tiny"},
    ))  # fmt: skip
    assert first.values == {"seed": 5, "width": 64, "steps": 3, "content_size": 96, "fast": True}
    assert (second.values, second.model) == ({"steps": 4, "style_strengths": [0.5, 1], "images": 2}, "uso-tiny")


@pytest.mark.parametrize(
    ("entry", "key", "values"),
    [
        ({"image_path": ["ink.png"]}, "entry_unknown", {"name": "image_path", "meant": "image_paths"}),
        ({"prompt": None, "Prompt": "a cat"}, "entry_unknown", {"name": "Prompt", "meant": "prompt"}),
        ({"sede": 5}, "entry_unknown", {"name": "sede", "meant": "seed"}),
        ({"steps": 3, "num_steps": 4}, "json_twice", {"key": "num_steps"}),
        ({"model": "flux-dev", "name": "uso-tiny"}, "json_twice", {"key": "name"}),
        ({"style_strengths": 0.5}, "no_list", {"name": "style_strengths"}),
        ({"model": 5}, "model_no_name", {"value": 5}),
        ({"image_paths": ["C:\new\a.png"]}, "entry_backslash", {"text": "C:\new\a.png"}),
    ],
)
def test_an_entry_that_would_be_misread_is_refused(eval_file, entry, key, values):
    with pytest.raises(RequestError) as caught:
        read_tasks(eval_file({"prompt": "b"}, {"prompt": "a", **entry}))
    assert key in (caught.value.key, getattr(caught.value.values.get("reason"), "key", "").removeprefix("error_"))
    assert (values | {"index": 1}).items() <= caught.value.values.items()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[]", "eval_empty"),
        ('"a"', "eval_no_list"),
        ('{"tasks": [{"prompt": "a"}]}', "eval_no_list"),
        ('{"0": {"prompt": "a"}}', "eval_no_list"),
    ],
)
def test_an_eval_file_without_entries_is_refused(tmp_path, text, key):
    path = tmp_path / "eval.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        read_tasks(path)
    assert caught.value.key == key


def test_what_a_data_set_has_besides_is_named(eval_file, caplog):
    assert len(read_tasks(eval_file({"prompt": "a", "index": 5}, {"prompt": "b", "index": 6, "category": "x"}))) == 2
    assert [record.args[0].values["names"] for record in caplog.records] == ["category, index"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85"])
def test_a_line_of_json_lines_ends_where_the_format_says(inside):
    lines = [{"prompt": f"A mug.{inside}On a beach."}, {"prompt": "A boat."}]
    assert parsed_json_lines("\n".join(json.dumps(each, ensure_ascii=False) for each in lines), "a.jsonl") == lines
