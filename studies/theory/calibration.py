"""Is `pbsd advise` right as often as it claims? Random worlds with known truth.

    python studies/theory/calibration.py [--seed 3] [--worlds 400] [--out studies/theory/calibration.json]

A world is eight kinds of prompts with six completions each that share theta; a self-teacher near the student and an
external teacher moved along the reward and further away in other directions. The pilot draws prompts and pairs from
it; the truth is the sign of the difference of simulated mean excess risks after `budget` labelled pairs. World w uses
the seed (seed, w); every world is kept. The estimators and `pilot.WIDENING` were chosen on seeds 0 to 2; seed 3 is the
test.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.special import softmax

from pbsd.theory import simulate
from pbsd.theory.asymptotics import value
from pbsd.theory.pilot import Pilot, PilotTooSmall, Setting, advise
from pbsd.theory.worlds import PromptMix, World

BETA, KINDS, COMPLETIONS, DIMENSION, REPLICATES = 0.5, 8, 6, 3, 1000
PROMPTS, PAIRS = 60, 6
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


def two_teachers(rng):
    """Population of prompts under both teachers."""
    theta = rng.normal(size=DIMENSION) * rng.uniform(0.5, 2.0)
    lead, noise = rng.uniform(-0.5, 1.0), rng.uniform(0.2, 2.0)
    own, external = [], []
    for _ in range(KINDS):
        features = rng.normal(size=(COMPLETIONS, DIMENSION))
        reward = features @ theta
        student = rng.normal(size=COMPLETIONS)
        teacher = student + 0.3 * reward + 0.3 * rng.normal(size=COMPLETIONS)
        other = student + (0.3 + lead) * reward + noise * rng.normal(size=COMPLETIONS)
        for kind, logits in ((own, teacher), (external, other)):
            kind.append(World(softmax(logits), softmax(student), features, theta, BETA))
    return PromptMix(tuple(own)), PromptMix(tuple(external))


def draw_pilot(mix, rng, *, features):
    prompt, chosen, rejected, which = [], [], [], rng.integers(KINDS, size=PROMPTS)
    for index, kind in enumerate(which):
        world = mix.worlds[kind]
        prompt += [index] * PAIRS
        chosen += list(rng.choice(COMPLETIONS, size=PAIRS, p=world.teacher_Y))
        rejected += list(rng.choice(COMPLETIONS, size=PAIRS, p=world.student_Y))
    worlds = [mix.worlds[kind] for kind in which for _ in range(PAIRS)]

    def of(array, ids):
        return np.array([getattr(world, array)[y] for world, y in zip(worlds, ids, strict=True)])

    return Pilot(
        np.array(prompt),
        np.log(of("student_Y", chosen)),
        np.log(of("student_Y", rejected)),
        np.log(of("teacher_Y", chosen)),
        np.log(of("teacher_Y", rejected)),
        of("reward_Y", chosen),
        of("reward_Y", rejected),
        of("features_YD", chosen) if features else None,
        of("features_YD", rejected) if features else None,
    )


def excess_difference(own, external, n, rng):
    """Simulated excess of the external teacher minus the self-teacher's, and its standard error."""
    excess = []
    for mix in (own, external):
        theta = simulate.sample_fits(mix, n, replicates=REPLICATES, rng=rng)
        excess.append(-np.mean([value(world, theta, "soft_value") for world in mix.worlds], axis=0))
    error = np.hypot(*(e.std(ddof=1) / np.sqrt(REPLICATES) for e in excess))
    return excess[1].mean() - excess[0].mean(), error


def run(seed, world):
    rng = np.random.default_rng((seed, world))
    own, external = two_teachers(rng)
    budget = round(np.exp(rng.uniform(np.log(30), np.log(3000))))
    difference, error = excess_difference(own, external, budget, rng)
    record = {"world": world, "budget": budget, "truth": difference, "error": error}
    for mode, features, dimension in (("features", True, None), ("dimension", False, DIMENSION)):
        pilots = [draw_pilot(mix, rng, features=features) for mix in (own, external)]
        try:
            advice = advise(*pilots, Setting(BETA, dimension=dimension), budget=budget)
        except PilotTooSmall as refusal:
            record[mode] = {"refused": str(refusal)}
            continue
        record[mode] = {
            "recommendation": advice.recommendation,
            "confidence": advice.confidence,
            "right": (advice.recommendation == "self") == bool(difference > 0),
            "difference": advice.difference.value,
            "covered": bool(advice.difference.low <= difference <= advice.difference.high),
        }
    return record


def curve(records, mode):
    given = [r[mode] for r in records if "refused" not in r[mode]]
    confidence, right = (np.array([g[key] for g in given]) for key in ("confidence", "right"))
    rows = []
    for low, high in pairwise(BINS):
        inside = (confidence >= low) & ((confidence < high) | (high == 1.0))
        if inside.any():
            rate = right[inside].mean()
            rows.append(
                {
                    "claimed": float(confidence[inside].mean()),
                    "right": float(rate),
                    "error": float(np.sqrt(max(rate * (1 - rate), 0.25 / inside.sum()) / inside.sum())),
                    "worlds": int(inside.sum()),
                }
            )
    return {
        "worlds": len(records),
        "refused": len(records) - len(given),
        "claimed": float(confidence.mean()),
        "right": float(right.mean()),
        "interval_coverage": float(np.mean([g["covered"] for g in given])),
        "curve": rows,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("calibration.json"))
    args = parser.parse_args()
    records = [run(args.seed, world) for world in range(args.worlds)]
    result = {
        "command": f"python studies/theory/calibration.py --seed {args.seed} --worlds {args.worlds}",
        "pilot": {"prompts": PROMPTS, "pairs_per_prompt": PAIRS},
        "truth_within_two_standard_errors": int(sum(abs(r["truth"]) < 2 * r["error"] for r in records)),
        "self_is_right": float(np.mean([r["truth"] > 0 for r in records])),
        "features": curve(records, "features"),
        "dimension": curve(records, "dimension"),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    args.out.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
