"""Text states that tell whose colour a colour is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training import checkpoint, inversion, offsets, words, world
from training.batches import RecordStore
from training.measure import QUESTIONS, UNKNOWN
from training.published import load_published
from training.teacher import Teacher
from training.text import read_words, tokenizers
from training.trials import RELEASED

TWO_COLOURS = {
    "a red mug with white dots on a white background": ("red", "white", "dots"),
    "A scarlet and white spotted coffee mug": ("scarlet", "white", "spotted"),
}


def red_mug_with_white_dots() -> world.Subject:
    return replace(
        world.draw_subject(np.random.default_rng(5)), kind="mug", colour="red", second_colour="white", pattern="dotted"
    )


def test_a_prompt_of_two_colours_has_places_for_what_is_told_of_them() -> None:
    subject = red_mug_with_white_dots()
    for text, expected in {**TWO_COLOURS, "a red dotted mug": None, "a mug with white dots": None}.items():
        ids = read_words([text]).t5[0].tolist()
        places = offsets.find_places(ids, text, subject)
        if expected is None:
            assert places is None, text
            continue
        assert places is not None
        known = tokenizers()[0].convert_ids_to_tokens([ids[place] for place in places[: len(offsets.WORDS)]])
        assert tuple(token.removeprefix("▁") for token in known) == expected
        assert ids[places[3] - 1] != 0
        assert [ids[place] for place in places[len(offsets.WORDS) :]] == [0] * offsets.PADDING


def test_the_padding_echoes_whose_colour_a_colour_is() -> None:
    subject = red_mug_with_white_dots()
    for text, (first, _, pattern) in TWO_COLOURS.items():
        ids = read_words([text]).t5[0].tolist()
        known = tokenizers()[0].convert_ids_to_tokens(ids)
        sources = words.find_sources(ids, text, subject)
        echoes = [known[source].removeprefix("▁") for place, source in enumerate(sources) if place != source]
        assert echoes == [{"colour": first, "pattern": pattern}[name] for name in words.ECHOES], text
        assert sources[: ids.index(0)] == list(range(ids.index(0)))  # words stay themselves


def some_offsets(size: float) -> offsets.Offsets:
    torch.manual_seed(0)
    made = offsets.Offsets().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(std=size)
    return made


def test_offsets_change_their_places_alone_and_no_states_size() -> None:
    old = load_published(RELEASED).t5
    drawn = words.draw_words(np.random.default_rng(3), 32)
    scales = old.encoder.final_layer_norm.weight
    with torch.no_grad():
        before = old(input_ids=drawn.words.t5).last_hidden_state
        after = drawn.goal(old, some_offsets(0.3))
        echoed = drawn.goal(old, None)
    assert 4 < int(drawn.told.sum()) < 28
    changed = drawn.changed()
    assert torch.allclose(after[~changed], before[~changed], atol=1e-4)
    assert float((after - echoed)[drawn.told].abs().amax(-1).gather(1, drawn.places).min()) > 0.01
    sizes = (after / scales).square().mean(-1)
    assert torch.allclose(sizes, torch.ones_like(sizes), atol=1e-2)


def test_the_new_t5_begins_as_the_old_one_and_learns_quickly() -> None:
    old = load_published(RELEASED).t5
    drawn = words.draw_words(np.random.default_rng(0), 64).words
    with torch.no_grad():
        before = old(input_ids=drawn.t5).last_hidden_state
        after = words.begin_as_table(old, drawn.t5, before)(input_ids=drawn.t5).last_hidden_state
    live = drawn.t5 != 0
    assert float((after - before)[live].pow(2).sum(-1).mean() / before[live].var(0).sum()) < 0.5
    _, errors = words.train_words(old, 60, some_offsets(0.3), batch=24)
    assert errors["words"] < 0.3
    assert errors["changed"] < 1.2  # of two states by chance 2


def test_inversion_finds_states_that_read_as_told(run: Path) -> None:
    """On one batch, again and again: the offsets alone learn, and what they have learnt can be used."""
    torch.manual_seed(0)
    model, teacher = load_published(RELEASED), Teacher()
    inverting = inversion.Inversion(model, teacher)
    asked = inversion.draw_asked(np.random.default_rng(0), 4)
    columns = [list(QUESTIONS).index(name) for name in ("subject", "colour", "second_colour", "pattern")]
    assert (asked.answers[:, columns] != UNKNOWN).all()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learnt = inversion.invert(model, teacher, RecordStore(run), steps=3, batch=4)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(float(vectors.abs().max()) > 0 for vectors in learnt.parameters())
    again = inversion.invert(model, teacher, RecordStore(run), steps=3, batch=4)
    for one, other in zip(learnt.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)

    made = offsets.Offsets()
    optimizer, losses = torch.optim.Adam(made.parameters(), lr=0.05), []
    for _ in range(6):
        checkpoint.chance(1, 1)
        loss, _ = inverting.loss(asked, made, np.random.default_rng(1))
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]

    checkpoint.save_tensors(run / "offsets.safetensors", made.state_dict(), {})
    loaded = offsets.load_offsets(run)
    assert loaded is not None
    facts = torch.tensor([offsets.facts_of(red_mug_with_white_dots())])
    assert torch.equal(loaded(facts), made(facts).detach())
    (run / "offsets.safetensors").unlink()
    assert offsets.load_offsets(run) is None


def test_beside_a_style_image_both_colours_are_told_and_read_where_the_technique_shows_them(run: Path) -> None:
    store, columns = RecordStore(run), {name: place for place, name in enumerate(QUESTIONS)}
    asked = inversion.draw_styled(np.random.default_rng(0), 12, store)
    shown = {image.tobytes() for image in store.vision["train-000", "style"]}
    shown |= {image[:, ::-1].tobytes() for image in store.vision["train-000", "style"]}
    assert asked.clean is None
    assert asked.styles is not None
    assert {pictures[0].numpy().tobytes() for pictures in asked.styles} <= shown
    assert (asked.answers[:, [columns["subject"], columns["technique"]]] != UNKNOWN).all()
    for prompt, answers in zip(asked.prompts, asked.answers, strict=True):
        assert (answers[columns["colour"]] == UNKNOWN) == (answers[columns["second_colour"]] == UNKNOWN), prompt
