"""`pbsd lab build` and `pbsd lab list`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from pbsd.lab import cache_folder, checkpoint_path, is_packaged
from pbsd.lab.bases import BASES, PACKAGED, SCALES, TASK_NAMES, VARIANTS, Base
from pbsd.lab.worlds import WORLDS
from pbsd.reading import read_object, reading
from pbsd.run_paths import lock_folder


def run(command: str, flags: Sequence[str]) -> None:
    """Run `pbsd lab COMMAND` with its flags.

    Raises:
        ValueError: flags that name no base, or several for one folder.
        BuildError: a base that could not be trained as it is meant to be.
    """
    if command == "build":
        _build(_parse_build(flags))
    else:
        argparse.ArgumentParser(prog="pbsd lab list", description=list_bases.__doc__).parse_args(flags)
        list_bases()


def _parse_build(flags: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pbsd lab build",
        description="Build the base models that the flags name, small ones first. A build that is interrupted goes on "
        "when the command is repeated; one that is finished, or comes with the package, is kept.",
    )
    worlds = sorted({name for _, name in WORLDS})
    parser.add_argument("--task", choices=TASK_NAMES)
    parser.add_argument("--scale", choices=SCALES)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--variant", choices=(*VARIANTS, PACKAGED))
    which.add_argument("--world", choices=worlds, help="the base of this world; worlds may share one")
    parser.add_argument("--all", action="store_true", help="every base")
    parser.add_argument("--out", type=Path, help=f"folder of a single base (default {cache_folder()}/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and training order (default 0)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; the exact weights depend on it")
    return parser.parse_args(flags)


def _build(args: argparse.Namespace) -> None:
    chosen = _chosen(args)
    if args.out and len(chosen) > 1:
        raise ValueError(f"--out names one folder for {len(chosen)} bases: name one with --task, --scale and --variant")
    import torch
    from transformers.utils import logging as transformers_logging

    from pbsd.lab.base_model import BuildError, build_base

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    failures = []
    for base in chosen:
        if args.out is None and is_packaged(base.name):
            print(f"{base.name} comes with the package; --out FOLDER builds another")
            continue
        folder = args.out or cache_folder() / base.name
        _check_folder(folder)
        try:
            with lock_folder(folder, "another build is writing here: wait for it, or give another folder by --out"):
                report = build_base(base, folder, seed=args.seed)
        except BuildError as failure:
            failures.append(str(failure))
            print(failure, flush=True)
            continue
        print(f"{base.name} in {folder}: {json.dumps(report['validation'])}", flush=True)
    if failures:
        raise BuildError("\n".join(failures))


def _check_folder(folder: Path) -> None:
    """Raises ValueError for a folder with other things than a build of a base."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {str(folder)!r} is a file: name a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if names and not {"build.json", "training_state.pt", "training_state.tmp"} & set(names):
        raise ValueError(
            f"--out {str(folder)!r} is not a base's folder: it holds {', '.join(names[:3])}. It is left as it is: name "
            "another folder"
        )


def _chosen(args: argparse.Namespace) -> list[Base]:
    named = {"task": args.task, "scale": args.scale, "variant": args.variant}
    if args.world:
        named["variant"] = next(world.variant for (_, name), world in WORLDS.items() if name == args.world)
    if args.all == any(named.values()):
        raise ValueError("say which bases: by --task, --scale, --variant or --world, or --all of them")
    wanted = {key: value for key, value in named.items() if value}
    chosen = [
        base
        for base in BASES.values()
        if all(getattr(base, key) == value for key, value in wanted.items())
        and (base.variant != PACKAGED or wanted.get("variant") == PACKAGED)
    ]
    if not chosen:
        raise ValueError(f"no base has {', '.join(f'{key} {value}' for key, value in wanted.items())}")
    return chosen


def list_bases() -> None:
    """Show every base model and, where it is built, what was measured on validation problems at T = 1, in percent.

    `unsound`: the teacher's samples in a world that are wrong or cite the context. Bases without figures are not built.
    """
    titles = ("base", "steps", "student", "greedy", "world", "teacher", "unsound")
    table = Table(*(Column(title, no_wrap=True) for title in titles), box=None, padding=(0, 1, 0, 0))
    for name in BASES:
        try:
            path = checkpoint_path(name) / "build.json"
        except ValueError:
            table.add_row(f"lab/{name}", "-")
            continue
        with reading(path, "remove the folder and build the base again"):
            table.add_row(*_row(name, read_object(path)))
    Console().print(table)


def _row(name: str, report: dict[str, Any]) -> list[str]:
    rates = report["validation"]
    student = [f"{100 * rates[key]:.1f}" for key in ("student", "student_greedy")]
    steps = str(report.get("steps", report["arguments"].get("steps")))
    teachers = [
        [world, f"{100 * found['teacher']:.1f}", f"{100 * found['wrong_or_leaking']:.1f}"]
        for world, found in rates.get("worlds", {"": {**rates, "wrong_or_leaking": 1 - rates["teacher"]}}).items()
    ]
    return [f"lab/{name}", steps, *student, *map("\n".join, zip(*teachers, strict=True))]
