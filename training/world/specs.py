"""What a picture of the toy world is made of, as frozen values, and how such values are drawn by chance.

A picture is a subject in a pose in a scene (the content) rendered in a style. Two records that share a part of their
specs share exactly that part of their pictures, which is what the training triplets are built from.
Everything is drawn from a numpy Generator, so a seed is all that has to be stored.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in 0..255
Split = Literal["train", "held_out"]

SUBJECTS = ("mug", "house", "tree", "fish", "car", "cat", "robot", "flower", "boat", "rocket", "clock", "mushroom")
SCENES = ("beach", "forest", "city", "desert", "snow", "underwater", "room", "space")
PLAIN_SCENE = "plain"
SCENE_VARIANTS = 4  # of a settled picture's scene
NIGHT_SCENES = frozenset({"beach", "forest", "city", "desert", "snow"})
TECHNIQUES = (
    "flat", "watercolour", "pixel", "pencil", "halftone", "neon", "oil", "mosaic", "woodcut", "blueprint",
)  # fmt: skip
# Techniques in which the subject's own colour survives; the others are monochrome by nature.
COLOUR_TECHNIQUES = frozenset({"flat", "watercolour", "pixel", "halftone", "neon", "oil", "mosaic"})
PATTERNS = ("plain", "striped", "dotted")
MOODS = ("happy", "surprised", "sleepy")
COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49),
    "orange": (240, 132, 38),
    "yellow": (245, 205, 55),
    "green": (66, 160, 71),
    "blue": (45, 108, 214),
    "purple": (140, 75, 190),
    "pink": (240, 120, 170),
    "white": (240, 238, 230),
}
BACKDROPS: tuple[Colour, ...] = (
    (245, 243, 238), (228, 232, 236), (250, 236, 220), (224, 238, 228), (236, 228, 242),
)  # fmt: skip

INKS: tuple[Colour, ...] = (
    (30, 32, 60), (60, 24, 40), (20, 60, 60), (64, 40, 20), (40, 28, 84), (24, 24, 28),
)  # fmt: skip
PAPERS: tuple[Colour, ...] = (
    (250, 244, 226), (255, 228, 190), (222, 240, 240), (250, 222, 226), (236, 240, 206), (244, 244, 246),
)  # fmt: skip
BLUEPRINT_GROUNDS: tuple[Colour, ...] = ((24, 66, 150), (20, 88, 130), (46, 46, 120), (20, 100, 92))
NEON_GROUNDS: tuple[Colour, ...] = ((14, 10, 34), (6, 20, 36), (30, 8, 34), (10, 10, 14))
NEON_LIGHTS: tuple[Colour, ...] = ((255, 40, 150), (40, 230, 255), (120, 255, 80), (255, 200, 40), (170, 90, 255))
# Palettes that no training picture uses.
HELD_OUT_INKS: tuple[Colour, ...] = ((84, 30, 84), (30, 74, 30))
HELD_OUT_PAPERS: tuple[Colour, ...] = ((226, 214, 250), (255, 240, 150))
CLEARANCE = 30.0  # degrees of hue that `recolour` keeps from them


@dataclass(frozen=True)
class Subject:
    """Who: kind and identity. Two subjects of one kind differ by colours, pattern, mood and proportions."""

    kind: str
    colour: str
    second_colour: str
    pattern: str
    mood: str
    rgb: Colour
    second_rgb: Colour
    width: float  # factor on the kind's usual width
    height: float
    petals: int  # flowers only
    hand: float  # clocks only: angle of the hand in radians
    pattern_angle: float  # radians
    pattern_frequency: float  # stripes or dots per half width


@dataclass(frozen=True)
class Pose:
    """Where: fractions of the room that the picture's format leaves, so that one pose fits every format."""

    x: float  # 0 left .. 1 right
    y: float  # the feet, fraction of the picture's height
    size: float  # 0 small .. 1 large
    tilt: float  # radians


@dataclass(frozen=True)
class Scene:
    """The surroundings; `seed` places hills, trees and the like."""

    kind: str
    night: bool
    seed: int
    backdrop: Colour  # plain scene only


@dataclass(frozen=True)
class Picture:
    """The content of a picture, without style."""

    subject: Subject
    pose: Pose
    scene: Scene


@dataclass(frozen=True)
class Style:
    """How: a technique with continuous parameters."""

    technique: str
    ink: Colour
    paper: Colour
    grade: float  # 0..1, how far the surroundings move to the palette of ink and paper
    scale: float  # 0..1 in training: size of the strokes, dots, tiles
    angle: float  # radians, direction of strokes
    variant: int  # which of the fixed textures
    palette: tuple[Colour, ...] = ()  # colours from dark to light between ink and paper; none: those two


# The look of a picture in no style at all: what content images are made in.
NO_STYLE = Style("flat", (30, 30, 40), (250, 248, 244), grade=0.0, scale=0.5, angle=0.3, variant=0)


def is_held_out(kind: str, colour: str, second_colour: str, pattern: str, mood: str) -> bool:
    """Whether this identity is kept from training: one in eight combinations, fixed for ever."""
    number = SUBJECTS.index(kind)
    names = tuple(COLOURS)
    for value, values in ((colour, names), (second_colour, names), (pattern, PATTERNS), (mood, MOODS)):
        number = number * len(values) + values.index(value)
    return (number * 2654435761 % 2**32) >> 29 == 0


