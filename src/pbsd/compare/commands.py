"""`pbsd compare`: do a study's runs, as many as are asked for, and write its files and table."""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pbsd.compare.study import study_name


def run(flags: Sequence[str]) -> int:
    """Run `pbsd compare` with its flags; returns the exit status, 1 when a run failed.

    Raises:
        ValueError: a study, a folder or flags that cannot be used.
    """
    args = _parse(flags)
    path = Path(args.study)
    work = args.work or Path("runs/compare") / study_name(path)
    out = args.out or path.parent
    if args.table and not (work / "runs").is_dir():
        from pbsd.compare.table import write_table

        print(f"no runs in {work}: the table is made of the files in {out}")
        print(write_table(out))
        return 0
    with _sigterm_as_interrupt():
        try:
            return _run(args, path, work, out)
        except KeyboardInterrupt as interrupt:
            print("pbsd: interrupted; finished runs are kept, the same command goes on", file=sys.stderr)
            return 143 if isinstance(interrupt, _Terminated) else 130


def _parse(flags: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pbsd compare",
        description="Compare methods by a study file. Runs that are finished are kept, interrupted ones go on: repeat "
        "the command after any stop. Results lie beside the study file; with them it goes on in any checkout.",
    )
    parser.add_argument("study", help="YAML file; studies/strength/study.yaml explains the keys")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="no runs: files and table of what is finished")
    what.add_argument("--dry_run", action="store_true", help="no runs: list them, with an estimate of the time")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="only runs whose name has every WORD as a part (* is a wildcard): --only grpo 0.2m seed0",
    )
    parser.add_argument("--max_runs", type=int, help="stop after so many runs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: the number of cores)")
    parser.add_argument("--save_steps", type=int, default=50, help="steps between checkpoints of a run (default 50)")
    parser.add_argument("--work", type=Path, help="working folder (default runs/compare/NAME)")
    parser.add_argument("--out", type=Path, help="folder of the result files (default the study's)")
    parser.add_argument("--discard", action="store_true", help="drop runs of other settings from the result files")
    args = parser.parse_args(flags)
    for name in ("max_runs", "jobs", "save_steps"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")
    return args


def _run(args: argparse.Namespace, path: Path, work: Path, out: Path) -> int:
    import datasets
    from transformers.utils import logging as transformers_logging

    from pbsd.compare.runner import StudyRunner
    from pbsd.compare.study_file import load_study

    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    runner = StudyRunner(load_study(path), work, out, discard=args.discard)
    if args.dry_run:
        runner.show(lambda run: _matches(run, args.only), args.jobs)
        return 0
    if args.table:
        runner.write()
        return 0
    with closing(runner.store.lock()):
        runner.check()
        try:
            failures = runner.execute(
                lambda run: _matches(run, args.only), jobs=args.jobs, max_runs=args.max_runs, save_steps=args.save_steps
            )
        finally:
            runner.write()
    for name, reason in failures.items():
        print(f"pbsd: failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _matches(run: Any, only: Sequence[str]) -> bool:
    return all(any(fnmatch.fnmatchcase(part, word) for part in run.words) for word in only)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP of a terminal that was closed."""


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(signum: int, frame: Any) -> None:
        raise _Terminated

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
