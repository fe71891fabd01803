"""The reference configuration makes our images, and the benchmarks measure what they claim."""

from __future__ import annotations

import json
import operator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import dry_run
from benchmarks.bench import check, main, make, turns
from benchmarks.counts import MODES, full_size
from benchmarks.models import CONTENDERS, FULL, SMALL, Contender, embedded, random_pipeline
from benchmarks.python_time import without_blocks
from benchmarks.random_weights import materialize
from benchmarks.reference import WholeModuleMoves
from benchmarks.reference_transformer import CastLinear, ReferenceTransformer, store_fp8
from benchmarks.results import Results, table
from benchmarks.tasks import Task, tasks
from benchmarks.timing import Clock, Sample, Spread, Stages, ratios
from uso_core.memory.offload import tensors_of
from uso_core.model.pipeline import USOPipeline

CPU = torch.device("cpu")
RESULTS = Path(dry_run.__file__).parent / "results"
BOUND = 1e-5  # relative L2 of the images: a different order of additions in float32
BY_NAME = {contender.name: contender for contender in CONTENDERS}


@pytest.fixture(scope="module")
def pipelines() -> dict[str, USOPipeline]:
    return embedded(torch.float32)


@pytest.fixture(scope="module")
def asked() -> dict[str, Task]:
    return tasks(64, 48, 4)


def pixels(pipeline: USOPipeline, task: Task, **options) -> torch.Tensor:
    return make(pipeline, task, seed=3, output_type="pt", **options)


def sample(contender: str, turn: int, seconds: float, session: int = 0) -> Sample:
    return Sample(contender, "first", "style", "float32", 1, session, turn, seconds, seconds)


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_makes_the_same_image(pipelines, asked, mode):
    ours, theirs = (pixels(pipelines[name], asked[mode]) for name in ("ours", "reference"))
    assert ours.std() > 0.05
    assert (ours - theirs).norm() / ours.norm() < BOUND


def test_the_reference_does_in_every_step_what_we_do_once(pipelines, asked):
    calls = dict.fromkeys(("ours", "reference"), 0)
    for name, pipeline in pipelines.items():

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        pipeline.encodings.clear()
        hook = pipelines["ours"].image_encoder.register_forward_hook(count)  # one module, which both use
        for _ in range(2):
            pixels(pipeline, asked["two styles"])
        hook.remove()
    assert calls == {"ours": 2, "reference": 2 * 2 * 4}


def test_the_references_fp8_is_a_plain_cast(asked):
    rounded, stored = (embedded(torch.float32)["reference"] for _ in range(2))
    store_fp8(stored.transformer)
    for name, module in rounded.transformer.named_modules():
        if isinstance(stored.transformer.get_submodule(name), CastLinear):
            module.weight.data = module.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(pixels(stored, asked["style"]), pixels(rounded, asked["style"]))
    assert all(module.weight.dtype == torch.float32 for name, module in stored.transformer.named_modules()
               if isinstance(module, nn.Linear))  # fmt: skip
    assert stored.transformer.dtype == torch.float32


def test_the_references_offloading_moves_modules_both_ways(asked):
    pipeline = embedded(torch.float32)["reference"]
    right = pixels(pipeline, asked["content + style"])
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    moves = pipeline.offloader = WholeModuleMoves(CPU, modules)
    assert torch.equal(pixels(pipeline, asked["content + style"]), right)
    sizes = {name: sum(map(operator.attrgetter("nbytes"), tensors_of(module))) for name, module in modules.items()}
    assert moves.moved_bytes == 2 * sum(sizes.values()) + sizes["vae"]  # which has come back, for the decoder


def test_a_step_without_blocks_is_the_rest_of_a_step(pipelines, asked):
    bare = without_blocks(pipelines["ours"])
    assert list(bare.transformer.blocks) == []
    assert sum(p.numel() for p in bare.transformer.parameters()) < 0.3 * sum(
        p.numel() for p in pipelines["ours"].transformer.parameters()
    )
    assert torch.isfinite(pixels(bare, asked["content + style"])).all()


