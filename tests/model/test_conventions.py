"""What users of diffusers expect of any pipeline of theirs, with the embedded model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn

from tests.model.test_model import SMALL, images, pipeline  # noqa: F401  (fixtures)
from uso_core.cpu.accelerate import accelerate as accelerate_kernels
from uso_core.errors import RequestError
from uso_core.model import latents as tokens
from uso_core.model.pipeline import USOPipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(pipeline: USOPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> USOPipeline:
    """As a library user loads it."""
    made = USOPipeline.from_pretrained(folder, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def plain(saved: Path) -> USOPipeline:
    return loaded(saved)


@pytest.fixture
def fresh(saved: Path) -> USOPipeline:
    """A pipeline of the same weights that a test may hook."""
    return loaded(saved)


@pytest.fixture
def call(plain: USOPipeline, images: list[Image.Image]) -> Any:  # noqa: F811
    content, *styles = images

    def run(pipe: USOPipeline = plain, prompt: Any = "a red cat", **options: Any) -> Any:
        given = {"seed": 5, "content_size": 64, "output_type": "latent", **SMALL, **options}
        return pipe(prompt, content, styles, **given).images

    return run


def test_the_kinds_of_output_hold_the_same_pixels(call: Any) -> None:
    pil, array, tensor = (call(output_type=kind) for kind in ("pil", "np", "pt"))
    assert array.shape == (1, 48, 64, 3)
    assert array.min() >= 0
    assert array.max() <= 1
    assert np.abs(tensor.permute(0, 2, 3, 1).numpy() - array).max() == 0
    assert np.abs(np.asarray(pil[0]) - 255 * array[0]).max() < 2


def test_images_per_prompt_use_consecutive_seeds(call: Any) -> None:
    assert torch.equal(call(num_images_per_prompt=3), torch.cat([call(seed=5 + number) for number in range(3)]))


def test_several_prompts_equal_as_many_calls(call: Any) -> None:
    together = call(prompt=["a red cat", "a blue boat"], num_images_per_prompt=2)
    assert torch.equal(together, torch.cat([call(prompt=each, num_images_per_prompt=2) for each in
                                            ("a red cat", "a blue boat")]))  # fmt: skip


def test_one_generator_for_all_and_one_for_each(call: Any) -> None:
    shared = call(seed=None, generator=torch.Generator().manual_seed(5), num_images_per_prompt=2)
    assert torch.equal(shared[:1], call())
    assert not torch.equal(shared[0], shared[1])
    each = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert torch.equal(call(seed=None, generator=each, num_images_per_prompt=2), call(num_images_per_prompt=2))
    with pytest.raises(RequestError) as caught:
        call(seed=None, generator=each, num_images_per_prompt=3)
    assert caught.value.key == "generators_count"


def test_latents_to_begin_with(call: Any) -> None:
    noise = tokens.pack(tokens.noise(64, 48, 16, torch.Generator().manual_seed(5)))
    assert torch.equal(call(latents=noise, seed=None), call())
    two = torch.cat([noise, tokens.pack(tokens.noise(64, 48, 16, torch.Generator().manual_seed(6)))])
    assert torch.equal(call(latents=two, seed=None, num_images_per_prompt=2), call(num_images_per_prompt=2))
    with pytest.raises(RequestError) as caught:
        call(latents=two, num_images_per_prompt=3)
    assert caught.value.key == "latents_count"


def test_prompts_are_encoded_without_the_other_models(call: Any, plain: USOPipeline) -> None:
    alone = dict.fromkeys(plain.components)
    names = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
    encoder = USOPipeline(**alone | {name: plain.components[name] for name in names}, **plain.constants)
    text, pooled = encoder.encode_prompt("a red cat")
    rest = dict(plain.components) | dict.fromkeys(names)
    painter = USOPipeline(**rest, **plain.constants)
    painter.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    assert torch.equal(call(painter, prompt="", **given), call())
    for wrong, key in (({"prompt": "a cat", **given}, "prompt_and_embeds"),
                       ({"prompt": "", "prompt_embeds": text}, "embeds_alone")):  # fmt: skip
        with pytest.raises(RequestError) as caught:
            call(**wrong)
        assert caught.value.key == key


def test_callbacks_get_the_tensors_they_ask_for_and_may_interrupt(call: Any) -> None:
    seen = []

    def stop(pipe: USOPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        seen.append((step, sorted(tensors), pipe.num_timesteps, pipe.guidance_scale))
        pipe._interrupt = step == 1
        return {}

    after = call(num_inference_steps=4, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["latents"],
                 num_images_per_prompt=2)  # fmt: skip
    assert seen == [(0, ["latents"], 4, 4.0), (1, ["latents"], 4, 4.0)]
    assert len(after) == 1
    assert not torch.equal(after, call(num_inference_steps=4))
    with pytest.raises(RequestError) as caught:
        call(callback_on_step_end_tensor_inputs=["velocity"])
    assert caught.value.key == "callback_inputs"


def test_the_bar_counts_every_step(call: Any, fresh: USOPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.set_progress_bar_config(disable=False)
    call(fresh, num_images_per_prompt=2)
    assert "4/4" in capsys.readouterr().err
    fresh.set_progress_bar_config(disable=True)
    call(fresh)
    assert capsys.readouterr().err == ""


def test_offloading_models(call: Any, fresh: USOPipeline) -> None:
    fresh.enable_model_cpu_offload(device="cpu")
    brought = []
    for hook in fresh._all_hooks:
        module, before = hook.model, hook.hook.pre_forward

        def note(*args: Any, module: nn.Module = module, before: Any = before, **kwargs: Any) -> Any:
            brought.append(type(module).__name__)
            return before(*args, **kwargs)

        hook.hook.pre_forward = note
    assert torch.equal(call(fresh), call())
    order = list(dict.fromkeys(brought))  # accelerate sends each away when the next one comes
    assert order.index("T5EncoderModel") < order.index("USOTransformer2DModel")
    assert set(order) == {type(each).__name__ for each in fresh.components.values() if isinstance(each, nn.Module)}
    assert torch.equal(call(fresh), call())  # the hooks are set again after each call


def test_offloading_every_module(call: Any, fresh: USOPipeline) -> None:
    """As `enable_sequential_cpu_offload` does, which itself cannot compute on a CPU, for no pipeline."""
    for each in fresh.components.values():
        if isinstance(each, nn.Module):
            accelerate.cpu_offload(each, "cpu")
    for _ in range(2):
        assert next(fresh.transformer.parameters()).device.type == "meta"
        assert torch.equal(call(fresh, output_type="pt"), call(output_type="pt"))


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_offloading_groups(kind: str, call: Any, fresh: USOPipeline) -> None:
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    fresh.transformer.enable_group_offload(CPU, CPU, offload_type=kind, **blocks)
    fresh.vae.enable_group_offload(CPU, CPU, offload_type="leaf_level")
    assert torch.equal(call(fresh, output_type="pt"), call(output_type="pt"))


def test_layerwise_casting(call: Any, fresh: USOPipeline) -> None:
    fresh.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    exact, cast = call(), call(fresh)
    assert 0 < ((cast - exact).norm() / exact.norm()).item() < 0.3


def test_parts_make_another_pipeline(call: Any, plain: USOPipeline) -> None:
    again = USOPipeline(**plain.components, **plain.constants)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(call(again), call())


def test_half_precision_runs(call: Any, fresh: USOPipeline) -> None:
    made = call(fresh.to(dtype=torch.bfloat16), output_type="np")
    assert np.isfinite(made).all()
    assert np.abs(made - call(output_type="np")).mean() < 0.1


@pytest.mark.parametrize("names", [("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
                                   ("transformer_blocks.0.norm1.linear", "norm_out.linear")])  # fmt: skip
def test_loras_load_as_into_any_flux_pipeline(names: tuple[str, ...], call: Any, fresh: USOPipeline) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in fresh.transformer.state_dict().items()}
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        rows, columns = shapes[f"{name}.weight"]
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(2, columns) / columns**0.5
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(rows, 2) / 8
    plain = {name: fresh.transformer.state_dict()[f"{name}.weight"].clone() for name in names}
    fresh.load_lora_weights(dict(tensors), adapter_name="one")
    if "norm_out.linear" in names:
        with pytest.raises(RequestError) as caught:
            call(fresh)
        assert caught.value.key == "lora_unfused"
        fresh.fuse_lora(lora_scale=0.5)
    else:
        fresh.set_adapters("one", 0.5)
        unfused = call(fresh)
        fresh.fuse_lora()
        torch.testing.assert_close(call(fresh), unfused, rtol=1e-3, atol=1e-3)
    made = call(fresh)
    assert not torch.equal(made, call())
    fresh.unfuse_lora()
    fresh.unload_lora_weights()
    with torch.no_grad():
        for name in names:
            delta = tensors[f"transformer.{name}.lora_B.weight"] @ tensors[f"transformer.{name}.lora_A.weight"]
            fresh.transformer.get_submodule(name).weight.copy_(plain[name] + 0.5 * delta)
    torch.testing.assert_close(call(fresh), made, rtol=1e-3, atol=1e-3)


def ask(pipe: USOPipeline, **options: Any) -> torch.Tensor:
    """Latents of words alone, unless the options say otherwise."""
    given = {"prompt": "a red cat", "seed": 5, "content_size": 64, "output_type": "latent", **SMALL, **options}
    return pipe(**given).images


@pytest.mark.parametrize(
    ("options", "key"),
    [({"prompt": []}, "no_prompts"), ({"style_images": "a.png"}, "no_pil_image"), ({"style_images": 5}, "no_pil_image"),
     ({"content_image": "a.png"}, "no_pil_image"), ({"content_image": np.zeros((8, 8, 3))}, "no_pil_image"),
     ({"style_images": [None]}, "no_pil_image"), ({"style_strengths": 0.5}, "no_list"),
     ({"content_strength": 0.5}, "strength_without"),
     ({"generator": 5, "seed": None}, "generator_kind"), ({"generator": [5], "seed": None}, "generator_kind"),
     ({"generator": [], "seed": None}, "no_generators"), ({"guidance_scale": "3"}, "no_number"),
     ({"content_size": "64"}, "no_whole_number"), ({"content_size": 64.5}, "no_whole_number"),
     ({"width": True}, "no_whole_number"), ({"latents": torch.zeros(1, 5, 64)}, "latents_shape"),
     ({"latents": torch.zeros(1, 16, 8, 8)}, "latents_shape"), ({"latents": np.zeros((1, 12, 64))}, "no_tensor"),
     ({"prompt": "", "prompt_embeds": torch.zeros(1, 9, 7), "pooled_prompt_embeds": torch.zeros(1, 64)},
      "embeds_shape"),
     ({"prompt": "", "prompt_embeds": [0.0], "pooled_prompt_embeds": [0.0]}, "no_tensor")],
)  # fmt: skip
def test_what_a_caller_gets_wrong_is_said(options: dict[str, Any], key: str, plain: USOPipeline) -> None:
    with pytest.raises(RequestError) as caught:
        ask(plain, **options)
    assert caught.value.key == key


def test_arguments_may_come_as_numpy_and_diffusers_write_them(
    plain: USOPipeline,
    images: list[Image.Image],  # noqa: F811
) -> None:
    style = images[1]
    expected = ask(plain, style_images=[style], style_strengths=[0.5], guidance_scale=3.5, num_inference_steps=2)
    numbers = {"style_strengths": np.array([0.5], np.float32), "guidance_scale": np.float32(3.5)}
    other = ask(plain, style_images=style, num_inference_steps=np.int64(2), **numbers)
    assert torch.equal(other, expected)
    text, pooled = plain.encode_prompt("a red cat")
    given = {"prompt": None, "style_images": None, "style_strengths": None}
    assert torch.equal(ask(plain, **given, prompt_embeds=text, pooled_prompt_embeds=pooled), ask(plain))
    with pytest.raises(RequestError):
        ask(plain, **given, prompt_embeds=text[:0], pooled_prompt_embeds=pooled[:0])


def test_palettes_are_part_of_an_image(plain: USOPipeline) -> None:
    """Equal numbers in other colours are another image, as style and as content."""
    made = []
    for colours in ([255, 0, 0, 0, 255, 0], [0, 0, 255, 9, 9, 9]):
        image = Image.new("P", (48, 48))
        image.putpalette(colours)
        image.paste(1, (0, 0, 24, 48))
        plainly = image.convert("RGB")
        made.append([ask(plain, style_images=[image]), ask(plain, content_image=image)])
        assert torch.equal(made[-1][0], ask(plain, style_images=[plainly]))
        assert torch.equal(made[-1][1], ask(plain, content_image=plainly))
    assert not any(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_nothing_is_used_again_that_replaced_parts_made(fresh: USOPipeline) -> None:
    before = ask(fresh, num_inference_steps=5)
    fresh.text_encoder_2 = copy.deepcopy(fresh.text_encoder_2)
    with torch.no_grad():
        fresh.text_encoder_2.shared.weight.mul_(3)
    other = ask(fresh, num_inference_steps=5)
    assert not torch.equal(other, before)
    fresh.scheduler = FlowMatchEulerDiscreteScheduler.from_config(fresh.scheduler.config, use_karras_sigmas=True)
    karras = ask(fresh, num_inference_steps=5)
    fresh.forget()
    assert torch.equal(ask(fresh, num_inference_steps=5), karras)
    assert not torch.equal(karras, other)
    fresh.to(torch.bfloat16)
    assert ask(fresh, num_inference_steps=5).dtype == torch.bfloat16


def test_a_lora_of_the_text_encoder_counts_at_once_and_goes_with_its_adapter(fresh: USOPipeline) -> None:
    before, modules = ask(fresh), dict(fresh.text_encoder.named_modules())
    name = next(name for name in modules if name.endswith("layers.0.self_attn.q_proj"))  # versions differ in the rest
    rows, columns = modules[name].weight.shape
    parts = {"lora_A": torch.randn(2, columns), "lora_B": torch.randn(rows, 2)}
    strong = {f"text_encoder.{name}.{part}.weight": tensor for part, tensor in parts.items()}
    fresh.load_lora_weights(strong, adapter_name="one")
    assert not torch.equal(ask(fresh), before)
    fresh.delete_adapters("one")
    assert torch.equal(ask(fresh), before)


def test_changes_to_the_transformers_adapters_count_at_once(call: Any, fresh: USOPipeline) -> None:
    plain, name = call(), "transformer_blocks.0.attn.to_q"
    rows, columns = fresh.transformer.get_submodule(name).weight.shape
    tensors = {f"transformer.{name}.lora_A.weight": torch.randn(2, columns) / columns**0.5,
               f"transformer.{name}.lora_B.weight": torch.randn(rows, 2)}  # fmt: skip
    accelerate_kernels(fresh, 100)
    fresh.load_lora_weights(tensors, adapter_name="one")
    whole = call(fresh)
    assert not torch.allclose(whole, plain, atol=1e-3)  # though the CPU kernels had copies of the weights
    fresh.transformer.disable_lora()
    assert torch.allclose(call(fresh), plain, atol=1e-3)
    fresh.transformer.enable_lora()
    fresh.transformer.set_adapters(["one"], weights=[0.5])
    assert not torch.allclose(call(fresh), whole, atol=1e-3)


def test_another_schedule_counts_at_once(call: Any, fresh: USOPipeline) -> None:
    before = call(fresh)
    fresh.scheduler.register_to_config(shift_terminal=0.3)
    changed = call(fresh)
    fresh.forget()
    assert torch.equal(call(fresh), changed)
    assert not torch.equal(changed, before)


def test_tiling_stays_as_it_was_set(call: Any, fresh: USOPipeline) -> None:
    fresh.vae.enable_tiling()
    call(fresh, output_type="pil")
    assert fresh.vae.use_tiling


def test_images_are_upright_and_on_white_as_from_a_file(plain: USOPipeline) -> None:
    def made(image: Image.Image) -> bytes:
        options = {"seed": 5, "content_size": 64, **SMALL}
        return plain("a cat", image, **options).images[0].tobytes()

    drawn = Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 20).convert("RGB")
    turned = drawn.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert made(turned) == made(drawn)
    clear = Image.merge("RGBA", (*drawn.split(), Image.new("L", drawn.size, 0)))
    assert made(clear) == made(Image.new("RGB", drawn.size, "white"))


def test_an_encoded_prompt_in_another_dtype_is_taken(plain: USOPipeline, call: Any) -> None:
    text, pooled = (each.to(torch.bfloat16) for each in plain.encode_prompt("a red cat"))
    made = plain(prompt_embeds=text, pooled_prompt_embeds=pooled, seed=5, output_type="latent", **SMALL).images
    assert torch.allclose(made, plain("a red cat", seed=5, output_type="latent", **SMALL).images, atol=0.2)
