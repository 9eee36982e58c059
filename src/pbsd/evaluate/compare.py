"""Two finished evaluations of one benchmark, paired by problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbsd.evaluate.records import MANIFEST, OF_THE_MACHINE, OF_THE_MODEL, SUMMARY, ResultFolder, differences
from pbsd.evaluate.statistics import paired_differences

_FREE = OF_THE_MODEL | OF_THE_MACHINE
_NOT_COMPARED = _FREE | {"prompts_sha256"}  # token ids: another tokenizer's are other numbers
_JUDGES = {"math": "math-verify", "pbsd.benchmarks.procedural:reward": "reasoning-gym"}
"""Rewards, and the package beside this one that judges for them."""
_HASHES = ("weights_sha256", "chat_template_sha256")


@dataclass(frozen=True, slots=True)
class Comparison:
    """`figures` as `paired_differences` gives them; `notes`: in what the two differ, in words."""

    benchmark: str
    models: tuple[str, str]
    figures: dict[str, dict[str, float]]
    problems: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "first": self.models[0],
            "second": self.models[1],
            "problems": self.problems,
            "figures": self.figures,
            "notes": list(self.notes),
        }


def compare(first: Path, second: Path, *, allow_different: bool = False) -> Comparison:
    """Raises ValueError when a folder holds no finished evaluation, when the two have other problems or settings than
    each other (unless that is allowed), or have no problem in common."""
    results = [_finished(path) for path in (first, second)]
    (one, ours), (two, theirs) = results
    (settings, others), (their_settings, their_others) = (_parted(manifest["settings"]) for manifest in (one, two))
    different = differences(settings, their_settings)
    if different and not allow_different:
        raise ValueError(
            f"{first} and {second} differ in more than the model: {'; '.join(different)}. Evaluate both in the same "
            "way, or compare all the same by --allow_different"
        )
    shared = {problem.key for problem in ours} & {problem.key for problem in theirs}
    if not shared:
        raise ValueError(f"{first} and {second} have no problem in common, so nothing can be paired")
    left = max(len(ours), len(theirs)) - len(shared)
    return Comparison(
        benchmark=one["settings"]["benchmark"],
        models=(one["model"], two["model"]),
        figures=paired_differences(ours, theirs),
        problems=len(shared),
        notes=(
            *different,
            *_on_other_n(settings["n"], their_settings["n"]),
            *(note for note in differences(others, their_others) if not note.startswith(_HASHES)),
            *([f"{left} problems are in one of the two only and left out"] if left else []),
        ),
    )


def _parted(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What two results must have in common, and in what else they may differ. The versions of what judged are of the
    first kind: another grader may judge the same completion otherwise."""
    judges = ("pbsd", _JUDGES.get(settings["reward"]["name"]))
    versions = settings["versions"].items()
    same = {name: value for name, value in settings.items() if name not in _NOT_COMPARED}
    free = {name: value for name, value in settings.items() if name in _FREE}
    return (
        {**same, "versions": {name: version for name, version in versions if name in judges}},
        {**free, "versions": {name: version for name, version in versions if name not in judges}},
    )


def _on_other_n(n: int, m: int) -> list[str]:
    if n == m:
        return []
    return [f"avg@{n} and avg@{m} estimate the same mean; pass@k and maj@k that only one of the two has are left out"]


def _finished(path: Path) -> tuple[dict[str, Any], list[Any]]:
    folder = ResultFolder(path)
    manifest = folder.evaluation()
    if manifest is None:
        raise ValueError(f"{path}: no evaluation here ({MANIFEST} is missing): give the folder of one")
    problems = folder.problems()
    if folder.read(SUMMARY) is None or len(problems) != manifest["settings"]["problems"]:
        raise ValueError(
            f"{path}: the evaluation is not finished ({len(problems)} of {manifest['settings']['problems']} problems): "
            "repeat the command that began it"
        )
    return manifest, problems