def test_random_weights_are_not_zeros_and_stay_shared():
    with torch.device("meta"):
        module = nn.ModuleList([nn.Linear(64, 32), nn.Linear(64, 32, bias=False), nn.LayerNorm(64)])
    module[1].weight = module[0].weight
    materialize(module, CPU, CPU)
    linear, same, norm = module
    assert same.weight is linear.weight
    assert linear.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    assert 0 < linear.bias.std() < 0.1
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.05)


def test_contenders_of_one_format_have_the_same_weights_wherever_they_lie(asked):
    streamed = replace(BY_NAME["tier 8 GB"], compile=False)
    (one, _), (other, plan) = (random_pipeline(each, SMALL, CPU) for each in (BY_NAME["fp8 eager"], streamed))
    assert plan is not None
    assert 0 < plan.resident_blocks < plan.blocks
    assert torch.equal(pixels(one, asked["content + style"]), pixels(other, asked["content + style"]))


def test_stages_are_times_of_their_own():
    class Nested:
        def denoise_all(self) -> str:
            return self.encode_style()

        def encode_style(self) -> str:
            return "made"

    now = iter((0.0, 1.0, 4.0, 6.0))
    clock = Clock(CPU)
    clock.mark = lambda: next(now)  # type: ignore[method-assign]
    stages, nested = Stages(clock), Nested()
    with stages.watching(nested):
        assert nested.denoise_all() == "made"
    assert stages.seconds() == {"style": 3.0, "steps": 3.0}
    assert vars(nested) == {}


def test_a_ratio_uses_the_baseline_on_both_sides():
    baseline = [sample("reference", 0, 4.0), sample("reference", 2, 6.0), sample("reference", 4, 100.0)]
    between, after = sample("ours", 1, 2.0), sample("ours", 5, 2.0)
    assert ratios([between, after], baseline) == [2.5]
    assert ratios([sample("ours", 1, 2.0, session=1)], baseline) == []


def test_a_spread_is_median_and_quartiles():
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0, 1)
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)


def test_every_contender_is_between_two_turns_of_its_baseline():
    order = [contender.name for contender in turns(CONTENDERS, lambda: True)]
    for contender in CONTENDERS:
        if contender.against:
            place = order.index(contender.name)
            assert order[place - 1] == order[place + 1] == contender.against
    assert set(order) == set(BY_NAME)


def test_a_turn_starts_only_if_its_baseline_fits_too():
    left = iter([True, True, False])
    chosen = [BY_NAME[name] for name in ("eager", "compiled")]
    assert [each.name for each in turns(chosen, lambda: next(left))] == ["reference", "eager", "reference"]
    assert list(turns(chosen, lambda: False)) == []


@pytest.mark.slow
def test_the_gpus_part_at_toy_size(tmp_path: Path, capsys):
    """Real code on toy shapes, in two sessions, the second continuing the first one's file."""
    file = tmp_path / "results" / "small.json"
    given = ["--device", "cpu", "--small", "--modes", "content + style", "--images", "1", "--steps", "3",
             "--threads", "1", "--into", str(file)]  # fmt: skip
    main([*given, "--only", "fp8 compiled"])
    results = main([*given, "--only", "tier 8 GB", "reference fp8 offload"])
    assert results.failures == []
    written = json.loads(file.read_text())
    assert written["table"] == table(Results.read(file))
    assert {each["session"] for each in written["samples"]} == {0, 1}
    rows = {(row["contender"], row["run"]): row for row in written["table"]}
    assert set(rows) == {
        ("reference", "first"), ("fp8 compiled", "first"), ("fp8 compiled", "another seed"), ("fp8 compiled", "fast"),
        ("tier 8 GB", "first"), ("tier 8 GB", "another seed"), ("reference fp8 offload", "first"),
    }  # fmt: skip
    for (contender, run), row in rows.items():
        assert row["seconds"]["median"] > 0
        assert (row["times_faster"] is None) == contender.startswith("reference")
        assert {"text", "style", "content", "steps", "decode"} <= set(row["stages"]) or run == "another seed"
        assert sum(row["stages"].values()) <= 1.01 * row["seconds"]["high"]
    assert rows["reference", "first"]["ceiling_share"] > 0
    assert [each["contender"] for each in written["starts"]] == [
        "reference", "fp8 compiled", "reference", "reference", "tier 8 GB", "reference", "reference fp8 offload",
    ]  # fmt: skip
    assert "stream" in written["plans"]["tier 8 GB"]["sentence"]
    assert "tier 8 GB" in capsys.readouterr().out
    assert str(Path.home()) not in file.read_text()


