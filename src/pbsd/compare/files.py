"""The files beside a study: results, curves, metrics, choices, and the finished runs. Equal runs give equal bytes.

runs.jsonl.gz holds all that the runs found, so a study goes on from its committed files on another machine.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pbsd.redact import public

RESULTS, CURVES, TRAINING, CHOICES, RUNS, TABLE = (
    "results.jsonl.gz", "curves.jsonl.gz", "metrics.jsonl.gz", "choices.json", "runs.jsonl.gz", "table.md",
)  # fmt: skip
_IN_EVERY_RUN = {"name", "key", "options", "curve", "metrics", "problems"}


MAX_UNPACKED = 2**28
"""Bytes that a gzip file may unpack to: some hundred times what a large study has. A bomb of a megabyte has more."""


def unpacked(path: Path) -> bytes:
    """The content of a gzip file. Raises ValueError, naming it, when it is damaged or unpacks to too much."""
    try:
        with gzip.open(path) as file:
            content = file.read(MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read, it is not a whole gzip file ({error}): write it again") from error
    if len(content) > MAX_UNPACKED:
        raise ValueError(
            f"{path}: unpacks to more than {MAX_UNPACKED / 2**20:,.0f} MiB from {path.stat().st_size:,} bytes; no "
            "study writes such a file: bring back the one that it wrote"
        )
    return content


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError naming the file when it is not gzipped JSON lines."""
    try:
        return [json.loads(line) for line in unpacked(path).decode("utf-8").split("\n") if line]
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as gzipped JSON lines ({error}): make it anew") from error


def read_choices(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file when it is not a choices file."""
    try:
        choices = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as choices ({error}): run the study that makes it") from error
    if not isinstance(choices, dict) or not {"study", "choices", "runs"} <= choices.keys():
        raise ValueError(f"{path}: not a choices file of `pbsd compare`: it has no study, choices and runs")
    return choices


class ResultFiles:
    """The files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self) -> dict[str, dict[str, Any]]:
        """By key, what the runs in the files found, as in `result.json`.

        Raises:
            ValueError: the files are damaged, hold two results of one run, or are of runs that they do not hold.
        """
        path = self.folder / RUNS
        if not path.is_file():
            if found := [name for name in (RESULTS, CURVES, TRAINING, CHOICES) if (self.folder / name).is_file()]:
                raise ValueError(
                    f"{self.folder / found[0]} would be overwritten, and {RUNS}, which holds the runs it was made of, "
                    "is not beside it: bring it back, give another folder by --out, or move the file away"
                )
            return {}
        runs: dict[str, dict[str, Any]] = {}
        for run in read_rows(path):
            if not isinstance(run, dict) or _IN_EVERY_RUN - run.keys():
                raise ValueError(f"{path}: a row is not a run: bring the file back, or move it away")
            if runs.setdefault(str(run["key"]), run) != run:
                raise ValueError(f"{path}: two different results of {run['name']}: leave one, or move the file away")
        return runs

    def write(
        self,
        choices: Mapping[str, Any],
        trials: Sequence[Mapping[str, Any]],
        finished: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    ) -> None:
        """`trials`: results of tuning runs; `finished`: identity and result of every tested run; in the study's order.
        Left out are training metrics of tuning runs, and how long runs took."""
        self.folder.mkdir(parents=True, exist_ok=True)
        runs = [*({**result, "metrics": []} for result in trials), *(result for _, result in finished)]
        contents = {
            # First, since it holds what the others are made of.
            RUNS: _gzipped({key: value for key, value in run.items() if key != "seconds"} for run in runs),
            RESULTS: _gzipped(row for identity, result in finished for row in _result_rows(identity, result)),
            CURVES: _gzipped(row for identity, result in finished for row in _curve_rows(identity, result)),
            TRAINING: _gzipped({**identity, **point} for identity, result in finished for point in result["metrics"]),
            CHOICES: (json.dumps(public(choices), indent=1) + "\n").encode(),
        }
        for name, content in contents.items():
            _replace(self.folder / name, content)


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
