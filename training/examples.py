"""The page's examples, drawn by the renderer of the embedded model's world: python -m training.examples --to examples

With `--results` the released model also makes each example's result, which the page shows before anybody asks. Every
folder gets a config.json in the format of USO's own examples (prompt, image_ref1 the content image, image_ref2
and on the style images, seed) with this project's additions: title, aspect, content_strength, style_strengths.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uso_core.catalog.examples import RESULT, read_examples
from uso_core.events import ImageReady
from uso_core.runtime.generate import generate

from .command import run_command
from .trials import Painter
from .world import NO_STYLE, Picture, Pose, Scene, Style, Subject, draw_style, draw_subject, render
from .world.specs import BACKDROPS, COLOURS, PLAIN_SCENE

CONTENT_SIDE, STYLE_SIDE = 512, 384  # sqrt(width * height), pixels
RESULT_QUALITY = 92  # of WebP
COLOURS_KEPT = 192  # of the PNG's palette
SQUARE = (1, 1)
CENTRE = Pose(0.5, 0.92, 1.0, 0.03)
PLAIN = Scene(PLAIN_SCENE, False, 0, BACKDROPS[0])


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One picture of an example: what it shows, how, and its shape."""

    picture: Picture
    style: Style = NO_STYLE
    shape: tuple[int, int] = SQUARE


def subject(kind: str, colour: str, second: str, pattern: str = "plain", mood: str = "happy", seed: int = 0) -> Subject:
    """A subject of that look; the seed decides its proportions."""
    drawn = draw_subject(np.random.default_rng(seed), kind=kind)
    return dataclasses.replace(
        drawn, colour=colour, second_colour=second, pattern=pattern, mood=mood,
        rgb=COLOURS[colour], second_rgb=COLOURS[second],
    )  # fmt: skip


def place(kind: str, seed: int, night: bool = False) -> Scene:
    """A scene; the seed places what stands in it."""
    return Scene(kind, night, seed, BACKDROPS[0])


def portrait(of: Subject) -> Drawn:
    """A content image: the subject before a plain wall."""
    return Drawn(Picture(of, CENTRE, PLAIN))


def look(technique: str, of: Subject, scene: Scene, seed: int, **given: Any) -> Drawn:
    """A style image: something else in the technique."""
    style = dataclasses.replace(draw_style(np.random.default_rng(seed), technique), **given)
    return Drawn(Picture(of, Pose(0.35, 0.92, 0.8, -0.03), scene), style)


CAT = portrait(subject("cat", "orange", "pink", "striped", "sleepy", 5))
MUG = portrait(subject("mug", "red", "white", "dotted", "happy", 6))
CLOCK = portrait(subject("clock", "yellow", "purple", mood="surprised", seed=7))
WATERCOLOUR = look("watercolour", subject("house", "pink", "yellow"), place("beach", 21), 1, grade=0.15)
WOODCUT = look("woodcut", subject("boat", "white", "blue"), place("snow", 22), 2)
NEON = look("neon", subject("car", "pink", "yellow"), place("city", 23, night=True), 3, paper=(40, 230, 255))
HALFTONE = look("halftone", subject("rocket", "red", "yellow", "striped"), place("space", 24), 4)
MOSAIC = look("mosaic", subject("fish", "orange", "blue", "striped"), place("underwater", 25), 5, scale=0.2)
BLUEPRINT = look("blueprint", subject("house", "white", "red"), place("city", 26), 6)
OIL = look("oil", subject("tree", "green", "yellow"), place("desert", 27), 7)
PIXEL = look("pixel", subject("mushroom", "red", "white", "dotted"), place("forest", 28), 8)
CAR_IN_SNOW = Drawn(Picture(subject("car", "red", "yellow", "striped"), Pose(0.45, 0.9, 0.95, 0.0), place("snow", 31)))
BOAT_AT_SEA = Drawn(Picture(subject("boat", "white", "red", "striped"), Pose(0.6, 0.92, 1.0, 0.04), place("beach", 32)))

