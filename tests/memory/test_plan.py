"""The memory plan as a table: every tier, every option, the bounds between them, refusals, and the sentences."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from uso_core.errors import MemoryShortage, exit_code
from uso_core.memory.plan import ON_DEMAND, STAYS, STREAMS, MemoryPlan
from uso_core.memory.planner import HOST_WASTE_PART, Machine, PlanOptions, budget_of, plan, reserve
from uso_core.memory.sizes import FLUX_COUNTS as FLUX
from uso_core.memory.sizes import GB, Counts, Piece, Sizes
from uso_core.messages import message, size_text
from uso_core.settings import ROOT

GIB = 2**30
TINY = Counts(
    blocks=(Piece(400_000, 1_500, 2_000),) * 6,
    modulation=(300_000,) * 9,
    ends=100_000,
    t5_blocks=(Piece(100_000, 500, 500),) * 2,
    t5_rest=100_000,
    clip=500_000,
    siglip_layers=(100_000,) * 2,
    siglip_rest=50_000,
    projector=100_000,
    vae_encoder=500_000,
    vae_decoder=500_000,
    width=256,
    largest_matrix=200_000,
    encoder_width=32,
    decoder_width=64,
)
LOSSLESS, FAST = PlanOptions(), PlanOptions(fp8=True)
OFFLOAD, OFFLOAD_FAST = PlanOptions(offload=True), PlanOptions(fp8=True, offload=True)


def card(gibibytes: float, name: str = "NVIDIA GPU", ram: int = 64 * GB, multiplies_fp8: bool = True) -> Machine:
    """A card of this nominal size, 3 % of which is taken before anything of ours."""
    total = int(gibibytes * GIB)
    return Machine("cuda", name, ram, total * 97 // 100, total, multiplies_fp8)


def free(size: int, ram: int = 64 * GB) -> Machine:
    """A card with exactly this much free."""
    return Machine("cuda", "NVIDIA GPU", ram, size, size, True)


def places(made: MemoryPlan) -> tuple[str, str, str]:
    return made.where("t5"), made.where("modulation"), made.where("clip")


@pytest.mark.parametrize(
    ("gibibytes", "options", "tier", "where", "resident", "tiled"),
    [
        (80, LOSSLESS, "40 GB", (STAYS, STAYS, STAYS), 57, False),
        (80, FAST, "32 GB", (STAYS, STAYS, STAYS), 57, False),
        (48, LOSSLESS, "40 GB", (STAYS, STAYS, STAYS), 57, False),
        (40, LOSSLESS, "40 GB", (STAYS, STAYS, STAYS), 57, False),
        (32, FAST, "32 GB", (STAYS, STAYS, STAYS), 57, False),
        (24, LOSSLESS, "24 GB", (STREAMS, STREAMS, STAYS), 57, False),
        (24, FAST, "24 GB fast", (STAYS, STREAMS, STAYS), 57, False),
        (16, FAST, "16 GB", (STREAMS, STREAMS, STAYS), 57, False),
        (12, FAST, "12 GB", (STREAMS, STREAMS, ON_DEMAND), 57, True),
        (24, OFFLOAD_FAST, "12 GB", (STREAMS, STREAMS, ON_DEMAND), 57, True),
        (24, OFFLOAD, "24 GB", (STREAMS, STREAMS, ON_DEMAND), 57, True),
    ],
)
def test_the_tiers(gibibytes, options, tier, where, resident, tiled):
    made = plan(card(gibibytes), Sizes(FLUX), options)
    assert (made.tier, places(made), made.resident_blocks, made.tiled_decode) == (tier, where, resident, tiled)
    assert made.fp8 == options.fp8
    assert not made.t5_fp8
    assert not made.streams_blocks
    assert made.slots == 0
    assert made.peak_bytes <= made.budget_bytes == budget_of(card(gibibytes), options)


@pytest.mark.parametrize(
    ("gibibytes", "options"), [(8, FAST), (6, FAST), (16, LOSSLESS), (12, LOSSLESS), (8, LOSSLESS)]
)
def test_blocks_stream_if_they_cannot_stay(gibibytes, options):
    made = plan(card(gibibytes), Sizes(FLUX), options)
    assert 0 < made.resident_blocks < 57
    assert made.slots == 3
    assert made.where("blocks") == STREAMS
    assert places(made) == (STREAMS, STREAMS, ON_DEMAND)
    assert made.fp8 == options.fp8
    slots = 3 * max(Sizes(FLUX).blocks(made.fp8)[made.resident_blocks :])
    assert made.placements[0].device_bytes == sum(Sizes(FLUX).blocks(made.fp8)[: made.resident_blocks]) + slots
    one_more = sum(Sizes(FLUX).blocks(made.fp8)[made.resident_blocks :][:1])
    assert made.peak_bytes + one_more > made.budget_bytes  # as many as fit


@pytest.mark.parametrize("gibibytes", [12, 16, 24, 48, 80])
def test_offload_in_fp8_stays_below_its_target(gibibytes):
    made = plan(card(gibibytes), Sizes(FLUX), OFFLOAD_FAST)
    assert made.peak_bytes <= 10.5 * GB
    assert not made.streams_blocks
    assert {made.where(group) for group in ("t5", "clip", "siglip", "projector", "vae_encoder", "vae_decoder")} <= {
        ON_DEMAND,
        STREAMS,
    }


@pytest.mark.parametrize("machine", [card(8), free(8 * GB), card(24), card(80)])
def test_the_8_gb_tier_stays_below_its_target(machine):
    made = plan(machine, Sizes(FLUX), dataclasses.replace(FAST, vram_limit_bytes=8 * GB))
    assert made.streams_blocks
    assert made.peak_bytes <= 7 * GB


@pytest.mark.parametrize(
    ("machine", "limit"), [(card(24), None), (free(24 * GB), None), (card(80), 24 * GB), (card(48), 24 * GB)]
)
def test_the_lossless_24_gb_tier_stays_below_its_target(machine, limit):
    made = plan(machine, Sizes(FLUX), PlanOptions(vram_limit_bytes=limit))
    assert made.peak_bytes <= 22.5 * GB
    assert not made.streams_blocks
    assert not made.fp8
    assert not made.t5_fp8


@pytest.mark.parametrize("options", [LOSSLESS, FAST, OFFLOAD, OFFLOAD_FAST])
@pytest.mark.parametrize("ram", [12 * GB, 64 * GB])
def test_more_memory_never_gives_a_slower_plan_and_none_exceeds_it(options, ram):
    before: tuple[int, ...] | None = None
    planned = 0
    for tenths in (*range(20, 120, 9), *range(120, 480, 30)):
        machine = free(tenths * GB // 10, ram)
        try:
            made = plan(machine, Sizes(FLUX), options)
        except MemoryShortage:
            assert before is None, "what fits in less does not fit in more"
            continue
        planned += 1
        assert made.peak_bytes <= budget_of(machine, options)
        assert made.host_bytes == 0 or made.host_bytes + 2 * GB <= ram
        assert before is None or made.order <= before
        assert options.fp8 or not (made.fp8 or made.t5_fp8)
        before = made.order
    assert planned > 10


@pytest.mark.parametrize(("fewer", "more"), [(8, 16), (16, 32), (32, 64)])
def test_more_ram_never_gives_a_slower_plan(fewer, more):
    orders = [plan(card(12, ram=ram * GB), Sizes(FLUX), FAST).order for ram in (fewer, more)]
    assert orders[1] <= orders[0]


@pytest.mark.parametrize("options", [LOSSLESS, FAST])
def test_one_byte_decides(options):
    everything = plan(card(80), Sizes(FLUX), options)
    peak = everything.peak_bytes
    enough = next(size for size in range(peak * 16 // 15 - 16, peak * 2) if size - reserve(size) >= peak)
    assert plan(free(enough), Sizes(FLUX), options).order == everything.order
    assert plan(free(enough - 1), Sizes(FLUX), options).order > everything.order


def test_the_limit_counts_if_it_is_lower_than_what_is_free():
    limited = plan(card(80), Sizes(FLUX), dataclasses.replace(FAST, vram_limit_bytes=12 * GB))
    assert limited.peak_bytes <= 12 * GB - reserve(12 * GB)
    assert plan(card(12), Sizes(FLUX), dataclasses.replace(FAST, vram_limit_bytes=80 * GB)) == plan(
        card(12), Sizes(FLUX), FAST
    )


def test_every_group_has_its_place_and_nothing_is_counted_twice():
    for options in (LOSSLESS, FAST, OFFLOAD_FAST):
        sizes = Sizes(FLUX)
        made = plan(card(24), sizes, options)
        assert sum(each.bytes for each in made.placements) == sizes.total(made.fp8, made.t5_fp8)
        assert all(each.device_bytes <= each.bytes for each in made.placements)
        assert all((each.device_bytes == each.bytes) or each.where == STREAMS for each in made.placements)


# -- RAM ---------------------------------------------------------------------------------------------------------------


def test_groups_on_demand_rest_in_pinned_ram():
    made = plan(card(12), Sizes(FLUX), FAST)
    visitors = sum(each.bytes for each in made.placements if each.where != STAYS)
    assert made.pinned
    assert made.host_bytes == visitors + visitors // HOST_WASTE_PART
    assert plan(card(80), Sizes(FLUX), FAST).host_bytes == 0


def test_with_little_ram_groups_on_demand_are_read_from_mapped_files():
    made = plan(card(16, ram=14 * GB), Sizes(FLUX), LOSSLESS)
    assert made.streams_blocks
    assert made.host_bytes + 2 * GB <= 14 * GB
    assert not made.pinned
    assert made.notes[-1] == message("plan_note_from_disk")
    assert "disk" in str(made.summary)
    assert ("T5, bf16", "streamed from disk", "9.5 GB") in shown(made)


def test_fp8_of_t5_comes_before_the_disk():
    visitors = plan(card(12), Sizes(FLUX), FAST).host_bytes
    made = plan(card(12, ram=visitors + 2 * GB - 1), Sizes(FLUX), FAST)
    assert made.pinned
    assert made.t5_fp8
    assert "T5 in fp8" in str(made.summary)


def test_too_little_ram_for_the_blocks_is_refused_with_numbers():
    with pytest.raises(MemoryShortage) as caught:
        plan(card(8, ram=4 * GB), Sizes(FLUX), FAST)
    assert "of RAM" in caught.value.message
    assert "4.0 GB are free" in caught.value.message


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_too_small_a_card_is_refused_with_numbers(capsys):
    with pytest.raises(MemoryShortage) as caught:
        plan(free(25 * GB // 10), Sizes(FLUX), LOSSLESS)
    assert caught.value.message == (
        "The model needs at least 2.8 GB of GPU memory during text encoding; "
        "2.5 GB are free, of which 1.4 GB are reserved."
    )
    assert caught.value.hint == (
        "Use --name flux-dev-fp8, which needs about half. Close other programs. Or use --name uso-tiny."
    )
    assert exit_code(caught.value) == 2
    assert "error: The model needs" in capsys.readouterr().err


def test_too_low_a_limit_is_named():
    with pytest.raises(MemoryShortage) as caught:
        plan(card(24), Sizes(FLUX), dataclasses.replace(FAST, vram_limit_bytes=2 * GB))
    assert "the limit is 2.0 GB" in caught.value.message
    assert "--vram-limit" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "dtype_bytes", "needed", "hint"),
    [
        (LOSSLESS, 4, "needs at least 70.7 GB", "flux-dev-fp8"),
        (FAST, 4, "of memory", "--dtype bfloat16"),
        (FAST, 2, "needs at least 2", "uso-tiny"),
    ],
)
def test_a_cpu_without_the_memory_is_refused(options, dtype_bytes, needed, hint):
    with pytest.raises(MemoryShortage) as caught:
        plan(Machine("cpu", "CPU", 16 * GB), Sizes(FLUX, dtype_bytes), options)
    assert needed in caught.value.message
    assert "16.0 GB are free, of which 2.0 GB are reserved" in caught.value.message
    assert hint in caught.value.hint


# -- other machines ----------------------------------------------------------------------------------------------------


def test_a_cpu_keeps_everything_in_memory():
    made = plan(Machine("cpu", "CPU", 96 * GB), Sizes(FLUX, 4), LOSSLESS)
    assert all(each.where == STAYS for each in made.placements)
    assert not made.compile
    assert made.dtype == "float32"
    assert str(made.summary) == "CPU: everything stays in memory, blocks in float32; peak about 74.3 GB."


def test_a_cpu_with_room_keeps_copies_of_the_transformer():
    made = plan(Machine("cpu", "CPU", 128 * GB), Sizes(FLUX, 4), LOSSLESS)
    assert made.cpu_kernels
    assert str(made.summary) == (
        "CPU: everything stays in memory, blocks in float32 with CPU kernels; peak about 121.7 GB."
    )
    assert ("copies of the transformer for CPU kernels", "stays in memory", "47.4 GB") in shown(made)
    assert plan(Machine("cpu", "CPU", 4 * GB), Sizes(TINY), LOSSLESS).cpu_kernels
    for machine, options in (
        (Machine("cpu", "CPU", 96 * GB), LOSSLESS),  # no room
        (Machine("cpu", "CPU", 128 * GB), FAST),  # fp8 has products of its own
        (Machine("cpu", "CPU", 128 * GB), dataclasses.replace(LOSSLESS, compile=True)),
        (card(80), LOSSLESS),
        (Machine("mps", "M3", 256 * GB, 256 * GB, 256 * GB), LOSSLESS),
    ):
        made = plan(machine, Sizes(FLUX, 4), options)
        assert not made.cpu_kernels
        assert "packed" not in str(made.summary)


def test_a_cpu_may_hold_fp8():
    made = plan(Machine("cpu", "CPU", 40 * GB), Sizes(FLUX), OFFLOAD_FAST)
    assert made.fp8
    assert all(each.where == STAYS for each in made.placements)


@pytest.mark.parametrize("options", [LOSSLESS, FAST, OFFLOAD_FAST])
def test_an_apple_gpu_keeps_everything_and_never_fp8(options):
    made = plan(Machine("mps", "Apple M3 Max", 60 * GB, 48 * GB, 48 * GB), Sizes(FLUX), options)
    assert all(each.where == STAYS for each in made.placements)
    assert not made.fp8
    assert not made.t5_fp8
    assert not made.compile
    assert str(made.summary) == "Apple GPU: everything stays in memory, blocks in bf16; peak about 38.1 GB."
    assert [str(note) for note in made.notes if note.key == "plan_note_no_fp8"] == [
        "Apple GPUs do not compute fp8: the weights stay unquantized."
    ] * options.fp8


def test_an_apple_gpu_takes_no_more_than_the_ram_that_is_free():
    with pytest.raises(MemoryShortage):
        plan(Machine("mps", "Apple M3 Max", 30 * GB, 48 * GB, 48 * GB), Sizes(FLUX), LOSSLESS)


@pytest.mark.parametrize(
    "machine", [Machine("cpu", "CPU", 3 * GB), Machine("mps", "M1", 4 * GB, 5 * GB), free(2 * GB, 3 * GB), card(80)]
)
@pytest.mark.parametrize("options", [LOSSLESS, FAST, OFFLOAD_FAST])
def test_the_embedded_model_stays_anywhere(machine, options):
    small = dataclasses.replace(options, width=128, height=128, content_size=128, steps=16)
    made = plan(machine, Sizes(TINY), small)
    assert all(each.where == STAYS for each in made.placements)
    assert not made.fp8
    assert made.peak_bytes < GB // 4
    assert str(made.summary).startswith("Embedded model: everything stays ")


def test_a_gpu_that_cannot_multiply_fp8_is_reported():
    old = card(12, "NVIDIA GeForce RTX 3060", multiplies_fp8=False)
    assert plan(old, Sizes(FLUX), FAST).notes[0].key == "plan_note_fp8_is_slow"
    assert not plan(card(12), Sizes(FLUX), FAST).notes


def test_a_gpu_without_bfloat16_is_not_supported_and_says_so():
    old = dataclasses.replace(card(16, "Tesla T4", multiplies_fp8=False), multiplies_bfloat16=False)
    assert plan(old, Sizes(FLUX), FAST).notes[0].key == "plan_note_no_bfloat16"
    assert str(plan(old, Sizes(FLUX), FAST).notes[0]).startswith("Not supported: Tesla T4")
    assert not plan(old, Sizes(TINY), LOSSLESS).notes


# -- what follows from a plan ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wish", "compiled"), [(None, True), (True, True), (False, False)])
def test_compiling_is_an_option(wish, compiled):
    assert plan(card(24), Sizes(FLUX), PlanOptions(compile=wish)).compile is compiled
    assert plan(Machine("cpu", "CPU", 99 * GB), Sizes(FLUX), PlanOptions(compile=wish)).compile is bool(wish)


def test_blocks_are_not_compiled_if_they_cannot_be():
    obstacle = "Cannot find a working triton installation."
    machine = dataclasses.replace(card(24, "NVIDIA GeForce RTX 4090"), obstacle=obstacle)
    made = plan(machine, Sizes(FLUX), FAST)
    assert not made.compile
    assert message("plan_note_not_compiled", obstacle=obstacle) in made.notes
    quiet = plan(machine, Sizes(FLUX), dataclasses.replace(FAST, compile=False))
    assert quiet.notes == ()


def test_compiling_the_embedded_model_would_take_longer_than_its_images():
    assert not plan(card(24), Sizes(TINY), LOSSLESS).compile
    assert plan(card(24), Sizes(TINY), PlanOptions(compile=True)).compile


def test_larger_images_are_decoded_in_tiles_if_they_would_not_fit():
    made = plan(card(24), Sizes(FLUX), LOSSLESS)
    assert made.untiled_pixels >= 1024 * 1024
    assert made.untiled_pixels < 2048 * 2048
    assert plan(card(80), Sizes(FLUX), FAST).untiled_pixels >= 2048 * 2048
    tiled = plan(card(12), Sizes(FLUX), FAST)
    assert tiled.untiled_pixels < 1024 * 1024
    assert tiled.untiled_pixels == 512 * 512  # one tile


def test_larger_options_need_more():
    small, large = (plan(card(80), Sizes(FLUX), PlanOptions(width=side, height=side)) for side in (1024, 2048))
    assert large.stages["steps"] > small.stages["steps"]
    assert large.stages["decoding"] > small.stages["decoding"]
    assert PlanOptions().tokens == 4096 + 1024 + 512 + 2 * 192


@pytest.mark.parametrize(
    ("machine", "options", "sentence"),
    [
        (card(12), FAST, "12 GB: fp8 blocks stay, the rest on demand, decoder in tiles; peak about 10.0 GB."),
        (card(16), FAST, "16 GB: fp8 blocks stay, T5 on demand, modulation on demand; peak about 13.5 GB."),
        (card(24), LOSSLESS, "24 GB: bf16 blocks stay, T5 on demand, modulation on demand; peak about 22.1 GB."),
        (card(48), LOSSLESS, "40 GB: everything stays on the GPU, blocks in bf16; peak about 38.1 GB."),
        (
            card(8, "NVIDIA GeForce RTX 4060"),
            FAST,
            "8 GB: 26 of 57 fp8 blocks stay, the others stream, the rest on demand, decoder in tiles; "
            "peak about 6.9 GB.",
        ),
    ],
)
def test_the_sentence(machine, options, sentence):
    assert str(plan(machine, Sizes(FLUX), options).summary) == sentence


def shown(made: MemoryPlan) -> list[tuple[str, str, str]]:
    """The table as shown to users."""
    return [(str(group), str(where), size_text(size)) for group, where, size in made.lines()]


def test_the_table_for_users():
    rows = shown(plan(card(8), Sizes(FLUX), FAST))
    assert rows[0] == ("transformer blocks, fp8", "26 of 57 stay, the others stream in every step", "8.6 GB")
    assert ("T5, bf16", "streamed", "9.5 GB") in rows
    assert ("VAE decoder", "on demand", "99 MB") in rows
    assert rows[-1][:2] == ("RAM for weights off the GPU", "pinned")
    assert ("Peak, the steps", "estimate", "6.7 GB") in rows
    on_cpu = shown(plan(Machine("cpu", "CPU", 128 * GB), Sizes(FLUX, 4), LOSSLESS))
    assert on_cpu[0] == ("transformer blocks, float32", "stays in memory", "34.4 GB")
    assert "RAM for weights off the GPU" not in {row[0] for row in on_cpu}


def test_the_plan_needs_no_torch():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'numpy', 'diffusers', 'transformers')))\n"
        "from uso_core.memory import planner, sizes; assert planner.Machine('cpu', '', 1).free_ram_bytes == 1"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