def draw_subject(rng: np.random.Generator, split: Split = "train", kind: str | None = None) -> Subject:
    """A subject by chance; `split` decides whether its identity is one that training sees."""
    kind = kind or str(rng.choice(SUBJECTS))
    names = list(COLOURS)
    while True:
        first, second = (names[i] for i in rng.permutation(len(names))[:2])
        pattern, mood = str(rng.choice(PATTERNS)), str(rng.choice(MOODS))
        if is_held_out(kind, first, second, pattern, mood) == (split == "held_out"):
            break
    return Subject(
        kind, first, second, pattern, mood,
        rgb=_jitter(rng, COLOURS[first], 12),
        second_rgb=_jitter(rng, COLOURS[second], 12),
        width=float(rng.uniform(0.86, 1.1)),
        height=float(rng.uniform(0.88, 1.08)),
        petals=int(rng.integers(5, 8)),
        hand=float(rng.uniform(-3.0, 0.0)),
        pattern_angle=float(rng.choice((0.0, 0.8, 1.57))),
        pattern_frequency=float(rng.uniform(1.8, 2.6)),
    )  # fmt: skip


def draw_pose(rng: np.random.Generator) -> Pose:
    """A pose by chance."""
    return Pose(
        x=float(rng.uniform(0.0, 1.0)),
        y=float(rng.uniform(0.87, 0.94)),
        size=float(rng.uniform(0.0, 1.0)),
        tilt=float(rng.uniform(-0.07, 0.07)),
    )


def settle(picture: Picture) -> Picture:
    """The picture with what no prompt tells near its usual place and shape.

    What is left open has to be decided while an image is drawn, and a small model that is half decided smears.
    """
    subject, pose = picture.subject, picture.pose
    calm = replace(
        subject,
        width=_near(subject.width, 0.99, 0.3),
        height=_near(subject.height, 0.99, 0.3),
        petals=6,
        hand=_near(subject.hand, -0.9, 0.1),
        pattern_angle=0.8,
        pattern_frequency=_near(subject.pattern_frequency, 2.2, 0.2),
    )
    place = Pose(
        x=_near(pose.x, 0.5, 0.24), y=_near(pose.y, 0.91, 0.4), size=_near(pose.size, 1.0, 0.3), tilt=0.3 * pose.tilt
    )
    return Picture(calm, place, replace(picture.scene, seed=picture.scene.seed % SCENE_VARIANTS))


def _near(value: float, usual: float, share: float) -> float:
    return usual + share * (value - usual)


def draw_scene(rng: np.random.Generator, kind: str | None = None, night_chance: float = 0.2) -> Scene:
    """A scene by chance, of the given kind if one is given."""
    kind = kind or str(rng.choice(SCENES))
    night = bool(rng.random() < night_chance) and kind in NIGHT_SCENES
    return Scene(kind, night, seed=int(rng.integers(1 << 30)), backdrop=BACKDROPS[rng.integers(len(BACKDROPS))])


def draw_style(rng: np.random.Generator, technique: str | None = None, split: Split = "train") -> Style:
    """A style by chance; held out means parameters outside the training range, palettes that training never shows."""
    technique = technique or str(rng.choice(TECHNIQUES))
    held_out = split == "held_out"
    ink = _pick(rng, HELD_OUT_INKS if held_out else INKS, 8)
    paper = _pick(rng, HELD_OUT_PAPERS if held_out else PAPERS, 8)
    if technique == "blueprint":
        ink = _pick(rng, HELD_OUT_INKS if held_out else BLUEPRINT_GROUNDS, 12)
    elif technique == "neon":
        ink, paper = _pick(rng, NEON_GROUNDS, 5), _pick(rng, NEON_LIGHTS, 8)
    scale = float(rng.uniform(0.0, 1.0))
    if held_out:
        scale = -0.25 * scale if rng.random() < 0.5 else 1.0 + 0.25 * scale
    low, high = (0.3, 0.8) if technique == "flat" else (0.0, 0.6)
    return Style(
        technique, ink, paper,
        grade=float(rng.uniform(low, high)),
        scale=scale,
        angle=float(rng.choice((-0.7, 0.3, 0.8))),
        variant=int(rng.integers(4)),
    )  # fmt: skip


def recolour(rng: np.random.Generator, style: Style) -> Style:
    """The style with ink and paper of any hue but the held-out ones'; a neon sign's stay what they are.

    With few inks, a model learns that an ink is a technique: blueprints were blue to it, and on any other ground oil.
    """
    if style.technique == "neon":
        return style
    ground = style.technique == "blueprint"
    ink = _any_hue(rng, HELD_OUT_INKS, (0.3, 0.85), (0.25, 0.6) if ground else (0.12, 0.45))
    return replace(style, ink=ink, paper=_any_hue(rng, HELD_OUT_PAPERS, (0.02, 0.3), (0.9, 1.0)))


def _any_hue(
    rng: np.random.Generator,
    held_out: tuple[Colour, ...],
    saturations: tuple[float, float],
    values: tuple[float, float],
) -> Colour:
    """A colour of any hue that is clear of the held-out ones'; saturation and value 0..1."""
    kept_out = [360 * colorsys.rgb_to_hsv(*(part / 255 for part in colour))[0] for colour in held_out]
    while True:
        hue = float(rng.uniform(0, 360))
        if all(abs((hue - other + 180) % 360 - 180) > CLEARANCE for other in kept_out):
            break
    red, green, blue = colorsys.hsv_to_rgb(hue / 360, rng.uniform(*saturations), rng.uniform(*values))
    return (255 * red, 255 * green, 255 * blue)


def _jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    values = np.clip(np.array(colour) + rng.uniform(-amount, amount, 3), 0, 255)
    return (float(values[0]), float(values[1]), float(values[2]))


def _pick(rng: np.random.Generator, colours: tuple[Colour, ...], amount: float) -> Colour:
    return _jitter(rng, colours[rng.integers(len(colours))], amount)
