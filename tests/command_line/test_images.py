"""The command line: the reference's images, and what its flags do to them."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.command_line.runs import CASES, CONTENT, GOLDEN_FLAGS, STYLE, TINY, expected_pixels, flags_of
from tests.conftest import GOLDEN
from uso_core.messages import message
from uso_core.storage.png import read_request

# --- the reference's images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_image_equals_the_references(name, command, golden_environment):
    case = CASES[name]
    run = command(*flags_of(case), *GOLDEN_FLAGS)
    assert run.code == 0, run.err
    assert run.files() == ["0_0.json", "0_0.png"]
    expected = expected_pixels(case)
    assert run.pixels().shape == expected.shape
    assert np.abs(run.pixels() - expected).max() <= 2
    assert run.out.splitlines() == [str(run.folder / "0_0.png")]

    record = run.record()
    for key in ("prompt", "num_steps", "guidance", "seed", "content_ref"):
        assert record[key] == case[key], key
    assert (record["width"], record["height"]) == (case["width"] // 16 * 16, case["height"] // 16 * 16)
    assert record["model_type"] == "flux-dev"
    request = read_request(run.folder / "0_0.png")
    assert (request.prompt, request.seed, request.steps, request.guidance, request.content_size) == tuple(
        case[key] for key in ("prompt", "seed", "num_steps", "guidance", "content_ref")
    )
    assert [style.name for style in request.styles] == [f"{style}.png" for style in case["styles"]]
    assert (request.content.name if request.content else None) == (case["content"] and f"{case['content']}.png")


def test_a_png_says_how_to_make_it_again(command, golden_environment):
    case = CASES["multi_style_subject"]
    first = command(*flags_of(case), *GOLDEN_FLAGS)
    request = read_request(first.folder / "0_0.png")
    images = {path.name: str(path) for path in GOLDEN.glob("*.png")}
    again = command(
        "--prompt", request.prompt, "--image_paths", images[request.content.name],
        *(images[style.name] for style in request.styles), "--width", request.width, "--height", request.height,
        "--num_steps", request.steps, "--guidance", request.guidance, "--seed", request.seed,
        "--content_ref", request.content_size, "--model_type", request.model, *GOLDEN_FLAGS,
    )  # fmt: skip
    assert np.array_equal(first.pixels(), again.pixels())


def test_the_variables_may_be_in_dotenv(command, workplace, golden_environment, monkeypatch):
    names = ("FLUX_DEV", "AE", "LORA", "PROJECTION_MODEL", "T5", "CLIP", "SIGLIP_PATH")
    (workplace / ".env").write_text("".join(f"{name}={os.environ[name]}\n" for name in names))
    for name in names:
        monkeypatch.delenv(name)
    run = command(*flags_of(CASES["multi_style_subject"]), *GOLDEN_FLAGS)
    assert run.record()["model_type"] == "flux-dev"
    assert np.abs(run.pixels() - expected_pixels(CASES["multi_style_subject"])).max() <= 2


def test_a_model_without_guidance(command, golden_environment, monkeypatch, tmp_path):
    flux = load_file(GOLDEN / "flux.safetensors")
    path = tmp_path / "flux1-schnell.safetensors"
    save_file({name: tensor for name, tensor in flux.items() if not name.startswith("guidance_in.")}, path)
    monkeypatch.setenv("FLUX_SCHNELL", str(path))
    case = CASES["multi_style_subject"] | {"num_steps": 2}
    runs = [
        command(*flags_of(case | {"guidance": guidance}), *GOLDEN_FLAGS, "--model_type", "flux-schnell")
        for guidance in (1, 4)
    ]
    assert [run.code for run in runs] == [0, 0], runs[0].err
    assert np.array_equal(runs[0].pixels(), runs[1].pixels())  # it has no place to go
    assert all("guidance has no effect" in run.err and run.record()["guidance"] == 0 for run in runs)


def test_a_file_without_guidance_as_flux_dev_is_used_as_what_it_is(command, golden_environment, monkeypatch, tmp_path):
    flux = load_file(GOLDEN / "flux.safetensors")
    path = tmp_path / "flux1-dev.safetensors"
    save_file({name: tensor for name, tensor in flux.items() if not name.startswith("guidance_in.")}, path)
    monkeypatch.setenv("FLUX_DEV", str(path))
    case = CASES["multi_style_subject"] | {"num_steps": 2}
    for name in ((), ("--name", "flux-dev")):
        run = command(*flags_of(case), *GOLDEN_FLAGS, *name)
        assert run.code == 0, run.err
        assert f"FLUX_DEV points to {path.name}, which is this model by its tensors" in run.err
        assert "guidance has no effect" in run.err
        assert run.record()["model_type"] == "flux-schnell"


# --- flags ------------------------------------------------------------------------------------------------------------


def test_the_embedded_model_runs_without_any_file(command):
    run = command("--prompt", "a cat", *TINY)
    assert run.code == 0
    assert run.pixels().shape == (64, 96, 3)
    assert run.record()["model_type"] == "uso-tiny"
    assert "toy world" in run.err


@pytest.mark.parametrize(("width", "height", "told"), [(48, 64, 1), (64, 272, 1), (64, 256, 0)])
def test_a_size_that_the_model_was_not_made_for_is_told_once(width, height, told, command):
    run = command("--prompt", "a cat", *TINY, "--width", width, "--height", height, "--num_images_per_prompt", 2)
    assert run.pixels().shape == (height, width, 3)
    assert run.err.count("was made for sides of 64 to 256 pixels") == told
    assert run.err.count(f"at {width} x {height}") == told


def test_the_unread_end_of_a_prompt_is_quoted_once(command):
    run = command("--prompt", "a red car " * 10 + "at and two  owls", *TINY, "--num_images_per_prompt", 2)
    assert run.code == 0, run.err
    assert run.err.splitlines()[1:] == [str(message("unread", words="and two owls"))]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("海滩上的一个红色杯子。", "海滩上的一个红色杯子"), ("A red cup 🦓, on the beach.", "🦓"),
     ("A zebra and a Кошка on the beach", "zebra Кошка"), ("A red mug on the beach — “new”.", "new")],
)  # fmt: skip
def test_words_that_the_model_does_not_know_are_quoted(prompt, words, command):
    run = command("--prompt", prompt, *TINY)
    assert run.err.splitlines()[1:] == [str(message("unknown_words", words=words))]
    assert words in run.err  # whatever the sentence says


def test_the_same_request_gives_the_same_pixels_and_another_seed_others(command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    runs = [command(*flags, "--seed", seed) for seed in (5, 5, 6)]
    assert np.array_equal(runs[0].pixels(), runs[1].pixels())
    assert not np.array_equal(runs[0].pixels(), runs[2].pixels())


def test_without_a_seed_it_is_3407_and_minus_1_draws_one(command):
    assert command("--prompt", "a cat", *TINY).record()["seed"] == 3407
    drawn = {command("--prompt", "a cat", *TINY, "--seed", "-1").record()["seed"] for _ in range(3)}
    assert len(drawn) > 1
    assert 3407 not in drawn


def test_several_images_use_consecutive_seeds(command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    both = command(*flags, "--seed", 7, "--num_images_per_prompt", 2)
    assert both.files() == ["0_0.json", "0_0.png", "0_1.json", "0_1.png"]
    assert [both.record(name)["seed"] for name in ("0_0", "0_1")] == [7, 8]
    assert [read_request(both.folder / f"{name}.png").seed for name in ("0_0", "0_1")] == [7, 8]
    for name, seed in (("0_0", 7), ("0_1", 8)):
        assert np.array_equal(both.pixels(name), command(*flags, "--seed", seed).pixels())


def test_strengths_and_fast_reach_the_request(command):
    run = command("--prompt", "P", "--image_paths", str(CONTENT), str(STYLE), "--content_strength", "0.5",
                  "--style_strengths", "1.5", "--fast", *TINY)  # fmt: skip
    assert run.code == 0, run.err
    made = read_request(run.folder / "0_0.png")
    assert (made.content_strength, made.style_strengths, made.fast) == (0.5, (1.5,), True)


@pytest.mark.parametrize(
    ("content", "content_ref", "size"),
    [((300, 200), 96, (128, 80)), ((200, 300), 96, (80, 128)), ((64, 64), 64, (128, 128)), ((640, 360), 64, (128, 64))],
)
def test_instruct_edit_keeps_the_shape_of_the_content_image(content, content_ref, size, command, tmp_path):
    Image.new("RGB", content, "red").save(tmp_path / "content.png")
    run = command("--prompt", "x", "--image_paths", tmp_path / "content.png", *TINY, "--content_ref", content_ref,
                  "--instruct_edit")  # fmt: skip
    assert run.pixels().shape == (size[1], size[0], 3)  # the embedded model's long side is 128, FLUX.1's is 1024
    assert (run.record()["width"], run.record()["height"]) == size


@pytest.mark.parametrize(("flag", "wide"), [("--concat_refs", True), ("--concat_refs=false", False)])
def test_concat_refs_puts_the_inputs_next_to_the_result(flag, wide, command):
    flags = ("--prompt", "a cat", "--image_paths", CONTENT, STYLE, *TINY)
    alone, beside = command(*flags).pixels(), command(*flags, flag).pixels()
    assert np.array_equal(beside[:64, :96], alone)
    widths = [Image.open(path).width for path in (CONTENT, STYLE)]
    assert beside.shape[1] == (96 + sum(widths) if wide else 96)
    if wide:
        with Image.open(CONTENT) as content:
            inside = beside[: content.height, 96 : 96 + content.width]
            assert np.array_equal(inside, np.asarray(content.convert("RGB")))


def test_an_empty_first_path_means_no_content(command):
    run = command("--prompt", "a cat", "--image_paths", "", STYLE, *TINY)
    request = read_request(run.folder / "0_0.png")
    assert request.content is None
    assert [style.name for style in request.styles] == ["style_a.png"]


def test_offload_and_fp8_change_nothing_in_a_model_this_small(command, golden_environment):
    case = CASES["multi_style_subject"]
    run = command(*flags_of(case), *GOLDEN_FLAGS, "--offload", "--model_type", "flux-dev-fp8")
    assert run.code == 0, run.err
    assert np.abs(run.pixels() - expected_pixels(case)).max() <= 2
    assert run.record()["model_type"] == "flux-dev-fp8"


def test_the_exif_orientation_of_a_content_image_counts(command, tmp_path):
    image = Image.open(CONTENT).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "lying.png", exif=exif)
    image.save(tmp_path / "upright.png")
    flags = ("--prompt", "a cat", *TINY)
    lying, upright = (command(*flags, "--image_paths", tmp_path / f"{name}.png") for name in ("lying", "upright"))
    assert np.array_equal(lying.pixels(), upright.pixels())
