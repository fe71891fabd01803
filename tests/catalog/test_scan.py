"""Looking through model folders: what is found, by headers alone, and what is chosen for which model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.catalog import comfy_folder as comfy
from tests.catalog.comfy_folder import CLIP_NOTES, T5_NOTES, TINY, write
from tests.loaders.weight_files import raw
from tests.test_settings import cache_repository
from uso_core.catalog import locate
from uso_core.catalog import scan as scanning
from uso_core.catalog.locate import choose_model, find_weights, offers
from uso_core.catalog.models import MODELS, get_model
from uso_core.catalog.scan import Found, describe, scan
from uso_core.errors import SettingsError, WeightsError
from uso_core.settings import Parser, Settings, add_arguments, load_settings

DEV = MODELS["flux-dev"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return comfy.build(tmp_path_factory.mktemp("ComfyUI"))


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scanning, "_KNOWN", {})
    scanning._scan.cache_clear()


def settings(folder: Path, tmp_path: Path, **values: str) -> Settings:
    return Settings(models_dir=str(folder), weights=str(tmp_path / "weights"), **values)


def by_name(found: tuple[Found, ...]) -> dict[str, Found]:
    return {each.path.name: each for each in found}


def test_every_file_is_what_its_tensors_say(whole):
    found = by_name(scan((whole,)))
    roles = {name: (each.role, each.kind) for name, each in found.items()}
    assert roles == {
        "flux1-dev.safetensors": ("transformer", "transformer"),
        "uso-flux1-dit-lora-v1.safetensors": ("lora", "lora"),
        "uso-flux1-projector-v1.safetensors": ("projector", "projector"),
        "ae.safetensors": ("vae", "vae"),
        "sdxl_vae.safetensors": ("vae", "vae"),
        "clip_l.safetensors": ("clip", "CLIP text encoder"),
        "t5xxl_fp16.safetensors": ("t5", "T5 text encoder"),
        "sigclip_vision_patch14_384.safetensors": ("siglip", "SigLIP vision tower"),
        "sd1_tokenizer": ("clip_tokenizer", ""),
        "t5_tokenizer": ("t5_tokenizer", ""),
        "a_style.safetensors": ("lora", "foreign lora"),
        "sd_xl_base_1.0.safetensors": ("", "SDXL checkpoint"),
        "old.ckpt": ("", ""),
        "half.safetensors": ("", ""),
    }
    assert found["old.ckpt"].problem.key == "error_pickle"
    assert found["half.safetensors"].problem.key == "error_header_cut_off"
    assert (found["flux1-dev.safetensors"].variant, found["flux1-dev.safetensors"].precision) == ("dev", "bf16")
    assert all(str(each.title) for each in found.values() if each.role)


@pytest.mark.parametrize("inner", ["", "models"])
def test_a_comfyui_folder_is_all_that_is_needed(whole, inner, tmp_path):
    """Also its models folder alone: the tokenizers lie in the source beside it."""
    given = settings(whole / inner, tmp_path)
    report = find_weights(DEV, given)
    assert report.missing == {}
    assert {role: str(path.relative_to(whole)) for role, path in report.paths.items()} == {
        "transformer": comfy.DEV, "lora": comfy.LORA, "projector": comfy.PROJECTOR, "vae": comfy.VAE,
        "t5": comfy.T5, "clip": comfy.CLIP, "siglip": comfy.SIGLIP,
        "clip_tokenizer": comfy.TOKENIZERS["clip"], "t5_tokenizer": comfy.TOKENIZERS["t5"],
    }  # fmt: skip
    assert choose_model(given)[0] is DEV


def test_a_variable_wins(whole, tmp_path):
    mine = shutil.copy(TINY / "ae.safetensors", tmp_path / "mine.safetensors")
    report = find_weights(DEV, settings(whole, tmp_path, ae=str(mine)))
    assert report.paths["vae"] == Path(mine)
    assert report.paths["clip"] == whole / comfy.CLIP


def test_a_variable_may_name_a_folder_of_files_or_a_repository(whole, tmp_path):
    """As a download leaves them: the single file of the original, in its folder or in the cache's snapshot."""
    given = {
        "flux_dev": whole / "models" / "diffusion_models", "lora": whole / "models" / "loras",
        "projection_model": whole / "models" / "model_patches", "ae": whole / "models" / "vae",
        "t5": whole / "models" / "text_encoders", "clip": whole / "models" / "text_encoders",
        "siglip_path": whole / "models" / "clip_vision",
    }  # fmt: skip
    there = {"transformer": comfy.DEV, "lora": comfy.LORA, "projector": comfy.PROJECTOR, "vae": comfy.VAE,
             "t5": comfy.T5, "clip": comfy.CLIP, "siglip": comfy.SIGLIP}  # fmt: skip
    folders = find_weights(DEV, Settings(weights=str(tmp_path), **{name: str(path) for name, path in given.items()}))
    assert {role: folders.paths.get(role) for role in there} == {role: whole / name for role, name in there.items()}

    snapshots = {}
    for repo, names in (
        ("black-forest-labs/FLUX.1-dev", {"flux1-dev.safetensors": comfy.DEV, "ae.safetensors": comfy.VAE}),
        ("bytedance-research/USO", {"uso_flux_v1.0/dit_lora.safetensors": comfy.LORA}),
        ("someone/loras", {"ink.safetensors": comfy.PROJECTOR}),
    ):
        snapshots[repo] = cache_repository(tmp_path / "cache", repo)
        for name, file in names.items():
            (snapshots[repo] / name).parent.mkdir(exist_ok=True)
            shutil.copy(whole / file, snapshots[repo] / name)
    dev, uso, _ = snapshots
    cached = find_weights(DEV, Settings(weights=str(tmp_path), flux_dev=dev, ae=dev, lora=uso))
    assert cached.paths["transformer"] == snapshots[dev] / "flux1-dev.safetensors"
    assert cached.paths["vae"] == snapshots[dev] / "ae.safetensors"
    assert cached.paths["lora"] == snapshots[uso] / "uso_flux_v1.0" / "dit_lora.safetensors"
    wrong = find_weights(DEV, Settings(weights=str(tmp_path), lora="someone/loras", ae="someone/nothing"))
    assert {role: wrong.missing[role].key for role in ("lora", "vae")} == {
        "lora": "missing_in_variable", "vae": "missing_variable"}  # fmt: skip


