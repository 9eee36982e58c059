"""How a run begins: from the start, from a checkpoint, or not at all since it is finished; and the record of it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pbsd.checkpoints import (
    by_step,
    described,
    file_facts,
    file_faults,
    how_to_accept,
    newest_whole,
    require_best,
    step_of,
)
from pbsd.determines import MAY_CHANGE, allowed_changes, goes_as_far, refuse_changes
from pbsd.reading import read_object, reading
from pbsd.redact import public

MANIFEST, SUMMARY, MODEL = "manifest.json", "summary.json", "model"
MODEL_FILES = "model_files.json"
"""Sizes and hashes of the files in `model/`, beside it, so that the model's folder stays one of a model alone."""
_MODEL_CARD = "README.md"
"""Of the user, to write on."""
_OF_A_RUN = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "eval_before.json", "eval_after.json", SUMMARY, MODEL)


@dataclass(frozen=True, slots=True)
class Start:
    """What a command is about to do.

    Attributes:
        checkpoint: what training goes on from; None: from the beginning.
        finished: the run is at its end already, so nothing is done.
        line: the same in a sentence, with the reason.
        earlier: the record of the run that goes on.
    """

    checkpoint: Path | None
    finished: bool
    line: str
    earlier: Mapping[str, Any] | None = None


def fresh_start(folder: Path) -> Start:
    return Start(None, False, f"{folder}: training starts from the beginning")


def plan_resume(
    folder: Path,
    earlier: Mapping[str, Any] | None,
    made_of: Mapping[str, Any],
    *,
    last_step: int,
    save_only_model: bool,
) -> Start:
    """What `--resume` does in a run folder; nothing is touched yet. `earlier` is the content of its manifest.

    Raises:
        ValueError: the run began with something else, its manifest is lost, its model is damaged and cannot be
            written again, its checkpoints are all damaged or its best
            one is, or it keeps none that training can go on from.
    """
    if earlier is None:
        left = [name for name in _OF_A_RUN if (folder / name).exists()] + [
            path.name for path in by_step(folder).values()
        ]
        if left:
            raise ValueError(
                f"{folder / MANIFEST} is missing, so this command cannot be compared with the one that began the run "
                f"({', '.join(left)} are there): bring the file back, or leave out --resume to start from the beginning"
            )
        return Start(None, False, f"{folder}: training starts from the beginning: there is no run to resume")
    if MAY_CHANGE not in earlier:
        raise ValueError(
            f"{folder / MANIFEST} was written by an earlier version of pbsd and does not say all that determines the "
            "run: go on with that version, or leave out --resume to start from the beginning"
        )
    refuse_changes(earlier, made_of, folder)
    again = ""
    if (folder / SUMMARY).is_file() and goes_as_far(earlier, made_of):
        if not (wrong := model_faults(folder)):
            return Start(None, True, f"{folder}: the run is finished, so nothing is done", earlier)
        again = f"{folder / MODEL}: {', '.join(wrong)}"
        if save_only_model or newest_whole(folder)[0] is None:
            raise ValueError(
                f"{again}: the run is finished, and no whole checkpoint is there to write the model from again: bring "
                "the files back, or leave out --resume to start from the beginning"
            )
    if save_only_model:
        raise ValueError(
            f"{folder}: save_only_model keeps the weights alone, so training cannot go on from its checkpoints: leave "
            "out --resume to start from the beginning, or save_only_model to be able to resume"
        )
    checkpoint, damaged = newest_whole(folder)
    if checkpoint is None and damaged:
        accept = "".join(how_to_accept(wrong, path) for path, wrong in [*damaged.items()][:1])
        raise ValueError(
            f"no checkpoint is whole: {described(damaged)}: bring the files back, or leave out --resume to start from "
            f"the beginning{accept}"
        )
    if checkpoint is None:
        line = f"{folder}: training starts from the beginning: no checkpoint had been saved"
    elif step_of(checkpoint) > last_step:
        raise ValueError(
            f"training is to end at step {last_step}, and {checkpoint} is beyond that: raise max_steps or "
            "num_train_epochs, or leave out --resume to start from the beginning"
        )
    else:
        line = f"{folder}: training goes on from {checkpoint.name}"
        if again:
            line += f", and the model is written again ({again})"
    if checkpoint is not None and made_of["options"].get("load_best_model_at_end"):
        require_best(checkpoint)
    if damaged:
        line += f", the newest whole one; set aside: {described(damaged)}"
    if changes := allowed_changes(earlier, made_of):
        line += f"; this command changes {', '.join(changes)}"
    return Start(checkpoint, False, line, earlier)


def model_facts(folder: Path) -> dict[str, Any]:
    """The content of `MODEL_FILES`."""
    return {"files": file_facts(folder / MODEL, leave_out=(_MODEL_CARD,))}


def model_faults(folder: Path) -> list[str]:
    """What is wrong with a finished run's model; empty where its files are those that were written.

    Raises ValueError where their record is no JSON object.
    """
    if not (folder / MODEL).is_dir():
        return ["it is missing"]
    path = folder / MODEL_FILES
    if not path.is_file():
        return [f"{MODEL_FILES}, the record of its files, is missing"]
    how = f"remove it, and the command with --resume writes {MODEL}/ again"
    with reading(path, how):
        return file_faults(folder / MODEL, read_object(path, how)["files"])


def manifest(made_of: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """What the run is made of, and all its sessions."""
    session = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "resumed_from": start.checkpoint.name if start.checkpoint else None,
        "command": public(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("pbsd", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
        },
        "git_revision": git_revision(),
        MAY_CHANGE: made_of[MAY_CHANGE],
    }
    return {**made_of, "sessions": [*(start.earlier or {"sessions": []})["sessions"], session]}


def git_revision() -> str | None:
    """Of the working folder, with `+changes` when it is not clean; None outside a checkout."""
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if changed.strip() else "")
