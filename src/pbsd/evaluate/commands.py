"""`pbsd evaluate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pbsd import benchmarks
from pbsd.strict_json import strict

_DESCRIPTION = """\
Measure a model on a benchmark: accuracy with intervals, tokens, outcomes. A result folder holds evaluation.json (all
settings), records.jsonl (every prompt, completion and grade) and summary.json. After an interrupt the same command goes
on where it stopped and ends with the same files.

  pbsd evaluate Qwen/Qwen3-1.7B --benchmark aime24 --n 16 --thinking on --max_completion_length 38912
  pbsd evaluate runs/mine/model --benchmark bfcl:simple --n 1 --temperature 0
  pbsd evaluate MODEL --benchmark gsm8k --local data/gsm8k    # files in the hub's schema
  pbsd evaluate --compare runs/evaluate/before/gsm8k runs/evaluate/after/gsm8k
  pbsd evaluate --benchmark math500 --check_gold              # do the references grade correct? No model is needed
"""


def run(flags: Sequence[str]) -> int:
    """Run `pbsd evaluate` with its flags; returns the exit status.

    Raises ValueError for flags that do not fit together, and what loading and comparing raise.
    """
    args = _parse(flags)
    if args.compare:
        _compare(args)
        return 0
    if not args.benchmark:
        raise ValueError(f"say which benchmark by --benchmark: {', '.join(benchmarks.names())} or reasoning-gym:TASK")
    if args.check_gold:
        return _check_gold(args)
    if not args.model:
        raise ValueError("say which model is evaluated: a hub name, a folder, or a lab base")
    try:
        _evaluate(args)
    except KeyboardInterrupt:
        print("pbsd: interrupted; the same command goes on after the last finished problem", file=sys.stderr)
        return 130
    return 0


def _parse(flags: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pbsd evaluate",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", help="hub name, folder, or lab base")
    parser.add_argument("--benchmark", metavar="NAME", help=", ".join((*benchmarks.names(), "reasoning-gym:TASK")))
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default runs/evaluate/MODEL/BENCHMARK")
    parser.add_argument("--restart", action="store_true", help="move an earlier result in that folder aside")

    rows = parser.add_argument_group("problems")
    rows.add_argument("--local", metavar="PATH", help="file or folder in the hub's schema, read instead of the hub")
    rows.add_argument("--split", help="default: the one that is evaluated")
    rows.add_argument("--limit", type=int, help="the first so many problems")
    rows.add_argument("--revision", help="the data set's branch, tag or commit on the hub")
    rows.add_argument("--dataset_config", help="the hub's configuration; JSON options of a task of reasoning-gym")
    rows.add_argument("--dataset_seed", type=int, default=0, help="of a task of reasoning-gym (default 0)")
    rows.add_argument("--check_gold", action="store_true", help="grade the references, and list those that fail")

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--n", type=int, default=8, help="completions per problem (default 8)")
    sampling.add_argument("--temperature", type=float, default=1.0, help="default 1; 0 is greedy")
    sampling.add_argument("--top_p", type=float, default=1.0, help="default 1: off")
    sampling.add_argument("--top_k", type=int, default=0, help="default 0: off")
    sampling.add_argument("--min_p", type=float, help="default: off")
    sampling.add_argument("--max_completion_length", type=int, default=2048, help="in tokens (default 2048)")
    sampling.add_argument("--thinking", choices=("on", "off"), help="default: what the chat template does by itself")
    sampling.add_argument("--seed", type=int, default=0, help="default 0")
    sampling.add_argument("--scorer", choices=("strict", "paper_parity"), help="of tool calls (default strict)")

    machine = parser.add_argument_group("model and machine")
    machine.add_argument("--dtype", default="auto", help="default: the checkpoint's")
    machine.add_argument("--model_revision", help="the model's branch, tag or commit on the hub")
    machine.add_argument("--trust_remote_code", action="store_true")
    machine.add_argument("--batch_size", type=int, default=64, help="completions decoded together (default 64)")
    machine.add_argument("--num_threads", type=int, help="CPU threads of torch")
    machine.add_argument("--reward_workers", type=int, default=1, help="grader processes (default 1)")
    machine.add_argument("--reward_timeout", type=float, default=10.0, help="seconds per completion (default 10)")

    paired = parser.add_argument_group("comparing")
    paired.add_argument("--compare", nargs=2, type=Path, metavar=("FIRST", "SECOND"), help="two result folders")
    paired.add_argument("--allow_different", action="store_true", help="also where problems or settings differ")
    paired.add_argument("--json", type=Path, metavar="FILE", help="write the comparison to this file too")
    return parser.parse_args(flags)


def _request(args: argparse.Namespace) -> Any:
    from pbsd.evaluate.measure import Request

    same = (
        "n", "temperature", "top_p", "top_k", "min_p", "max_completion_length", "seed", "thinking", "scorer", "dtype",
        "model_revision", "trust_remote_code", "batch_size", "reward_workers", "reward_timeout",
    )  # fmt: skip
    return Request(
        model=args.model or "",
        benchmark=args.benchmark,
        query=_query(args),
        **{name: getattr(args, name) for name in same},
    )


def _query(args: argparse.Namespace) -> benchmarks.Query:
    return benchmarks.Query(
        split=args.split,
        size=args.limit,
        local=args.local,
        config=args.dataset_config,
        revision=args.revision,
        seed=args.dataset_seed,
    )


def _evaluate(args: argparse.Namespace) -> None:
    import datasets
    import torch
    from transformers.utils import logging as transformers_logging

    from pbsd.evaluate import measure, show
    from pbsd.evaluate.records import ResultFolder
    from pbsd.progress import status
    from pbsd.run_paths import check_output_dir

    if args.num_threads is not None:
        torch.set_num_threads(args.num_threads)
    request = _request(args)
    folder = ResultFolder(args.out or measure.default_folder(request))
    if args.restart:
        check_output_dir(folder.path, [args.model, args.local], option="--out")
    with status(f"loading {request.benchmark} and {request.model}"):
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
        evaluation = measure.prepare(request, folder.path)
    # Nothing is made or moved before everything that was named is there.
    with folder.lock():
        if args.restart:
            folder.move_aside()
        with show.EvaluationBar() as bar:
            summary = measure.run(evaluation, folder, bar)
    show.print_summary(summary, evaluation.settings, evaluation.about)
    print(f"the result lies in {folder.path}/")


def _check_gold(args: argparse.Namespace) -> int:
    from pbsd.evaluate.measure import check_gold

    benchmark, rows = benchmarks.find(args.benchmark), benchmarks.load(args.benchmark, _query(args))
    failures = check_gold(benchmark, rows, _request(args), Path("."))
    correct = len(rows.rows) - len(failures)
    print(f"{args.benchmark}: {correct} of {len(rows.rows)} references grade correct", *failures, sep="\n  ")
    return 1 if failures else 0


def _compare(args: argparse.Namespace) -> None:
    from pbsd.evaluate import show
    from pbsd.evaluate.compare import compare

    comparison = compare(*args.compare, allow_different=args.allow_different)
    show.print_comparison(comparison)
    if args.json:
        args.json.write_text(json.dumps(strict(comparison.to_json()), indent=2) + "\n", "utf-8")
