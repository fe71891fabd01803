"""A plan carried out on a real pipeline: however parts are placed, the image is the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.model.test_model import images, pipeline  # noqa: F401  (fixtures)
from tests.test_speed import HEAVY, generate, own  # noqa: F401
from uso_core.memory.placement import layers_of, place
from uso_core.memory.plan import ON_DEMAND, STAYS, STREAMS, MemoryPlan, Placement
from uso_core.memory.planner import Machine, PlanOptions, plan
from uso_core.memory.sizes import Sizes, counts_of
from uso_core.model.pipeline import USOPipeline

CPU = torch.device("cpu")


def planned(pipeline: USOPipeline, where: dict[str, str], resident: int) -> MemoryPlan:  # noqa: F811
    """A plan for this pipeline with some groups placed differently from what a CPU needs."""
    parts = {"transformer": pipeline.transformer, "t5": pipeline.text_encoder_2, "clip": pipeline.text_encoder,
             "siglip": pipeline.image_encoder, "projector": pipeline.style_projector, "vae": pipeline.vae}  # fmt: skip
    made = plan(Machine("cpu", "", 10**11), Sizes(counts_of(parts), 4), PlanOptions())
    placements = tuple(
        Placement(each.group, where.get(each.group, each.where), each.bytes, each.device_bytes)
        for each in made.placements
    )
    return dataclasses.replace(made, placements=placements, resident_blocks=resident)


@pytest.mark.parametrize(
    ("where", "resident"),
    [
        ({}, 8),
        ({"t5": STREAMS}, 8),
        ({"t5": STREAMS, "siglip": STREAMS, "clip": ON_DEMAND, "projector": ON_DEMAND, "vae_decoder": ON_DEMAND}, 8),
        ({"modulation": STREAMS, "t5": STREAMS}, 3),
        ({"modulation": STAYS, "vae_decoder": ON_DEMAND}, 0),
    ],
)
def test_every_placement_makes_the_same_image(own, images, where, resident):  # noqa: F811
    alone = own.decode(generate(own, images), 64, 48)
    own.encodings.clear()
    modules = {name: getattr(own, name) for name in HEAVY}
    made = planned(own, where, resident)
    own.offloader = place(modules, made, CPU)
    assert made.streams_blocks == (resident < 8)
    for _ in range(2):  # and once more, after everything has come and gone
        assert torch.equal(own.decode(generate(own, images), 64, 48), alone)
        own.encodings.clear()
        own._prepared = None
    visitors = {name for what, name in own.offloader.events if what == "arrive"}
    expected = {"t5": "text_encoder_2", "siglip": "image_encoder", "clip": "text_encoder",
                "projector": "style_projector", "vae_decoder": "vae"}  # fmt: skip
    assert visitors == {name for group, name in expected.items() if where.get(group, STAYS) != STAYS}


def test_the_blocks_of_an_encoder_are_its_longest_list(own):  # noqa: F811
    assert layers_of(own.text_encoder_2) is own.text_encoder_2.encoder.block
    assert isinstance(layers_of(own.image_encoder), nn.ModuleList)


def test_a_large_image_is_decoded_in_tiles_if_the_plan_says_so(own, images):  # noqa: F811
    packed = generate(own, images, width=128, height=128, num_inference_steps=1)
    whole = own.decode(packed, 128, 128)
    place({name: getattr(own, name) for name in HEAVY}, planned(own, {}, 8), CPU)
    own.vae.tile_sample_min_size, own.vae.tile_latent_min_size = 64, 8
    own.untiled_pixels = 128 * 128 - 1
    tiled = own.decode(packed, 128, 128)
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < whole.std() / 4  # each tile lacks what lies around it
    small = generate(own, images)
    assert torch.equal(own.decode(small, 64, 48), own.decode(small, 64, 48))
    assert not own.vae.use_tiling
