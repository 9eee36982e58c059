"""The figures of docs/theory.md: theory beside simulation on finite worlds.

    python studies/theory/run.py [--out studies/theory]

Writes results.json and the pictures; about ten minutes on one thread. Worlds come from seeds 0, 1, 2, ... in order, and
every one is kept.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.special import softmax

from pbsd import figures, theory_commands
from pbsd.theory import asymptotics, simulate
from pbsd.theory.gradient_noise import gradient_snr
from pbsd.theory.tabular import imitation_target, reward_tilted
from pbsd.theory.worlds import random_world, self_and_external, sparse_world

REPLICATES = 4000


def constant(world):
    information = asymptotics.fisher_information(world.design)
    covariance = asymptotics.target_covariance(world.target_Y, world.features_YD)
    return asymptotics.regret_constant(covariance, information) / (2.0 * world.beta)


def regret_grid():
    """Simulated over predicted regret at 10, 100, 1000 and 10000 times the world's regularity scale."""
    rows = []
    for beta in (0.2, 0.5, 1.0):
        for dimension in (1, 2, 5):
            for distance in (0.5, 1.0, 2.0):
                for seed in range(2):
                    world = random_world(np.random.default_rng(seed), dimension=dimension, beta=beta, distance=distance)
                    for multiple in (10, 100, 1000, 10000):
                        n = math.ceil(multiple * asymptotics.regularity_scale(world))
                        found = simulate.regret(world, n, replicates=REPLICATES, rng=np.random.default_rng(seed))
                        predicted = constant(world) / n
                        rows.append(
                            {
                                "beta": beta,
                                "dimension": dimension,
                                "distance": distance,
                                "seed": seed,
                                "multiple": multiple,
                                "n": n,
                                "predicted": predicted,
                                "simulated": found.mean,
                                "error": found.error,
                                "ratio": found.mean / predicted,
                                "z": (found.mean - predicted) / found.error,
                            }
                        )
    summary = {}
    for multiple in (10, 100, 1000, 10000):
        part = [row for row in rows if row["multiple"] == multiple]
        ratios, z = (np.array([row[key] for row in part]) for key in ("ratio", "z"))
        summary[multiple] = {
            "worlds": len(part),
            "ratio_median": float(np.median(ratios)),
            "ratio_range": [float(ratios.min()), float(ratios.max())],
            "within_two_errors": float((np.abs(z) < 2).mean()),
            "z_mean": float(z.mean()),
            "z_spread": float(z.std()),
        }
    slopes = []
    for start in range(0, len(rows), 4):
        last = rows[start + 2 : start + 4]
        slopes.append(float(np.log(last[1]["simulated"] / last[0]["simulated"]) / np.log(last[1]["n"] / last[0]["n"])))
    return {
        "by_multiple": summary,
        "slope_of_the_last_decade": {"mean": float(np.mean(slopes)), "spread": float(np.std(slopes))},
        "rows": rows,
    }


def bound_coverage(delta=0.05):
    """How often the finite-sample bound holds, and how much larger it is than the 95% quantile it bounds."""
    rows = []
    for beta, dimension in ((0.5, 1), (0.5, 3), (1.0, 5)):
        for seed in range(3):
            world = random_world(np.random.default_rng(seed), dimension=dimension, beta=beta)
            smallest = next(
                n
                for n in np.unique(np.geomspace(10, 1e8, 400).astype(int))
                if np.isfinite(asymptotics.finite_sample_bound(world.design, n=int(n), delta=delta))
            )
            for n in (int(smallest), int(4 * smallest), int(64 * smallest)):
                norms = simulate.information_norm(world, n, replicates=REPLICATES, rng=np.random.default_rng(seed))
                bound = asymptotics.finite_sample_bound(world.design, n=n, delta=delta)
                regrets = simulate.regrets(
                    world, simulate.sample_fits(world, n, replicates=REPLICATES, rng=np.random.default_rng(seed))
                )
                rows.append(
                    {
                        "dimension": dimension,
                        "beta": beta,
                        "seed": seed,
                        "n": n,
                        "smallest_n": int(smallest),
                        "coverage": float((norms <= bound).mean()),
                        "bound_over_quantile": float(bound / np.quantile(norms, 1 - delta)),
                        "regret_bound_over_quantile": float(
                            asymptotics.regret_bound(world, bound) / np.quantile(regrets, 1 - delta)
                        ),
                    }
                )
    return {"delta": delta, "rows": rows}


