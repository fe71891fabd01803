"""The comparison grid: its axes as users write them, its requests, and its contact sheet."""

from __future__ import annotations

import pytest
from PIL import Image

from uso_core.errors import RequestError
from uso_core.grid import Axis, cells, parse_axis, read_axis, sheet
from uso_core.request import GenerationRequest, InputImage, LoRA

STYLE = InputImage("ink.png", "a" * 64)
ASKED = GenerationRequest("a boat", styles=(STYLE, STYLE), seed=7, images=3)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [("guidance", "2, 4,6", (2, 4, 6)), ("style_strength", "0..1/0.25", (0, 0.25, 0.5, 0.75, 1)),
     ("style_strength", "0..1/.5", (0, 0.5, 1)),
     ("seed", "1..4", (1, 2, 3, 4)), ("steps", "4;8 16", (4, 8, 16)), ("lora_strength", "-1 .. 1", (-1, 0, 1)),
     ("guidance", "1,5; 2,0", (1.5, 2)), ("style_strength", "0,5;1", (0.5, 1)),
     ("content_strength", "0 .. 0.3 / 0.1", (0, 0.1, 0.2, 0.3)), ("seed", "9007199254740991", (2**53 - 1,))],
)  # fmt: skip
def test_values_as_users_write_them(name, text, values):
    assert read_axis(name, text) == Axis(name, values)


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [("width", "64", "grid_axis"), ("guidance", "high", "grid_number"), ("guidance", "", "grid_values"),
     ("guidance", "4, 4", "grid_values"), ("seed", "1..9", "grid_too_many"), ("seed", "4..1", "grid_values"),
     ("seed", "0..1000000000/1", "grid_too_many"), ("guidance", "1..2/0", "grid_values"),
     ("guidance", "nan", "grid_number"), ("guidance", "1e999", "grid_number"), ("steps", "0", "out_of_range"),
     ("steps", "1.5", "no_whole_number"), ("style_strength", "3", "out_of_range"),
     ("guidance", "1,2..", "grid_number"), ("guidance", "1,5 2", "grid_values"), ("guidance", "4..1, 5", "grid_values"),
     ("steps", "1..4/0, 9", "grid_values"), ("guidance", "1.." + "9" * 400, "grid_values")],
)  # fmt: skip
def test_values_that_cannot_be(name, text, key):
    with pytest.raises(RequestError) as raised:
        read_axis(name, text)
    assert raised.value.key == key


def test_every_cell_is_a_request_with_one_seed():
    rows = cells(ASKED, Axis("guidance", (2, 4)), Axis("style_strength", (0.5, 1, 2)))
    assert [[(each.guidance, each.style_strengths, each.seed, each.images) for each in row] for row in rows] == [
        [(2, (0.5, 0.5), 7, 1), (4, (0.5, 0.5), 7, 1)],
        [(2, (), 7, 1), (4, (), 7, 1)],
        [(2, (2, 2), 7, 1), (4, (2, 2), 7, 1)],
    ]
    ((first, second),) = cells(GenerationRequest("a boat"), Axis("steps", (4, 8)))
    assert first.seed == second.seed is not None


def test_what_cannot_change_anything_is_refused():
    plain = GenerationRequest("a boat", loras=(LoRA("ink", "b" * 64, 0.5),))
    (row,) = cells(plain, Axis("lora_strength", (0, 1)))
    assert [each.loras for each in row] == [(), (LoRA("ink", "b" * 64, 1.0),)]
    for axis in ("style_strength", "content_strength"):
        with pytest.raises(RequestError) as raised:
            cells(plain, Axis(axis, (0, 1)))
        assert raised.value.key == "grid_without"
    with pytest.raises(RequestError) as raised:
        cells(plain, Axis("seed", (0, 1)), Axis("seed", (2,)))
    assert raised.value.key == "grid_axis_twice"


