"""What training asks of the machine: memory, cores, and how fast it can multiply."""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.artifact import peak_memory as process_peak
from danlu.errors import MachineError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMORY, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_QUOTA = _CGROUP / "cpu.max"


def working_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return bfloat16 where asked for, or where `auto` finds it fast; else float32."""
    if precision == "float32" or (precision == "auto" and not fast_bfloat16(device)):
        return torch.float32
    return torch.bfloat16


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Compute in :func:`working_dtype`."""
    dtype = working_dtype(precision, device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu: Any = torch.cpu
    return device.type == "cpu" and bool(
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )


def use_granted_cores() -> None:
    """Compute with as many threads as the process was granted cores.

    torch counts the machine's; in a container with a quota the surplus threads wait for
    each other. ``OMP_NUM_THREADS`` has the last word.
    """
    if "OMP_NUM_THREADS" not in os.environ and granted_cores() < torch.get_num_threads():
        torch.set_num_threads(granted_cores())


def granted_cores() -> int:
    """Return how many of the machine's cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    granted = cores or 1
    try:
        quota, period = _QUOTA.read_text(encoding="utf-8").split()
        granted = min(granted, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or "max": no quota
        pass
    return granted


_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # of mallopt(3)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory in the process for the time of the context, with glibc.

    Every step frees what the next one asks for again. Given back in between, each page
    comes anew from the kernel, which clears it: up to a fifth of a step.
    """
    try:
        library = ctypes.CDLL(None)
        adjust, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library, or none by that name
        yield
        return
    adjust(_MMAP_MAX, 0)
    adjust(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        adjust(_MMAP_MAX, 65_536)
        adjust(_TRIM_THRESHOLD, 128 * 1024)
        trim(0)


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_memory` count from now, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        with suppress(OSError):
            _CLEAR.write_text("5", encoding="utf-8")  # man 5 proc: resets the peak resident set


def peak_memory(device: torch.device) -> int:
    """Return the most memory held (bytes): by tensors on a GPU, else by the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return process_peak()


def within_limit(held: int, limit: float) -> int:
    """Return the memory held (bytes).

    Raises
    ------
    MachineError
        If it is more than the limit (GB; 0 for none).
    """
    if limit and held > limit * 1e9:
        raise MachineError(
            f"training holds {held / 1e9:.2f} GB of memory; memory_limit allows {limit:g} GB",
            where="training",
            mend="raise accumulate, lower the batch, or (Transformers) set recompute = true",
        )
    return held


def free_memory() -> int | None:
    """Return the memory that may still be taken (bytes), or None where the system does not say."""
    found = []
    with suppress(OSError, ValueError):
        lines = _MEMORY.read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        limit, used = (
            int((_CGROUP / name).read_text(encoding="utf-8"))
            for name in ("memory.max", "memory.current")
        )
        found.append(max(0, limit - used))
    return min(found, default=None)


def reseed(number: int) -> None:
    """Give every global generator (torch's, numpy's, Python's) a state that a number fixes.

    Done before each step with a number of its own, nothing drawn from them depends on what was
    drawn before, and a resumed run has nothing to restore.
    """
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Measure the best speed of torch's matrix product over a few shapes.

    Returns
    -------
    float
        Floating-point operations a second: of the best shape, the median of its runs.
    """
    shapes: tuple[tuple[int, int, int], ...]
    shapes = ((512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 1536))
    if device.type == "cuda":
        shapes = ((8192, 8192, 8192), (16384, 4096, 4096))  # a launch must not count
    best = 0.0
    for m, k, n in shapes:
        a = torch.randn(m, k, device=device).to(dtype)
        b = torch.randn(n, k, device=device).to(dtype)
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < 5 or time.perf_counter() - began < seconds / len(shapes):
            start = time.perf_counter()
            torch.nn.functional.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        best = max(best, 2 * m * k * n / statistics.median(times[2:]))
    return best
