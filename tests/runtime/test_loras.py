"""LoRAs beside USO's in use: found by name, fused, changed in place, told when they are missing; and Turbo."""

from __future__ import annotations

import dataclasses
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inference
from uso_core.catalog import loras as catalog
from uso_core.catalog.models import TURBOS, get_model
from uso_core.errors import RequestError, UsoError, WeightsError
from uso_core.events import Event, Failed, ImageReady, Loading
from uso_core.loaders.build import empty_transformer
from uso_core.request import GenerationRequest, LoRA
from uso_core.runtime.executors import Work
from uso_core.runtime.worker import Worker, guarded
from uso_core.settings import ROOT, Settings
from uso_core.storage.png import read_request
from uso_core.ui.api import _with_loras

EMBEDDED = ROOT / "weights" / "uso-tiny" / "flux.safetensors"
ATTENTION, MLP = "transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"
SMALL = GenerationRequest(prompt="a red car", width=64, height=48, steps=2, seed=5, model="uso-tiny")


def write_lora(path: Path, *names: str, seed: int = 0) -> Path:
    """A random LoRA of rank 2 for these modules of the embedded model, in PEFT's names."""
    shapes = {name: tensor.shape for name, tensor in empty_transformer(EMBEDDED).state_dict().items()}
    source, tensors = torch.Generator().manual_seed(seed), {}
    for name in names:
        rows, columns = shapes[f"{name}.weight"]
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, columns, generator=source) / columns**0.5
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=source)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_lora(tmp_path / "weights/loras/ink.safetensors", ATTENTION)
    write_lora(tmp_path / "weights/loras/clay.safetensors", ATTENTION, MLP, seed=1)
    return Settings(device="cpu", dtype="float32", weights=str(tmp_path / "weights"), output=str(tmp_path / "output"))


@pytest.fixture
def use(settings: Settings) -> Callable[[str], LoRA]:
    return lambda text: catalog.named_lora(text, settings)


def run(worker: Worker, *loras: LoRA) -> tuple[bytes, list[Event]]:
    """The pixels of one request, and its events."""
    work = Work(dataclasses.replace(SMALL, loras=tuple(loras)))
    events = list(guarded(worker.run(work)))
    assert not isinstance(events[-1], Failed), events[-1]
    return next(event.image.tobytes() for event in events if isinstance(event, ImageReady)), events


def test_names_strengths_and_hashes(settings, use):
    assert list(catalog.find_loras(settings)) == ["clay", "ink"]
    ink = use("ink:0.5")
    assert (ink.name, ink.strength) == ("ink", 0.5)
    assert ink.sha256 == catalog.digest(ink.path)
    assert catalog.parsed("C:\\loras\\ink.safetensors") == ("C:\\loras\\ink.safetensors", 1.0)
    assert catalog.parsed("C:\\loras\\ink.safetensors:-.25") == ("C:\\loras\\ink.safetensors", -0.25)
    with pytest.raises(RequestError) as caught:
        use("inc")
    assert (caught.value.key, caught.value.values["meant"]) == ("no_such_lora", "ink")
    with pytest.raises(RequestError):
        use(str(ink.path))  # a path only where the caller is the user of this machine


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_a_name_is_found_however_it_is_typed(settings, stored):
    """macOS stores letters with accents taken apart; keyboards put them together."""
    path = write_lora(settings.weights_folder / f"loras/{unicodedata.normalize(stored, 'gemälde')}.safetensors", MLP)
    for form in ("NFC", "NFD"):
        for ending in ("", ".safetensors", ".safetensors:0.5"):
            assert catalog.named_lora(unicodedata.normalize(form, "gemälde") + ending, settings).path == path
    written = dataclasses.replace(catalog.named_lora("gemälde", settings), name="gemälde", path=None)
    assert catalog.located(dataclasses.replace(SMALL, loras=(written,)), settings).loras[0].path == path


@pytest.mark.parametrize(
    ("name", "key"),
    [("~nobody-of-this-name/ink.safetensors", "no_such_lora"), ("x" * 5000, "no_such_lora"),
     ("{folder}", "lora_is_folder"), ("{folder}/no.safetensors:0.5", "no_such_lora")],
)  # fmt: skip
def test_what_is_no_lora_is_said(settings, name, key):
    with pytest.raises(RequestError) as caught:
        catalog.named_lora(name.format(folder=settings.weights_folder), settings, paths=True)
    assert caught.value.key == key


def test_a_file_of_that_name_that_is_no_lora_says_what_it_is(settings):
    folder = settings.weights_folder / "loras"
    write_lora(folder / "half.safetensors", MLP)
    (folder / "half.safetensors").write_bytes((folder / "half.safetensors").read_bytes()[:-100])
    (folder / "bert.safetensors").write_bytes((EMBEDDED.parent / "t5/model.safetensors").read_bytes())
    save_file({f"{ATTENTION}.lora_A.weight": torch.ones(2, 4), f"{ATTENTION}.lora_B.weight": torch.ones(4, 2),
               f"{ATTENTION}.lora_magnitude_vector": torch.ones(4)}, folder / "dora.safetensors")  # fmt: skip
    for name in ("half", "bert", "dora", "dora.safetensors"):
        with pytest.raises(WeightsError) as caught:
            catalog.named_lora(name, settings)
        assert Path(caught.value.values["path"]).stem == name.removesuffix(".safetensors")