@pytest.mark.parametrize(
    ("text", "places"),
    [("style", (1, 2, 3)), ("style=all", (1, 2, 3)), ("style = 3,1", (3, 1)), ("style=2..3", (2, 3))],
)
def test_styles_one_by_one(text, places):
    styles = tuple(InputImage(f"{letter}.png", letter * 64) for letter in "abc")
    asked = GenerationRequest("a boat", styles=styles, style_strengths=(0.5, 1, 2))
    axis = parse_axis(text, styles)
    assert axis == Axis("style", places, tuple(styles[place - 1].name for place in places))
    (row,) = cells(asked, axis)
    alone = {1: ((styles[0],), (0.5,)), 2: ((styles[1],), ()), 3: ((styles[2],), (2,))}
    assert [(each.styles, each.style_strengths) for each in row] == [alone[place] for place in places]
    for across, down in ((axis, Axis("style_strength", (0, 1.5))), (Axis("style_strength", (0, 1.5)), axis)):
        strengths = {(each.styles, each.style_strengths) for row in cells(asked, across, down) for each in row}
        assert strengths == {((styles[place - 1],), (each,)) for place in places for each in (0, 1.5)}
    assert axis.to_dict(row)["values"] == [styles[place - 1].to_dict() for place in places]


@pytest.mark.parametrize(
    ("text", "key"),
    [("style=0, 1", "out_of_range"), ("style=3", "out_of_range"), ("style=1.5", "no_whole_number"),
     ("style=ink.png", "grid_number"), ("style=1,1", "grid_values"), ("", "grid_axis"), ("guidance", "grid_values"),
     ("guidance 2,4", "grid_axis")],
)  # fmt: skip
def test_axes_that_cannot_be(text, key):
    with pytest.raises(RequestError) as raised:
        parse_axis(text, (STYLE, STYLE))
    assert raised.value.key == key
    with pytest.raises(RequestError) as raised:
        parse_axis("style", ())
    assert raised.value.key == "grid_without"


@pytest.mark.parametrize(
    "name", ["ink.png", "Straße 1.webp", "x" * 200 + ".png", "猫.png", "a\nb.png", "\u202e.png", "", "\0"]
)
def test_any_name_labels_a_sheet(name):
    """A long one takes no more room than its cell; one that the font cannot show is a number."""
    axis = Axis("style", (1, 2), (name, "b.png"))
    for across, down in ((axis, None), (Axis("seed", (1,)), axis)):
        made = sheet({(0, 0): Image.new("RGB", (64, 64), "red")}, across, down)
        assert made.width < 700
        assert made.getcolors(10**6) != [(made.width * made.height, (255, 255, 255))]
    number = Axis("style", (1, 2), ("\u732b", "b.png"))
    same = Axis("style", (1, 2), ("style 1", "b.png"))
    pictures = {(0, 0): Image.new("RGB", (64, 64))}
    assert sheet(pictures, number).tobytes() == sheet(pictures, same).tobytes()


def test_the_sheet_shows_each_image_once_in_its_place():
    colours = {(0, 0): "red", (0, 1): "green", (1, 1): "blue"}
    images = {place: Image.new("RGB", (64, 48), colour) for place, colour in colours.items()}
    made = sheet(images, Axis("guidance", (2, 4)), Axis("seed", (1, 2)))
    counts = {colour: count for count, colour in made.getcolors(made.width * made.height) or []}
    assert [counts[rgb] for rgb in ((255, 0, 0), (0, 128, 0), (0, 0, 255))] == [128 * 96] * 3  # doubled, sharp
    red, blue = (made.getbbox() and _place(made, rgb) for rgb in ((255, 0, 0), (0, 0, 255)))
    assert red[0] < blue[0]
    assert red[1] < blue[1]
    assert made.crop((0, 0, made.width, red[1])).getcolors(10**6) != [(made.width * red[1], (255, 255, 255))]


def _place(image: Image.Image, rgb: tuple[int, int, int]) -> tuple[int, int]:
    pixels = image.load()
    return next((x, y) for y in range(image.height) for x in range(image.width) if pixels[x, y] == rgb)
