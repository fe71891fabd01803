"""The machine: memory and CPUs of a container, from the kernel's files as laid out there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.memory.test_plan import TINY
from uso_core.memory import machine
from uso_core.memory.machine import (
    cpu_flags,
    fast_bfloat16,
    free_ram,
    look_at,
    macos_pages,
    multiplies_bfloat16,
    suitable_threads,
    threads,
)
from uso_core.memory.planner import PlanOptions, plan
from uso_core.memory.sizes import GB, Sizes

KB = 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """/proc of a host with 16 GB available and two cores of two threads."""
    cores = [f"processor : {n}\nphysical id : 0\ncore id : {n // 2}\nflags : fpu avx2\n" for n in range(4)]
    meminfo = f"MemTotal: {32 * GB // KB} kB\nMemFree: 5 kB\nMemAvailable: {16 * GB // KB} kB\n"
    return write(tmp_path / "proc", {"meminfo": meminfo, "cpuinfo": "\n".join(cores)})


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def test_without_a_container_the_system_decides(host, cgroups):
    assert free_ram(cgroups, host) == 16 * GB


@pytest.mark.parametrize("inside", [True, False], ids=["path seen from inside", "path of the host"])
def test_a_limit_of_version_2(host, cgroups, inside):
    write(host, {"self/cgroup": "0::/pod/app\n"})
    place = "pod/app/" if inside else ""
    write(cgroups, {
        f"{place}memory.max": f"{8 * GB}\n",
        f"{place}memory.current": f"{5 * GB}\n",
        f"{place}memory.stat": f"anon 1\ninactive_file {2 * GB}\n",
        f"{place}cpu.max": "150000 100000\n",
    })  # fmt: skip
    assert free_ram(cgroups, host) == 5 * GB
    assert machine._cpu_quotas(cgroups, host) == [1.5]


def test_a_limit_of_version_1(host, cgroups):
    write(host, {"self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"})
    write(cgroups, {
        "memory/docker/abc/memory.limit_in_bytes": f"{6 * GB}",
        "memory/docker/abc/memory.usage_in_bytes": f"{2 * GB}",
        "memory/docker/abc/memory.stat": f"cache 1\ntotal_inactive_file {GB}\n",
        "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "100000",
        "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert free_ram(cgroups, host) == 5 * GB
    assert threads(cgroups, host) == 1


def test_a_parent_may_have_the_lower_limit(host, cgroups):
    write(host, {"self/cgroup": "0::/pod/app\n"})
    write(cgroups, {
        "pod/app/memory.max": "max\n", "pod/app/memory.current": "1\n", "pod/app/cpu.max": "max 100000\n",
        "pod/memory.max": f"{4 * GB}\n", "pod/memory.current": f"{GB}\n", "pod/cpu.max": "200000 100000\n",
    })  # fmt: skip
    assert free_ram(cgroups, host) == 3 * GB
    assert machine._cpu_quotas(cgroups, host) == [2.0]


def test_no_limit_is_no_limit(host, cgroups):
    write(host, {"self/cgroup": "4:memory:/\n1:cpu:/\n0::/\n"})
    write(cgroups, {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "memory/memory.usage_in_bytes": "5000000000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert free_ram(cgroups, host) == 16 * GB
    assert machine._cpu_quotas(cgroups, host) == []


def test_a_path_that_leads_out_is_not_followed(host, cgroups):
    write(host, {"self/cgroup": "0::/../../elsewhere\n"})
    write(cgroups.parent.parent / "elsewhere", {"memory.max": "1\n", "memory.current": "0\n"})
    assert free_ram(cgroups, host) == 16 * GB


def test_more_used_than_allowed_leaves_nothing(host, cgroups):
    write(host, {"self/cgroup": "0::/\n"})
    write(cgroups, {"memory.max": "1000\n", "memory.current": "2000\n"})
    assert free_ram(cgroups, host) == 0


@pytest.mark.parametrize(
    ("processors", "cores", "quotas", "expected"),
    [
        (16, 8, [], 8),  # second threads of a core share its multiplier
        (4, 8, [], 4),  # pinned to four
        (64, 32, [2.0], 2),
        (64, 32, [1.5, 8.0], 2),
        (64, 32, [0.2], 1),
        (2, 2, [], 2),
    ],
)
def test_suitable_threads(processors, cores, quotas, expected):
    assert suitable_threads(processors, cores, quotas) == expected


def test_physical_cores_are_counted(host, tmp_path):
    assert machine._physical_cores(host) == 2
    assert machine._physical_cores(tmp_path / "nothing") >= 1


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f avx512_bf16", True),
        ("fpu avx2 avx512f amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("fpu sse2", False),
        ("", False),
    ],
)
def test_bfloat16_is_fast_if_the_cpu_multiplies_it(tmp_path, flags, fast):
    write(tmp_path, {"cpuinfo": f"processor : 0\nmodel name : x\nflags\t\t: {flags}\n"})
    assert fast_bfloat16(cpu_flags(tmp_path)) is fast


def test_where_linux_says_nothing_pytorch_is_asked(tmp_path):
    assert cpu_flags(tmp_path) <= {"amx_bf16", "avx512_bf16"}


def test_the_pages_of_macos():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\n"
        "Pages active:                            500000.\n"
        "Pages inactive:                           20000.\n"
        "Pages speculative:                         3000.\n"
        "Pages wired down:                        100000.\n"
        "Pages purgeable:                           1000.\n"
    )
    assert macos_pages(text) == 34_000 * 16_384


def test_this_machine_holds_the_embedded_model():
    seen = look_at(torch.device("cpu"))
    assert seen.device == "cpu"
    assert 0 < seen.free_ram_bytes < 2**50
    assert plan(seen, Sizes(TINY, 4), PlanOptions(width=128, height=128)).tier == "Embedded model"
    assert threads() >= 1


def test_a_machine_that_compiles_has_no_obstacle(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **given: compile_(function, backend="aot_eager", **given))
    assert machine.obstacle_to_compiling(torch.device("cpu"), torch.float32) == ""


def test_a_missing_compiler_is_the_obstacle(monkeypatch, tmp_path):
    """The real compiler's own message when it finds no C++ compiler."""
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    said = machine.obstacle_to_compiling(torch.device("cpu"), torch.float32)
    assert "compiler" in said
    assert "\n" not in said
    assert "backend=" not in said


def test_wrong_numbers_are_an_obstacle(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **given: lambda x: function(x) + 1)
    assert "wrong" in machine.obstacle_to_compiling(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("capability", "hip", "expected"), [((7, 5), None, False), ((8, 0), None, True), ((9, 0), "6", True)]
)
def test_gpus_multiply_bfloat16_from_ampere_on(monkeypatch, capability, hip, expected):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bfloat16(torch.device("cuda")) is expected
