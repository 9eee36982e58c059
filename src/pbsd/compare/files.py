"""The files beside a study: results, curves, metrics and choices. Equal runs give equal bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS, CURVES, TRAINING, CHOICES, TABLE = (
    "results.jsonl.gz", "curves.jsonl.gz", "metrics.jsonl.gz", "choices.json", "table.md",
)  # fmt: skip
_WRITTEN = "written.json"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError naming the file when it is not gzipped JSON lines."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as gzipped JSON lines ({error}): make it anew") from error


def read_choices(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file when it is not a choices file."""
    try:
        choices = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as choices ({error}): run the study that makes it") from error
    if not isinstance(choices, dict) or not {"study", "choices", "runs"} <= choices.keys():
        raise ValueError(f"{path}: not a choices file of `pbsd compare`: it has no study, choices and runs")
    return choices


class ResultFiles:
    """The files in `folder`, written by the study whose working folder is `work`."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work

    def check(self) -> None:
        """Raises ValueError when there are files that this working folder did not make: they would be lost."""
        ours = self._written()
        for name in (RESULTS, CURVES, TRAINING, CHOICES):
            path = self.folder / name
            if path.is_file() and _sha256(path.read_bytes()) not in ours:
                raise ValueError(
                    f"{path} was not made from the runs in {self.work} (it came with the checkout, or from another "
                    "--work) and would be overwritten: give another folder by --out, or move it away"
                )

    def write(
        self, choices: Mapping[str, Any], finished: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    ) -> None:
        """`finished`: identity and result of every tested run, in the study's order."""
        self.folder.mkdir(parents=True, exist_ok=True)
        contents = {
            RESULTS: _gzipped(row for identity, result in finished for row in _result_rows(identity, result)),
            CURVES: _gzipped(row for identity, result in finished for row in _curve_rows(identity, result)),
            TRAINING: _gzipped({**identity, **point} for identity, result in finished for point in result["metrics"]),
            CHOICES: (json.dumps(choices, indent=1) + "\n").encode(),
        }
        # Before the files, so that a kill in between does not make them foreign.
        written = self._written() | {_sha256(content) for content in contents.values()}
        _replace(self.work / _WRITTEN, json.dumps(sorted(written)).encode())
        for name, content in contents.items():
            _replace(self.folder / name, content)

    def _written(self) -> set[str]:
        path = self.work / _WRITTEN
        return set(json.loads(path.read_text())) if path.is_file() else set()


def _result_rows(identity: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for row, samples, correct, tokens in result["problems"]:
        yield {
            **identity, "problem_id": row, "num_samples": samples, "num_correct": correct, "generated_tokens": tokens
        }  # fmt: skip


def _curve_rows(identity: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for point in result["curve"]:
        yield {
            **identity,
            "step": point["step"],
            "generated_tokens": point["generated_tokens"],
            "validation_accuracy": point["accuracy"],
        }


def _gzipped(rows: Iterable[Mapping[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    # No name and no time in the header.
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.writelines((json.dumps(row) + "\n").encode() for row in rows)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    _replace(path, text.encode("utf-8"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