def crossovers():
    rows = []
    for yardstick in ("soft_value", "reward"):
        for overlap in (0.5, 0.2, 0.1, 0.05, 0.02):
            for advantage in (0.01, 0.02, 0.05, 0.1, 0.2):
                result = theory_commands.crossover(advantage=advantage, overlap=overlap, yardstick=yardstick)
                row = {"yardstick": yardstick, "overlap": overlap, "advantage": advantage}
                row |= {"predicted": result["predicted"], "below": result["preferable_below"]}
                if "simulated" in result:
                    found = result["simulated"]
                    row |= {key: found[key] for key in ("sample_size", "low", "high", "changes_of_sign")}
                    row["ratio"] = found["sample_size"] / result["predicted"]
                    worlds = self_and_external(advantage=advantage, overlap=overlap, yardstick=yardstick)
                    row["multiple_of_the_regularity_scale"] = result["predicted"] / max(
                        map(asymptotics.regularity_scale, worlds)
                    )
                rows.append(row)
    return rows


def noisy_labels():
    """Flipped labels: what v and n* become when the learner knows the rate and when it does not."""
    rows = []
    for flip_rate in (0.0, 0.05, 0.1, 0.2, 0.3, 0.4):
        for knows in (True, False):
            own, external = (
                replace(world, flip_rate=flip_rate, knows_flip_rate=knows)
                for world in self_and_external(advantage=0.05, overlap=0.2)
            )
            best = external.target_value("soft_value")
            here, there = (asymptotics.expansion(world, best) for world in (own, external))
            met = asymptotics.crossover(here, there)
            n = 4000
            found = simulate.excess_risk(own, n, best=best, replicates=2000, rng=np.random.default_rng(0))
            rows.append(
                {
                    "flip_rate": flip_rate,
                    "known": knows,
                    "self_bias": here.bias,
                    "self_constant": here.constant,
                    "external_bias": there.bias,
                    "external_constant": there.constant,
                    "crossover": met.sample_size,
                    "below": met.below,
                    "self_excess_at_4000": {"predicted": here.at(n), "simulated": found.mean, "error": found.error},
                }
            )
    return rows


def noisy_rewards():
    """The squared loss on noisy rewards: one variance with several tails; successes instead of their probability."""
    world = random_world(np.random.default_rng(0), dimension=3, beta=0.5)
    squeezed = replace(world, theta_D=world.theta_D * 0.4 / np.abs(world.reward_Y).max())
    centre = 0.5

    def student_t(df):
        def noise(rng, mean):
            return rng.standard_t(df, size=len(mean)) * (np.sqrt((df - 2) / df) if df > 2 else 1.0)

        return noise

    kinds = {
        "gaussian": (world, lambda rng, mean: rng.normal(size=len(mean)), np.ones(12)),
        "student_t, 3 degrees": (world, student_t(3.0), np.ones(12)),
        "student_t, 1.5 degrees (no variance)": (world, student_t(1.5), None),
        "success with probability 1/2 + r": (
            squeezed,
            lambda rng, mean: (rng.uniform(size=len(mean)) < centre + mean) - (centre + mean),
            (centre + squeezed.reward_Y) * (centre - squeezed.reward_Y),
        ),
    }
    rows = []
    for name, (place, noise, variance) in kinds.items():
        covariance = asymptotics.target_covariance(place.target_Y, place.features_YD)
        v = math.inf
        if variance is not None:
            v = asymptotics.regret_constant(
                covariance, asymptotics.regression_information(place.design, variance_Y=variance)
            )
        row = {"noise": name, "v": v, "n": [], "predicted": [], "simulated": [], "error": [], "median": []}
        if name.startswith("success"):
            row["v_bounded_by"] = asymptotics.regret_constant(
                covariance, asymptotics.regression_information(place.design, variance_Y=np.full(12, 0.25))
            )
        for n in (1000, 4000, 16000):
            fits = simulate.sample_regression_fits(place, n, noise, replicates=1000, rng=np.random.default_rng(0))
            regrets = simulate.regrets(place, fits)
            row["n"].append(n)
            row["predicted"].append(v / (2 * place.beta * n))
            row["simulated"].append(float(regrets.mean()))
            row["error"].append(float(regrets.std(ddof=1) / np.sqrt(len(regrets))))
            row["median"].append(float(np.median(regrets)))
        row["slope_of_the_median"] = float(np.polyfit(np.log(row["n"]), np.log(row["median"]), 1)[0])
        rows.append(row)
    return rows