def test_loras_of_one_name_all_have_one(settings, tmp_path):
    """At the roots of several folders, and one of them given twice."""
    folders = [tmp_path / each / "models" for each in ("a", "b", "c")]
    for folder in (*folders, tmp_path / "old"):
        write_lora(folder / "ink.safetensors", MLP)
    given = os.pathsep.join(map(str, (*folders, tmp_path / "old", folders[0])))
    found = catalog.find_loras(dataclasses.replace(settings, models_dir=given))
    assert len(set(found.values())) == 6
    assert {"clay", "ink", "models/ink", "old/ink", "b/models/ink", "c/models/ink"} == set(found)


def test_the_model_folders_are_searched_too(settings, use, tmp_path):
    folder = tmp_path / "ComfyUI" / "models"
    write_lora(folder / "loras" / "styles" / "Wool.safetensors", ATTENTION)
    write_lora(folder / "loras" / "ink.safetensors", MLP)
    both = dataclasses.replace(settings, models_dir=str(folder))
    found = catalog.find_loras(both)
    assert list(found) == ["clay", "ink", "loras/ink", "Wool"]
    assert found["ink"].parent == settings.weights_folder / "loras"


def test_a_change_gives_what_loading_with_it_gives(settings, use):
    worker = Worker(settings)
    plain, _ = run(worker)
    pipeline = worker.loaded.pipeline
    wishes = [(use("ink"),), (use("ink:0.5"), use("clay")), (use("clay"), use("ink:0.5")), (use("clay:-1"),), ()]
    for wish in wishes:
        changed, events = run(worker, *wish)
        fresh, _ = run(Worker(settings), *wish)
        assert changed == fresh
        assert (changed == plain) == (not wish)
        assert {event.message.key for event in events if isinstance(event, Loading)} == {"loading_loras"}
        assert worker.loaded.pipeline is pipeline  # nothing was loaded again
    assert not [event for event in run(worker)[1] if isinstance(event, Loading)]


def test_a_file_that_is_written_over_is_another_lora(settings, use):
    worker = Worker(settings)
    before, _ = run(worker, use("ink"))
    path = write_lora(settings.weights_folder / "loras/ink.safetensors", ATTENTION, seed=7)
    os.utime(path, (0, 0))
    after, _ = run(worker, use("ink"))
    assert after != before
    assert after == run(Worker(settings), use("ink"))[0]


def test_the_hash_of_a_peft_folder_covers_its_configuration(tmp_path):
    path = write_lora(tmp_path / "adapter_model.safetensors", ATTENTION)
    hashes = [catalog.digest(path)]
    for alpha in (4, 32):
        (tmp_path / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}, "r": 2}}')
        hashes.append(catalog.digest(path))
    assert len(set(hashes)) == 3


def test_only_what_changes_is_read(settings, use):
    worker = Worker(settings)
    run(worker, use("clay"))
    work = Work(dataclasses.replace(SMALL, loras=(use("clay"), use("ink"))))
    fractions = [event for event in guarded(worker.run(work)) if isinstance(event, Loading)]
    assert len(fractions) == 1  # the matrix that both touch


def test_a_stopped_change_is_put_right_by_the_next(settings, use):
    worker = Worker(settings)
    plain, _ = run(worker)
    events = worker.run(Work(dataclasses.replace(SMALL, loras=(use("clay"),))))
    assert isinstance(next(events), Loading)
    assert isinstance(next(events), Loading)
    events.close()
    assert run(worker)[0] == plain
    assert run(worker, use("ink"))[0] == run(Worker(settings), use("ink"))[0]


def test_too_little_memory_to_change_in_place_loads_again(settings, use, monkeypatch):
    worker = Worker(settings)
    run(worker)
    before = worker.loaded.pipeline
    monkeypatch.setattr("uso_core.runtime.loras.RESERVE_PART", 0)
    made, _ = run(worker, use("ink"))
    assert worker.loaded.pipeline is not before
    assert made == run(Worker(settings), use("ink"))[0]


def test_a_request_names_its_loras_in_its_file(settings, use, tmp_path):
    request = dataclasses.replace(SMALL, loras=(use("ink:0.5"), use("clay:0")))
    assert [lora.name for lora in request.loras] == ["ink"]
    again = GenerationRequest.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert catalog.located(again, settings).loras[0].path == use("ink").path
    assert "loras" not in SMALL.to_dict()
    write_lora(settings.weights_folder / "loras" / "ink.safetensors", MLP)
    for gone, key in ((False, "lora_changed"), (True, "lora_missing")):
        if gone:
            (settings.weights_folder / "loras" / "ink.safetensors").unlink()
        with pytest.raises(RequestError) as caught:
            catalog.located(again, settings)
        assert (caught.value.key, caught.value.values["name"]) == (key, "ink")


