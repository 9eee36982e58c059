"""`pbsd theory`: the crossover of self and external teacher in the parameterised family, as tables and pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from pbsd.progress import console
from pbsd.theory import asymptotics, simulate
from pbsd.theory.worlds import World, Yardstick, self_and_external

REPLICATES = 1000


def crossover(
    *, advantage: float, overlap: float, yardstick: Yardstick, seed: int = 0, **family: Any
) -> dict[str, Any]:
    """Predicted and simulated crossover at one point of the family `theory.worlds.self_and_external`."""
    own, external = self_and_external(advantage=advantage, overlap=overlap, yardstick=yardstick, **family)
    expansions = _expansions(own, external, yardstick)
    predicted = asymptotics.crossover(*expansions)
    result: dict[str, Any] = {
        "advantage": advantage,
        "overlap": overlap,
        "yardstick": yardstick,
        **family,
        "self": vars(expansions[0]) | _facts(own),
        "external": vars(expansions[1]) | _facts(external),
        "predicted": predicted.sample_size,
        "preferable_below": predicted.below,
    }
    if math.isfinite(predicted.sample_size):
        n_K = np.unique(np.round(np.geomspace(max(predicted.sample_size / 6, 4), predicted.sample_size * 6, 13)))
        found = simulate.crossover(
            own,
            external,
            n_K.astype(int),
            replicates=REPLICATES,
            rng=np.random.default_rng(seed),
            yardstick=yardstick,
        )
        result["simulated"] = {
            "sample_size": found.sample_size,
            "low": found.low,
            "high": found.high,
            "changes_of_sign": found.changes,
            "n": n_K.tolist(),
            "external_minus_self": found.difference_K.tolist(),
            "error": found.error_K.tolist(),
            "predicted_external_minus_self": (expansions[1].at(n_K) - expansions[0].at(n_K)).tolist(),
        }
    return result


def phase_diagram(
    *, yardstick: Yardstick, n_K: tuple[int, ...] = (100, 300, 1000, 3000), seed: int = 0, **family: Any
) -> dict[str, Any]:
    """Excess of the external teacher minus the self-teacher's over (advantage, overlap, n), with simulated points.

    Predictions on a fine grid; simulated signs on a coarse one. A point that no teacher of the family reaches is null.
    """
    rng = np.random.default_rng(seed)
    advantages, overlaps = np.linspace(-0.05, 0.4, 37), np.geomspace(0.01, 0.9, 33)
    difference = np.full((len(n_K), len(overlaps), len(advantages)), np.nan)
    points = []
    for row, overlap in enumerate(overlaps):
        for column, advantage in enumerate(advantages):
            try:
                own, external = self_and_external(advantage=advantage, overlap=overlap, yardstick=yardstick, **family)
            except ValueError:
                continue
            here, there = _expansions(own, external, yardstick)
            difference[:, row, column] = [there.at(n) - here.at(n) for n in n_K]
            if row % 8 == 4 and column % 8 == 4:
                for n in n_K:
                    excess = [
                        simulate.excess_risk(
                            world, n, best=0.0, replicates=REPLICATES // 2, rng=rng, yardstick=yardstick
                        )
                        for world in (own, external)
                    ]
                    points.append(
                        {
                            "n": n,
                            "overlap": float(overlap),
                            "advantage": float(advantage),
                            "external_minus_self": excess[1].mean - excess[0].mean,
                            "error": math.hypot(excess[0].error, excess[1].error),
                            "predicted": float(there.at(n) - here.at(n)),
                        }
                    )
    return {
        "yardstick": yardstick,
        **family,
        "n": list(n_K),
        "advantage": advantages.tolist(),
        "overlap": overlaps.tolist(),
        "external_minus_self": [
            [[None if np.isnan(x) else float(x) for x in row] for row in plane] for plane in difference
        ],
        "simulated": points,
    }


def run_crossover(out: str | None, **point: Any) -> None:
    result = crossover(**point)
    table = Table(title=f"Self against external teacher, values by {result['yardstick']}")
    for column in ("", "self", "external"):
        table.add_column(column, justify="right" if column else "left")
    for key, words in (
        ("bias", "excess risk of the target itself, b"),
        ("constant", "cost of learning it: c in b + c/n"),
        ("regret_constant", "v = tr(Cov_P*(phi) I^-1)"),
        ("reward_teacher", "reward of the teacher's samples"),
        ("reward_target", "reward of the target"),
        ("label_information", "E[sigmoid'(margin)] at the target"),
        ("kl_teacher_student", "KL(teacher || student), nats"),
    ):
        table.add_row(escape(words), *(f"{round(result[kind][key], 12):.4g}" for kind in ("self", "external")))
    screen = console()
    screen.print(table)
    other = {"self": "external", "external": "self"}[result["preferable_below"]]
    if math.isfinite(result["predicted"]):
        screen.print(
            f"Up to n* = {result['predicted']:.4g} labelled pairs the {result['preferable_below']}-teacher is "
            f"preferable, beyond it the {other}-teacher.",
            soft_wrap=True,
        )
    else:
        screen.print(
            f"The {result['preferable_below']}-teacher is preferable at every number of pairs.", soft_wrap=True
        )
    if "simulated" in result:
        found = result["simulated"]
        size = "no crossing"
        if found["changes_of_sign"]:
            size = f"{found['sample_size']:.4g} ({found['low']:.4g} to {found['high']:.4g})"
        more = f", the last of {found['changes_of_sign']} changes of sign" if found["changes_of_sign"] > 1 else ""
        screen.print(
            f"Simulated: {size}{more}; {REPLICATES} fits at each of {len(found['n'])} sizes from {found['n'][0]:.0f} "
            f"to {found['n'][-1]:.0f}.",
            soft_wrap=True,
        )
    if out is not None:
        folder = _folder(out)
        _write(folder / "crossover.json", result)
        if "simulated" in result:
            from pbsd.figures import draw_crossover

            draw_crossover(result, folder / "crossover.png")
        screen.print(f"written to {folder}/")


def run_phase_diagram(out: str, **family: Any) -> None:
    result = phase_diagram(**family)
    folder = _folder(out)
    _write(folder / "phase_diagram.json", result)
    from pbsd.figures import draw_phase_diagram

    draw_phase_diagram(result, folder / "phase_diagram.png")
    decided = [p for p in result["simulated"] if abs(p["external_minus_self"]) > 2 * p["error"]]
    agree = sum(p["external_minus_self"] * p["predicted"] > 0 for p in decided)
    console().print(
        f"{agree} of {len(decided)} simulated points that are two standard errors from zero have the predicted sign "
        f"({len(result['simulated'])} simulated). Table and picture in {folder}/",
        soft_wrap=True,
    )


def _expansions(
    own: World, external: World, yardstick: Yardstick
) -> tuple[asymptotics.Expansion, asymptotics.Expansion]:
    best = max(world.target_value(yardstick) for world in (own, external))
    return asymptotics.expansion(own, best, yardstick), asymptotics.expansion(external, best, yardstick)


def _facts(world: World) -> dict[str, float]:
    information = asymptotics.fisher_information(world.design)
    return {
        "regret_constant": asymptotics.regret_constant(
            asymptotics.target_covariance(world.target_Y, world.features_YD), information
        ),
        "reward_teacher": float(world.teacher_Y @ world.reward_Y),
        "reward_target": world.target_value("reward"),
        "label_information": float(
            world.design.weight_N @ asymptotics.sigmoid_slope(world.design.gap_N)
            + 0.25 * (1.0 - world.design.weight_N.sum())
        ),
        "kl_teacher_student": float(np.sum(world.teacher_Y * np.log(world.teacher_Y / world.student_Y))),
    }


def _folder(out: str) -> Path:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(path: Path, result: dict[str, Any]) -> None:
    finite = json.loads(json.dumps(result), parse_constant=str)
    path.write_text(json.dumps(finite, indent=1) + "\n", "utf-8")
