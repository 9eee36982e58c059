"""Which options each method gets: by mean validation accuracy of its trials, or by another study's choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pbsd.compare.fields import StudyError
from pbsd.compare.files import read_choices
from pbsd.compare.plan import Run
from pbsd.compare.store import Store
from pbsd.compare.study import Cell, CheckpointRule, Place, Study


def choices_by_trials(study: Study, store: Store, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A choice per place: every trial with its validation accuracy, by seed and on average, and the options of the best
    (of equals the first); null while a trial is not finished. Test problems play no part. A world or scale without
    trials of its own takes the choice `decided_in` another."""
    assert study.tuning is not None or not runs
    by_place: dict[Place, list[Run]] = {}
    for run in runs:
        by_place.setdefault(run.place, []).append(run)
    choices = []
    for place, own in by_place.items():
        trials: list[dict[str, Any]] = [
            {"options": dict(options), "validation_accuracy": None, "by_seed": {}}
            for options in study.methods[place.method].trials
        ]
        for run in own:
            assert run.trial is not None
            result = store.result(run)
            trials[run.trial]["by_seed"][str(run.seed)] = result and score(result, study.checkpoint)
        for trial in trials:
            scores = list(trial["by_seed"].values())
            if None not in scores:
                trial["validation_accuracy"] = math.fsum(scores) / len(scores)
        means = [trial["validation_accuracy"] for trial in trials]
        chosen = None if None in means else trials[means.index(max(means))]["options"]
        choices.append(
            _where(place) | {"generated_tokens": own[0].budget.generated_tokens, "chosen": chosen, "trials": trials}
        )
    made = chosen_options(choices)
    for place in study.places() if made else []:
        if (decided_in := study.tuned_cell(place.cell)) != place.cell:
            chosen = made[Place(place.method, decided_in)]
            choices.append(_where(place) | {"decided_in": decided_in._asdict(), "chosen": chosen})
    return choices


def _where(place: Place) -> dict[str, Any]:
    return {"method": place.method, **place.cell._asdict()}


def score(result: Mapping[str, Any], rule: CheckpointRule) -> float:
    """A run's validation accuracy at the checkpoint that the rule takes."""
    accuracies = [point["accuracy"] for point in result["curve"]]
    return float(accuracies[-1] if rule == "last" else max(accuracies))


def choices_of_another(study: Study) -> list[dict[str, Any]]:
    """The choices that the study takes over; `chosen_for` is the method they were made for.

    Raises:
        StudyError: a method, task, world and scale for which the other study chose nothing.
    """
    assert study.choices is not None
    made = chosen_options(read_choices(study.choices)["choices"])
    choices = []
    for place in study.places():
        source = study.methods[place.method].choices_of
        if source is None:
            continue
        chosen = made.get(Place(source, place.cell))
        if chosen is None:
            raise StudyError(
                f"{study.path}: {study.choices} holds no choice for {source} on {', '.join(place.cell)}: finish that "
                f"study's tuning, or say `choices_of: OTHER` or `choices_of: null` for methods.{place.method}"
            )
        choices.append(_where(place) | {"chosen_for": source, "chosen": chosen})
    return choices


def chosen_options(choices: Sequence[Mapping[str, Any]]) -> dict[Place, Mapping[str, Any] | None]:
    """By place; None where the choice is open."""
    return {
        Place(choice["method"], Cell(choice["task"], choice["world"], choice["scale"])): choice["chosen"]
        for choice in choices
    }