def test_of_several_transformers_in_a_variables_folder_the_models_own_is_taken(whole, tmp_path):
    place = tmp_path / "several"
    place.mkdir()
    shutil.copy(whole / comfy.DEV, place / "mine.safetensors")
    schnell = {name: tensor for name, tensor in comfy.flux().items() if not name.startswith("guidance_in.")}
    write(place / "larger.safetensors", {**schnell, "unused": torch.zeros(10**6)})
    given = Settings(name="flux-dev", weights=str(tmp_path), flux_dev=str(place))
    assert find_weights(DEV, given).paths["transformer"] == place / "mine.safetensors"
    assert choose_model(given)[0] is DEV


def test_a_file_that_cannot_be_used_counts_with_those_that_lack(whole, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((whole / comfy.DEV).read_bytes()[:5000])
    given = Settings(weights=str(tmp_path), flux_dev=str(tmp_path / "cut.safetensors"), ae=str(whole / comfy.VAE))
    report = find_weights(DEV, given)
    with pytest.raises(WeightsError) as caught:
        report.require()
    files = {each.values["role"]: each.key for each in caught.value.values["files"]}
    assert files.pop("transformer") == "missing_unusable"
    assert {"vae"} & files.keys() == set()
    assert caught.value.values["missing"] == len(files) + 1


def test_several_folders_by_flag_and_by_variable(whole, tmp_path, monkeypatch):
    """Forge's, SwarmUI's and StabilityMatrix' folders have other names: every layout is searched."""
    first, second = tmp_path / "webui" / "models", tmp_path / "Data" / "Models"
    shutil.copytree(whole / "models", second)
    for name, place in (("diffusion_models", "Stable-diffusion"), ("text_encoders", "text_encoder")):
        shutil.move(second / name, first / place)
    shutil.copytree(whole / "comfy", tmp_path / "webui" / "backend" / "huggingface")
    (tmp_path / "none").touch()
    parser = Parser()
    add_arguments(parser, "models_dir")
    args = parser.parse_args(["--models-dir", str(tmp_path / "webui"), "--models-dir", str(second)])
    by_flag = load_settings({"models_dir": args.models_dir, "weights": str(tmp_path / "w")}, dotenv=tmp_path / "none")
    monkeypatch.setenv("USO_MODELS_DIR", f"{tmp_path / 'webui'}{os.pathsep}{second}")
    by_variable = load_settings({"weights": str(tmp_path / "w")}, dotenv=tmp_path / "none")
    assert by_flag == by_variable
    report = find_weights(DEV, by_flag)
    assert report.missing == {}
    assert report.paths["transformer"] == first / "Stable-diffusion" / "flux1-dev.safetensors"


def test_a_folder_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(SettingsError) as failure:
        find_weights(DEV, settings(tmp_path / "ComfyIU", tmp_path))
    assert failure.value.key == "models_dir_missing"


def test_without_tokenizers_the_command_is_named(whole, tmp_path):
    alone = tmp_path / "stuff"
    shutil.copytree(whole / "models", alone)
    report = find_weights(DEV, settings(alone, tmp_path))
    assert {role: said.key for role, said in report.missing.items()} == dict.fromkeys(
        ("clip_tokenizer", "t5_tokenizer"), "missing_tokenizer"
    )
    with pytest.raises(WeightsError, match="--only tokenizers"):
        report.require()


def test_an_all_in_one_checkpoint_serves_every_part_it_holds(whole, tmp_path):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in comfy.flux().items()}
    tensors |= {f"text_encoders.clip_l.transformer.{name}": tensor for name, tensor in comfy.clip().items()}
    tensors |= {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in comfy.t5().items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in comfy.small_vae(16).items()}
    path = write(tmp_path / "m" / "flux1-dev-fp8.safetensors", tensors, CLIP_NOTES | T5_NOTES)
    assert [each.role for each in describe(path)] == ["transformer", "vae", "t5", "clip"]
    report = find_weights(DEV, settings(tmp_path / "m", tmp_path))
    assert {report.paths[role] for role in ("transformer", "vae", "t5", "clip")} == {path}