@pytest.mark.parametrize("loras", [[5], [{"name": "ink"}], "ink", [{"name": "a", "sha256": "b", "strength": "1"}],
                                   [{"name": "a", "sha256": "b", "strength": 9}]])  # fmt: skip
def test_a_damaged_list_is_refused(loras):
    with pytest.raises(RequestError):
        GenerationRequest.from_dict(SMALL.to_dict() | {"loras": loras})


def test_the_command_line(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").touch()
    flags = ["--prompt", "a red car", "--name", "uso-tiny", "--device", "cpu", "--width", "64", "--height", "48",
             "--num_steps", "2", "--weights", settings.weights, "--save_path", "out"]  # fmt: skip
    file = write_lora(tmp_path / "elsewhere" / "mine.safetensors", MLP)
    assert inference.main([*flags, "--lora", "ink:0.5", "--lora", str(file)]) == 0
    request = read_request(Path(capsys.readouterr().out.strip()))
    assert [(lora.name, lora.strength) for lora in request.loras] == [("ink", 0.5), ("mine", 1.0)]
    Path("eval.json").write_text(json.dumps([{"prompt": "a red car", "loras": ["clay:2"]}, {"prompt": "a cat"}]))
    assert inference.main([*flags[2:], "--eval_json_path", "eval.json", "--lora", "ink"]) == 0
    made = [read_request(Path(line)) for line in capsys.readouterr().out.split()]
    assert [[(lora.name, lora.strength) for lora in each.loras] for each in made] == [[("clay", 2.0)], [("ink", 1.0)]]
    assert inference.main([*flags, "--lora", "wool"]) == 2
    assert inference.main([*flags, "--turbo"]) == 2  # not for the embedded model
    assert "error: uso-tiny has no Turbo" in capsys.readouterr().err


def test_turbo_takes_the_first_that_is_here(settings, tmp_path, monkeypatch):
    model = get_model("flux-dev")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RequestError) as caught:
        catalog.turbo_lora(model, settings)
    assert caught.value.key == "turbo_missing"
    assert "--only turbo" in caught.value.hint
    alpha, hyper = (settings.weights_folder / turbo.file.local for turbo in TURBOS)
    write_lora(hyper, ATTENTION)
    lora, turbo = catalog.turbo_lora(model, settings)
    assert (lora.name, lora.path, lora.strength, turbo.steps) == ("Hyper-FLUX.1-dev-8steps-lora", hyper, 0.125, 8)
    write_lora(alpha, ATTENTION)
    lora, turbo = catalog.turbo_lora(model, settings)
    assert (lora.name, lora.path, lora.strength, turbo.steps) == ("FLUX.1-Turbo-Alpha", alpha, 1.0, 8)
    assert catalog.find_loras(settings)["FLUX.1-Turbo-Alpha"] == alpha  # found again when a request is restored
    own = write_lora(tmp_path / "my-hyper.safetensors", ATTENTION)
    lora, _ = catalog.turbo_lora(model, dataclasses.replace(settings, turbo_lora=str(own)))
    assert (lora.path, lora.strength) == (own, 0.125)


def test_a_file_that_is_no_lora_fails_with_a_sentence(settings, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    lora = catalog.named_lora(str(tmp_path / "x.safetensors"), settings, paths=True)
    last = list(guarded(Worker(settings).run(Work(dataclasses.replace(SMALL, loras=(lora,))))))[-1]
    assert isinstance(last, Failed)
    assert isinstance(last.error, UsoError)
    assert last.error.key == "wrong_kind"


def test_what_a_lora_does_to_text_encoders_is_left_out_and_told_with_each_image(settings, use, tmp_path):
    path = tmp_path / "weights/loras/ink.safetensors"
    tensors = load_file(path)
    tensors |= {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_{part}.weight": torch.ones(2, 2)
                for part in ("up", "down")}  # fmt: skip
    save_file(tensors, path)
    worker = Worker(settings)
    for _ in range(2):  # of the second one nothing is loaded anew
        (image,) = (each for each in run(worker, use("ink"), use("clay"))[1] if isinstance(each, ImageReady))
        assert image.unread.loras == ("ink",)
        (sentence,) = image.unread.told
        assert (sentence.key, sentence.values["name"]) == ("lora_text_left_out", "ink")
    (image,) = (each for each in run(worker, use("ink:0"), use("clay"))[1] if isinstance(each, ImageReady))
    assert not image.unread


def test_the_api_takes_names_and_strengths(settings):
    values = {"prompt": "a", "steps": None, "guidance": None, "loras": "ink:0.5, clay", "turbo": None}
    found = _with_loras(dict(values), get_model("uso-tiny"), settings)
    assert [(lora.name, lora.strength) for lora in found["loras"]] == [("ink", 0.5), ("clay", 1.0)]
    write_lora(settings.weights_folder / TURBOS[0].file.local, ATTENTION, seed=9)
    found = _with_loras(values | {"turbo": True, "guidance": 4.0}, get_model("flux-dev"), settings)
    assert [lora.name for lora in found["loras"]] == ["FLUX.1-Turbo-Alpha", "ink", "clay"]
    assert (found["steps"], found["guidance"]) == (8, 4.0)
