"""Describes this machine: free memory on the device and in RAM, suitable thread count, fast number formats.

Containers get less than their host has: cgroup limits (versions 1 and 2) bound memory and threads.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F

from uso_core.memory.planner import Machine
from uso_core.quantization.fp8 import fp8_way

CGROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")
UNLIMITED = 2**60  # cgroup 1 writes a number near 2^63 for no limit
BFLOAT16_CAPABILITY = (8, 0)  # the first NVIDIA generation that multiplies bfloat16 (Ampere)
# Flags in /proc/cpuinfo with which bfloat16 products are faster than float32 ones: AMX tiles (about 7 times), and
# AVX512's dot product (3.3 to 3.9 times on one core of an AMD EPYC, 300 to 5000 rows, widths 256 to 3072; twice if
# float32 weights are packed too).
FAST_BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


def look_at(device: torch.device) -> Machine:
    """What the device offers now, for the planner. On a GPU this creates its context."""
    ram = free_ram()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        properties = torch.cuda.get_device_properties(device)
        fp8, bfloat16 = fp8_way(device) is not None, multiplies_bfloat16(device)
        return Machine("cuda", properties.name, ram, free, total, fp8, bfloat16)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = max(total - torch.mps.driver_allocated_memory(), 0)
        return Machine("mps", "Apple GPU", ram, free, total)
    return Machine("cpu", platform.processor() or platform.machine(), ram)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a GPU has units for bfloat16; PyTorch computes with it on older ones, too, many times slower."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def obstacle_to_compiling(device: torch.device, dtype: torch.dtype) -> str:
    """What stops PyTorch from compiling for this device, in its words; empty if a small function compiles.

    Compiling takes a C compiler and, on a GPU, Triton (not available for Windows by default) and a GPU for which
    Triton supports the dtype. Takes seconds, most of which a real compilation would need too.
    """
    x = torch.linspace(-2, 2, 64, device=device, dtype=dtype)
    try:
        compiled = torch.compile(_gelu_and_more, fullgraph=True)(x)
    except Exception as error:  # compilers raise anything
        torch.compiler.reset()
        lines = (line.strip() for line in str(error).splitlines())
        return next((line for line in lines if line and not line.startswith("backend=")), type(error).__name__)
    right = torch.allclose(compiled.float(), _gelu_and_more(x).float(), rtol=0.05, atol=0.05)
    return "" if right else "what it compiles computes wrong numbers."


def _gelu_and_more(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh") * x + x


def free_ram(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Bytes of RAM available without swapping: those of the system, or those the container may still take."""
    available = _available(proc)
    left = [limit - used for limit, used in _memory_limits(cgroups, proc)]
    return max(min([available, *left]), 0)


def threads(cgroups: Path = CGROUPS, proc: Path = PROC) -> int:
    """Number of compute threads that suits this process and its container."""
    return suitable_threads(_usable_processors(), _physical_cores(proc), _cpu_quotas(cgroups, proc))


def suitable_threads(processors: int, cores: int, quotas: Collection[float]) -> int:
    """One thread per physical core that the process may use, within the container's CPU quota.

    Threads beyond the quota are throttled in turn and wait for each other, which is slower than having fewer.
    """
    return max(min([processors, cores, *map(math.ceil, quotas)]), 1)


def cpu_flags(proc: Path = PROC) -> frozenset[str]:
    """Feature flags of the first CPU, as Linux names them; elsewhere the bfloat16 flags that PyTorch detects."""
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(values.split())
    seen = {
        "amx_bf16": getattr(torch.cpu, "_is_amx_tile_supported", bool),
        "avx512_bf16": getattr(torch.cpu, "_is_avx512_bf16_supported", bool),
    }
    return frozenset(flag for flag, supported in seen.items() if supported())


def fast_bfloat16(flags: Collection[str]) -> bool:
    """Whether a CPU with these flags multiplies bfloat16 faster than float32."""
    return not FAST_BFLOAT16_FLAGS.isdisjoint(flags)


def _available(proc: Path) -> int:
    """Bytes that new programs can take; half of all memory if the system does not say."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return _windows_available()
    if sys.platform == "darwin":
        return _macos_available()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _windows_available() -> int:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "total_page", "available_page")),
            *((name, ctypes.c_ulonglong) for name in ("total_virtual", "available_virtual", "extended")),
        ]

    status = Status()
    status.length = ctypes.sizeof(Status)
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined,unused-ignore]
    return int(status.available)


def _macos_available() -> int:
    """Free, inactive, speculative and purgeable pages."""
    try:
        text = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return macos_pages(text)


def macos_pages(text: str) -> int:
    """Available bytes according to the output of vm_stat."""
    size = re.search(r"page size of (\d+) bytes", text)
    kinds = re.findall(r"^Pages (free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return sum(int(pages) for _, pages in kinds) * int(size[1] if size else 4096)


def _memory_limits(cgroups: Path, proc: Path) -> list[tuple[int, int]]:
    """(limit, used) of every group of this process; droppable caches do not count as used."""
    found = []
    for folder in _groups(cgroups, proc, "memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is None or used is None or limit >= UNLIMITED:
                continue
            cache = re.search(rf"^{cache_name} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            found.append((limit, max(used - (int(cache[1]) if cache else 0), 0)))
    return found


def _cpu_quotas(cgroups: Path, proc: Path) -> list[float]:
    """CPU time, in CPUs, that each group of this process may use."""
    found = []
    for folder in _groups(cgroups, proc, "cpu"):
        quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1: no quota
            found.append(int(quota) / int(period))
    return found


def _groups(cgroups: Path, proc: Path, controller: str) -> list[Path]:
    """Folders of this process's control groups and their parents, of both versions.

    Inside a container the path may be the host's and not exist; then the mounted root is the group.
    """
    folders: list[Path] = []
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if names and controller not in names.split(","):
            continue
        roots = [cgroups / names, cgroups / controller] if names else [cgroups, cgroups / "unified"]
        for root in roots:
            below = root / path.lstrip("/")
            if ".." in below.parts:
                below = root
            folders += [each for each in (below, *below.parents) if each == root or root in each.parents]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _physical_cores(proc: Path) -> int:
    """Physical cores: hyperthreads share one multiplier and do not count."""
    cores = set()
    for block in _text(proc / "cpuinfo").split("\n\n"):
        values = dict(re.findall(r"^(physical id|core id)\s*:\s*(\d+)", block, re.MULTILINE))
        if "core id" in values:
            cores.add((values.get("physical id"), values["core id"]))
    return len(cores) or os.cpu_count() or 1


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """The text of a small kernel file; empty if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