def test_parts_of_other_widths_are_passed_over(whole, tmp_path):
    """CLIP-G, another T5, SDXL's VAE: larger, but of other models."""
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    wide = {name.replace("text_model.", ""): each for name, each in comfy.clip().items()}
    wide = {
        name: torch.zeros(*tensor.shape[:-1], 160) if tensor.dim() == 2 else tensor for name, tensor in wide.items()
    }
    write(folder / "models/text_encoders/clip_g.safetensors", wide)
    write(folder / "models/vae/big.safetensors", comfy.small_vae(4) | {"decoder.x": torch.zeros(4_000_000)})
    report = find_weights(DEV, settings(folder, tmp_path))
    assert (report.paths["clip"], report.paths["vae"]) == (folder / comfy.CLIP, folder / comfy.VAE)


@pytest.mark.parametrize("change", ["no single blocks", "fewer blocks", "another rank at full width"])
def test_another_lora_with_the_same_names_is_not_taken_for_usos(whole, change, tmp_path):
    """XLabs' LoRAs name their tensors like USO's."""
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    tensors = load_file(folder / comfy.LORA)
    if change == "no single blocks":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("double_blocks.")}
    elif change == "fewer blocks":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("double_blocks.1.")}
    else:
        tensors["double_blocks.0.processor.qkv_lora1.down.weight"] = torch.zeros(16, 3072)
    write(folder / comfy.LORA, tensors)
    report = find_weights(DEV, settings(folder, tmp_path))
    assert set(report.missing) == {"lora"}
    standing = {found.path.name: said.key for found, said in offers(report, settings(folder, tmp_path))}
    other = "offer_unfit" if change == "fewer blocks" else "offer_other_lora"
    assert standing[Path(comfy.LORA).name] == other


def without_guidance() -> comfy.Tensors:
    return {name: tensor for name, tensor in comfy.flux().items() if not name.startswith("guidance_in")}


