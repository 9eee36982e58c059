"""Checkpoint folders of a run: written whole or not at all, checked before use, rotated by their step.

A checkpoint is written in `_saving/`, gets manifest.json (names, sizes and SHA-256 of its files, and what determines
the run) and is then renamed to `checkpoint-N`. So a kill at any moment leaves no half of one, and a folder whose files
are not those of its manifest was damaged later.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

MANIFEST = "manifest.json"
METHOD_STATE = "method_state.pt"
SAVING, REMOVING = "_saving", "_removing"
DAMAGED = "damaged-"
_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_NEEDED = (OPTIMIZER_NAME, SCHEDULER_NAME, METHOD_STATE, TRAINER_STATE_NAME)
"""Without one of these training cannot go on."""

logger = logging.getLogger(__name__)


def name_of(step: int) -> str:
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def by_step(folder: Path) -> dict[int, Path]:
    """The checkpoints in a run folder, from the first step to the last."""
    found = {int(match[1]): path for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found) if found[step].is_dir()}


def seal(checkpoint: str | Path, made_of: Mapping[str, Any] | None = None) -> None:
    """Write the manifest over the files that lie in the folder now."""
    checkpoint = Path(checkpoint)
    files = file_facts(checkpoint, leave_out=(MANIFEST,))
    content = {"files": files, "made_of": made_of}
    temporary = checkpoint / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps({**content, "sha256": _content_hash(content)}, indent=2) + "\n", "utf-8")
    os.replace(temporary, checkpoint / MANIFEST)


def file_facts(folder: Path, *, leave_out: Container[str] = ()) -> dict[str, Any]:
    """Sizes and hashes of a folder's files by their names in it, but those named."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
        for name, path in files.items()
        if name not in leave_out
    }


def file_faults(folder: Path, facts: Mapping[str, Any]) -> list[str]:
    """Which of a folder's files are missing or not as they were written."""
    return [fault for name, own in facts.items() if (fault := _fault(folder, name, own))]


def faults(checkpoint: Path, *, to_resume: bool = True) -> list[str]:
    """What is wrong with a checkpoint, file by file; empty where training can go on from it (or, without `to_resume`,
    where what it holds is whole)."""
    try:
        content = _read(checkpoint)
    except FileNotFoundError:
        return [
            f"{MANIFEST} is missing, so its files cannot be checked (it was deleted, or an earlier version of pbsd "
            "wrote the checkpoint)"
        ]
    except (OSError, ValueError) as error:
        return [f"{MANIFEST} is damaged ({error})"]
    found = file_faults(checkpoint, content["files"])
    if to_resume and (missing := [name for name in _NEEDED if name not in content["files"]]):
        found.append(
            f"it was saved without {', '.join(missing)}: with save_only_model a checkpoint holds the weights alone, "
            "and training cannot go on from it"
        )
    return found


def made_of(checkpoint: Path) -> dict[str, Any] | None:
    """What determines the run that wrote the checkpoint; None where its manifest was written by hand (`seal`)."""
    found: dict[str, Any] | None = _read(checkpoint)["made_of"]
    return found


def logged(checkpoint: Path) -> int:
    """How many lines of metrics.jsonl had been written when the checkpoint was saved."""
    history = json.loads((checkpoint / TRAINER_STATE_NAME).read_text("utf-8"))["log_history"]
    return sum(not is_end_of_training(entry) for entry in history)


def is_end_of_training(logs: Mapping[str, Any]) -> bool:
    """Whether these are transformers' figures of a whole training, which metrics.jsonl leaves out."""
    return "train_runtime" in logs


