"""Stored styles: kept and found again, the same image without the images, and what an untrusted file may not do."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.runtime.test_engine import SETTINGS, SMALL, image, images_of, listen, run
from uso_core.errors import OutputError, RequestError
from uso_core.events import Done, Failed, StylesReady
from uso_core.memory.offload import Offloader
from uso_core.memory.placement import layers_of
from uso_core.memory.streaming import BlockStream
from uso_core.request import MAX_STYLES, GenerationRequest, Result, StoredStyle
from uso_core.runtime.engine import Engine
from uso_core.runtime.style_tokens import encoded, fingerprint
from uso_core.storage.files import LOCK
from uso_core.storage.history import History
from uso_core.storage.styles import StyleStore, mosaic

RNG = np.random.default_rng(0)
ONE, OTHER = (RNG.standard_normal((6, 8), np.float32) for _ in range(2))
SMALL_PICTURE = Image.new("RGB", (256, 256), "teal")


@pytest.fixture
def store(tmp_path) -> StyleStore:
    return StyleStore(tmp_path / "styles")


def add(store: StyleStore, name="Ink", tokens=(ONE,), strengths=(1.0,), model="uso-tiny", fingerprint="f" * 64):
    return store.add(name, tokens, strengths, model, fingerprint, SMALL_PICTURE)


def test_another_process_finds_the_style_again(store):
    entry = add(store, tokens=(ONE, OTHER), strengths=(1.0, 0.5))
    again = StyleStore(store.folder)
    assert again.entries() == [entry]
    style = again.get(entry.sha256)
    assert (style.name, style.model, style.strengths) == ("Ink", "uso-tiny", (1.0, 0.5))
    assert [each.tobytes() for each in style.tokens] == [ONE.tobytes(), OTHER.tobytes()]
    assert [path.name for path in store.folder.iterdir() if path.name != LOCK] == [f"{entry.sha256}.safetensors"]


def test_a_name_can_be_changed_and_the_style_stays_the_same(store):
    entry = add(store)
    assert store.rename(entry.sha256, "  Blue\n ink ").name == "Blue ink"
    assert [(each.name, each.sha256) for each in store.entries()] == [("Blue ink", entry.sha256)]
    store.delete(entry.sha256)
    assert store.entries() == []
    with pytest.raises(RequestError, match="does not exist|no longer exists"):
        store.get(entry.sha256)


@pytest.mark.parametrize("name", ["", "  \n", "\u200b", "x" * 81, None])
def test_an_invalid_name_is_refused(store, name):
    with pytest.raises(RequestError):
        add(store, name)
    assert store.entries() == []


def test_a_name_or_a_style_is_refused_the_second_time(store):
    add(store, "Ink")
    with pytest.raises(RequestError, match="already a style named INK"):
        add(store, "INK", tokens=(OTHER,))
    with pytest.raises(RequestError, match="saved already, as Ink"):
        add(store, "Silk")
    silk = add(store, "Silk", tokens=(OTHER,))
    with pytest.raises(RequestError, match="already a style named ink"):
        store.rename(silk.sha256, "ink")


def test_a_hostile_hash_leads_nowhere(store, tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"x")
    store.delete("../outside")
    assert outside.exists()
    assert not store.holds("../outside")
    with pytest.raises(RequestError):
        store.get("../outside")


def test_an_exported_style_is_imported_elsewhere(store, tmp_path):
    entry = add(store, tokens=(ONE, OTHER), strengths=(0.5, 2.0))
    elsewhere = StyleStore(tmp_path / "elsewhere")
    add(elsewhere, "Ink", tokens=(OTHER,))
    taken = elsewhere.take_in(store.path(entry.sha256))
    assert (taken.name, taken.sha256, taken.strengths) == ("Ink (2)", entry.sha256, (0.5, 2.0))
    assert elsewhere.take_in(store.path(entry.sha256)) == taken  # a second time changes nothing
    assert len(elsewhere.entries()) == 2


def written(store: StyleStore, tmp_path, change):
    """A style file with changed tensors and metadata."""
    path = store.path(add(store).sha256)
    tensors = load_file(path)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        metadata = json.loads(file.read(size))["__metadata__"]
    change(tensors, metadata)
    save_file(tensors, tmp_path / "stranger.safetensors", metadata)
    return tmp_path / "stranger.safetensors"


HOSTILE = {
    "another format": lambda t, m: m.update(format="lora"),
    "another version": lambda t, m: m.update(version="2"),
    "no strengths": lambda t, m: m.pop("strengths"),
    "strengths of another count": lambda t, m: m.update(strengths="[1.0, 1.0]"),
    "strengths that are none": lambda t, m: m.update(strengths="[NaN]"),
    "a strength out of range": lambda t, m: m.update(strengths="[9]"),
    "nested strengths": lambda t, m: m.update(strengths="[" * 100_000),
    "no time": lambda t, m: m.update(created="yesterday"),
    "no name": lambda t, m: m.update(name=""),
    "a long model": lambda t, m: m.update(model="x" * 200),
    "no thumbnail": lambda t, m: t.pop("thumbnail"),
    "a thumbnail that is none": lambda t, m: t.update(thumbnail=np.zeros(50, np.uint8)),
    "no tokens": lambda t, m: t.pop("tokens.0"),
    "tokens not a number": lambda t, m: t.update({"tokens.0": np.full((6, 8), np.nan, np.float32)}),
    "tokens of another type": lambda t, m: t.update({"tokens.0": ONE.astype(np.float64)}),
    "tokens of another rank": lambda t, m: t.update({"tokens.0": ONE[None]}),
    "two widths": lambda t, m: t.update({"tokens.1": np.zeros((6, 9), np.float32)}),
    "no rows": lambda t, m: t.update({"tokens.0": np.zeros((0, 8), np.float32)}),
    "too many images": lambda t, m: t.update({f"tokens.{n}": ONE for n in range(MAX_STYLES + 1)}),
    "something else": lambda t, m: t.update(other=ONE),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_untrusted_file_is_refused_in_words(what, store, tmp_path):
    path = written(store, tmp_path, HOSTILE[what])
    empty = StyleStore(tmp_path / "empty")
    with pytest.raises(RequestError) as caught:
        empty.take_in(path)
    assert caught.value.hint
    assert empty.entries() == []


def test_a_file_that_is_not_a_style_is_refused(store, tmp_path, monkeypatch):
    for name, data in {"empty": b"", "text": b"hello", "header": (2**40).to_bytes(8, "little") + b"{}"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match=name):
            store.take_in(tmp_path / name)
    path = written(store, tmp_path, lambda tensors, metadata: None)
    monkeypatch.setattr("uso_core.storage.styles.MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(RequestError, match="at most"):
        store.take_in(path)


def test_a_damaged_file_is_left_out_and_a_changed_one_refused(store, tmp_path):
    entry = add(store)
    (store.folder / f"{'0' * 64}.safetensors").write_bytes(b"half")
    assert store.entries() == [entry]
    path = store.path(entry.sha256)
    path.write_bytes(path.read_bytes().replace(ONE.tobytes(), OTHER.tobytes()))
    with pytest.raises(RequestError, match="damaged"):
        store.get(entry.sha256)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        add(StyleStore(tmp_path / "file"))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
def test_the_thumbnail_shows_the_images(count):
    colours = ["red", "lime", "blue", "white", "black", "yellow"][:count]
    square = mosaic([Image.new("RGB", (90, 60), colour) for colour in colours])
    assert square.size == (256, 256)
    assert len(square.getcolors()) == min(count, 4)


def test_a_request_with_a_stored_style_comes_back_from_its_json():
    style = StoredStyle("Ink", "a" * 64, (ONE,), (0.5,), "uso-tiny", "f" * 64)
    request = GenerationRequest("a mug", None, (image(1), style), style_strengths=(1.0, 0.5))
    again = GenerationRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert isinstance(again.styles[1], StoredStyle)
    assert (again.styles[1].name, again.styles[1].tokens) == ("Ink", ())
    assert [each.sha256 for each in again.input_images] == [image(1).sha256]
    assert str(request.mode) == "2 styles"
    values = request.to_dict()
    for saved in (False, 1, "yes"):
        values["styles"][1]["saved"] = saved
        with pytest.raises(RequestError):
            GenerationRequest.from_dict(values)


def test_the_images_within_stored_styles_count():
    style = StoredStyle("Ink", "a" * 64, (ONE,) * 5, (1.0,) * 5)
    with pytest.raises(RequestError, match="10 style images"):
        GenerationRequest(styles=(style, dataclasses.replace(style, sha256="b" * 64)))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(SETTINGS)


def ready_styles(engine: Engine, request: GenerationRequest) -> StylesReady:
    (*_, ready, last) = listen(engine.encode_styles(request))
    assert isinstance(last, Done)
    assert isinstance(ready, StylesReady)
    return ready


def test_a_stored_style_gives_the_images_own_result_bit_for_bit(engine, store):
    one, two, content = image(1), image(2), image(3)
    with_images = dataclasses.replace(SMALL, content=content, styles=(one, two), style_strengths=(1.0, 0.5))
    ready = ready_styles(engine, dataclasses.replace(with_images, content=None))
    entry = store.add("Both", ready.tokens, ready.strengths, ready.model, ready.fingerprint, SMALL_PICTURE)
    with_style = dataclasses.replace(SMALL, content=content, styles=(store.get(entry.sha256),))
    (expected,) = images_of(run(engine, with_images))
    (got,) = images_of(run(engine, with_style))
    assert got.tobytes() == expected.tobytes()

    halved = dataclasses.replace(with_style, style_strengths=(0.5,))
    (got,) = images_of(run(engine, halved))
    (expected,) = images_of(run(engine, dataclasses.replace(with_images, style_strengths=(0.5, 0.25))))
    assert got.tobytes() == expected.tobytes()

    again = ready_styles(engine, dataclasses.replace(SMALL, styles=(store.get(entry.sha256), one)))
    assert [each.tobytes() for each in again.tokens[:2]] == [each.tobytes() for each in ready.tokens]
    assert again.strengths == (1.0, 0.5, 1.0)


def test_a_style_of_another_model_is_refused_by_name(engine, store):
    for model, words in (("flux-dev", "model flux-dev"), ("uso-tiny", "other weights of uso-tiny")):
        style = store.get(add(store, f"Ink of {model}", model=model, fingerprint=f"of {model}").sha256)
        (*_, last) = run(engine, dataclasses.replace(SMALL, styles=(style,)))
        assert isinstance(last, Failed)
        assert f"Ink of {model}" in last.error.message
        assert words in last.error.message
    assert images_of(run(engine, SMALL))


def test_a_stored_style_given_only_by_name_is_refused_on_submission(engine):
    with pytest.raises(RequestError, match="saved style Ink does not exist"):
        engine.submit(dataclasses.replace(SMALL, styles=(StoredStyle("Ink", "a" * 64),)))


def test_history_keeps_the_images_and_the_styles_hash(tmp_path):
    history = History(tmp_path / "output", 100, 10**9)
    request = GenerationRequest("a mug", styles=(image(1), StoredStyle("Ink", "a" * 64, (ONE,), (1.0,))))
    path = history.add(Image.new("RGB", (8, 8)), Result(request, 1, "uso-tiny", "cpu", "float32", 0.5))
    read, kept = history.restore(path)
    assert read.styles == request.styles
    assert set(kept) == {image(1).sha256}


def test_the_fingerprint_does_not_depend_on_where_the_weights_are(engine):
    images_of(run(engine, SMALL))
    pipeline = engine._executor._worker.loaded.pipeline
    resident, offloader = fingerprint(pipeline), pipeline.offloader
    tower = pipeline.image_encoder
    stream = BlockStream(list(layers_of(tower)), torch.device("cpu")).attach()
    pipeline.offloader = Offloader(
        torch.device("cpu"), {"image_encoder": tower, "style_projector": pipeline.style_projector},
        on_demand=["image_encoder"], held=stream.carried, on_leave=lambda name: stream.release(),
    )  # fmt: skip
    try:
        encoded([image(99).image], pipeline)
        assert stream.copies > 0
        assert fingerprint(pipeline) == resident
        next(tower.parameters()).data.add_(1)
        assert fingerprint(pipeline) != resident
    finally:
        next(tower.parameters()).data.sub_(1)
        for layer in layers_of(tower):
            layer._forward_pre_hooks.clear()
            layer._forward_hooks.clear()
        pipeline.offloader = offloader