def test_each_model_gets_its_own_transformer(whole, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(whole, folder)
    notes = comfy.noted(TINY / "flux.safetensors")
    unet = folder / "models" / "unet"
    names = {"flux-schnell": "a.safetensors", "flux-krea-dev": "flux1-krea-dev_fp8.safetensors"}
    write(unet / names["flux-schnell"], without_guidance(), notes)
    write(unet / names["flux-krea-dev"], comfy.scaled_fp8(comfy.flux()), notes)
    given = settings(folder, tmp_path)
    chosen = {name: find_weights(get_model(name), given).paths["transformer"].name for name in (*names, "flux-dev")}
    assert chosen == {**names, "flux-dev": "flux1-dev.safetensors"}


def test_a_transformer_under_the_wrong_variable_is_used_as_what_it_is(whole, tmp_path):
    schnell = write(tmp_path / "flux1-dev.safetensors", without_guidance())
    given = settings(whole, tmp_path, flux_dev=str(schnell))
    for asked in (given, settings(whole, tmp_path, flux_dev=str(schnell), name="flux-dev")):
        model, reason = choose_model(asked)
        assert (model.name, reason.key) == ("flux-schnell", "reason_really")
    assert find_weights(MODELS["flux-schnell"], given).paths["transformer"] == schnell
    assert find_weights(DEV, given).missing["transformer"].key == "missing_really"
    model, reason = choose_model(settings(whole, tmp_path, flux_schnell=str(whole / comfy.DEV), name="flux-schnell"))
    assert (model.name, reason.key) == ("flux-dev", "reason_really")


@pytest.mark.parametrize("kept", ["flux-krea-dev", "flux-schnell"])
def test_a_folder_with_another_flux_alone_starts_that(whole, kept, tmp_path):
    folder = Path(shutil.copytree(whole, tmp_path / "m"))
    (folder / comfy.DEV).unlink()
    tensors = without_guidance() if kept == "flux-schnell" else comfy.flux()
    write(folder / "models/unet" / f"{kept}.safetensors", tensors)
    model, reason = choose_model(settings(folder, tmp_path))
    assert (model.name, reason.key) == (kept, "reason_files_found")


def test_the_vae_of_stable_diffusion_3_has_the_same_shapes_and_is_told_by_its_name(tmp_path):
    shutil.copy(TINY / "ae.safetensors", tmp_path / "sd3_vae.safetensors")
    (found,) = describe(tmp_path / "sd3_vae.safetensors")
    assert (found.role, found.problem.key) == ("vae", "error_vae_relative")


RELATIVES = {
    "fill": ({"img_in.weight": torch.zeros(64, 384), "final_layer.linear.weight": torch.zeros(64, 64)}, "Fill"),
    "depth": ({"img_in.weight": torch.zeros(64, 128), "final_layer.linear.weight": torch.zeros(64, 64)}, "Canny"),
    "flux1-dev-kontext_fp8_scaled": ({}, "Kontext"),
    "nf4": ({"double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4": torch.zeros(8)}, "nf4"),
    "quanto": ({"double_blocks.0.img_attn.qkv.weight._data": torch.zeros(8)}, "quanto"),
    "nvfp4": ({"double_blocks.0.img_attn.qkv.weight_scale_2": torch.zeros(1)}, "NVFP4"),
    "mxfp8": ({"double_blocks.0.img_attn.qkv.weight_scale": torch.zeros(8, 2, dtype=torch.uint8)}, "MXFP8"),
    "int8": ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(8, 2, dtype=torch.int8)}, "int8"),
}


@pytest.mark.parametrize("name", RELATIVES)
def test_what_cannot_be_used_says_what_it_is(name, tmp_path):
    tensors, said = RELATIVES[name]
    names = ("double_blocks.0.img_attn.proj.weight", "single_blocks.0.linear1.weight", "guidance_in.in_layer.weight")
    path = write(tmp_path / f"{name}.safetensors", {name: torch.zeros(4) for name in names} | tensors)
    (found,) = describe(path)
    assert found.role == "transformer"
    assert found.problem is not None
    assert said in str(found.problem)


