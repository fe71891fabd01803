"""Words for a picture, in many phrasings, and the list of every word that can occur."""

from __future__ import annotations

import re

import numpy as np

from .specs import PLAIN_SCENE, Picture, Scene, Style, Subject

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "mug": ("mug", "mug", "cup", "coffee mug"),
    "house": ("house", "house", "cottage", "little house"),
    "tree": ("tree", "tree", "big tree"),
    "fish": ("fish", "fish", "little fish"),
    "car": ("car", "car", "automobile", "little car"),
    "cat": ("cat", "cat", "kitten", "kitty"),
    "robot": ("robot", "robot", "little robot"),
    "flower": ("flower", "flower", "blossom"),
    "boat": ("boat", "boat", "sailboat", "ship"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "clock": ("clock", "clock", "alarm clock"),
    "mushroom": ("mushroom", "mushroom", "toadstool"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green",),
    "blue": ("blue",),
    "purple": ("purple", "purple", "violet"),
    "pink": ("pink",),
    "white": ("white",),
}
MOOD_WORDS: dict[str, tuple[str, ...]] = {
    "happy": ("happy", "happy", "smiling", "cheerful"),
    "surprised": ("surprised", "surprised", "astonished", "amazed"),
    "sleepy": ("sleepy", "sleepy", "tired", "sleeping"),
}
PATTERN_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # before the noun, behind it
    "plain": ((), ()),
    "striped": (("striped",), ("stripes",)),
    "dotted": (("dotted", "spotted"), ("dots", "dots", "spots")),
}
SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "on the beach", "at the seaside", "on a sandy beach by the sea"),
    "forest": ("in the forest", "in the forest", "in the woods", "among the trees"),
    "city": ("in the city", "in the city", "on a city street", "in the streets of a big town"),
    "desert": ("in the desert", "in the desert", "among the dunes", "in a hot desert"),
    "snow": ("in the snow", "in the snow", "in snowy mountains", "in winter"),
    "underwater": ("under water", "underwater", "at the bottom of the sea", "deep under the sea"),
    "room": ("in a room", "in a room", "at home", "in the living room", "indoors"),
    "space": ("in space", "in outer space", "on the moon", "on another planet"),
    PLAIN_SCENE: ("on a plain background", "on a white background", "in front of a plain wall"),
}
NIGHT_WORDS = ("at night", "at night", "under the stars", "in the moonlight")
TECHNIQUE_WORDS: dict[str, tuple[str, ...]] = {
    "flat": ("flat vector", "flat design"),
    "watercolour": ("watercolour", "watercolor"),
    "pixel": ("pixel art", "8-bit pixel art"),
    "pencil": ("pencil sketch", "pencil drawing"),
    "halftone": ("comic halftone", "comic book", "pop art"),
    "neon": ("neon", "glowing neon"),
    "oil": ("oil painting", "oil paint"),
    "mosaic": ("mosaic", "tile mosaic"),
    "woodcut": ("woodcut", "linocut"),
    "blueprint": ("blueprint", "technical blueprint"),
}
_STYLE_FRAMES = ("{picture}, {style} style", "{style} of {picture}", "{picture}, {style}", "a {style} of {picture}",
                 "{picture} in {style} style")  # fmt: skip
_PICTURE_FRAMES = ("{subject} {place}",) * 8 + (
    "{place}, {subject}", "there is {subject} {place}", "a picture of {subject} {place}", "{subject}, {place}",
    "a photo of {subject} {place}", "{subject} stands {place}", "an image of {subject} {place}",
)  # fmt: skip
# Words that mean nothing to the world: training mixes them in, so that at use they do no harm.
_FILLERS = (
    "beautiful", "very", "detailed", "cute", "nice", "lovely", "high quality", "masterpiece", "my", "lonely", "and",
    "with", "some", "one", "please", "show me", "draw", "make", "it", "is", "its", "for", "from", "small", "style",
    "picture", "colourful", "sunny", "day", "morning", "looking", "standing", "sitting", "up", "down", "left", "right",
    "two", "three", "by", "over", "near", "next to", "this", "that", "transform", "into", "convert", "change", "turn",
    "background", "scene", "keep", "same", "object", "to", "i", "want", "be", "has", "have", "his", "her", "gave",
    "wearing", "old", "new", "dark", "bright", "light", "black", "brown", "grey", "gray",
)  # fmt: skip

