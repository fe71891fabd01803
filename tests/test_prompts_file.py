"""Files of prompts, as people and editors save them."""

from __future__ import annotations

from pathlib import Path

import pytest

from uso_core.errors import RequestError
from uso_core.prompts_file import read_prompts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_prompt_a_line(encoding: str, end: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    lines = ["a red mug", "", "# a note", "   ", "  a {red|blue} café, 猫 ", "{x}", "[a] b", "last\u2028 line #1"]
    path.write_bytes(end.join(lines).encode(encoding))
    assert read_prompts(path) == (
        "a red mug", "a red café, 猫", "a blue café, 猫", "{x}", "[a] b", "last\u2028 line #1",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "key"),
    [(b"", "prompts_none"), (b"\n # only\n\n", "prompts_none"), ("Straße".encode("latin-1"), "text_encoding"),
     ("猫 a cat".encode("utf-16-le"), "text_encoding"), (b"\x89PNG\r\n\x1a\n\0\0", "text_encoding"),
     (b"PK\x03\x04", "text_encoding"), ("\u200b\n\ufeff \u2060".encode(), "prompts_none")],
)  # fmt: skip
def test_what_is_no_list_of_prompts(data: bytes, key: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(RequestError) as raised:
        read_prompts(path)
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("kind", "text"),
    [("JSON", '[{"prompt": "a"}]'), ("JSON", '["a", "b"]'), ("JSON", '{"prompt": "a"}\n{"prompt": "b"}'),
     ("JSON", '{\n"prompt": 1}'), ("JSON", "[\n1]"), ("YAML", "- prompt: a cat"),
     ("YAML", "prompts:\n  - a cat"), ("YAML", "---\nPrompt: x"),
     ("PDF", "%PDF-1.4\na"),
     ("RTF", "{\\rtf1\\ansi\na cat\\par}"),
     ("HTML", "\n<!DOCTYPE html>\n<p>a cat"), ("HTML", "<html lang=en>"), ("XML", '<?xml version="1.0"?>'),
     ("CSV", "prompt,seed\na cat,1"), ("CSV", 'id;"Prompt"\n1;a cat'), ("CSV", "name\tprompt\tsteps\n")],
)  # fmt: skip
def test_text_of_another_kind_is_named(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(text)
    with pytest.raises(RequestError) as raised:
        read_prompts(path)
    assert (raised.value.key, raised.value.values["kind"]) == ("prompts_kind", kind)
    assert raised.value.hint_key == ("prompts_json" if kind == "JSON" else "prompts_none")


def test_a_table_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("a.csv", "a.TSV"):
        (tmp_path / name).write_text("a cat, red\n")
        with pytest.raises(RequestError) as raised:
            read_prompts(tmp_path / name)
        assert raised.value.key == "prompts_kind"


def test_what_nobody_sees_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    """Marks inside joined files, spaces without width from web pages, the end of a text under DOS."""
    path = tmp_path / "prompts.txt"
    path.write_text("\u200ba cat\u200b \n\ufeffa dog\n\u200b\n<lora:ink> a {x\ny, a prompt of mine\n\x1a", newline="")
    assert read_prompts(path) == ("a cat", "a dog", "<lora:ink> a {x", "y, a prompt of mine")


@pytest.mark.parametrize("name", ["missing.txt", "folder", "x" * 300, "nul\0"])
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RequestError) as raised:
        read_prompts(tmp_path / name)
    assert raised.value.key in ("file_unreadable", "text_encoding")


@pytest.mark.parametrize(
    ("line", "reason", "hint"),
    [
        ("{a|b}" * 7, "error_too_many_prompts", "too_many_prompts"),
        ("x" * 20_001, "error_prompt_too_long", "prompt_too_long"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(line: str, reason: str, hint: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text(f"# first\r\n\r\na cat\r\n{line}\r\n")
    with pytest.raises(RequestError) as raised:
        read_prompts(path)
    values = raised.value.values
    assert (raised.value.key, values["line"], values["reason"].key) == ("prompts_line", 4, reason)
    assert raised.value.hint_key == hint
    assert raised.value.hint