BLOCKS = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
OTHERS = {
    "Chroma": ("distilled_guidance_layer.in_proj.weight", *BLOCKS),
    "FLUX.2": ("double_stream_modulation_img.lin.weight", *BLOCKS),
    "HunyuanVideo": ("txt_in.individual_token_refiner.blocks.0.norm1.weight", *BLOCKS),
    "Qwen-Image": ("transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"),
    "Redux": ("redux_up.weight", "redux_down.weight"),
    "ControlNet": ("controlnet_blocks.0.weight", *BLOCKS),
    "LoKr": ("lycoris_double_blocks_0_img_attn_qkv.lokr_w1", "lycoris_double_blocks_0_img_attn_qkv.alpha"),
    "LoHa": ("lora_unet_single_blocks_0_linear1.hada_w1_a",),
    "DoRA": ("lora_unet_single_blocks_0_linear1.lora_down.weight", "lora_unet_single_blocks_0_linear1.dora_scale"),
    "SVDQuant": ("transformer_blocks.0.qkv_proj.qweight", "transformer_blocks.0.qkv_proj.wscales"),
    "language model": ("model.layers.0.self_attn.q_proj.weight",),
    "Stable Diffusion 3": (
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
    ),
    "CLIP vision": (
        "vision_model.encoder.layers.0.layer_norm1.weight",
        "vision_model.embeddings.patch_embedding.weight",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_named_and_never_offered(kind, tmp_path):
    (found,) = describe(write(tmp_path / "x.safetensors", {name: torch.zeros(1) for name in OTHERS[kind]}))
    assert found.role == ""
    assert kind in str(found.title)


def test_a_sharded_folder_and_a_gguf_file_are_found(tmp_path):
    folder = tmp_path / "m" / "flux-shards"
    tensors = {f"model.diffusion_model.{name}": each for name, each in comfy.flux().items()}
    names = sorted(tensors)
    halves = {"model-1-of-2.safetensors": names[:50], "model-2-of-2.safetensors": names[50:]}
    for file, held in halves.items():
        write(folder / file, {name: tensors[name] for name in held}, comfy.noted(TINY / "flux.safetensors"))
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    writer = gguf.GGUFWriter(tmp_path / "m" / "flux1-dev-Q8_0.gguf", "flux")
    for name, tensor in comfy.flux().items():
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(tensor.float().numpy()), kind), raw_dtype=kind)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    found = by_name(scan((tmp_path / "m",)))
    assert {name: (each.variant, each.precision) for name, each in found.items()} == {
        "flux-shards": ("dev", "bf16"), "flux1-dev-Q8_0.gguf": ("dev", "Q8_0"),
    }  # fmt: skip
    assert find_weights(DEV, settings(tmp_path / "m", tmp_path)).paths["transformer"] == folder


def test_a_header_is_read_once_also_by_the_next_run(whole, tmp_path, monkeypatch):
    memory, read = tmp_path / "prepared" / "headers.json", []
    real = scanning.describe
    monkeypatch.setattr(scanning, "describe", lambda path: read.append(path) or real(path))
    first = scan((whole,), memory)
    assert len(read) > 5
    for _ in range(2):  # the same run, then another
        read.clear()
        scanning._scan.cache_clear()
        assert scan((whole,), memory) == first
        assert read == []
        scanning._KNOWN.clear()
    changed = shutil.copytree(whole, tmp_path / "again") / comfy.VAE
    scanning._scan.cache_clear()
    scan((tmp_path / "again",), memory)
    changed.write_bytes((whole / comfy.LORA).read_bytes())
    read.clear()
    scanning._scan.cache_clear()
    found = by_name(scan((tmp_path / "again",), memory))
    assert read == [changed]
    assert found["ae.safetensors"].role == "lora"


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 2, "files": 3}', '{"format": 2, "files": {"x": [1, 2, [[3]]]}}']
)
def test_a_damaged_memory_is_no_memory(whole, text, tmp_path):
    memory = tmp_path / "headers.json"
    memory.write_text(text)
    assert len(scan((whole,), memory)) == 14


def test_a_huge_header_is_bounded(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(raw(b"{", length=90 * 2**20))
        file.truncate(100 * 2**20)  # a hole: nothing on the disk
    (found,) = scan((tmp_path,))
    assert found.problem is not None
    assert found.problem.key == "error_header_too_large"


def test_links_in_a_circle_and_links_to_files_are_followed_once(whole, tmp_path):
    if os.name == "nt":
        pytest.skip("links need a privilege there")
    folder = tmp_path / "m"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "linked").symlink_to(whole / "models" / "vae")
    assert sorted(each.path.name for each in scan((folder,))) == ["ae.safetensors", "sdxl_vae.safetensors"]


def test_a_folder_with_half_of_its_weights_is_not_there(tmp_path):
    folder = tmp_path / "text_encoder_2"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    (folder / shards[0]).write_bytes(b"x")
    assert not locate._holds(folder)
    (folder / shards[1]).symlink_to(tmp_path / "a blob that was deleted")
    assert not locate._holds(folder)
    (tmp_path / "a blob that was deleted").write_bytes(b"x")
    assert locate._holds(folder)
