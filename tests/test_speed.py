"""What makes it faster or smaller changes no number, or no more than it states."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image
from torch.nn.attention import SDPBackend

from tests.model.test_model import images, pipeline  # noqa: F401  (fixtures)
from uso_core.memory.offload import Offloader
from uso_core.memory.pinned import PinnedMemory
from uso_core.memory.streaming import BlockStream
from uso_core.model.attention import KERNELS, by_speed
from uso_core.model.denoising import TABLE_STEPS
from uso_core.model.encoding_cache import Encodings, image_key
from uso_core.model.pipeline import USOPipeline
from uso_core.model.step_cache import LAST, MOST_HITS, WARM_UP, StepCache
from uso_core.model.transformer import Modulation, USOTransformer2DModel
from uso_core.request import Sampling

HEAVY = ("text_encoder", "text_encoder_2", "image_encoder", "style_projector", "transformer", "vae")
CPU = torch.device("cpu")
SAMPLING = Sampling(width=64, height=48, steps=4)


@pytest.fixture
def own(pipeline: USOPipeline) -> USOPipeline:  # noqa: F811
    """A pipeline that a test may change."""
    parts = {name: copy.deepcopy(part) if name in HEAVY else part for name, part in pipeline.components.items()}
    return USOPipeline(**parts, **pipeline.constants)


def generate(pipeline: USOPipeline, images: list[Image.Image], **options) -> torch.Tensor:  # noqa: F811
    content, *styles = images
    given = {"width": 64, "height": 48, "num_inference_steps": 4, "seed": 5, "output_type": "latent", **options}
    return pipeline("a red mug", content, styles, content_size=64, **given).images


def inputs(transformer: FluxTransformer2DModel, batch: int = 1) -> dict:
    config, chance = transformer.config, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    return {
        "hidden_states": draw(batch, 6, config.in_channels),
        "encoder_hidden_states": draw(batch, 5, config.joint_attention_dim),
        "pooled_projections": draw(batch, config.pooled_projection_dim),
        "timestep": torch.linspace(0.2, 0.9, batch),
        "guidance": torch.full((batch,), 4.0) if config.guidance_embeds else None,
        "img_ids": draw(6, 3).round(),
        "txt_ids": torch.zeros(5, 3),
    }


@pytest.mark.parametrize("batch", [1, 3])
def test_the_table_gives_what_the_blocks_would_compute(pipeline, batch):  # noqa: F811
    ours = pipeline.transformer
    base = FluxTransformer2DModel.from_config(ours.config)
    base.load_state_dict(ours.state_dict(), strict=True)
    given = inputs(ours, batch)
    with torch.inference_mode():
        assert torch.equal(ours(**given).sample, base(**given).sample)


def test_a_step_sees_the_row_of_its_own_time(pipeline):  # noqa: F811
    transformer, given = pipeline.transformer, inputs(pipeline.transformer)
    sigmas = torch.tensor([1.0, 0.6, 0.2])
    with torch.inference_mode():
        table = transformer.modulation(sigmas, given["guidance"], given["pooled_projections"], torch.float32)
        for step, sigma in enumerate(sigmas):
            alone = transformer.modulation(sigma[None], given["guidance"], given["pooled_projections"], torch.float32)
            for rows, row in zip(table, alone, strict=True):
                torch.testing.assert_close(rows[step : step + 1], row, rtol=1e-5, atol=1e-5)


def test_steps_beyond_the_first_part_of_the_table_are_modulated_too(own, images):  # noqa: F811
    steps = TABLE_STEPS + 2
    condition = own.encode("a red mug")
    prepared = own.prepare(condition, Sampling(width=32, height=32, steps=steps))
    late = prepared.rows(own.transformer, steps - 1)
    level = prepared.sigmas[steps - 1 : steps]
    right = own.transformer.modulation(level, torch.tensor([4.0]), condition.pooled, torch.float32)
    for one, other in zip(late, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_another_seed_encodes_nothing_again(own, images):  # noqa: F811
    calls: Counter[str] = Counter()
    for name in ("text_encoder", "text_encoder_2", "image_encoder", "style_projector"):
        getattr(own, name).register_forward_hook(lambda *_, name=name: calls.update([name]))
    own.vae.encoder.register_forward_hook(lambda *_: calls.update(["vae encoder"]))
    for module in own.transformer.modules():
        if isinstance(module, torch.nn.Linear) and module in (
            own.transformer.context_embedder,
            own.transformer.time_text_embed.timestep_embedder.linear_1,
        ):
            module.register_forward_hook(lambda *_: calls.update(["hoisted"]))
    first = generate(own, images)
    counted = dict(calls)
    assert counted == {
        "text_encoder": 1, "text_encoder_2": 1, "image_encoder": 2, "style_projector": 2, "vae encoder": 1,
        "hoisted": 2,
    }  # fmt: skip
    other = generate(own, images, seed=6)
    assert dict(calls) == counted
    assert not torch.equal(first, other)
    assert torch.equal(first, generate(own, images))
    generate(own, images, guidance_scale=2.0)  # another table, but no encoder
    assert dict(calls) == {**counted, "hoisted": 4}


def test_a_changed_image_is_encoded(own, images):  # noqa: F811
    before = generate(own, images)
    changed = images[1].copy()
    changed.putpixel((0, 0), (255, 0, 255))
    misses = own.encodings.misses
    after = generate(own, [images[0], changed, images[2]])
    assert own.encodings.misses == misses + 1
    assert not torch.equal(before, after)


def test_encodings_are_limited_and_evict_the_oldest():
    kept = Encodings(max_bytes=100)
    for number in range(4):
        kept.get(number, lambda: (torch.zeros(10),))  # 40 bytes each
    assert kept.bytes == 80
    kept.get(2, lambda: (torch.zeros(10),))
    kept.get(4, lambda: (torch.zeros(10),))
    assert (kept.hits, kept.misses) == (1, 5)
    kept.get(2, lambda: (torch.zeros(10),))
    assert kept.hits == 2  # used last, so 3 was evicted
    (large,) = kept.get("large", lambda: (torch.ones(100),))
    assert large.sum() == 100
    assert kept.bytes == 0


def test_an_image_is_identified_by_its_pixels():
    one = Image.new("RGB", (2, 8), "red")
    assert image_key(one) == image_key(one.copy())
    assert image_key(one) != image_key(Image.new("RGB", (8, 2), "red"))
    assert image_key(one) != image_key(Image.new("RGB", (2, 8), "blue"))


def test_components_come_on_demand_one_at_a_time_and_change_nothing(own, images):  # noqa: F811
    alone = generate(own, images)
    own.encodings.clear()
    own.offloader = Offloader(CPU, {name: getattr(own, name) for name in HEAVY}, HEAVY)
    assert torch.equal(generate(own, images), alone)
    own.decode(alone, 64, 48)
    present: set[str] = set()
    for what, name in own.offloader.events:
        present = present | {name} if what == "arrive" else present - {name}
        assert len(present) <= 1
    arrived = [name for what, name in own.offloader.events if what == "arrive"]
    assert set(arrived) == set(HEAVY)
    assert arrived[-2:] == ["transformer", "vae"]


def test_weights_leave_the_device_without_being_copied_back():
    modules = {"a": torch.nn.Linear(4, 4), "b": torch.nn.Linear(4, 4)}
    home = {name: module.weight.data_ptr() for name, module in modules.items()}
    offloader = Offloader(CPU, modules, ["a", "b"])
    for name, other in (("a", "b"), ("b", "a"), ("a", "b")):
        assert offloader.use(name).weight.data_ptr() != home[name]
        assert modules[other].weight.data_ptr() == home[other]
    modules["a"].weight.data.fill_(7)  # what happened to the copy on the device is lost
    offloader.leave()
    assert {name: module.weight.data_ptr() for name, module in modules.items()} == home
    assert not (modules["a"].weight == 7).any()
    assert offloader.events == [
        ("arrive", "a"), ("leave", "a"), ("arrive", "b"), ("leave", "b"), ("arrive", "a"), ("leave", "a"),
    ]  # fmt: skip


def test_held_tensors_never_move():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    home = [part.weight.data_ptr() for part in module]
    offloader = Offloader(CPU, {"a": module}, ["a"], held=module[1].parameters())
    offloader.use("a")
    assert [part.weight.data_ptr() == place for part, place in zip(module, home, strict=True)] == [False, True]


def test_an_unknown_component_on_demand_is_refused():
    with pytest.raises(ValueError, match="'c'"):
        Offloader(CPU, {"a": torch.nn.Linear(1, 1)}, ["c"])


@pytest.mark.parametrize("piece", [0, 2**16, 2**22], ids=["where they are", "small pieces", "a large piece"])
@pytest.mark.parametrize(("resident", "slots"), [(0, 2), (1, 2), (3, 3), (0, 8), (8, 2)])
def test_streamed_blocks_compute_the_same(own, images, resident, slots, piece):  # noqa: F811
    alone = generate(own, images)
    transformer = own.transformer
    blocks = list(transformer.blocks)
    held = [each for part in transformer.modules() if isinstance(part, Modulation) for each in part.parameters()]
    stream = BlockStream(blocks, CPU, resident, slots, held, PinnedMemory(CPU, piece_bytes=piece) if piece else None)
    transformer.blocks = stream
    assert torch.equal(generate(own, images), alone)
    streamed = len(blocks) - resident
    assert stream.copies <= 4 * streamed + slots
    if streamed > slots:
        assert stream.copies >= 4 * streamed  # the slots really are reused
    stream.release()
    assert torch.equal(generate(own, images), alone)


def test_a_block_in_pinned_memory_is_copied_at_once():
    """Or in two runs if it begins in one piece and ends in the next."""
    for shapes, runs in (((30,), [1, 1, 1]), ((20, 30), [2, 2, 2])):  # 3960 bytes, or 1872 and 3960
        host = PinnedMemory(CPU, piece_bytes=2**12)
        blocks = [torch.nn.Sequential(*(torch.nn.Linear(size, size) for size in shapes)) for _ in range(3)]
        weights = [[each.clone() for each in block.parameters()] for block in blocks]
        stream = BlockStream(blocks, CPU, host=host)
        assert [len(parcel._runs) for parcel in stream._parcels] == runs
        for _ in range(2):
            for block, expected in zip(stream, weights, strict=True):
                assert all(torch.equal(one, other) for one, other in zip(block.parameters(), expected, strict=True))


def test_pinned_memory_keeps_what_it_is_given():
    host = PinnedMemory(CPU, expected_bytes=5000, piece_bytes=4096)
    convolution = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    given = [convolution, torch.tensor(2.5), torch.zeros(0, 3), torch.randn(7, 3).t(),
             torch.randn(40, 8).to(torch.float8_e4m3fn), torch.randn(3000).bfloat16()]  # fmt: skip
    kept = [host.keep(tensor) for tensor in given]
    for tensor, copy_ in zip(given, kept, strict=True):
        assert torch.equal(copy_.float(), tensor.float())
        assert (copy_.dtype, copy_.shape, copy_.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert copy_.data_ptr() % 16 == 0
    places = sorted((copy_.data_ptr(), copy_.data_ptr() + copy_.nbytes) for copy_ in kept)
    assert all(end <= begin for (_, end), (begin, _) in zip(places, places[1:], strict=False))
    assert host.bytes == 4096 + 8192  # the last one is larger than a piece


def test_pinned_memory_takes_powers_of_two_and_no_more_than_expected():
    host = PinnedMemory(CPU, expected_bytes=11 * 2**20, piece_bytes=2**23)
    for _ in range(11):
        host.keep(torch.zeros(2**20, dtype=torch.uint8))
    assert host.bytes == 2**23 + 2**22  # 3 MiB were left when the second piece was taken


def test_an_encoder_streams_its_layers(own, images):  # noqa: F811
    alone = generate(own, images)
    layers = own.text_encoder_2.encoder.block
    stream = BlockStream(list(layers), CPU, loops=False).attach()
    own.offloader = Offloader(
        CPU, {name: getattr(own, name) for name in HEAVY}, HEAVY, stream.carried,
        lambda name: stream.release() if name == "text_encoder_2" else None,
    )  # fmt: skip
    own.encodings.clear()
    assert torch.equal(generate(own, images), alone)
    assert stream.copies == len(layers)
    assert stream.device_bytes == 0


def test_an_interrupted_stream_continues(own, images):  # noqa: F811
    alone = generate(own, images)
    stream = own.transformer.blocks = BlockStream(list(own.transformer.blocks), CPU, 1)
    for end in range(1, len(stream)):
        for place, _ in enumerate(stream):
            if place == end:
                break
        assert torch.equal(generate(own, images), alone)


def test_a_slot_holds_another_blocks_weights_when_its_turn_is_over():
    blocks = [torch.nn.Linear(2, 2) for _ in range(4)]
    weights = [block.weight.detach().clone() for block in blocks]
    stream = BlockStream(blocks, CPU, 1)
    for _ in range(2):
        places = []
        for block, weight in zip(stream, weights, strict=True):
            assert torch.equal(block.weight, weight)
            places.append(block.weight.data_ptr())
        assert len(set(places[1:])) == 2  # three streamed blocks in two slots


def test_compiled_blocks_take_every_request_without_compiling_each():
    """One graph per block for the first sizes and one for all others, and as many where strengths differ from 1.

    The first two are as different as `warm_up`'s.
    """
    torch.compiler.reset()
    transformer = small_transformer()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, given: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = copy.deepcopy(transformer)
    compiled.compile_repeated_blocks(fullgraph=True, backend=keep)
    chance = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance)

    with torch.inference_mode():
        for text, image, strength in (
            (8, 12, 1), (5, 6, 1), (8, 6, 1), (9, 16, 1), (5, 12, 0.5), (8, 6, 0.5), (11, 9, 0), (7, 4, 1),
        ):  # fmt: skip
            bias = None if strength == 1 else torch.full((1, 1, 1, text + image), strength).log()
            if bias is not None:
                bias[..., :4] = 0
            given = {**inputs(transformer), "hidden_states": draw(1, image, 64), "img_ids": draw(image, 3).round(),
                     "encoder_hidden_states": draw(1, text, 16), "txt_ids": torch.zeros(text, 3),
                     "attention_bias": bias}  # fmt: skip
            assert torch.equal(compiled(**given).sample, transformer(**given).sample)
    assert len(graphs) <= 2 * 4  # double and single blocks
    torch.compiler.reset()


@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_the_step_cache_computes_what_it_must(threshold):
    steps, cache = 12, StepCache(12, threshold)
    reused = []
    for step in range(steps):
        before, after = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 1.0 + step)
        if cache.hit(after, before):
            reused.append(step)
            last = cache.reuse()
            assert torch.equal(last, after + 10)  # the rest of the last computed step
        else:
            last = after + 10
        cache.keep(last)
    assert (cache.computed, cache.reused) == (steps - len(reused), len(reused))
    if threshold == 0:
        assert reused == []
    else:
        assert reused == [4, 5, 7, 8]
        assert min(reused) >= WARM_UP
        assert max(reused) < steps - LAST
        assert MOST_HITS == 2


def test_fast_skips_steps_and_changes_little(own, images):  # noqa: F811
    options = {"num_inference_steps": 24}
    exact = generate(own, images, **options)
    calls: Counter[int] = Counter()
    for index, block in enumerate(own.transformer.blocks):
        block.register_forward_hook(lambda *_, index=index: calls.update([index]))
    fast = generate(own, images, **options, fast=True)
    assert calls[0] == 24
    assert 12 <= calls[1] < 24
    change = (fast - exact).norm() / exact.norm()
    assert 0 < change < 0.1


def small_transformer() -> USOTransformer2DModel:
    return USOTransformer2DModel(
        num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=16,
        pooled_projection_dim=8, axes_dims_rope=(4, 14, 14),
    )  # fmt: skip


def test_a_transformer_is_saved_and_loaded_with_its_table(tmp_path):
    made = small_transformer()
    made.save_pretrained(tmp_path)
    again = USOTransformer2DModel.from_pretrained(tmp_path, local_files_only=True)
    assert again.config.num_single_layers == 2
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in made.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(made(**inputs(made)).sample, again(**inputs(made)).sample)


def test_attention_kernels_are_ordered_by_their_speed_here():
    asked = (SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)
    order = by_speed((1, 4, 96, 64), torch.float32, CPU, asked)
    assert order == [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]  # cuDNN is not here


@pytest.mark.parametrize("order", [[SDPBackend.MATH], [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]])
def test_every_kernel_makes_the_same_image(own, images, order):  # noqa: F811
    alone = generate(own, images, content_strength=0.5)
    own.sdpa_backends = [*order, SDPBackend.MATH]
    torch.testing.assert_close(generate(own, images, content_strength=0.5), alone, rtol=1e-3, atol=1e-4)


def test_cudnn_is_not_asked_for_strengths(own, images, monkeypatch):  # noqa: F811
    """It was timed without anything added to the logits."""
    asked = []
    monkeypatch.setattr(
        "uso_core.model.attention.sdpa_kernel", lambda kernels, **_: asked.append(kernels) or nullcontext()
    )
    own.sdpa_backends = list(KERNELS)
    generate(own, images, content_strength=0.5)
    generate(own, images)
    assert [SDPBackend.CUDNN_ATTENTION in kernels for kernels in asked] == [False] * 4 + [True] * 4


def test_strengths_still_apply_through_prepared_requests(own, images):  # noqa: F811
    plain = generate(own, images)
    assert torch.equal(plain, generate(own, images, content_strength=1.0, style_strengths=[1.0, 1.0]))
    assert not torch.equal(plain, generate(own, images, content_strength=0.5))
