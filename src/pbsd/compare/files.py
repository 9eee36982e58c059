"""The files beside a study: results, curves, metrics, choices, and the finished runs. Equal runs give equal bytes.

They hold all that the runs found, so a study goes on from its committed files on another machine.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS, CURVES, TRAINING, CHOICES, RUNS, TABLE = (
    "results.jsonl.gz", "curves.jsonl.gz", "metrics.jsonl.gz", "choices.json", "runs.jsonl.gz", "table.md",
)  # fmt: skip
_WRITTEN = "written.json"
_IDENTITY = ("method", "task", "world", "scale", "seed")


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

    def finished_runs(self) -> list[dict[str, Any]]:
        """What `result.json` held of the runs in the files, where these came from elsewhere (with the checkout, say);
        none where this working folder made them.

        Raises:
            ValueError: the files do not hold their runs, or not whole, so that writing them anew would lose something.
        """
        foreign = [name for name in (RESULTS, CURVES, TRAINING, CHOICES, RUNS) if self._is_foreign(name)]
        if not foreign:
            return []
        try:
            return self._read_runs()
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{self.folder / foreign[0]} was not made from the runs in {self.work} (it came with the checkout, or "
                f"from another --work) and would be overwritten, but its runs cannot be taken over ({error}): give "
                "another folder by --out, or move it away"
            ) from error

    def _read_runs(self) -> list[dict[str, Any]]:
        runs = read_rows(self.folder / RUNS)
        tested = {run["name"]: run for run in runs if run["name"].startswith("final/")}
        for run in tested.values():
            run |= {"problems": [], "curve": [], "metrics": []}
        for row in read_rows(self.folder / RESULTS):
            counts = [row[key] for key in ("problem_id", "num_samples", "num_correct", "generated_tokens")]
            tested[_name(row)]["problems"].append(counts)
        for row in read_rows(self.folder / CURVES):
            point = {"step": row["step"], "generated_tokens": row["generated_tokens"]}
            tested[_name(row)]["curve"].append({**point, "accuracy": row["validation_accuracy"]})
        for row in read_rows(self.folder / TRAINING):
            point = {key: value for key, value in row.items() if key not in _IDENTITY}
            tested[_name(row)]["metrics"].append(point)
        if cut := [name for name, run in tested.items() if not run["problems"] or not run["curve"]]:
            raise ValueError(f"{cut[0]} has no problems or no curve")
        return runs

    def _is_foreign(self, name: str) -> bool:
        path = self.folder / name
        return path.is_file() and _sha256(path.read_bytes()) not in self._written()

    def write(
        self,
        choices: Mapping[str, Any],
        trials: Sequence[Mapping[str, Any]],
        finished: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    ) -> None:
        """`trials`: results of tuning runs; `finished`: identity and result of every tested run; in the study's order.
        Left out are training metrics of tuning runs, and how long runs took."""
        self.folder.mkdir(parents=True, exist_ok=True)
        contents = {
            RESULTS: _gzipped(row for identity, result in finished for row in _result_rows(identity, result)),
            CURVES: _gzipped(row for identity, result in finished for row in _curve_rows(identity, result)),
            TRAINING: _gzipped({**identity, **point} for identity, result in finished for point in result["metrics"]),
            CHOICES: (json.dumps(choices, indent=1) + "\n").encode(),
            RUNS: _gzipped(
                [
                    *({**_without(result, "seconds"), "metrics": []} for result in trials),
                    *(_without(result, "seconds", "problems", "curve", "metrics") for _, result in finished),
                ]
            ),
        }
        # Before the files, so that a kill in between does not make them foreign.
        written = self._written() | {_sha256(content) for content in contents.values()}
        _replace(self.work / _WRITTEN, json.dumps(sorted(written)).encode())
        for name, content in contents.items():
            _replace(self.folder / name, content)

    def _written(self) -> set[str]:
        path = self.work / _WRITTEN
        return set(json.loads(path.read_text())) if path.is_file() else set()


def _name(row: Mapping[str, Any]) -> str:
    """The tested run that a row belongs to, as `plan.Run.name`."""
    return "/".join(("final", *(str(row[key]) for key in _IDENTITY[:-1]), f"seed{row['seed']}"))


def _without(result: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in keys}


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
