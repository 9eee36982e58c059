"""Two finished evaluations of one benchmark, paired by problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbsd.evaluation.records import MANIFEST, OF_THE_MACHINE, OF_THE_MODEL, SUMMARY, ResultFolder, differences
from pbsd.evaluation.statistics import paired_differences

_NOT_COMPARED = OF_THE_MODEL | OF_THE_MACHINE | {"prompts_sha256"}  # token ids: another tokenizer's are other numbers


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
    settings = [
        {name: value for name, value in manifest["settings"].items() if name not in _NOT_COMPARED}
        for manifest in (one, two)
    ]
    different = differences(*settings)
    if different and not allow_different:
        raise ValueError(
            f"{first} and {second} differ in more than the model: {'; '.join(different)}. Evaluate both in the same "
            "way, or compare all the same by --allow_different"
        )
    shared = {problem.key for problem in ours} & {problem.key for problem in theirs}
    if not shared:
        raise ValueError(f"{first} and {second} have no problem in common, so nothing can be paired")
    others = [
        {name: value for name, value in manifest["settings"].items() if name in OF_THE_MODEL | OF_THE_MACHINE}
        for manifest in (one, two)
    ]
    left = max(len(ours), len(theirs)) - len(shared)
    return Comparison(
        benchmark=one["settings"]["benchmark"],
        models=(one["model"], two["model"]),
        figures=paired_differences(ours, theirs),
        problems=len(shared),
        notes=(
            *different,
            *(note for note in differences(*others) if not note.startswith(("weights_sha256", "chat_template"))),
            *([f"{left} problems are in one of the two only and left out"] if left else []),
        ),
    )


def _finished(path: Path) -> tuple[dict[str, Any], list[Any]]:
    folder = ResultFolder(path)
    manifest = folder.read(MANIFEST)
    if manifest is None:
        raise ValueError(f"{path}: no evaluation here ({MANIFEST} is missing): give the folder of one")
    problems = folder.problems()
    if folder.read(SUMMARY) is None or len(problems) != manifest["settings"]["problems"]:
        raise ValueError(
            f"{path}: the evaluation is not finished ({len(problems)} of {manifest['settings']['problems']} problems): "
            "repeat the command that began it"
        )
    return manifest, problems
