"""Decoding speed against its roofline, with plain `generate` as the peer in the same run.

    python benchmarks/decoding.py            # some 10 minutes; needs scripts/prepare_smollm2.py
    python benchmarks/decoding.py --random --prompts 64 512 --out runs/decoding.json

The roofline of a step is max(flops / peak, bytes / bandwidth): flops of every matrix product for one token per row;
bytes of the weights once, each distinct prompt's keys and values once, and each row's own completion at its mean
length; the peak that a square matrix product reaches and the bandwidth that a copy reaches, measured in every
repeat. Time per step is the difference of two calls (`--new-tokens` and a quarter of it) over the difference of their
steps, so prefill and packing are not in it; the speed-up of whole calls stands beside it. Repeats alternate between
the two; fractions are medians over repeats of each repeat's own ratio. Leave the machine idle.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from machine import DTYPES, MODEL, facts, matmul_peak, operators, seconds, table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler


@dataclass(frozen=True)
class Case:
    dtype: str
    batch: int
    group: int  # completions per prompt
    prompt: int  # tokens
    new_tokens: int


@dataclass(frozen=True)
class Result:
    """Milliseconds a step, medians; fractions of the roofline and speed-ups, medians of each repeat's own ratio."""

    case: Case
    peak_gflops: float
    copy_gbps: float
    roofline_ms: float
    ours_ms: float
    generate_ms: float
    ours_fraction: float
    generate_fraction: float
    step_speedup: float
    call_speedup: float
    ours_call_s: float
    generate_call_s: float


def copy_bandwidth() -> float:
    """Bytes/s, read and written, of a 256 MiB copy, best of five."""
    source = torch.ones(2**26)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source)) for _ in range(5))


def step_work(model: LlamaForCausalLM, case: Case) -> tuple[float, float]:
    """Flops and bytes of one decoding step at the completions' mean length."""
    config = model.config
    matrices = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    completion = case.new_tokens / 2
    head = config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    attention = 4 * config.num_attention_heads * head * layers * (case.prompt + completion)
    flops = case.batch * (2 * sum(weight.numel() for weight in matrices) + attention)
    width = matrices[0].element_size()
    state = 2 * config.num_key_value_heads * head * layers * width
    prompts = case.batch // case.group
    bytes_moved = width * sum(weight.numel() for weight in matrices)
    bytes_moved += state * (prompts * case.prompt + case.batch * completion)
    return flops, bytes_moved


def callers(model: LlamaForCausalLM, case: Case) -> dict[str, Callable[[int], object]]:
    """Ours and the peer, as functions of the number of new tokens; no token stops a row."""
    torch.manual_seed(0)
    prompts = torch.randint(100, model.config.vocab_size, (case.batch // case.group, case.prompt))
    requests = [SampleRequest(tuple(ids), case.group, (row,)) for row, ids in enumerate(prompts.tolist())]
    sampler = TransformersSampler(eos_token_ids=[], pad_token_id=0, max_batch_size=case.batch)

    def ours(new_tokens: int) -> object:
        return sampler.sample(model, requests, SamplingParams(new_tokens))

    def generate(new_tokens: int) -> object:
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            num_return_sequences=case.group,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )

    return {"ours": ours, "generate": generate}


def run(model: LlamaForCausalLM, case: Case, repeats: int) -> Result:
    flops, bytes_moved = step_work(model, case)
    ways = callers(model, case)
    short = max(1, case.new_tokens // 4)
    for way in ways.values():
        way(2)
    rows = []
    for _ in range(repeats):
        peak, bandwidth = matmul_peak(DTYPES[case.dtype]), copy_bandwidth()
        row = {"peak": peak, "bandwidth": bandwidth, "roofline": max(flops / peak, bytes_moved / bandwidth)}
        for name, way in ways.items():
            brief, whole = seconds(lambda way=way: way(short)), seconds(lambda way=way: way(case.new_tokens))
            row[name], row[f"{name}_call"] = (whole - brief) / (case.new_tokens - short), whole
        rows.append(row)

    def middle(value: Callable[[dict[str, float]], float]) -> float:
        return median(value(row) for row in rows)

    return Result(
        case=case,
        peak_gflops=middle(lambda row: row["peak"] / 1e9),
        copy_gbps=middle(lambda row: row["bandwidth"] / 1e9),
        roofline_ms=middle(lambda row: 1e3 * row["roofline"]),
        ours_ms=middle(lambda row: 1e3 * row["ours"]),
        generate_ms=middle(lambda row: 1e3 * row["generate"]),
        ours_fraction=middle(lambda row: row["roofline"] / row["ours"]),
        generate_fraction=middle(lambda row: row["roofline"] / row["generate"]),
        step_speedup=middle(lambda row: row["generate"] / row["ours"]),
        call_speedup=middle(lambda row: row["generate_call"] / row["ours_call"]),
        ours_call_s=middle(lambda row: row["ours_call"]),
        generate_call_s=middle(lambda row: row["generate_call"]),
    )


def load(path: Path | None, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model in `path`, or without one a random Llama of SmolLM2-135M's shape."""
    if path is not None:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--random", action="store_true", help="a random model of SmolLM2-135M's shape, no folder")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--prompts", nargs="+", type=int, default=[64], help="prompt lengths")
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="only say which operators take the time at 32 rows")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decoding.json")
    args = parser.parse_args()
    if bad := [batch for batch in args.batches if batch % args.group]:
        parser.error(f"batch sizes {bad} are not multiples of --group {args.group}")
    torch.set_num_threads(args.threads)
    if args.profile:
        rows = []
        for dtype in args.dtypes:
            case = Case(dtype, 32, args.group, args.prompts[0], args.new_tokens)
            ours = callers(load(None if args.random else args.model, DTYPES[dtype]), case)["ours"]
            ours(2)
            rows += [{"dtype": dtype, **row} for row in operators(partial(ours, args.new_tokens))]
        print(table(rows))
        out = args.out.with_stem(f"{args.out.stem}_profile")
        out.write_text(
            json.dumps({"machine": facts(), "steps": args.new_tokens - 1, "rows": rows}, indent=1) + "\n", "utf-8"
        )
        return
    about = {**facts(), "model": "random" if args.random else args.model.name, "load_before": os.getloadavg()[0]}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    print(
        "dtype batch group prompt | peak GF/s copy GB/s roofline ms | ours ms fraction | generate ms fraction | "
        "speed-up: step call",
        flush=True,
    )
    results = []
    for dtype in args.dtypes:
        model = load(None if args.random else args.model, DTYPES[dtype])
        for prompt in args.prompts:
            for batch in args.batches:
                case = Case(dtype, batch, args.group, prompt, args.new_tokens)
                result = run(model, case, args.repeats)
                results.append(asdict(result))
                about["load_after"] = os.getloadavg()[0]
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n", "utf-8")
                print(
                    f"{dtype:5} {batch:5} {case.group:5} {prompt:6} | "
                    f"{result.peak_gflops:9.0f} {result.copy_gbps:9.1f} {result.roofline_ms:11.1f} | "
                    f"{result.ours_ms:7.1f} {result.ours_fraction:8.0%} | "
                    f"{result.generate_ms:11.1f} {result.generate_fraction:8.0%} | "
                    f"{result.step_speedup:14.2f} {result.call_speedup:4.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
