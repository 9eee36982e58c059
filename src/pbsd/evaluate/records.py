"""What is kept of an evaluation: a line per problem, the settings that determine it, and the folder of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbsd.reading import is_begun, parse_object, read_object, read_text, reading
from pbsd.redact import public
from pbsd.rewards.grade import UNKNOWN
from pbsd.run import RunFolder
from pbsd.run_paths import move_aside

_RESTART = "bring it back, or move the folder aside by --restart"

RECORDS, MANIFEST, SUMMARY = "records.jsonl", "evaluation.json", "summary.json"

_KINDS = {"benchmark": str, "problems": int, "n": int, "reward": dict, "versions": dict}
"""Settings that every evaluation has."""

OF_THE_MODEL = frozenset({"weights_sha256", "chat_template_sha256", "dtype", "stop_token_ids", "versions"})
"""Settings in which two results may differ and still be compared, but for the versions of what judged."""

OF_THE_MACHINE = frozenset({"batch_size", "device"})
"""Settings that change a result by rounding alone: one result has one of each, two results may differ in them."""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One graded completion.

    Attributes:
        text: with its thinking (and the `<think>` that the chat template wrote for it), without special tokens.
        answer: what it votes for in maj@k; None: nothing.
        outcome, score, reason: the grade (`pbsd.rewards.Grade`).
        tokens: of the completion, the stop token included.
        finished: whether a stop token ended it; otherwise the length limit cut it.
    """

    text: str
    answer: str | None
    outcome: str
    score: float | None
    reason: str
    tokens: int
    finished: bool

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"

    @property
    def judged(self) -> bool:
        return self.outcome not in UNKNOWN


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """A problem with all its completions.

    `row` is its place in the evaluated rows, `key` names it in every evaluation of the same benchmark: a hash of its
    prompt and answer, and which occurrence it is.
    """

    row: int
    key: str
    id: str
    prompt: Any
    reference: Any
    completions: tuple[SampleRecord, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ProblemRecord:
        completions = tuple(SampleRecord(**sample) for sample in record["completions"])
        return cls(**{**record, "completions": completions})


def problem_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A key for every row; equal rows get `-2`, `-3` ... in their order."""
    seen: dict[str, int] = {}
    keys = []
    for row in rows:
        content = json.dumps([row["prompt"], row.get("answer")], sort_keys=True, default=str)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        seen[digest] = seen.get(digest, 0) + 1
        keys.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return keys


class ResultFolder(RunFolder):
    """The folder of one evaluation: evaluation.json (settings, source, sessions), records.jsonl and summary.json."""

    def open(self, settings: Mapping[str, Any], about: Mapping[str, Any], session: Mapping[str, Any]) -> int:
        """Make the folder ready for these settings, and return how many problems are done.

        A record that was being written when the process died is cut off.

        Raises ValueError when the folder holds an evaluation with other settings, or its records are damaged.
        """
        settings = json.loads(json.dumps(settings))  # as it is read back
        earlier = self.evaluation()
        if earlier is None and self.path.exists() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} holds other files: give an empty or new folder by --out")
        if earlier is not None and (changed := differences(earlier["settings"], settings)):
            raise ValueError(
                f"{self.path} holds an evaluation with other settings: {'; '.join(changed)}. Results are never mixed: "
                "repeat the command that began it, give another folder by --out, or move the old one aside by --restart"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        sessions = [*(earlier["sessions"] if earlier else []), session]
        self.write(
            MANIFEST,
            {
                "settings_sha256": settings_hash(settings),
                "settings": settings,
                **public({**about, "sessions": sessions}),
            },
        )
        return self._keep_whole_records(settings["problems"])

    def move_aside(self) -> None:
        """What `--restart` does with an earlier evaluation."""
        move_aside(self.path, option="--out")

    def read(self, name: str) -> Any:
        """Raises ValueError, naming the file, where it is not a JSON object."""
        path = self.path / name
        return read_object(path, _RESTART) if path.is_file() else None

    def evaluation(self) -> dict[str, Any] | None:
        """What evaluation.json holds. Raises ValueError, naming it, where it is not that of an evaluation."""
        content: dict[str, Any] | None = self.read(MANIFEST)
        settings = {} if content is None else content.get("settings")
        if content is not None and not (
            isinstance(settings, dict)
            and all(isinstance(settings.get(name), kind) for name, kind in _KINDS.items())
            and isinstance(content.get("sessions"), list)
            and "model" in content
        ):
            raise ValueError(f"{self.path / MANIFEST}: damaged: not the settings of an evaluation: {_RESTART}")
        return content

    def problems(self) -> list[ProblemRecord]:
        """Raises ValueError for a line that is no record."""
        path = self.path / RECORDS
        lines = read_text(path).split("\n")[:-1] if path.is_file() else []
        return [_parsed(line, path, number) for number, line in enumerate(lines, 1)]

    def _keep_whole_records(self, total: int) -> int:
        path = self.path / RECORDS
        if not path.is_file():
            return 0
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            if not is_begun(content[whole:].decode("utf-8", errors="replace")):
                raise ValueError(f"{path}: what stands behind the last whole line is not a record: {_RESTART}")
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        problems = self.problems()
        if len(problems) > total or [problem.row for problem in problems] != list(range(len(problems))):
            raise ValueError(
                f"{path}: the records are not those of rows 0, 1, 2 ... of {total}: move it aside by --restart"
            )
        return len(problems)


def _parsed(line: str, path: Any, number: int) -> ProblemRecord:
    where = f"{path}, line {number}"
    with reading(where, _RESTART):
        return ProblemRecord.from_json(parse_object(line, where, _RESTART))


def settings_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In words, what two settings differ in: `name: first -> second`, for tables key by key."""
    found = []
    for name in sorted(first.keys() | second.keys()):
        old, new = first.get(name), second.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{inner}" for inner in differences(old, new)]
        elif old != new:
            found.append(f"{name}: {_shown(old)} -> {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{text[:13]}..." if len(text) > 60 else text
