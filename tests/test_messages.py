"""Texts: every key named in the code has one, every language has all of them, and values are written naturally."""

from __future__ import annotations

import ast
import json
import pickle
import re
from pathlib import Path
from string import Formatter

import pytest

from uso_core import errors
from uso_core.catalog.examples import read_examples
from uso_core.errors import MemoryShortage, RequestError, UsoError, WeightsError
from uso_core.messages import ENGLISH, FOLDER, LONGEST_VALUE, Bytes, Message, languages, message, words
from uso_core.settings import ROOT

ENGLISH_TEXTS = languages()[ENGLISH]
OTHERS = sorted(set(languages()) - {ENGLISH})
ERRORS = {name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, UsoError)}
CODE = [path for folder in ("uso_core", "deploy") for path in (ROOT / folder).rglob("*.py")] + [*ROOT.glob("*.py")]
LETTERS = re.compile(r"[A-Za-z]{3,}")


def fields(text: str) -> list[tuple[str, str, str]]:
    """A text's placeholders, with conversion and format."""
    return sorted((name, spec or "", conversion or "") for _, name, spec, conversion in Formatter().parse(text) if name)


def literal(text: str) -> str:
    return " ".join(part for part, *_ in Formatter().parse(text))


def raised(path: Path) -> list[tuple[str, str]]:
    """(key, hint) of every error that a file raises with a literal key."""
    found = []
    classes = ERRORS | {"HubUnreachable"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in classes and node.args:
            key = node.args[0]
            hint = next((each.value for each in node.keywords if each.arg == "hint"), None)
            unpacked = any(each.arg is None for each in node.keywords)  # the hint may be among these
            if isinstance(key, ast.Constant) and not unpacked and (hint is None or isinstance(hint, ast.Constant)):
                found.append((key.value, hint.value if hint is not None else ""))
    return found


def test_every_raised_error_has_its_two_sentences():
    found = {pair for path in CODE for pair in raised(path)}
    assert len(found) > 120
    assert [key for key, _ in found if f"error_{key}" not in ENGLISH_TEXTS] == []
    assert [hint or key for key, hint in found if f"hint_{hint or key}" not in ENGLISH_TEXTS] == []


def test_every_key_named_in_the_code_has_a_text_and_every_text_is_used():
    code = "\n".join(path.read_text(encoding="utf-8") for path in CODE if path.parent != FOLDER)
    named = set(re.findall(r'\b(?:message|say|label)\(\s*"(\w+)"', code))
    assert sorted(named - ENGLISH_TEXTS.keys()) == []
    notes = set(re.findall(r'\.note\(\s*"(\w+)"', code))
    assert sorted(note for note in notes if f"note_{note}" not in ENGLISH_TEXTS) == []
    words = set(re.findall(r"\w+", code))
    for key in ENGLISH_TEXTS:
        bare = re.sub(
            r"^(error|hint|note|what|stage|kind|group|plan|remedy|tensors|column|role|mode|advice|request)_", "", key
        )
        parts = {key, bare, *(bare.removesuffix(f"_{end}") for end in ("on_demand", "empty", "subject", "layout"))}
        dynamic = key.startswith(("example_", "request_", "mode_", "advice_", "kind_", "grid_"))
        assert dynamic or parts & words, f"{key} is said nowhere"


@pytest.mark.parametrize("language", OTHERS)
def test_each_language_has_every_text_with_the_same_placeholders(language):
    texts = languages()[language]
    assert list(texts) == list(ENGLISH_TEXTS)
    assert [key for key in texts if fields(texts[key]) != fields(ENGLISH_TEXTS[key])] == []


@pytest.mark.parametrize("language", OTHERS)
def test_no_sentence_is_left_in_english(language):
    same = [
        key for key, text in languages()[language].items()
        if text == ENGLISH_TEXTS[key] and len(LETTERS.findall(literal(text))) > 3
    ]  # fmt: skip
    assert same == []


def test_no_language_names_a_key_twice():
    for path in FOLDER.glob("*.json"):
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
        assert len({key for key, _ in pairs}) == len(pairs), path.name


def test_our_examples_have_a_title_in_every_language():
    for example in read_examples():
        assert ENGLISH_TEXTS[f"example_{example.name}"] == example.title


def test_values_are_written_as_the_language_writes_them():
    shortage = message("limit_free", size=Bytes(12_340_000_000))
    assert words(shortage) == "12.3 GB are free"
    assert "12,3 GB" in words(shortage, "de")
    assert [words(message("size", size=Bytes(size))) for size in (999, 44_500, 850 * 10**6)] == [
        "1.0 kB", "44.5 kB", "850 MB",
    ]  # fmt: skip


def test_a_sequence_of_messages_is_joined_by_kind():
    phrases = message("sentences", parts=(message("group_t5"), message("group_clip")))
    sentences = message("sentences", parts=(message("remedy_fp8"), message("remedy_programs")))
    assert words(phrases) == "T5, CLIP"
    assert words(sentences) == "Use --name flux-dev-fp8, which needs about half. Close other programs."
    assert "。, " not in words(sentences, "zh")


def test_an_error_keeps_key_and_values_across_processes():
    error = MemoryShortage("ram_shortage", hint="memory_shortage", needed=Bytes(5), free=Bytes(3), remedies=())
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is MemoryShortage
    assert (again.key, again.hint_key, again.values) == (error.key, error.hint_key, error.values)
    assert str(again) == str(error)


def test_a_value_is_quoted_as_data_and_never_at_length():
    error = RequestError("no_whole_number", hint="whole_range", name="width", value="9" * 10**6, low=1, high=2)
    assert len(str(error)) < 2 * LONGEST_VALUE
    assert "{0.__class__}" in str(RequestError("no_image", hint="image_formats", name="{0.__class__}"))
    missing = WeightsError("weights_missing", path=Path("a") / "b.safetensors")
    assert str(missing).startswith("a/b.safetensors does not exist")


def test_messages_are_values():
    assert message("stage_text") == Message("stage_text")
    assert len({message("stage_text"), message("stage_text"), message("stage_images")}) == 2


def test_a_sentence_says_the_values_that_it_is_given():
    """Two uses of one key would leave one of them without its values, in every language alike."""
    calls = [
        (node.args[0].value, {each.arg for each in node.keywords}, path.name)
        for path in (ROOT / "uso_core").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "message"
        and node.args and isinstance(node.args[0], ast.Constant)
    ]  # fmt: skip
    assert len(calls) > 50
    for key, given, where in calls:
        named = {name for _, name, _, _ in Formatter().parse(languages()["en"][key]) if name}
        asked = {re.split(r"[.\[]", name)[0] for name in named}
        assert not given or asked & given or None in given, (key, where)  # None: by **
        assert asked <= given or None in given, (key, where)


def test_a_fields_name_is_the_pages_own_in_another_language():
    said = RequestError("out_of_range", hint="whole_range", name="width", value=9999, low=32, high=512).problem
    assert str(said).startswith("width is 9999")
    assert words(said, "de").startswith("Breite ist 9999")
    for name in ("style_1_strength", "style_strength", "anything"):  # which have no such label
        assert name in words(RequestError("no_number", name=name, value="x", low=0, high=2).problem, "de")