def test_the_cpus_part(tmp_path: Path, capsys):
    file = tmp_path / "cpu.json"
    main(["--device", "cpu", "--modes", "style", "--rounds", "1", "--dtypes", "float32", "--threads", "1",
          "--steps", "3", "--into", str(file)])  # fmt: skip
    written = json.loads(file.read_text())
    rows = {(row["contender"], row["run"]): row for row in written["table"]}
    assert set(rows) == {
        ("reference", "first"),
        *(("ours", run) for run in ("first", "another seed", "fast", "previews")),
    }
    assert rows["ours", "first"]["times_faster"]["count"] == 1
    assert "text" in rows["ours", "first"]["stages"]
    assert not {"text", "style"} & set(rows["ours", "another seed"]["stages"])
    assert written["python"][0]["milliseconds"]["median"] > 0


def test_a_file_of_another_size_is_not_extended(tmp_path: Path, capsys):
    file = tmp_path / "cpu.json"
    Results({}, {}, {}).write(file)
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--into", str(file)])
    assert "comes from another machine" in capsys.readouterr().err


def test_an_invalid_image_is_refused(asked):
    pipeline, _ = random_pipeline(Contender("eager"), SMALL, CPU)
    for parameter in pipeline.vae.decoder.conv_out.parameters():
        parameter.data.zero_()
    with pytest.raises(RuntimeError, match="all one value"):
        check(pipeline, asked["text only"])


def test_the_reference_at_full_size_has_the_published_weights():
    ours = full_size()["transformer"]
    with torch.device("meta"):
        theirs = ReferenceTransformer(dict(ours.config), FULL.rank)
    sizes = {name: parameter.numel() for name, parameter in theirs.named_parameters()}
    lora = [size for name, size in sizes.items() if ".processor." in name]
    assert (len(lora), round(sum(lora) / 1e6, 1)) == (304, 239.1)  # as in dit_lora.safetensors
    assert sum(sizes.values()) - sum(lora) == sum(parameter.numel() for parameter in ours.parameters())


def test_a_dry_run_needs_the_build_for_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr("sys.argv", ["dry_run"])
    with pytest.raises(SystemExit) as ended:
        dry_run.main()
    assert ended.value.code == 2
    assert "build for CUDA" in capsys.readouterr().err


def test_what_was_allocated_on_the_null_device_is_within_plans_and_targets():
    seen = json.loads((RESULTS / "null-device.json").read_text(encoding="utf-8"))["contenders"]
    peaks = {row["contender"]: max(mode["peak"] for mode in row["modes"].values()) for row in seen}
    assert set(peaks) == set(dry_run.OURS)
    for row in seen:
        assert peaks[row["contender"]] <= row["planned_peak"], row["contender"]
        assert set(row["modes"]) == set(MODES)
        assert all(mode["copied_back_for_another_seed"] < 0.02 for mode in row["modes"].values())  # GB: the image
    assert peaks["fp8 offload"] <= 10.5
    assert peaks["tier 8 GB"] <= 7
    assert peaks["tier 24 GB"] <= 22.5
