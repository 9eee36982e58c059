"""Linear layers in float32, forward and backward: torch's against ours, which oneDNN computes where MKL is slow.

    python benchmarks/products.py    # half a minute

Sizes are those of the laboratory's bases and of SmolLM2-135M, of 2,048 tokens. Five timings of each, in turn; figures
are Gflop/s of the median, and of the slowest and the fastest. Where MKL serves the machine well both are torch's.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from machine import facts, seconds, table

from pbsd.products import linear, onednn_is_faster

TOKENS = 2048
SIZES = {"0.2m": (64, 256), "1m": (128, 512), "4m": (256, 1024), "smollm2-135m": (576, 1536), "its head": (576, 49152)}
REPEATS, LEAST_FLOPS = 5, 2e10


def gflops(inner: int, outer: int) -> dict[str, float | str]:
    """Of [TOKENS, inner] times [inner, outer], with the gradients of both."""
    x = torch.randn(TOKENS, inner, requires_grad=True)
    weight = torch.randn(outer, inner, requires_grad=True)
    grad = torch.randn(TOKENS, outer)
    flops = 6 * TOKENS * inner * outer
    calls = max(1, round(LEAST_FLOPS / flops))
    times: dict[str, list[float]] = {"torch": [], "ours": []}
    for _ in range(REPEATS):
        for name, function in (("torch", F.linear), ("ours", linear)):

            def run(function=function) -> None:
                for _ in range(calls):
                    torch.autograd.grad(function(x, weight), (x, weight), grad)

            times[name].append(seconds(run))
    found: dict[str, float | str] = {}
    for name, values in times.items():
        slowest, middle, fastest = (flops * calls / x / 1e9 for x in (max(values), median(values), min(values)))
        found |= {name: middle, f"{name} range": f"{slowest:.0f}-{fastest:.0f}"}
    return found


if __name__ == "__main__":
    rows = [
        {"layer of": name, "inner": inner, "outer": outer, **gflops(inner, outer)}
        for name, (inner, outer) in SIZES.items()
    ]
    results = {"machine": facts(), "onednn_is_faster": onednn_is_faster(), "gflops": rows}
    (Path(__file__).parent / "results" / "products.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows))
