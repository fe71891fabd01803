"""What an image costs at full size, counted on meta tensors: a change of these numbers is a change of speed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import counts
from benchmarks.counts import MODES, Counting, Tally, full_counts, full_size
from uso_core.memory.pinned import PinnedMemory
from uso_core.memory.planner import HOST_WASTE_PART
from uso_core.memory.sizes import ENCODER_ACTIVATION_BYTES, Sizes, counts_of
from uso_core.memory.sizes import FLUX_COUNTS as FLUX
from uso_core.model.transformer import Modulation

SIZES = Sizes(FLUX)


class Pieces(PinnedMemory):
    """Takes no memory."""

    def _empty(self, size: int, locked: bool) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device="meta")


@pytest.fixture(scope="module")
def halves() -> dict[str, tuple[Tally, Tally]]:
    """What the transformer computes once, and in each step, by mode."""
    return {mode: counts.hoisted(full_size()["transformer"], *tokens) for mode, tokens in MODES.items()}


@pytest.fixture(scope="module")
def once() -> dict[str, Tally]:
    return counts.once(full_size())


def test_the_plan_is_made_from_the_parameters_of_the_modules():
    assert full_counts() == FLUX


def test_no_parameter_is_left_out():
    for role, part in full_size().items():
        whole = sum(parameter.numel() for parameter in part.parameters())
        if role == "transformer":
            assert whole == FLUX.transformer == 11_901_408_320
        elif role == "t5":
            assert whole == sum(each.matrices + each.rest for each in FLUX.t5_blocks) + FLUX.t5_rest == 4_762_310_656
        elif role == "siglip":
            assert whole == sum(FLUX.siglip_layers) + FLUX.siglip_rest
        elif role == "vae":
            assert whole == FLUX.vae_encoder + FLUX.vae_decoder
        else:
            assert whole == getattr(FLUX, role)


def test_bytes_of_the_heavy_groups():
    assert sum(SIZES.blocks(fp8=False)) == 17_217_431_552
    assert sum(SIZES.blocks(fp8=True)) == 8_618_657_792
    assert sum(SIZES.modulation) == 6_494_896_128
    assert (
        sum(SIZES.t5_blocks(fp8=True)) < sum(SIZES.t5_blocks(fp8=False)) * 0.62
    )  # T5 keeps one matrix of seven as it is
    assert SIZES.modulation_table(steps=25) == 52_838_400


@pytest.mark.parametrize(
    ("mode", "tflop"),
    [("text only", 74.4), ("content", 95.0), ("style", 78.1), ("content + style", 99.0), ("two styles", 81.9)],
)
def test_a_step(halves, mode, tflop):
    _, tally = halves[mode]
    assert tally.flops / 1e12 == pytest.approx(tflop, abs=0.08)
    assert (tally.matrix_products, tally.attentions) == (420, 57)
    assert set(tally.products) == {"addmm"}


def test_nothing_that_no_step_changes_is_computed_in_a_step(halves):
    """The 77 adaLN layers, the embedders of time, guidance, pooled text, text and content, and an unread output."""
    content, style = MODES["content + style"]
    whole = counts.forward(full_size()["transformer"], content, style)
    first, step = halves["content + style"]
    assert whole.matrix_products == 504
    assert first.matrix_products == 77 + 6 + 2
    embedded = 2 * 3072 * (64 * counts.CONTENT_TOKENS + 4096 * counts.TEXT_TOKENS)  # content and text
    adaln = 2 * 3072 * sum((each // 3073) for each in FLUX.modulation)
    embedders = 2 * 3072 * (2 * 256 + 768 + 3 * 3072)
    output = 2 * 3072 * 64 * counts.CONTENT_TOKENS  # of content tokens, which nobody reads
    assert whole.flops - step.flops == embedded + adaln + embedders + output
    time = 2 * 3072 * (256 + 3072)  # the only embedder whose input differs from step to step
    assert first.flops == embedded + counts.STEPS * (adaln + time) + embedders - time


@pytest.mark.parametrize(
    ("stage", "tflop", "products", "attentions"),
    [
        ("t5", 4.845, 168, 24),
        ("clip", 0.013, 72, 12),
        ("siglip", 0.670, 170, 27),
        ("vae encode", 1.118, 31, 1),
        ("vae decode", 10.472, 39, 1),
    ],
)
def test_the_part_computed_once(once, stage, tflop, products, attentions):
    tally = once[stage]
    assert tally.flops / 1e12 == pytest.approx(tflop, abs=0.001)
    assert (tally.matrix_products, tally.attentions) == (products, attentions)


def test_the_bounds_of_activations_hold_and_are_not_loose(halves, once):
    for mode, (content, style) in MODES.items():
        tokens = counts.TARGET_TOKENS + counts.TEXT_TOKENS + content + style
        bound = SIZES.step(tokens, fp8=False)
        fixed = 2 * 3072 * (counts.TEXT_TOKENS + content + style) + 4 * 2 * 128 * tokens  # embedded, and RoPE's table
        assert bound / 1.1 < halves[mode][1].peak_bytes + fixed <= bound
    assert once["vae encode"].peak_bytes <= SIZES.encode(512**2) < 1.6 * once["vae encode"].peak_bytes
    assert once["vae decode"].peak_bytes <= SIZES.decode(1024**2, False) < 1.6 * once["vae decode"].peak_bytes
    assert all(once[name].peak_bytes <= ENCODER_ACTIVATION_BYTES for name in ("t5", "clip", "siglip"))


def test_the_bound_of_a_step_holds_in_float32():
    with torch.device("meta"):
        small = counts.USOTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    tally = counts.forward(small, 0, 192, target=1024)
    sizes = Sizes(FLUX, dtype_bytes=4)
    tokens = 1024 + counts.TEXT_TOKENS + 192
    bound = sizes.step(tokens, fp8=False)
    assert bound / 1.1 < tally.peak_bytes <= bound


def test_a_tile_takes_what_is_stated():
    vae = full_size()["vae"]
    with torch.device("meta"):
        latents = torch.empty(1, 16, 64, 64, dtype=torch.bfloat16)
    tally = counts.count(vae, lambda: vae.decode(latents), [latents])
    assert tally.peak_bytes <= SIZES.decode(512**2, True)
    assert SIZES.decode(2048**2, True) < SIZES.decode(2048**2, False) / 5


def test_the_embedded_model_is_counted_by_the_same_rules():
    from uso_core.catalog.locate import find_weights
    from uso_core.catalog.models import MODELS
    from uso_core.loaders import build, encoders
    from uso_core.settings import Settings

    paths = find_weights(MODELS["uso-tiny"], Settings()).require()
    parts = {
        "transformer": build.build_transformer(paths["transformer"], paths["lora"], torch.float32),
        "t5": encoders.build_t5(paths["t5"], torch.float32)[0],
        "clip": encoders.build_clip(paths["clip"], torch.float32)[0],
        "siglip": encoders.build_siglip(paths["siglip"], torch.float32)[0],
        "projector": build.build_projector(paths["projector"], torch.float32),
        "vae": build.build_vae(paths["vae"], torch.float32),
    }
    sizes = Sizes(counts_of(parts), dtype_bytes=4)
    held = sum(parameter.nbytes for part in parts.values() for parameter in part.parameters())
    assert sizes.total() == held
    assert len(sizes.counts.blocks) == len(parts["transformer"].transformer_blocks) + len(
        parts["transformer"].single_transformer_blocks
    )
    vae = parts["vae"]
    with torch.no_grad():
        latents = torch.zeros(1, vae.config.latent_channels, 16, 16)
        with Counting([*vae.parameters(), latents]) as tally:
            vae.decode(latents)
    assert 0 < tally.peak_bytes <= sizes.decode(128**2, False)


def test_counting_itself():
    """Two products, one attention, and live bytes that fall when a tensor dies."""
    layer = nn.Linear(8, 16, bias=False)
    x = torch.zeros(4, 8)
    with torch.no_grad(), Counting([layer.weight, x]) as tally:
        y = layer(x)  # 4 x 16 float32
        z = nn.functional.scaled_dot_product_attention(y[None], y[None], value=y[None])
        assert tally.live_bytes == 2 * 4 * 16 * 4
        del z
        assert tally.live_bytes == 4 * 16 * 4
    assert tally.flops == 2 * 4 * 8 * 16 + 2 * 2 * 4 * 4 * 16
    assert (tally.matrix_products, tally.attentions) == (1, 1)
    assert tally.peak_bytes == 2 * 4 * 16 * 4


def test_the_report_is_written(tmp_path, capsys, monkeypatch, halves, once):
    """The same tallies, reported: every mode, every stage, every tier with its plan."""
    by_tokens = {tokens: halves[mode] for mode, tokens in MODES.items()}
    monkeypatch.setattr(counts, "hoisted", lambda transformer, *tokens: by_tokens[tokens])
    monkeypatch.setattr(counts, "once", lambda parts: once)
    monkeypatch.setattr("sys.argv", ["counts", "--json", str(tmp_path / "counts.json")])
    counts.main()
    values = json.loads((tmp_path / "counts.json").read_text())
    assert values["parameters"]["transformer"] == 11_901_408_320
    assert set(values["step"]) == set(MODES)
    assert len(values["plans"]) == len(counts.LADDER)
    printed = capsys.readouterr().out
    assert "content + style" in printed
    assert all(each["sentence"] in printed for each in values["plans"].values())


@pytest.mark.parametrize("resident", [57, 26, 0])
def test_pinned_memory_is_what_the_plan_counts(resident):
    """Pieces of a power of two, filled with the tensors of modulation, streamed blocks and components on demand in
    order.
    """
    transformer = full_size()["transformer"]
    modulation = [each for part in transformer.modules() if isinstance(part, Modulation) for each in part.parameters()]
    streamed = [each for block in list(transformer.blocks)[resident:] for each in block.parameters()]
    visitors = [
        each for role in ("t5", "clip", "siglip", "projector", "vae") for each in full_size()[role].parameters()
    ]
    waiting = list({id(each): each for each in (*modulation, *streamed, *visitors)}.values())
    total = sum(each.nbytes for each in waiting)
    planned = total + total // HOST_WASTE_PART
    expected = planned - planned // (HOST_WASTE_PART + 1)  # as `place` reports it
    assert abs(expected - total) <= 1
    host = Pieces(torch.device("cpu"), expected)
    for each in waiting:
        host.keep(each)
    assert total < host.bytes <= planned
