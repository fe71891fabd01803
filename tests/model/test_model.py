"""Properties of the model package that hold for any weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from tests.conftest import GOLDEN
from uso_core.catalog.models import get_model
from uso_core.errors import RequestError, WeightsError
from uso_core.loaders.build import build_transformer
from uso_core.model import latents, preview
from uso_core.model.pipeline import USOPipeline
from uso_core.runtime.load import assemble
from uso_core.settings import ROOT, Settings

EMBEDDED = ROOT / "weights" / "uso-tiny"
SMALL = {"width": 64, "height": 48, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> USOPipeline:
    files = {"transformer": "flux.safetensors", "lora": "dit_lora.safetensors", "vae": "ae.safetensors"}
    paths = {role: EMBEDDED / files.get(role, role) for role in (*files, "t5", "clip", "siglip")}
    paths["projector"] = EMBEDDED / "projector.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uso_core.cpu.accelerate.has_kernels", lambda dtype: False)  # the blocks as a GPU has them
        made = assemble(paths, Settings(device="cpu", dtype="float32"), get_model("uso-tiny"))[0]
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(GOLDEN / f"{name}.png").convert("RGB") for name in ("content_a", "style_a", "style_b")]


@pytest.mark.parametrize("sides", [(2, 2), (4, 6), (10, 2)])
def test_unpack_undoes_pack(sides):
    image = torch.randn(2, 16, *sides)
    assert torch.equal(latents.unpack(latents.pack(image), sides[0] * 8, sides[1] * 8), image)


def test_a_token_is_a_2_by_2_patch_with_channels_first():
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    token = latents.pack(image)[0, 1]  # row 0, column 1
    assert token.tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_references_follow_the_diagonal():
    ids = latents.image_ids((3, 2), [(2, 4), (1, 1)])
    assert ids.shape == (3 * 2 + 2 * 4 + 1, 3)
    assert ids[0].tolist() == [0, 0, 0]
    assert ids[6].tolist() == [0, 3, 2]  # first reference starts at the target's size
    assert ids[13].tolist() == [0, 4, 5]
    assert ids[14].tolist() == [0, 5, 6]  # second one after both


def test_a_model_trained_on_squares_finds_references_at_their_distance():
    wide = latents.image_ids((2, 5), [(2, 5), (1, 1)], most_columns=2)
    assert wide[10].tolist() == [0, 2, 2]  # below the target, not beyond its right end
    assert wide[20].tolist() == [0, 4, 7]
    assert len(wide.unique(dim=0)) == len(wide)  # no two tokens at one place
    for size in ((3, 2), (2, 2)):
        assert latents.image_ids(size, [size], most_columns=2).equal(latents.image_ids(size, [size]))


def test_unpack_refuses_another_size():
    with pytest.raises(ValueError, match="5 tokens"):
        latents.unpack(torch.zeros(1, 5, 64), 32, 32)


def test_the_schedules_quirk_and_its_alternative():
    assert latents.schedule_tokens(1024, 1024) == 64
    assert latents.schedule_mu(64) == pytest.approx(0.4675)
    assert latents.schedule_tokens(1024, 1024, "flux") == 4096
    assert latents.schedule_mu(4096) == pytest.approx(1.15)
    with pytest.raises(ValueError, match="unknown schedule"):
        latents.schedule_tokens(64, 64, "karras")


def test_a_fitted_preview_finds_the_map_that_made_the_pixels():
    torch.manual_seed(0)
    matrix, offset = torch.randn(4, 3) * 0.1, torch.tensor([0.1, -0.2, 0.3])
    image = torch.randn(5, 4, 6, 8)
    pixels = torch.einsum("nchw,ck->nkhw", image, matrix) + offset[:, None, None]
    factors = preview.fit(image, pixels)
    torch.testing.assert_close(torch.tensor(factors), torch.cat([matrix, offset[None]]), rtol=1e-4, atol=1e-5)
    drawn = preview.draw(image[:1], factors)
    assert drawn is not None
    expected = (127.5 * (pixels[0].clamp(-1, 1) + 1)).permute(1, 2, 0)
    assert (torch.from_numpy(np.array(drawn)) - expected).abs().max() <= 1
    assert preview.draw(torch.zeros(1, 5, 6, 8), factors) is None


@pytest.mark.parametrize("guidance", [True, False])
def test_without_style_the_transformer_equals_the_base_class(guidance):
    torch.manual_seed(0)
    ours = build_transformer(GOLDEN / "flux.safetensors", None, torch.float32)
    base = FluxTransformer2DModel.from_config(dict(ours.config) | {"guidance_embeds": guidance})
    ours = type(ours).from_config(dict(ours.config) | {"guidance_embeds": guidance})
    ours.load_state_dict(base.state_dict())
    inputs = {
        "hidden_states": torch.randn(1, 12, 64),
        "encoder_hidden_states": torch.randn(1, 5, 48),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([3.5]) if guidance else None,
        "img_ids": latents.position_ids(3, 4),
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        assert torch.equal(ours(**inputs).sample, base(**inputs).sample)


def test_the_same_request_gives_the_same_bytes(pipeline, images):
    content, *styles = images
    runs = [pipeline("a cat", content, styles, seed=5, content_size=64, **SMALL).images[0] for _ in range(2)]
    assert runs[0].tobytes() == runs[1].tobytes()


def test_style_order_does_not_matter(pipeline, images):
    one, other = (
        pipeline("a cat", None, styles, seed=5, output_type="latent", **SMALL).images
        for styles in (images[1:], images[:0:-1])
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_every_input_matters(pipeline, images):
    content, style, other = images
    first = pipeline("a cat", content, [style], seed=5, content_size=64, output_type="latent", **SMALL).images
    for change in (
        ("a dog", content, [style]),
        ("a cat", None, [style]),
        ("a cat", content, []),
        ("a cat", content, [other]),
        ("a cat", content, [style, other]),
    ):
        changed = pipeline(*change, seed=5, content_size=64, output_type="latent", **SMALL).images
        assert not torch.allclose(first, changed, rtol=1e-3, atol=1e-3), change


@pytest.mark.parametrize(("width", "height"), [(16, 16), (16, 80), (112, 48), (100, 75), (128, 128)])
def test_sizes_are_floored_to_16(pipeline, width, height):
    image = pipeline("", width=width, height=height, num_inference_steps=1, seed=1).images[0]
    assert image.size == (width // 16 * 16, height // 16 * 16)


def test_several_generators_equal_as_many_single_runs(pipeline, images):
    seeds = (3, 4)
    together = pipeline(
        "a cat",
        images[0],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        content_size=64,
        **SMALL,
    ).images
    alone = [pipeline("a cat", images[0], seed=seed, content_size=64, **SMALL).images[0] for seed in seeds]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]


def test_callback_sees_every_step_and_may_change_the_latents(pipeline):
    seen: list[int] = []

    def zero(pipe, step, timestep, tensors):
        seen.append(step)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else None

    result = pipeline("", width=32, height=32, num_inference_steps=2, seed=1, callback_on_step_end=zero,
                      output_type="latent")  # fmt: skip
    assert seen == [0, 1]
    assert not result.images.any()


def test_an_error_in_a_callback_leaves_the_pipeline_usable(pipeline):
    def stop(pipe, step, timestep, tensors):
        raise KeyboardInterrupt

    before = pipeline("", seed=1, **SMALL).images[0].tobytes()
    with pytest.raises(KeyboardInterrupt):
        pipeline("", seed=1, callback_on_step_end=stop, **SMALL)
    assert pipeline("", seed=1, **SMALL).images[0].tobytes() == before


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ({"width": 0}, "0"),
        ({"height": 10**9}, "1000000000"),
        ({"num_inference_steps": -1}, "-1"),
        ({"guidance_scale": float("nan")}, "nan"),
        ({"output_type": "tf"}, "tf"),
        ({"schedule": "karras"}, "karras"),
        ({"seed": -5}, "-5"),
        ({"seed": 1, "generator": torch.Generator()}, "generator"),
        ({"generator": []}, "generators"),
    ],
)
def test_bad_values_are_refused_early_and_quoted(pipeline, options, quoted):
    with pytest.raises(RequestError, match=quoted):
        pipeline("a cat", **options)


@pytest.mark.parametrize(("part", "name", "steps"), [("transformer", "proj_out", 0), ("VAE", "decoder.conv_out", 2)])
def test_an_image_without_numbers_is_an_error_and_not_black(pipeline, part, name, steps):
    weight = getattr(pipeline, part.lower()).get_submodule(name).weight
    before, seen = weight.detach().clone(), list[int]()

    def count(_pipeline: USOPipeline, step: int, _timestep: torch.Tensor, _tensors: dict) -> None:
        seen.append(step)

    with torch.no_grad():
        weight[0] = torch.nan
    try:
        with pytest.raises(WeightsError) as caught:
            pipeline("a cat", width=64, height=64, num_inference_steps=2, seed=1, callback_on_step_end=count)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert caught.value.values == {"part": part, "dtype": "float32"}
    assert len(seen) == steps


def test_the_pipeline_saves_and_loads_offline(pipeline, images, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = USOPipeline.from_pretrained(tmp_path, local_files_only=True)
    content, *styles = images
    one, other = (
        pipe("a cat", content, styles, seed=5, content_size=64, **SMALL).images[0] for pipe in (pipeline, again)
    )
    assert one.tobytes() == other.tobytes()
    assert again.constants == pipeline.constants


@pytest.mark.parametrize("strengths", [(), (1.0, 1.0)])
def test_strength_1_equals_no_strength_bit_for_bit(pipeline, images, strengths):
    content, *styles = images
    plain, strong = (
        pipeline("a cat", content, styles, seed=5, content_size=64, output_type="latent", **options, **SMALL).images
        for options in ({}, {"content_strength": 1.0, "style_strengths": strengths})
    )
    assert torch.equal(plain, strong)


def test_strength_0_of_a_style_equals_no_style(pipeline, images):
    content, one, other = images
    silenced = pipeline("a cat", None, [one, other], seed=5, style_strengths=(1, 0), output_type="latent", **SMALL)
    left_out = pipeline("a cat", None, [one], seed=5, output_type="latent", **SMALL)
    torch.testing.assert_close(silenced.images, left_out.images, rtol=1e-3, atol=1e-4)


def test_strength_acts_smoothly_and_in_order(pipeline, images):
    """The farther from 1, the more the latents move; a small change of strength moves them a little."""

    def latents_at(strength):
        return pipeline("a cat", images[0], [images[1]], seed=5, content_size=64, output_type="latent",
                        content_strength=strength, style_strengths=(strength,), **SMALL).images  # fmt: skip

    base = latents_at(1)
    moved = [(latents_at(strength) - base).norm().item() for strength in (0.99, 0.7, 0.4, 0.1)]
    assert moved == sorted(moved)
    assert 0 < moved[0] < 0.1 * moved[-1]


@pytest.mark.parametrize(
    "options", [{"content_strength": 2.1}, {"style_strengths": (1,)}, {"style_strengths": (1, float("nan"))}]
)
def test_bad_strengths_are_refused(pipeline, images, options):
    with pytest.raises(RequestError, match="strength"):
        pipeline("a cat", None, images[1:], **options)
