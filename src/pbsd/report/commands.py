"""`pbsd report`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pbsd.report.explorer import MAX_BYTES, Explorer, explorer
from pbsd.report.page import render
from pbsd.report.runs import RUN_FILES, Run, is_run, read_run
from pbsd.report.sections import sections
from pbsd.report.study import STUDY_FILES, Study, is_study, read_study, told_apart
from pbsd.report.trials import run_trials


def run(flags: Sequence[str]) -> None:
    """Run `pbsd report` with its flags.

    Raises:
        ValueError: a folder that is neither run nor study, or a file that cannot be read: which, where, and the mend.
        ImportError: plotly is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="pbsd report",
        description="Make one web page of runs and studies: accuracy, curves, margins, stability, the pairs "
        "themselves. It opens offline and needs nothing but itself. Runs that still go are shown as far as they are.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_STUDY")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default report.html)")
    parser.add_argument("--title", help="heading of the page (default: the folders' names)")
    parser.add_argument(
        "--max_pairs",
        type=int,
        default=10_000,
        help="pairs of each run in the explorer, evenly spaced where there are more (default 10000)",
    )
    parser.add_argument(
        "--max_megabytes",
        type=int,
        default=MAX_BYTES // 10**6,
        help="of the explorer, shared evenly by the runs; pairs are thinned to fit (default %(default)s)",
    )
    args = parser.parse_args(flags)
    for name in ("max_pairs", "max_megabytes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    max_bytes = 10**6 * args.max_megabytes
    _check_out(args.out)
    html = report(args.folders, title=args.title, max_pairs=args.max_pairs, max_bytes=max_bytes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.out.with_name(f".{args.out.name}.tmp")
    size = temporary.write_bytes(html.encode())
    os.replace(temporary, args.out)
    print(f"{args.out}: {size / 1e6:.1f} MB, open it in a browser")


def _check_out(path: Path) -> None:
    """Raises ValueError where something other than a web page would be replaced."""
    if not path.exists():
        return
    if not path.is_file():
        raise ValueError(f"--out {str(path)!r} is no file: name one, such as report.html")
    with path.open("rb") as file:
        begin = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begin and not begin.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"--out {str(path)!r} exists and is not a web page. It is left as it is: name another file")


def report(
    folders: Sequence[Path], *, title: str | None = None, max_pairs: int = 10_000, max_bytes: int = MAX_BYTES
) -> str:
    """The page of these folders as HTML; see `run`."""
    runs: list[Run] = []
    studies: list[Study] = []
    for path, name in zip(folders, _names(folders), strict=True):
        if is_study(path):
            studies.append(read_study(path, name))
        elif is_run(path):
            runs.append(read_run(path, name))
        else:
            raise ValueError(_neither(path))
    studies = told_apart(studies)
    explorers: dict[str, Explorer] = {}
    for found in runs:
        if (pairs := explorer(found, max_pairs, max_bytes // len(runs))) is not None:
            explorers[found.name] = pairs
    trials = [*run_trials(runs), *(trial for study in studies for trial in study.trials)]
    names = [run.name for run in runs] + [study.name for study in studies]
    heading = title or (", ".join(names) if len(names) <= 3 else _count(len(runs), len(studies)))
    return render(heading, sections(runs, studies, trials), explorers)


def _count(runs: int, studies: int) -> str:
    counts = ((runs, "run", "runs"), (studies, "study", "studies"))
    return " and ".join(f"{number} {one if number == 1 else many}" for number, one, many in counts if number)


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's own name, with as many parents as tell all of them apart."""
    parts = [path.resolve().parts for path in folders]
    if len(set(parts)) < len(parts):
        raise ValueError("the same folder is named twice: name each once")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _neither(path: Path) -> str:
    if not path.is_dir():
        return f"{path}: no such folder"
    inside = [child.name for child in sorted(path.iterdir()) if is_run(child) or is_study(child)]
    if inside:
        return f"{path} is no run itself but holds {', '.join(inside[:3])}: name those, or {path}/*"
    return f"{path}: neither a run (no {', '.join(RUN_FILES[:4])}) nor a study (no {' or '.join(STUDY_FILES)})"
