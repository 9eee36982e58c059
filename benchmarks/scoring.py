"""Scoring forward and backward: share of the matrix-product peak, and growth of time and memory.

    python benchmarks/scoring.py               # some 20 minutes; needs scripts/prepare_smollm2.py
    python benchmarks/scoring.py --parts peak

Two prompts with G completions of T tokens are scored with gradient to all weights. Useful flops are those of the packed
rows' matrix products, forward and twice that backward: every input token once through the body, every completion token
once through the head, attention only where the mask lets a token see; what is computed again for memory's sake is not
useful. `peak` compares with a square matrix product in the same dtype, measured between the repeats; `profile` tells
which operators take the time. `completions`, `prompt` and `vocabulary` grow one size and stand beside padded rows with
full logits, as `transformers` scores a batch.
Memory is the highest resident memory during the pass less what was resident before, gradients included.
"""

from __future__ import annotations

import argparse
import gc
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from machine import DTYPES, MODEL, facts, matmul_peak, operators, peak_memory_gib, reset_peak_memory, seconds, table
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from pbsd.logprobs import token_logprobs
from pbsd.products import fast_linears
from pbsd.scoring import ScoringGroup, enable_scoring, score

PROMPTS = 2
GROWTH: dict[str, list[dict[str, int]]] = {
    "completions": [{"prompt": 256, "completions": n, "length": 48} for n in (2, 4, 8, 16, 32)],
    "prompt": [{"prompt": n, "completions": 4, "length": 32} for n in (64, 256, 1024, 4096)],
    "vocabulary": [
        {"prompt": 64, "completions": 8, "length": 64, "vocabulary": n} for n in (4096, 16384, 49152, 131072)
    ],
}
PARTS = ["peak", "profile", *GROWTH]
PADDED_LIMIT = 9000
"""Tokens of padded rows beyond which the peer does not fit into 24 GiB and is left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scoring.json")
    args = parser.parse_args()
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        known[part] = growth(part) if part in GROWTH else profile() if part == "profile" else peak_share(args.repeats)
        known["machine"] = facts()
        print(f"\n{part}\n\n{table(known[part])}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(known, indent=2) + "\n")
    if all(part in known for part in GROWTH):
        draw(known, args.out.with_suffix(".png"))


def peak_share(repeats: int) -> list[dict[str, Any]]:
    rows = []
    sizes = {"long": (512, 8, 48), "short": (64, 8, 96), "many": (256, 32, 48)}
    for dtype in DTYPES:
        model = load(DTYPES[dtype])
        for name, (prompt, completions, length) in sizes.items():
            groups = make_groups(prompt, completions, length)
            flops = useful_flops(model, prompt, completions, length)
            ours_pass(model, groups)
            step = partial(ours_pass, model, groups)
            measured = [(seconds(step), matmul_peak(DTYPES[dtype])) for _ in range(repeats)]
            rows.append(
                {
                    "case": name, "dtype": dtype, "prompt": prompt, "completions": completions, "length": length,
                    "s": median(time for time, _ in measured),
                    "GFLOP/s": median(flops / time for time, _ in measured) / 1e9,
                    "peak GFLOP/s": median(peak for _, peak in measured) / 1e9,
                    "share": median(flops / time / peak for time, peak in measured),
                    "share range": "{:.2f}-{:.2f}".format(*_range([flops / time / peak for time, peak in measured])),
                }
            )  # fmt: skip
    return rows


def profile() -> list[dict[str, Any]]:
    """Where the time of the short work goes, by dtype."""
    rows = []
    for dtype in DTYPES:
        model, groups = load(DTYPES[dtype]), make_groups(64, 8, 96)
        ours_pass(model, groups)
        rows += [{"dtype": dtype, **row} for row in operators(partial(ours_pass, model, groups))]
    return rows


def growth(part: str) -> list[dict[str, Any]]:
    """Each measurement in a process of its own: memory that an earlier one freed would hide what a later one needs."""
    rows = []
    for size in GROWTH[part]:
        row: dict[str, Any] = dict(size)
        for side in SIDES:
            tokens = PROMPTS * size["completions"] * (size["prompt"] + size["length"])
            fits = side == "ours" or tokens * max(1, size.get("vocabulary", 0) / 49152) <= PADDED_LIMIT
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                time, memory = pool.submit(measure, side, size).result() if fits else (None, None)
            row |= {f"{side} s": time, f"{side} GiB": memory}
        rows.append(row)
        print(table(rows[-1:]), flush=True)
    return rows


def measure(side: str, size: dict[str, int]) -> tuple[float, float]:
    """The faster of two passes, and how far they raise the resident memory."""
    model = load(torch.float32, size.get("vocabulary"))
    groups = make_groups(size["prompt"], size["completions"], size["length"])
    gc.collect()
    reset_peak_memory()
    before = peak_memory_gib()
    time = min(seconds(partial(SIDES[side], model, groups)) for _ in range(2))
    return time, peak_memory_gib() - before


def load(dtype: torch.dtype, vocabulary: int | None = None) -> Any:
    """The model in training mode, or one of its shape with random weights and another vocabulary."""
    if vocabulary is None:
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype)
    else:
        config = AutoConfig.from_pretrained(MODEL)
        config.vocab_size = vocabulary
        model = LlamaForCausalLM(config).to(dtype)
    enable_scoring(model)
    return model.train()


def make_groups(prompt: int, completions: int, length: int) -> list[ScoringGroup]:
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 4000, (n,), generator=generator).tolist())

    return [ScoringGroup(ids(prompt), tuple(ids(length) for _ in range(completions))) for _ in range(PROMPTS)]


def ours_pass(model: Any, groups: list[ScoringGroup]) -> None:
    model.zero_grad()
    with fast_linears(model):  # as in a training step
        score(model, groups, pad_id=0).sequence_logprobs_B.sum().backward()


def padded_pass(model: Any, groups: list[ScoringGroup]) -> None:
    model.zero_grad()
    rows = [(*group.prompt_ids, *completion) for group in groups for completion in group.completion_ids]
    length = len(groups[0].completion_ids[0])
    ids = torch.tensor(rows)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
    token_logprobs(logits, ids[:, -length:]).sum().backward()


SIDES = {"ours": ours_pass, "padded": padded_pass}


def useful_flops(model: Any, prompt: int, completions: int, length: int) -> float:
    config = model.config
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    inputs = prompt + completions * (length - 1)
    head = completions * length * config.hidden_size * config.vocab_size
    seen = prompt**2 / 2 + completions * (length * prompt + length**2 / 2)
    attention = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * seen
    return 3 * 2 * PROMPTS * (body * inputs + head + attention)


def draw(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(GROWTH), figsize=(11, 6), sharex="col")
    for column, part in enumerate(GROWTH):
        for row, unit in enumerate(("s", "GiB")):
            axis = axes[row][column]
            for name, style in (("ours", "o-"), ("padded", "s--")):
                points = [(r[part], r[f"{name} {unit}"]) for r in results[part] if r[f"{name} {unit}"] is not None]
                axis.plot(*zip(*points, strict=True), style, label="pbsd" if name == "ours" else "padded, full logits")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.grid(alpha=0.3)
            axis.set_ylabel("seconds" if unit == "s" else "GiB")
        labels = {"completions": "completions per prompt", "prompt": "prompt tokens", "vocabulary": "vocabulary"}
        axes[1][column].set_xlabel(labels[part])
    axes[0][0].legend(frameon=False)
    figure.suptitle("Scoring two prompts, forward and backward, SmolLM2-135M fp32")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _range(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


if __name__ == "__main__":
    main()
