"""The working folder of a study: a folder per run, and which runs are finished under today's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pbsd.compare.plan import Run, folder_name
from pbsd.reading import read_lines as read_lines
from pbsd.run import RunFolder
from pbsd.run_paths import lock_folder

RESULT, STARTED = "result.json", "started.json"
CURVE, METRICS, ALARMS = "curve.jsonl", "metrics.jsonl", "alarms.jsonl"


class Store:
    """Runs by their key.

    Attributes:
        options: the resolved options of every planned run, by key (`plan.resolved_options`).
        elsewhere: what runs found that were not made here, by key (`files.ResultFiles.runs`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.elsewhere: dict[str, dict[str, Any]] = {}
        self.options: dict[str, dict[str, Any]] = {}
        self._results: dict[str, dict[str, Any]] = {}

    def lock(self) -> IO[str]:
        """Held until it is closed or the process ends. Raises ValueError while another compare works here."""
        message = "another `pbsd compare` is writing here: wait for it, or give another folder by --work"
        return lock_folder(self.path, message)

    def folder(self, run: Run) -> Path:
        return self.path / "runs" / folder_name(run.name, run.key)

    def result(self, run: Run) -> dict[str, Any] | None:
        """What the finished run found, or None: not finished, or finished under other settings or defaults."""
        if run.key not in self._results:
            here, elsewhere = RunFolder(self.folder(run)).read(RESULT), self.elsewhere.get(run.key)
            for result in (here, elsewhere):
                if result is not None and is_current(result, run.key, self.options[run.key]):
                    self._results[run.key] = result
                    return result
            return None
        return self._results[run.key]

    def is_finished(self, run: Run) -> bool:
        return self.result(run) is not None

    def not_here(self, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The names of the runs that have no result here, of whatever settings."""
        here = {path.parent.name for path in self.path.glob(f"runs/*/{RESULT}")}
        return [run["name"] for key, run in found.items() if folder_name(run["name"], key) not in here]

    def other_results(self) -> int:
        """How many results of other settings lie here, which nothing uses."""
        keys = {key[:12] for key in self.options}
        return sum(path.parent.name.rpartition("-")[2] not in keys for path in self.path.glob(f"runs/*/{RESULT}"))


def is_current(record: Mapping[str, Any] | None, key: str, options: Mapping[str, Any]) -> bool:
    """Whether a record is of this run and no option's value (a default, say) has changed since. An option that either
    side does not have yet does not count: new ones come with a default that changes nothing."""
    if record is None or record.get("key") != key or not isinstance(then := record.get("options"), dict):
        return False
    return all(then[name] == options[name] for name in then.keys() & options.keys())