# Folder: config, with pictures in the place of file names. Seeds are the clearest of ten.
EXAMPLES: dict[str, dict[str, Any]] = {
    "01-words": {"title": "Words alone", "prompt": "a happy red boat on the beach", "seed": 3},
    "02-words-portrait": {
        "title": "Words, upright", "prompt": "a red mushroom in the forest, watercolour style", "aspect": "2:3",
        "seed": 9,
    },
    "03-subject": {"title": "A subject elsewhere", "prompt": "a mug in the snow", "image_ref1": MUG, "seed": 9},
    "04-subject-wide": {
        "title": "A subject, wide", "prompt": "a sleepy cat in the city at night", "image_ref1": CAT, "aspect": "3:2",
        "seed": 4,
    },
    "05-subject-edit": {
        "title": "Restyled by words", "prompt": "transform into pencil drawing style", "image_ref1": BOAT_AT_SEA,
        "seed": 1,
    },
    "06-style": {"title": "A style", "prompt": "a cottage in the woods", "image_ref2": WOODCUT, "seed": 9},
    "07-style-wide": {
        "title": "A style, wide", "prompt": "a house in the streets of a big town at night", "image_ref2": NEON,
        "aspect": "16:9", "seed": 2,
    },
    "08-style-and-subject": {
        "title": "Style and subject", "prompt": "an alarm clock on the beach", "image_ref1": CLOCK, "image_ref2": OIL,
        "seed": 5,
    },
    "09-style-and-subject-upright": {
        "title": "Style and subject, upright", "prompt": "a car in the forest", "image_ref1": CAR_IN_SNOW,
        "image_ref2": PIXEL, "aspect": "3:4", "seed": 9,
    },
    "10-layout": {
        "title": "Layout kept", "prompt": "", "image_ref1": BOAT_AT_SEA, "image_ref2": MOSAIC, "seed": 8,
    },
    "11-layout-comic": {
        "title": "Layout kept, as a comic", "prompt": "", "image_ref1": CAR_IN_SNOW, "image_ref2": HALFTONE,
        "aspect": "as content", "seed": 8,
    },
    "12-two-styles": {
        "title": "Two styles, blended", "prompt": "a smiling tree in the snow", "image_ref2": WATERCOLOUR,
        "image_ref3": HALFTONE, "seed": 2,
    },
    "13-three-styles": {
        "title": "Three styles, blended", "prompt": "a mushroom in the forest", "image_ref2": MOSAIC,
        "image_ref3": NEON, "image_ref4": WATERCOLOUR, "seed": 1,
    },
    "14-strengths": {
        "title": "Two styles, one stronger", "prompt": "a cat in the living room", "image_ref1": CAT,
        "image_ref2": BLUEPRINT, "image_ref3": WATERCOLOUR, "style_strengths": [0.4, 1.4], "content_strength": 1.2,
        "seed": 9,
    },
}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    """What stands in an example's config.json."""
    return {key: file_name(key) if isinstance(value, Drawn) else value for key, value in EXAMPLES[name].items()}


def file_name(key: str) -> str:
    """The picture's file name in its folder."""
    return "content.png" if key == "image_ref1" else f"style{int(key.removeprefix('image_ref')) - 1}.png"


def save(drawn: Drawn, side: int, path: Path) -> None:
    """Writes the picture with few colours, which keeps it small."""
    across, down = drawn.shape
    unit = side / (across * down) ** 0.5
    pixels = render(drawn.picture, drawn.style, round(down * unit), round(across * unit))
    image = Image.fromarray(pixels).quantize(COLOURS_KEPT, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def make_results(folder: Path) -> None:
    """Writes each example's result beside it, as the page makes it on a machine that computes in float32."""
    painter = Painter()
    for example in read_examples(folder):
        events = generate(painter.pipeline, painter.model, example.request(painter.model))
        (image,) = (event.image for event in events if isinstance(event, ImageReady))
        image.save(folder / example.name / RESULT, quality=RESULT_QUALITY, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--results", action="store_true", help="make the results as well")
    arguments = parser.parse_args()
    folder = arguments.to
    for name, values in EXAMPLES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(config(name), indent=2, ensure_ascii=False)
        (folder / name / "config.json").write_text(text + "\n", encoding="utf-8")
        for key, value in values.items():
            if isinstance(value, Drawn):
                side = CONTENT_SIDE if key == "image_ref1" else STYLE_SIDE
                save(value, side, folder / name / file_name(key))
    if arguments.results:
        make_results(folder)


if __name__ == "__main__":
    run_command(main)
