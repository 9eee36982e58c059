"""What the benchmarks have in common: the machine's facts and limits, time and memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pbsd.products import linear

MODEL = Path(__file__).parents[1] / "models" / "smollm2-135m-instruct"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def facts() -> dict[str, Any]:
    """Processor, cores, threads, memory and versions."""
    import transformers
    import trl

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
    }


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def matmul_peak(dtype: torch.dtype) -> float:
    """Flop/s of a 2048-cubed matrix product, best of five, by the fastest of torch's libraries."""
    size = 2048
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(seconds(lambda: linear(left, right)) for _ in range(5))


def operators(call: Callable[[], object], most: int = 12) -> list[dict[str, Any]]:
    """The operators that take the most time of their own in a call, with their number and share of all operators'."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    rows = [(event.key, event.count, event.self_cpu_time_total) for event in events]
    rows = [*rows[:most], ("all", sum(count for _, count, _ in rows), total)]
    return [{"operator": name, "calls": count, "ms": ms / 1e3, "share": ms / total} for name, count, ms in rows]


def reset_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Highest resident memory of this process since the last reset (or its start)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/self/status does not tell VmHWM: these benchmarks need Linux")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    keys = list(rows[0])
    lines = [" | ".join(keys), " | ".join("---" for _ in keys)]
    lines += [" | ".join(_cell(row[key]) for key in keys) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
