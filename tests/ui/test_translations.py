"""The languages of the page: complete, filled in alike, chosen as the browser chooses, English where nobody asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from string import Formatter

import gradio as gr
import pytest
from gradio.context import LocalContext

from uso_core.catalog.locate import choose_model
from uso_core.catalog.models import EMBEDDED_FILES, MODELS
from uso_core.request import GenerationRequest, InputImage
from uso_core.settings import ROOT, Settings
from uso_core.ui import text
from uso_core.ui.language import ENGLISH, from_below, in_english, label, languages, preferred, say, translations

OTHERS = sorted(set(languages()) - {ENGLISH})
SOURCES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "uso_core").rglob("*.py")}
CONTRACT = {
    "prompt": "Prompt", "content": "Content image", "style": "Style image {number}", "generate": "Generate",
    "stop": "Stop", "skip": "Skip", "reuse_settings": "Reuse settings", "use_as_content": "Use as content",
    "use_as_style": "Use as style", "width": "Width", "height": "Height", "steps": "Steps", "guidance": "Guidance",
    "seed": "Seed", "images": "Images", "tab_create": "Create", "tab_history": "History", "tab_styles": "Styles",
    "tab_model": "Model",
}  # fmt: skip


@contextmanager
def visitor(accept_language: str) -> Iterator[None]:
    """Within it, a request with this header is being answered."""
    token = LocalContext.request.set(gr.Request(headers={"accept-language": accept_language}))
    try:
        yield
    finally:
        LocalContext.request.reset(token)


def placeholders(words: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(words) if name is not None}


def test_german_chinese_and_japanese_are_there():
    assert {"de", "zh", "ja"} <= set(OTHERS)


@pytest.mark.parametrize("language", OTHERS)
def test_every_language_says_everything(language):
    english, other = languages()[ENGLISH], languages()[language]
    assert list(other) == list(english)  # in the same order, so that two files are compared line by line
    for key, words in other.items():
        assert words.strip(), key
        assert placeholders(words) == placeholders(english[key]), key
    assert len(other["weekdays"].split()) == 7
    assert len(other["months"].split()) == 12


@pytest.mark.parametrize("language", languages())
def test_no_two_fields_have_one_name(language):
    """Who hears the form instead of seeing it tells them apart by their names."""
    names = ("prompt", "content", "style", "width", "height", "steps", "guidance", "seed", "images", "content_size",
             "content_strength", "style_strength", "saved_style", "saved_style_strength", "aspect", "generate", "stop",
             "skip", "search", "selected", "style_name", "chosen_style")  # fmt: skip
    assert len({languages()[language][name] for name in names}) == len(names)


def test_the_names_that_scripts_rely_on():
    assert {key: languages()[ENGLISH][key] for key in CONTRACT} == CONTRACT


def test_every_text_has_a_use_and_every_use_a_text():
    """Keys are whole strings in the source, or begin as one that is filled in."""
    code = "".join(SOURCES.values())
    english = languages()[ENGLISH]
    used = set(re.findall(r"""\b(?:label|say)\(\s*["']([a-z_]+)["']""", code))
    assert used <= set(english)
    built = ("mode_", "advice_", "role_", "column_", "below_")
    assert [key for key in english if not re.search(f"[\"']{key}[\"']", code) and not key.startswith(built)] == []
    roles = {row.role for model in MODELS.values() for row in model.files} | set(EMBEDDED_FILES)
    assert {f"role_{role}" for role in roles} == {key for key in english if key.startswith("role_")}


def test_the_browser_gets_what_labels_ask_for():
    known = translations().translations_dict
    assert set(known) == set(languages())
    assert known["de"][label("style", 4).key] == "Stilbild 4"
    assert known["en"][label("prompt").key] == "Prompt"
    assert not any("{" in words for texts in known.values() for words in texts.values())
    with pytest.raises(KeyError):
        label("no such text")


@pytest.mark.parametrize(
    ("header", "language"),
    [("de-DE,de;q=0.9,en;q=0.8", "de"), ("zh-CN", "zh"), ("zh-TW,en", "zh"), ("ja", "ja"), ("JA-jp", "ja"),
     ("en-US,de", "en"), ("fr-FR,de;q=0.9", "en"), ("*", "en"), ("", "en"), (";,=\x00" * 99, "en")],
)  # fmt: skip
def test_the_first_wish_decides(header, language):
    assert preferred(header) == language


def test_sentences_come_in_the_language_of_the_request():
    assert text.stepping(1, 1, 3, 16, 0.5, 6, 0) == "Step 3 of 16, 0.50 s a step, 6 s left."
    with visitor("de-DE,de"):
        assert text.stepping(1, 1, 3, 16, 0.5, 6, 0) == "Schritt 3 von 16, 0,50 s pro Schritt, noch 6 s."
        assert text.day(date(2026, 3, 2), date(2026, 3, 4)) == "Montag, 2. März 2026"
        assert list(in_english(text.done(2, seed) for seed in (1, 2))) == [
            "Done in 2 s, seed 1.",
            "Done in 2 s, seed 2.",
        ]
    with visitor("ja"):
        assert text.day(date(2026, 3, 2), date(2026, 3, 4)) == "2026年3月2日 月曜日"
    assert text.day(date(2026, 3, 2), date(2026, 3, 4)) == "Monday, 2 March 2026"


@pytest.mark.parametrize("language", languages())
def test_every_mode_has_a_name_and_advice(language):
    with visitor(language):
        lines = {
            text.mode(content, styles, prompt)
            for content in (True, False)
            for styles in (0, 1, 3)
            for prompt in ("", "a")
        }
    assert len(lines) == 12


def test_words_in_braces_are_no_blanks():
    """A stranger's words are filled in, never a sentence to fill in."""
    with visitor("de"):
        assert say("style_saved", name="{name.__class__} {0}") == "Der Stil {name.__class__} {0} ist gespeichert."
        assert from_below("flux-dev still lacks {files}") == "flux-dev fehlt noch {files}"


def test_what_comes_from_below_is_known():
    image = InputImage("a.png", "0" * 64)
    requests = [
        GenerationRequest(prompt, content, styles)
        for prompt in ("", "a") for content in (None, image) for styles in ((), (image,), (image, image))
    ]  # fmt: skip
    reason = choose_model(Settings(name="uso-tiny"))[1]
    modes = {request.mode for request in requests}
    assert len(modes) == sum(key.startswith("below_mode_") for key in languages()[ENGLISH])
    said = [reason, "reading t5, 40%", *modes]
    with visitor("de"):
        assert [sentence for sentence in said if from_below(sentence) == sentence] == []
        assert from_below("reading t5, 40%") == "t5 wird gelesen, 40 %"
        assert from_below("CUDA ran out of memory.") == "CUDA ran out of memory."
    assert from_below(reason) == reason
    code = "".join(words for path, words in SOURCES.items() if path.name not in ("text.py", "language.py"))
    for key, words in languages()[ENGLISH].items():
        if key.startswith("below_") and not key.startswith("below_mode_"):
            parts = [part for part, _, _, _ in Formatter().parse(words) if len(part) > 2]
            assert parts
            assert all(part in code for part in parts), f"{key}: nothing below the page says so any more"
