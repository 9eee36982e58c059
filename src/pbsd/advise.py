"""`pbsd advise`: read two pilots of preference pairs and say which teacher they favour."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pbsd.progress import console
from pbsd.reading import parse_json, read_text
from pbsd.theory.pilot import Advice, Estimated, Pilot, Setting, advise, describe

NUMBERS = tuple(
    f"{what}_{side}" for what in ("student_logprob", "teacher_logprob", "reward") for side in ("chosen", "rejected")
)
EXPLAINED = {
    "reward_teacher": "reward of T samples",
    "reward_student": "reward of S samples",
    "reward_gap": "reward gap",
    "discordant": "pairs: rewards differ",
    "pair_accuracy": "pair accuracy",
    "margin_mean": "margin m, mean",
    "margin_spread": "margin m, spread",
    "margin_slope": "E[sigmoid'(m)] now",
    "label_information": "E[sigmoid'(m)] at target",
    "overlap_ess": "ESS of student, T/S",
    "tilt_ess": "ESS of teacher, tilted",
    "kl_teacher_student": "KL(T || student), nats",
    "target_value": "value of the target",
}


def read_pilot(path: str | Path) -> tuple[Pilot, int]:
    """The pairs of a JSONL file, and how many were left out because a reward is null.

    A line has `prompt` (any id), `student_logprob_chosen` and `..._rejected`, `teacher_logprob_...`, `reward_...`,
    where chosen is a teacher sample and rejected a student sample; optionally `features_chosen` and
    `features_rejected`, lists of numbers of one length. `pbsd pilot` writes such files.

    Raises:
        ValueError: file, line and field of what is missing, not a number or not finite.
    """
    rows, left_out = [], 0
    for number, line in enumerate(read_text(Path(path)).split("\n"), start=1):
        if not line.strip():
            continue
        record = _parse(line, f"{path}, line {number}")
        if record is None:
            left_out += 1
        else:
            rows.append(record)
    if not rows:
        raise ValueError(f"{path} has no pair with both rewards ({left_out} without)")
    lengths = {None if row[1] is None else len(row[1][0]) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"{path}: every line must have features of one length, or none; found {sorted(map(str, lengths))}"
        )
    place = {key: index for index, key in enumerate(dict.fromkeys(key for key, _, _ in rows))}
    numbers = {name: np.array([row[2][index] for row in rows]) for index, name in enumerate(NUMBERS)}
    chosen, rejected = (
        None if lengths == {None} else np.array([features[side] for _, features, _ in rows]) for side in (0, 1)
    )
    pilot = Pilot(
        prompt_N=np.array([place[key] for key, _, _ in rows]),
        student_chosen_N=numbers["student_logprob_chosen"],
        student_rejected_N=numbers["student_logprob_rejected"],
        teacher_chosen_N=numbers["teacher_logprob_chosen"],
        teacher_rejected_N=numbers["teacher_logprob_rejected"],
        reward_chosen_N=numbers["reward_chosen"],
        reward_rejected_N=numbers["reward_rejected"],
        features_chosen_ND=chosen,
        features_rejected_ND=rejected,
    )
    return pilot, left_out


def _parse(line: str, where: str) -> tuple[str, Any, list[float]] | None:
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a pair must be a JSON object, got {type(record).__name__}")
    missing = [key for key in ("prompt", *NUMBERS) if key not in record]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    if record["reward_chosen"] is None or record["reward_rejected"] is None:
        return None
    for key in NUMBERS:
        if not _is_number(record[key]):
            raise ValueError(f"{where}: {key} must be a finite number below 1e100, got {record[key]!r:.40}")
    for key in NUMBERS[:4]:
        if record[key] > 1e-3:
            raise ValueError(f"{where}: {key} is {record[key]}; a log-probability is not above 0")
    features: list[Any] = [record.get(f"features_{side}") for side in ("chosen", "rejected")]
    if any(feature is not None for feature in features):
        for side, feature in zip(("chosen", "rejected"), features, strict=True):
            if not _is_vector(feature) or len(feature) != len(features[0]):
                raise ValueError(
                    f"{where}: features_{side} must be a list of finite numbers, as long as the other side's"
                )
        return json.dumps(record["prompt"]), features, [record[key] for key in NUMBERS]
    return json.dumps(record["prompt"]), None, [record[key] for key in NUMBERS]


def _is_vector(feature: Any) -> bool:
    return isinstance(feature, list) and len(feature) > 0 and all(map(_is_number, feature))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def run(own: str, external: str, setting: Setting, *, budget: int, out: str | None) -> None:
    """Read, advise, print; with `out`, write everything as JSON too."""
    pilots, left_out = {}, {}
    for kind, path in (("self", own), ("external", external)):
        pilots[kind], left_out[kind] = read_pilot(path)
    advice = advise(pilots["self"], pilots["external"], setting, budget=budget)
    figures = {kind: describe(pilot, setting) for kind, pilot in pilots.items()}
    if out is not None:
        report = {
            "setting": asdict(setting) | {"budget": budget},
            "pilots": {
                kind: {
                    "prompts": pilot.prompts,
                    "pairs": len(pilot.prompt_N),
                    "left_out_without_reward": left_out[kind],
                }
                for kind, pilot in pilots.items()
            },
            "figures": {kind: {name: asdict(value) for name, value in by.items()} for kind, by in figures.items()},
            "advice": asdict(advice),
        }
        Path(out).write_text(json.dumps(_strict(report), indent=2) + "\n", "utf-8")
    _print(pilots, left_out, figures, advice, budget)


def _print(
    pilots: dict[str, Pilot],
    left_out: dict[str, int],
    figures: dict[str, dict[str, Estimated]],
    advice: Advice,
    budget: int,
) -> None:
    screen = console()
    table = Table(
        title="Pilot pairs (95% intervals, resampled by prompt)",
        caption="T teacher, S student; m = h(chosen) - h(rejected), h = beta log S/T; ESS as a share; "
        "sigmoid'(m) is at most .25; learning from n pairs costs v / (2 beta n)",
    )
    for column in ("", "self", "external"):
        table.add_column(column, justify="right" if column else "left")
    counts = {
        "prompts": {kind: pilot.prompts for kind, pilot in pilots.items()},
        "pairs": {kind: len(pilot.prompt_N) for kind, pilot in pilots.items()},
        "left out, no reward": left_out,
    }
    for words, by_kind in counts.items():
        table.add_row(words, *(str(by_kind[kind]) for kind in ("self", "external")))
    for name, words in EXPLAINED.items():
        table.add_row(escape(words), *(_interval(figures[kind][name]) for kind in ("self", "external")))
    table.add_row("learning cost v", *(_interval(advice.learning_cost[kind]) for kind in ("self", "external")))
    screen.print(table)
    if advice.recommendation is None:
        screen.print(f"For {budget} pairs: no recommendation. {advice.reason}.", soft_wrap=True)
        return
    screen.print(
        f"For {budget} pairs: the {advice.recommendation}-teacher, confidence {advice.confidence:.0%}; "
        f"{advice.reason}.",
        soft_wrap=True,
    )
    screen.print("This holds for training by bradley_terry on labels drawn once a pair; other losses learn otherwise.")
    if math.isfinite(advice.crossover.value):
        screen.print(f"The two are worth the same at {_interval(advice.crossover)} pairs.", soft_wrap=True)


def _interval(figure: Estimated) -> str:
    return escape(f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]")


def _strict(value: Any) -> Any:
    """Infinite and undefined numbers as text: JSON has none."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
