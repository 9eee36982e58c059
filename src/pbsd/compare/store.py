"""The working folder of a study: a folder per run, and which runs are finished under today's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pbsd.compare.plan import Run, folder_name
from pbsd.run import RunFolder

RESULT, STARTED = "result.json", "started.json"
CURVE, METRICS, ALARMS = "curve.jsonl", "metrics.jsonl", "alarms.jsonl"


class Store:
    """Runs by their key. `options`: the resolved options of every planned run, by key (`plan.resolved_options`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.options: dict[str, dict[str, Any]] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def lock(self) -> IO[str]:
        """Held until it is closed or the process ends. Raises ValueError while another compare works here."""
        try:
            return RunFolder(self.path).lock()
        except ValueError as error:
            raise ValueError(
                f"{self.path}: another `pbsd compare` is writing here: wait for it, or give another folder by --work"
            ) from error

    def folder(self, run: Run) -> Path:
        return self.path / "runs" / folder_name(run.name, run.key)

    def adopt(self, results: Sequence[Mapping[str, Any]]) -> None:
        """Take over what other machines found, where nothing is found here; which of it is current is asked later."""
        for result in results:
            folder = RunFolder(self.path / "runs" / folder_name(result["name"], result["key"]))
            if folder.read(RESULT) is None:
                folder.path.mkdir(parents=True, exist_ok=True)
                folder.write(RESULT, result)

    def result(self, run: Run) -> dict[str, Any] | None:
        """What the finished run found, or None: not finished, or finished under other settings or defaults."""
        if run.key not in self._results:
            result = RunFolder(self.folder(run)).read(RESULT)
            if not is_current(result, run.key, self.options[run.key]):
                return None
            self._results[run.key] = result
        return self._results[run.key]

    def is_finished(self, run: Run) -> bool:
        return self.result(run) is not None

    def other_results(self) -> int:
        """How many results of other settings lie here, which nothing uses."""
        keys = {key[:12] for key in self.options}
        return sum(path.parent.name.rpartition("-")[2] not in keys for path in self.path.glob(f"runs/*/{RESULT}"))


def is_current(record: Mapping[str, Any] | None, key: str, options: Mapping[str, Any]) -> bool:
    """Whether a record is of this run and no option's value (a default, say) has changed since. An option that either
    side does not have yet does not count: new ones come with a default that changes nothing."""
    if record is None or record["key"] != key:
        return False
    then = record["options"]
    return all(then[name] == options[name] for name in then.keys() & options.keys())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