def newest_whole(folder: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest checkpoint without faults, and the faults of those that are newer."""
    damaged: dict[Path, list[str]] = {}
    for checkpoint in reversed(by_step(folder).values()):
        if not (wrong := faults(checkpoint)):
            return checkpoint, damaged
        damaged[checkpoint] = wrong
    return None, damaged


def require_whole(checkpoint: Path, *, to_resume: bool = True) -> None:
    """Raises ValueError, naming what is wrong and the newest checkpoint beside it from which training can go on."""
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such checkpoint folder")
    if wrong := faults(checkpoint, to_resume=to_resume):
        whole, _ = newest_whole(checkpoint.parent)
        other = f"the newest whole one is {whole}" if whole else "there is no whole one beside it"
        raise ValueError(f"{described({checkpoint: wrong})}; {other}{how_to_accept(wrong, checkpoint)}")


def best_of(checkpoint: Path) -> Path | None:
    """The best checkpoint of the run that wrote this one, up to its step; None where none was measured.

    It lies beside this one (a run folder may have been moved), or where it was saved: what is there now may be of
    another run, which does not count.
    """
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text("utf-8"))
    if not (step := state.get("best_global_step")):
        return None
    here, recorded = checkpoint.parent / name_of(step), Path(state.get("best_model_checkpoint") or "")
    return here if here.is_dir() or not _of_one_run(recorded, checkpoint) else recorded


def require_best(checkpoint: Path) -> None:
    """Raises ValueError where the best checkpoint so far, which a run may end with, is missing or damaged."""
    best = best_of(checkpoint)
    if best is None:
        return
    wrong = faults(best, to_resume=False) if best.is_dir() else ["it is missing"]
    if wrong:
        raise ValueError(
            f"{described({best: wrong})}; it is the best checkpoint of the run so far, which load_best_model_at_end "
            "ends with: bring its files back, or start again without --resume (in Python: without "
            f"resume_from_checkpoint){how_to_accept(wrong, best)}"
        )


def _of_one_run(one: Path, other: Path) -> bool:
    try:
        first, second = made_of(one), made_of(other)
    except (OSError, ValueError):
        return False
    if first is None or second is None:
        return first is second
    return all(first.get(name) == second.get(name) for name in (first.keys() | second.keys()) - {"may_change"})


def described(damaged: Mapping[Path, list[str]]) -> str:
    return "; ".join(f"{checkpoint}: {', '.join(wrong)}" for checkpoint, wrong in damaged.items())


def how_to_accept(wrong: list[str], checkpoint: Path) -> str:
    """What to do with a checkpoint whose only fault is that it has no manifest."""
    if len(wrong) != 1 or not wrong[0].startswith(f"{MANIFEST} is missing"):
        return ""
    return f". To accept its files as they are: python -c 'from pbsd.checkpoints import seal; seal(\"{checkpoint}\")'"


def publish(saved: Path, checkpoint: Path) -> None:
    """Give a sealed checkpoint its place; one that lies there is removed."""
    if checkpoint.exists():
        remove(checkpoint)
    os.rename(saved, checkpoint)


def remove(checkpoint: Path) -> None:
    """Out of sight first, so that a kill leaves no half of it under its name."""
    aside = checkpoint.parent / REMOVING
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(exist_ok=True)
    os.rename(checkpoint, aside / checkpoint.name)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(folder: Path, limit: int | None, *, step: int, best: str | None) -> None:
    """Keep the `limit` newest checkpoints up to `step` by their step (clocks do not matter), and the best one.

    Those of later steps are another run's: they count for nothing here and stay.
    """
    if limit is None or limit <= 0:
        return
    own = [path for number, path in by_step(folder).items() if number <= step]
    keep = {path.name for path in own[-1:]} | ({Path(best).name} if best else set())
    left = len(own)
    for checkpoint in own:
        if left <= max(limit, len(keep)):
            break
        if checkpoint.name not in keep:
            remove(checkpoint)
            left -= 1


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run had begun to save or to remove."""
    for name in (SAVING, REMOVING):
        shutil.rmtree(folder / name, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one; one that was set aside before is replaced."""
    aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def _read(checkpoint: Path) -> dict[str, Any]:
    """Raises FileNotFoundError, or ValueError where the manifest is not as it was written."""
    content = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError("it has no list of files")
    if content.pop("sha256", None) != _content_hash(content):
        raise ValueError("its content is not what was written")
    return content


def _fault(checkpoint: Path, name: str, facts: Mapping[str, Any]) -> str | None:
    path = checkpoint / name
    if not path.is_file():
        return f"{name} is missing"
    if (size := path.stat().st_size) != facts["bytes"]:
        return f"{name} is damaged ({size} bytes of {facts['bytes']})"
    if _file_hash(path) != facts["sha256"]:
        return f"{name} is damaged (its bytes are not those that were written)"
    return None


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
