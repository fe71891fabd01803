"""The page's languages: complete, with the same placeholders, chosen as the browser chooses, English by default."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import gradio as gr
import pytest
from gradio.context import LocalContext

from uso_core.catalog.locate import choose_model
from uso_core.catalog.models import EMBEDDED_FILES, MODELS, TOKENIZER_ROLES
from uso_core.errors import RequestError
from uso_core.memory.planner import Machine, PlanOptions
from uso_core.memory.planner import plan as make_plan
from uso_core.memory.sizes import FLUX_COUNTS as FLUX
from uso_core.memory.sizes import Sizes
from uso_core.messages import ENGLISH, languages
from uso_core.settings import Settings
from uso_core.ui import text
from uso_core.ui.language import in_english, label, preferred, say, tell, translations

OTHERS = sorted(set(languages()) - {ENGLISH})
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


def test_german_chinese_and_japanese_are_there():
    assert {"de", "zh", "ja"} <= set(OTHERS)


@pytest.mark.parametrize("language", languages())
def test_every_language_has_its_weekdays_and_months(language):
    assert len(languages()[language]["weekdays"].split()) == 7
    assert len(languages()[language]["months"].split()) == 12


@pytest.mark.parametrize("language", languages())
def test_no_two_fields_have_one_name(language):
    """Screen reader users tell the fields apart by their names."""
    names = ("prompt", "content", "style", "width", "height", "steps", "guidance", "seed", "images", "content_size",
             "content_strength", "style_strength", "saved_style", "saved_style_strength", "aspect", "generate", "stop",
             "skip", "search", "style_name", "chosen_style")  # fmt: skip
    assert len({languages()[language][name] for name in names}) == len(names)


def test_the_names_that_scripts_rely_on():
    assert {key: languages()[ENGLISH][key] for key in CONTRACT} == CONTRACT


def test_every_role_has_a_name():
    roles = {row.role for model in MODELS.values() for row in model.files} | set(EMBEDDED_FILES)
    roles |= {turbo.file.role for model in MODELS.values() for turbo in model.turbos} | set(TOKENIZER_ROLES)
    assert {f"role_{role}" for role in roles} == {key for key in languages()[ENGLISH] if key.startswith("role_")}


def test_the_browser_gets_what_labels_need():
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
def test_the_first_choice_decides(header, language):
    assert preferred(header) == language


def test_sentences_come_in_the_language_of_the_request():
    assert text.stepping(1, 1, 3, 16, 0.5, 6, 0) == "Step 3 of 16, 0.50 s per step, 6 s left."
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


def test_braces_in_values_are_not_placeholders():
    """An untrusted text is filled in, never filled out."""
    with visitor("de"):
        assert say("style_saved", name="{name.__class__} {0}") == "Der Stil {name.__class__} {0} ist gespeichert."


def test_errors_plans_and_reasons_come_in_the_language_of_the_request():
    error = RequestError("no_whole_number", hint="whole_range", name="width", value=1.5, low=1, high=2)
    reason = choose_model(Settings(name="uso-tiny"))[1]
    plan = make_plan(Machine("cpu", "CPU", 10**11), Sizes(FLUX, 4), PlanOptions())
    english = [tell(each) for each in (error.told, reason, plan.summary, MODELS["uso-tiny"].note)]
    for language in OTHERS:
        with visitor(language):
            told = [tell(each) for each in (error.told, reason, plan.summary, MODELS["uso-tiny"].note)]
        assert not set(told) & set(english)
        assert "1.5" in told[0] or "1,5" in told[0]
    assert english[1] == "as requested"
