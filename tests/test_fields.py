"""One home per field: a field added to a request's class shows in every face derived from it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image

from inference import build_parser
from uso_core.catalog.models import get_model
from uso_core.errors import RequestError
from uso_core.request import GenerationRequest, Result, Sampling, asked, asks, settled
from uso_core.storage.files import save_image
from uso_core.storage.png import png_texts
from uso_core.ui.api import parameters

TINY = get_model("uso-tiny")


@dataclasses.dataclass(frozen=True)
class Sparkling(GenerationRequest):
    """A copy of the class with one more field."""

    sparkle: float = asked(0.5, "number", "how much it sparkles", high=2.0, flag="--sparkle")


def test_the_command_line_takes_it():
    arguments = build_parser(Sparkling).parse_args(["--prompt", "a", "--sparkle", "1.5"])
    made = Sparkling(**settled(Sparkling, vars(arguments), TINY))
    assert (made.sparkle, made.prompt, made.steps) == (1.5, "a", TINY.steps)
    assert Sparkling(**settled(Sparkling, vars(build_parser(Sparkling).parse_args([])), TINY)).sparkle == 0.5


def test_the_api_takes_it_after_the_parameters_with_fixed_places():
    known = parameters(Sparkling)
    assert [each.name for each in known[:-1]] == [each.name for each in parameters(GenerationRequest)]
    assert (known[-1].name, known[-1].kind, known[-1].default) == ("sparkle", "number", 0.5)
    assert known[-1].meaning == "How much it sparkles."
    assert known[-1].component().value == 0.5


def test_the_png_and_the_json_hold_it(tmp_path):
    made = Sparkling(prompt="a", seed=1, sparkle=1.25)
    path = save_image(
        Image.new("RGB", (16, 16)), Result(made, 1, "uso-tiny", "cpu", "float32", 0.1), tmp_path / "a.png"
    )
    inside = json.loads(png_texts(path)["uso"])
    assert inside["sparkle"] == json.loads(path.with_suffix(".json").read_text())["sparkle"] == 1.25
    assert Sparkling.from_dict(made.to_dict()) == made
    with pytest.raises(RequestError):
        GenerationRequest.from_dict(made.to_dict())  # an unknown entry, to a version without the field


def test_its_range_is_enforced():
    with pytest.raises(RequestError) as refused:
        Sparkling(sparkle=3.0)
    assert (refused.value.values["name"], refused.value.values["high"]) == ("sparkle", 2.0)


def test_what_the_pipeline_takes_is_part_of_the_request():
    request = GenerationRequest("a", width=130, height=64, steps=3, content_strength=0.5, fast=True, seed=4)
    sampling = request.sampling
    assert type(sampling) is Sampling
    assert (sampling.width, sampling.steps, sampling.content_strength, sampling.fast) == (128, 3, 0.5, True)
    assert set(asks(Sampling)) < set(asks(GenerationRequest))


def test_none_stands_for_the_models_own():
    given = settled(GenerationRequest, dict.fromkeys(asks(GenerationRequest)), TINY)
    assert given == {"width": 128, "height": 128, "steps": 8, "sampler": "ab2", "guidance": 4.0, "content_size": 128}
    assert settled(GenerationRequest, {"seed": -1}, TINY).get("seed") is None
    assert settled(GenerationRequest, {"seed": 5, "other": 1}, TINY)["seed"] == 5
