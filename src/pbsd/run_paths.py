"""Where a run, an evaluation or a build may write: its folder, what is moved aside for it, and its lock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_MARKS = {
    "manifest.json": {"method", "sessions"},
    "evaluation.json": {"settings", "sessions"},
    "started.json": {"key", "options"},
}
"""The files that say a folder is a run's, an evaluation's, or a study's run, with keys they have."""

_OURS = re.compile(
    r"(manifest|model_files|evaluation|started|summary|result|eval_before|eval_after|all_results|train_results)\.json"
    r"|(metrics|samples|alarms|curve|records)\.jsonl|config\.yaml|recipe\.yaml|log\.txt|failure\.txt|best_weights\.pt"
    r"|(damaged-)?checkpoint-\d+(\.\w+)?|_saving|model|runs|\..+\.tmp"
)
"""Names that these folders hold."""


class FolderInUse(ValueError):
    """Another process holds the folder's lock."""


def check_output_dir(name: str | Path | None, reads: Iterable[str | None] = (), *, option: str = "output_dir") -> Path:
    """The folder that a run is to have for itself, before anything is made or moved.

    Args:
        reads: models, data sets and files that the run reads, by name.
        option: what the folder is called in a refusal.

    Raises ValueError for a name that is none, the root, the home or working folder or one above them, a file, a folder
    with what the run reads, and a folder with other things than an earlier run's.
    """
    text = "" if name is None else str(name)
    if not text.strip() or "\0" in text:
        raise ValueError(f"{option} is {text!r}: name a folder that the run has for itself, such as runs/mine")
    path = Path(text).expanduser()
    if path.name in ("", "..") or path == Path("."):
        raise ValueError(f"{option} {text!r} is not the name of a folder: name one, such as runs/mine")
    real = path.resolve()
    for what, other in (("the working folder", Path.cwd()), ("the home folder", Path(os.path.expanduser("~")))):
        if _holds(real, other):
            where = "is" if real == other.resolve() else "holds"
            raise ValueError(f"{option} {text!r} {where} {what}: name a folder of the run's own, such as runs/mine")
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{option} {text!r} is a link to nothing: remove it, or name another folder")
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise ValueError(f"{option} {text!r}: {str(part)!r} is a file: name a folder")
    for read in _with_bases(reads) if path.exists() else ():
        # A model's or a data set's path, or the path of `benchmark@PATH`.
        if any(name and Path(name).exists() and _holds(real, Path(name)) for name in (read, read.partition("@")[2])):
            raise ValueError(f"{option} {text!r} holds {read!r}, which this command reads: name another for the run")
    if (others := _foreign(path)) is not None:
        names = os.listdir(path)
        if any(re.fullmatch(r"checkpoint-\d+", name) for name in names):
            found = "is no run's manifest" if "manifest.json" in names else "is missing"
            raise ValueError(
                f"{path / 'manifest.json'} {found}, so it cannot be told whose folder this is and which command "
                f"began its run (it holds {others}): bring the file back, or name another folder"
            )
        raise ValueError(
            f"{option} {text!r} is not a run's folder: it holds {others}. It is left as it is: name another folder, or "
            "move it away"
        )
    return path


def _with_bases(names: Iterable[str | None]) -> list[str]:
    """The names that are given, each followed by the base it stands on where it is an adapter in a folder, that base's
    own, and so on."""
    found: list[str] = []
    left = [name for name in names if name]
    while left:
        name = left.pop(0)
        if name in found:
            continue
        found.append(name)
        try:
            base = json.loads((Path(name) / "adapter_config.json").read_text("utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            continue  # no adapter of a folder, or one that loading says is damaged
        if isinstance(base, str) and base:
            left.insert(0, base)
    return found


def _holds(folder: Path, other: Path) -> bool:
    other = other.resolve()
    return folder == other or folder in other.parents


def is_run_folder(path: Path) -> bool:
    """Whether a run, an evaluation or a study's run wrote this folder: its manifest says so, or, where that is missing
    or damaged (not JSON), nothing but what a run writes is in it."""
    others = False
    for name, keys in _MARKS.items():
        try:
            content = json.loads((path / name).read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and keys <= content.keys():
            return True
        others = True
    if others:
        return False  # the manifest is whole, and of something else
    names = {entry.name for entry in path.iterdir()}
    begun = _MARKS.keys() & names or all(name.startswith(".") for name in names)
    return bool(begun) and all(_OURS.fullmatch(name) for name in names)


def _foreign(path: Path) -> str | None:
    """The first names in a folder that is no run's; None for a run's, an empty or a missing one."""
    if not path.is_dir() or is_run_folder(path):
        return None
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def move_aside(path: Path, *, option: str = "output_dir") -> None:
    """Rename an earlier run's folder to PATH.1, PATH.2 ... Raises ValueError, as `check_output_dir`, for any other."""
    if not path.exists() or not any(path.iterdir()):
        return
    check_output_dir(path, option=option)
    taken = {entry.name for entry in path.parent.iterdir()}
    aside = next(path.with_name(name) for n in range(1, 10_000) if (name := f"{path.name}.{n}") not in taken)
    path.rename(aside)
    logger.warning("an earlier run was moved from %s to %s", path, aside)


def lock_folder(path: Path, message: str) -> IO[str]:
    """The lock of a folder, in a file beside it (the folder may be moved aside); held until it is closed or the process
    ends. Nothing that is there already is followed, cut or written to.

    Raises:
        FolderInUse: another process holds it; says PATH: `message`.
        ValueError: the file is no lock, such as a link, or the folder has no name of its own.
    """
    if path.name in ("", ".."):
        raise ValueError(f"{str(path)!r} is not the name of a folder: name one, such as runs/mine")
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.with_name(f".{path.name}.lock")
    try:
        file = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644), "r+")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise ValueError(f"{name} must be the lock of {path.name}, but is a link or a folder: remove it") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise FolderInUse(f"{path}: {message}") from error
    return file


def folder_part(name: str) -> str:
    """A name as one part of a path, below the folder it is put into whatever the name is: `../x` is `-x`."""
    return re.sub(r"[^\w.+=-]+", "-", name).lstrip(".") or "unnamed"
