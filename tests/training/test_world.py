"""The world draws what it says, and records are repeatable."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from training import data, palettes, world
from training.foreign_images import FOREIGN_KINDS, foreign_image
from training.judge import APART
from training.measure import answers, palette_distance
from training.world.prompts import COLOUR_WORDS, KIND_WORDS, SCENE_WORDS, disturb, tells
from training.world.specs import HELD_OUT_INKS, MOODS, SUBJECTS, TECHNIQUES, is_held_out


def picture(seed: int = 5, kind: str = "mug", scene: str = "plain") -> world.Picture:
    rng = np.random.default_rng(seed)
    return world.Picture(world.draw_subject(rng, kind=kind), world.draw_pose(rng), world.draw_scene(rng, scene))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_seed_draws_the_same_picture_in_every_format(technique: str) -> None:
    style = world.draw_style(np.random.default_rng(3), technique)
    for height, width in data.FORMATS:
        first = world.render(picture(scene="beach"), style, height, width)
        assert first.shape == (height, width, 3)
        assert np.array_equal(first, world.render(picture(scene="beach"), style, height, width))


@pytest.mark.parametrize("kind", SUBJECTS)
def test_the_subject_is_drawn_where_the_mask_says_in_its_own_colour(kind: str) -> None:
    spec = picture(kind=kind)
    spec = replace(spec, subject=replace(spec.subject, pattern="plain"))
    drawing = world.draw(spec, 128, 128)
    assert 0.08 < drawing.mask.mean() < 0.5
    colours = world.render(spec)[drawing.mask].astype(int)
    near = np.abs(colours - np.array(spec.subject.rgb)).max(1) < 12
    assert near.mean() > 0.15
    outside = world.render(spec)[~drawing.mask].astype(int)
    assert (np.abs(outside - np.array(spec.scene.backdrop)).max(1) < 12).mean() > 0.95


def test_moods_are_told_by_the_face() -> None:
    spec = picture()
    faces = [world.draw(replace(spec, subject=replace(spec.subject, mood=mood)), 128, 128).face for mood in MOODS]
    assert all(face.sum() > 20 for face in faces)
    assert all(np.abs(a - b).sum() > 10 for a, b in zip(faces, faces[1:], strict=False))


def test_a_prompt_tells_its_picture() -> None:
    for seed in range(40):
        spec = picture(seed, SUBJECTS[seed % 12], "forest")
        text = world.write_prompt(np.random.default_rng(seed), spec, detail=1.0)
        assert any(word in text for word in KIND_WORDS[spec.subject.kind])
        assert any(word in text for word in COLOUR_WORDS[spec.subject.colour])
        assert any(word in text for word in SCENE_WORDS["forest"])
    assert disturb(np.random.default_rng(0), "a red mug") != "a red mug"


def test_what_a_prompt_tells_of_a_subject_is_known() -> None:
    subject = replace(picture().subject, colour="red", second_colour="yellow", pattern="striped", mood="sleepy")
    for prompt, told in {
        "a tired scarlet mug with yellow stripes in space": {"colour", "second_colour", "pattern", "mood"},
        "A Red striped mug": {"colour", "pattern"},
        "a mug with very yellow stripes": {"second_colour", "pattern"},
        "a red and golden striped mug": {"colour", "second_colour", "pattern"},
        "a yellow mug with stripes": {"pattern"},
        "a mug with yellow dots": set(),
        "a yellow mug, sleeping": {"mood"},
        "": set(),
    }.items():
        assert {name for name, known in tells(prompt, subject).items() if known} == told, prompt
    assert tells("a mug", replace(subject, pattern="plain"))["pattern"]
    rng, subject = np.random.default_rng(0), replace(subject, mood="happy", pattern="dotted")
    prompts = [world.write_prompt(rng, replace(picture(), subject=subject), detail=1.0) for _ in range(200)]
    shares = {name: np.mean([tells(prompt, subject)[name] for prompt in prompts]) for name in tells("", subject)}
    assert shares["colour"] == shares["pattern"] == shares["second_colour"] == 1.0
    assert 0.7 < shares["mood"] < 0.9
    sparing = [world.write_prompt(rng, replace(picture(), subject=subject), detail=0.5) for _ in range(200)]
    assert 0.15 < np.mean([tells(prompt, subject)["second_colour"] for prompt in sparing]) < 0.35


def test_records_are_repeatable_and_held_out_identities_are_kept_out() -> None:
    data.make_record.cache_clear()
    first = [data.make_record(seed, split) for seed in range(60) for split in ("train", "held_out")]
    data.make_record.cache_clear()
    assert first == [data.make_record(seed, split) for seed in range(60) for split in ("train", "held_out")]
    for number, record in enumerate(first):
        s = record.target.subject
        assert is_held_out(s.kind, s.colour, s.second_colour, s.pattern, s.mood) == bool(number % 2)
        assert record.target.subject == record.content.subject
        assert record.other.subject.kind != s.kind


def test_a_settled_record_shows_the_same_in_its_usual_place() -> None:
    free, settled = ([data.make_record(seed, "held_out", each) for seed in range(80)] for each in (False, True))
    for one, other in zip(free, settled, strict=True):
        assert (one.style, one.content.pose) == (other.style, other.content.pose)
        assert other.target.subject == other.content.subject  # a content image shows the same subject
        for kind in ("target", "style"):
            assert answers(one, kind) == answers(other, kind)
            assert one.shown(kind).scene.night == other.shown(kind).scene.night
    places = {each: np.array([record.target.pose.x for record in records]).std()
              for each, records in (("free", free), ("settled", settled))}  # fmt: skip
    assert places["settled"] < 0.3 * places["free"]
    middles = [
        np.std([np.argwhere(world.draw(record.target, 128, 128).mask).mean(0)[1] for record in records[:24]])
        for records in (settled, free)
    ]
    assert middles[0] < middles[1] / 2  # columns
    assert len({record.target.scene.seed for record in settled}) == world.specs.SCENE_VARIANTS


def test_a_picture_in_a_foreign_style_has_the_palette_of_its_image() -> None:
    assert {palettes.technique(seed) for seed in range(12)} > {"flat", "watercolour"}
    for seed in range(12):  # one kind is drawn in several ways, none of them empty
        assert palettes.draw_image(seed).std() > 4
    drawn = []
    for seed in range(24):
        record = data.make_record(seed, "train")
        pictures = data.render_foreign(record, 128, 128)
        assert np.array_equal(pictures["foreign"], palettes.draw_image(seed))
        shades = np.array(palettes.shades(pictures["foreign"]))
        assert (np.diff(shades @ (0.3, 0.59, 0.11)) >= 0).all()
        drawn.append(pictures)
    nearer = []
    for one, two in zip(drawn[::2], drawn[1::2], strict=True):
        if palette_distance(one["foreign"], two["foreign"]) > APART:
            for own, other in ((one, two), (two, one)):
                distances = [palette_distance(own["tinted"], each["foreign"]) for each in (own, other)]
                nearer.append(distances[0] < distances[1])
    assert len(nearer) > 8
    assert np.mean(nearer) > 0.85


def test_training_sees_inks_and_papers_of_any_hue_but_the_held_out_ones() -> None:
    styles = [data.make_record(seed, "train").style for seed in range(400)]
    blueprints = [style.ink for style in styles if style.technique == "blueprint"]
    hues = np.array([360 * colorsys.rgb_to_hsv(*(part / 255 for part in ink))[0] for ink in blueprints])
    assert len(set(hues // 40)) >= 6  # of nine
    assert ((hues < 90) | (hues > 150)).all()  # dark green
    assert ((hues < 269) | (hues > 331)).all()  # purple
    for style in styles:
        again = world.recolour(np.random.default_rng(0), style)
        assert replace(again, ink=style.ink, paper=style.paper) == style
        assert (again == style) == (style.technique == "neon")
    for seed in range(40):  # what is measured stays what it was
        drawn = world.draw_style(np.random.default_rng(seed), split="held_out")
        distances = [np.abs(np.subtract(drawn.ink, ink)).max() for ink in HELD_OUT_INKS]
        assert drawn.technique == "neon" or min(distances) <= 12


def test_foreign_images_are_repeatable_and_of_many_colours() -> None:
    for kind in FOREIGN_KINDS:
        images = [foreign_image(kind, seed) for seed in range(4)]
        assert np.array_equal(images[0], foreign_image(kind, 0))
        assert all(image.shape == (128, 128, 3) and image.std() > 10 for image in images)
    palettes = [palette_distance(foreign_image("wash", seed), foreign_image("wash", seed + 1)) for seed in range(6)]
    assert np.mean(palettes) > 20