def sparse_rewards():
    """Binary reward: v over both success rates, labels drawn once against soft labels, and whether kinds ever cross.

    A teacher that succeeds more often has the better target and, unless the student mostly succeeds, more pairs of a
    success with a failure: `crossings` counts pairs of teachers, of all that meet here, with a finite n*.
    """
    rows, crossings, met = [], 0, 0
    successes = (0.01, 0.05, 0.2, 0.5, 0.9)
    for student in (0.01, 0.1, 0.4):
        worlds = [sparse_world(success_teacher=p, success_student=student, beta=0.5) for p in successes]
        best = max(world.target_value("soft_value") for world in worlds)
        expansions = [asymptotics.expansion(world, best) for world in worlds]
        for success, world in zip(successes, worlds, strict=True):
            n = math.ceil(100 * asymptotics.regularity_scale(world))
            found = simulate.regret(world, n, replicates=REPLICATES, rng=np.random.default_rng(0))
            rows.append(
                {
                    "success_teacher": success,
                    "success_student": student,
                    "discordant": float(world.design.weight_N.sum()),
                    "v": constant(world) * 2 * world.beta,
                    "n": n,
                    "predicted": constant(world) / n,
                    "simulated": found.mean,
                    "error": found.error,
                    "soft_labels_regret_at_10_pairs": asymptotics.sparse_regret_with_soft_labels(world, 10),
                }
            )
        for own, external in combinations(expansions, 2):
            met += 1
            crossings += math.isfinite(asymptotics.crossover(own, external).sample_size)
    return {"rows": rows, "crossings": crossings, "teachers_that_met": met}


def misfit():
    """A student class that misses the external target: its approximation error against simulation."""
    rows = []
    for amount in (0.0, 0.1, 0.2, 0.4):
        own, external = self_and_external(advantage=0.1, overlap=0.2)
        offset = amount * np.random.default_rng(0).normal(size=len(own.teacher_Y))
        external = replace(external, offset_Y=offset)
        best = external.target_value("soft_value")
        here, there = (asymptotics.expansion(world, best) for world in (own, external))
        met = asymptotics.crossover(here, there)
        found = simulate.excess_risk(external, 20000, best=best, replicates=2000, rng=np.random.default_rng(1))
        rows.append(
            {
                "offset": amount,
                "external_bias": there.bias,
                "external_constant": there.constant,
                "crossover": met.sample_size,
                "below": met.below,
                "external_excess_at_20000": {
                    "predicted": there.at(20000),
                    "simulated": found.mean,
                    "error": found.error,
                },
            }
        )
    return rows


def signal_to_noise():
    """Mean over five spaces of the signal-to-noise of each projection, four completions a prompt."""
    kinds = {
        "imitation": ("imitation", 4, 0),
        "group, own samples": ("group_log_variance", 0, 4),
        "bradley_terry": ("bradley_terry", 2, 2),
        "logistic": ("logistic", 2, 2),
        "direct": ("direct", 0, 4),
    }
    reward = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    rows = []
    for success in (0.02, 0.2, 0.5):
        for distance in (0.0, 1.0, 2.0, 4.0, 6.0):
            row = {"success_student": success, "distance": distance}
            for name, (loss, teacher_samples, student_samples) in kinds.items():
                values = []
                for seed in range(5):
                    base = softmax(np.random.default_rng(seed).normal(size=6))
                    student = np.where(
                        reward == 1, success * base / (base @ reward), (1 - success) * base / (base @ (1 - reward))
                    )
                    teacher = softmax(np.log(student) + distance * reward)
                    values.append(
                        gradient_snr(
                            loss,
                            policy=student,
                            teacher=teacher,
                            reward=reward,
                            beta=0.5,
                            teacher_samples=teacher_samples,
                            student_samples=student_samples,
                        ).snr
                    )
                row[name] = float(np.mean(values))
            rows.append(row)
    return rows


def small_groups():
    rows = []
    for teacher, reward, beta in (
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 1, 0], 0.5),
        ([0.1, 0.2, 0.3, 0.4], [1, 0, 1, 0], 0.1),
        ([0.05, 0.95], [1, 0], 0.1),
    ):
        teacher, reward = np.array(teacher), np.array(reward, dtype=float)
        row = {"success_teacher": float(teacher @ reward), "beta": beta}
        for group in (1, 2, 4, 8, 16, 32):
            row[f"group of {group}"] = float(imitation_target(teacher, reward, beta, group=group) @ reward)
        row["target"] = float(reward_tilted(teacher, reward, beta) @ reward)
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    results = {"command": "python studies/theory/run.py", "replicates": REPLICATES}
    for part in (
        small_groups,
        signal_to_noise,
        sparse_rewards,
        noisy_labels,
        misfit,
        noisy_rewards,
        bound_coverage,
        regret_grid,
        crossovers,
    ):
        started = time.monotonic()
        results[part.__name__] = part()
        print(f"{part.__name__}: {time.monotonic() - started:.0f} s", flush=True)
        finite = json.loads(json.dumps(results), parse_constant=str)
        (args.out / "results.json").write_text(json.dumps(finite, indent=1) + "\n")
    for yardstick in ("soft_value", "reward"):
        diagram = theory_commands.phase_diagram(yardstick=yardstick, beta=0.5, dimension=3, style_gap=5.0)
        figures.draw_phase_diagram(diagram, args.out / f"phase_diagram_{yardstick}.png")
        point = theory_commands.crossover(advantage=0.05, overlap=0.1, yardstick=yardstick)
        figures.draw_crossover(point, args.out / f"crossover_{yardstick}.png")


if __name__ == "__main__":
    main()