_NOUNS = tuple(noun for nouns in KIND_WORDS.values() for phrase in nouns for noun in phrase.split(" "))


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def name_subject(rng: np.random.Generator, subject: Subject, detail: float) -> str:
    """A noun phrase; each attribute is told with the chance `detail`, the pattern's colour where the pattern is."""
    before: list[str] = []
    behind = ""
    if rng.random() < 0.8 * detail:
        before.append(_choose(rng, MOOD_WORDS[subject.mood]))
    coloured = rng.random() < detail
    if coloured:
        before.append(_choose(rng, COLOUR_WORDS[subject.colour]))
    if rng.random() < detail and subject.pattern != "plain":
        front, back = PATTERN_WORDS[subject.pattern]
        second = _choose(rng, COLOUR_WORDS[subject.second_colour]) + " " if rng.random() < detail else ""
        if second and coloured and rng.random() < 0.3:
            before.append(f"and {second}{_choose(rng, front)}")  # "a red and white striped mug"
        elif not second and rng.random() < 0.5:
            before.append(_choose(rng, front))
        else:
            behind = f" with {second}{_choose(rng, back)}"
    words = " ".join([*before, _choose(rng, KIND_WORDS[subject.kind])])
    article = "the" if rng.random() < 0.15 else "an" if words[0] in "aeiou" else "a"
    return f"{article} {words}{behind}"


def name_scene(rng: np.random.Generator, scene: Scene) -> str:
    """A phrase for the place and the time of day."""
    place = _choose(rng, SCENE_WORDS[scene.kind])
    return f"{place} {_choose(rng, NIGHT_WORDS)}" if scene.night else place


def write_prompt(rng: np.random.Generator, picture: Picture, style: Style | None = None, detail: float = 1.0) -> str:
    """A prompt for the picture; the technique is named only if `style` is given."""
    subject, place = name_subject(rng, picture.subject, detail), name_scene(rng, picture.scene)
    if style is None:
        return _choose(rng, _PICTURE_FRAMES).format(subject=subject, place=place)
    technique = _choose(rng, TECHNIQUE_WORDS[style.technique])
    return _choose(rng, _STYLE_FRAMES).format(picture=f"{subject} {place}", style=technique)


def tells(text: str, subject: Subject) -> dict[str, bool]:
    """Which attributes of the subject a prompt tells; no word about a pattern tells of a plain one."""

    def named(phrases: tuple[str, ...]) -> bool:
        return any(re.search(rf"\b{phrase}\b", text.lower()) for phrase in phrases)

    patterns = tuple(word for words in PATTERN_WORDS[subject.pattern] for word in words)
    second = "|".join(COLOUR_WORDS[subject.second_colour])
    return {
        "colour": named(COLOUR_WORDS[subject.colour]),
        "second_colour": bool(patterns) and named((rf"(?:{second}) (?:\w+ )?(?:{'|'.join(patterns)})",)),
        "pattern": subject.pattern == "plain" or named(patterns),
        "mood": named(MOOD_WORDS[subject.mood]),
    }


def style_instruction(rng: np.random.Generator, style: Style) -> str:
    """An instruction that names only the technique, as in pure style edits."""
    technique = _choose(rng, TECHNIQUE_WORDS[style.technique])
    frames = ("transform into {style} style", "turn it into {style}", "convert to {style} style", "{style} style")
    return _choose(rng, frames).format(style=technique)


def disturb(rng: np.random.Generator, text: str) -> str:
    """The prompt with fillers and made-up words strewn in, other case and punctuation."""
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.5:
            word = _choose(rng, _FILLERS)
        else:
            word = "".join(chr(97 + int(letter)) for letter in rng.integers(0, 26, rng.integers(3, 10)))
            if rng.random() < 0.4:  # a longer word that begins like a known one ("carpet" is no car)
                word = _choose(rng, _NOUNS) + word[:4]
        words.insert(int(rng.integers(len(words) + 1)), word)
    text = " ".join(words)
    return text + _choose(rng, (".", "!", "", ",", " ."))


def vocabulary() -> list[str]:
    """Every lower-case word of the world's grammar, sorted."""
    tables = (KIND_WORDS, COLOUR_WORDS, MOOD_WORDS, SCENE_WORDS, TECHNIQUE_WORDS)
    phrases = [phrase for table in tables for values in table.values() for phrase in values]
    phrases += [word for front, back in PATTERN_WORDS.values() for word in (*front, *back)]
    phrases += [*NIGHT_WORDS, *_STYLE_FRAMES, *_PICTURE_FRAMES, *_FILLERS]
    phrases += ["transform into turn it convert to", "a an the of on in at with style"]
    words: set[str] = set()
    for phrase in phrases:
        words.update(re.findall(r"[a-z0-9]+", re.sub(r"\{\w+\}", " ", phrase.lower())))
    return sorted(words)
