"""The examples: each is a request, together they show every mode, and a damaged one does not affect the others."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from training.examples import EXAMPLES, config
from uso_core.catalog.examples import ASPECTS, FOLDER, aspect_of, read_example, read_examples, sides, sides_of_content
from uso_core.catalog.models import MODELS
from uso_core.errors import RequestError
from uso_core.images import content_crop

SHIPPED = read_examples()


def test_every_example_is_read_in_order_of_names():
    assert [example.name for example in SHIPPED] == sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
    assert len(SHIPPED) >= 12
    assert len({example.title for example in SHIPPED}) == len(SHIPPED)


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize("example", SHIPPED, ids=[example.name for example in SHIPPED])
def test_every_example_is_a_request_for_every_model(example, model):
    request = example.request(model)
    assert (request.prompt, request.seed, request.steps) == (example.prompt, example.seed, model.steps)
    for side in (request.width, request.height):
        assert model.sides[0] <= side <= model.sides[1]


def test_an_aspect_gives_the_sizes_that_suit_the_model():
    for model in MODELS.values():
        for across, down in ASPECTS.values():
            width, height = sides(across, down, model)
            assert width % 16 == height % 16 == 0
            assert width / height == pytest.approx(across / down, rel=0.06)
            high = model.keeps_height and across > down
            assert (height == model.size) if high else (width * height == pytest.approx(model.size**2, rel=0.1))
            assert ASPECTS[aspect_of(width, height)] == (across, down)
    assert sides(16, 9, MODELS["flux-dev"]) == (1360, 768)
    assert sides(16, 9, MODELS["uso-tiny"]) == (224, 128)  # it knows images of 128 pixels in height best


@pytest.mark.parametrize(
    ("size", "aspect"),
    [((128, 128), "1:1"), ((1920, 1088), "16:9"), ((1024, 1008), ""), ((144, 128), ""), ((672, 1024), "2:3"),
     ((512, 2048), ""), ((16, 16), "1:1")],
)  # fmt: skip
def test_sides_are_named_by_their_aspect(size, aspect):
    assert aspect_of(*size) == aspect


def test_a_content_image_gives_its_shape_in_sizes_that_suit_the_model():
    assert sides_of_content(1500, 1000, 512, MODELS["flux-dev"]) == (1024, 672, 512)
    assert sides_of_content(1000, 1000, 160, MODELS["uso-tiny"]) == (128, 128, 128)
    assert sides_of_content(1000, 1500, 128, MODELS["uso-tiny"]) == (96, 160, 160)
    for across, down in ((1500, 1000), (400, 300), (1001, 1000), (1920, 1080)):
        width, height, content_size = sides_of_content(across, down, 128, MODELS["uso-tiny"])
        assert (width, height) == content_crop(across, down, content_size)  # each place lies above its own
        assert height == 128
    assert sides_of_content(2000, 300, 128, MODELS["uso-tiny"])[0] == 256


def test_together_they_show_every_mode_and_shape():
    requests = [example.request(MODELS["flux-dev"]) for example in SHIPPED]
    modes = {str(request.mode) for request in requests}
    assert modes >= {"text to image", "subject", "style", "style + subject", "style + subject (layout kept)",
                     "2 styles", "3 styles"}  # fmt: skip
    assert {(request.width > request.height) - (request.width < request.height) for request in requests} == {-1, 0, 1}
    assert any(request.style_strengths and request.content_strength != 1 for request in requests)


def test_they_are_those_that_the_recipe_draws():
    assert sorted(EXAMPLES) == [example.name for example in SHIPPED]
    for name in EXAMPLES:
        assert json.loads((FOLDER / name / "config.json").read_text()) == config(name)
    sizes = [path.stat().st_size for path in FOLDER.glob("*/*")]
    assert sum(sizes) < 3_000_000


def test_the_references_own_fields_suffice(tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "one.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "two.png")
    values = {"prompt": "a mug", "image_ref1": "one.png", "image_ref3": "two.png", "seed": 5, "unknown": [1]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    request = read_example(tmp_path / "config.json").request(MODELS["flux-dev"])
    assert (str(request.mode), request.seed, request.width) == ("style + subject", 5, 1024)


@pytest.mark.parametrize(
    "values",
    [
        [], {}, {"prompt": 3}, {"prompt": "a", "seed": "x"}, {"prompt": "a", "seed": -5},
        {"prompt": "a", "aspect": "9:1"}, {"prompt": "a", "image_ref1": "gone.png"},
        {"prompt": "a", "image_ref1": "../secret.png"}, {"prompt": "a", "image_ref2": "/etc/passwd"},
        {"prompt": "a", "image_ref2": 7}, {"prompt": "a", "style_strengths": [1]},
        {"prompt": "a", "content_strength": 9},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_example_is_refused_and_left_out(values, tmp_path):
    (tmp_path / "secret.png").touch()
    folder = tmp_path / "all" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(RequestError):
        read_example(folder / "config.json")
    assert read_examples(tmp_path / "all") == []
