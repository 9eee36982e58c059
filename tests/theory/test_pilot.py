"""Figures of a pilot against their definitions, and advice where the truth is known."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import norm

from pbsd.theory import asymptotics
from pbsd.theory.pilot import WIDENING, Pilot, PilotTooSmall, Setting, advise, check, describe
from pbsd.theory.worlds import random_world

BETA = 0.5


def draw(world, rng, *, prompts=40, pairs=6, features=True):
    """A pilot whose prompts are all the same world."""
    size = prompts * pairs
    chosen = rng.choice(len(world.teacher_Y), size=size, p=world.teacher_Y)
    rejected = rng.choice(len(world.student_Y), size=size, p=world.student_Y)
    return Pilot(
        np.repeat(np.arange(prompts), pairs),
        np.log(world.student_Y)[chosen],
        np.log(world.student_Y)[rejected],
        np.log(world.teacher_Y)[chosen],
        np.log(world.teacher_Y)[rejected],
        world.reward_Y[chosen],
        world.reward_Y[rejected],
        world.features_YD[chosen] if features else None,
        world.features_YD[rejected] if features else None,
    )


def world_of(seed, distance=1.0):
    return random_world(np.random.default_rng(seed), completions=8, dimension=2, beta=BETA, distance=distance)


def test_figures_by_definition():
    rng = np.random.default_rng(0)
    pilot = draw(world_of(0), rng, prompts=20, pairs=2)
    assert 0 < pilot.same_N.sum() < 40
    setting = Setting(0.3, reward_scale=2.0)
    found = {name: figure.value for name, figure in describe(pilot, setting).items()}
    margins, slopes, information, agree = [], [], [], []
    for n in range(40):
        h = [
            0.3 * (getattr(pilot, f"student_{side}_N")[n] - getattr(pilot, f"teacher_{side}_N")[n])
            for side in ("chosen", "rejected")
        ]
        gap = pilot.reward_chosen_N[n] - pilot.reward_rejected_N[n]
        margins.append(h[0] - h[1])
        slopes.append(expit(margins[-1]) * expit(-margins[-1]))
        same = all(
            getattr(pilot, f"{what}_chosen_N")[n] == getattr(pilot, f"{what}_rejected_N")[n]
            for what in ("student", "teacher", "reward")
        )
        information.append(0.0 if same else expit(2 * gap) * expit(-2 * gap))
        if gap != 0:
            agree.append((margins[-1] > 0) == (gap > 0))
    weights = np.exp(pilot.teacher_rejected_N - pilot.student_rejected_N)
    tilts = np.exp(2 * pilot.reward_chosen_N / 0.3)
    expected = {
        "reward_teacher": pilot.reward_chosen_N.mean(),
        "reward_student": pilot.reward_rejected_N.mean(),
        "reward_gap": (pilot.reward_chosen_N - pilot.reward_rejected_N).mean(),
        "pair_accuracy": np.mean(agree),
        "margin_mean": np.mean(margins),
        "margin_spread": np.std(margins),
        "margin_slope": np.mean(slopes),
        "label_information": np.mean(information),
        "discordant": np.mean(pilot.reward_chosen_N != pilot.reward_rejected_N),
        "overlap_ess": weights.sum() ** 2 / (weights**2).sum() / 40,
        "tilt_ess": tilts.sum() ** 2 / (tilts**2).sum() / 40,
        "kl_teacher_student": (pilot.teacher_chosen_N - pilot.student_chosen_N).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_figures_of_a_large_pilot_are_the_worlds():
    """KL(T || S), the target's value and v, from 4,000 pairs in 100 prompts, inside their intervals."""
    world = world_of(1)
    pilot = draw(world, np.random.default_rng(1), prompts=100, pairs=40)
    figures = describe(pilot, Setting(BETA))
    truth = {
        "kl_teacher_student": float(np.sum(world.teacher_Y * np.log(world.teacher_Y / world.student_Y))),
        "target_value": world.target_value("soft_value"),
        "reward_teacher": float(world.teacher_Y @ world.reward_Y),
    }
    for name, value in truth.items():
        assert figures[name].low < value < figures[name].high, name
        assert figures[name].high - figures[name].low < 0.2
    information = asymptotics.fisher_information(world.design)
    v = asymptotics.regret_constant(asymptotics.target_covariance(world.target_Y, world.features_YD), information)
    cost = advise(pilot, pilot, Setting(BETA), budget=100).learning_cost["self"]
    assert cost.low < v < cost.high and cost.high / cost.low < 1.5


def test_values_of_few_samples_are_almost_without_bias():
    """6 pairs a prompt, 5,000 prompts: at most a third of the bias of the plain logarithm of a mean."""
    world = world_of(2)
    pilot = draw(world, np.random.default_rng(2), prompts=5000, pairs=6)
    truth = world.target_value("soft_value")
    value = describe(pilot, Setting(BETA))["target_value"].value
    plain = BETA * np.log(np.exp(pilot.reward_chosen_N.reshape(-1, 6) / BETA).mean(-1))
    assert abs(plain.mean() - truth) > 0.02
    assert abs(value - truth) < abs(plain.mean() - truth) / 3


def test_cost_of_few_samples_is_almost_without_bias():
    """v from 3 pairs a prompt: the covariance within so few samples must not come out small."""
    world = world_of(1)
    pilot = draw(world, np.random.default_rng(3), prompts=2000, pairs=3)
    information = asymptotics.fisher_information(world.design)
    v = asymptotics.regret_constant(asymptotics.target_covariance(world.target_Y, world.features_YD), information)
    cost = advise(pilot, pilot, Setting(BETA), budget=100).learning_cost["self"].value
    assert cost == pytest.approx(v, rel=0.15)


@pytest.mark.parametrize("features", [True, False])
def test_a_reward_scale_is_a_scaled_reward(features):
    """(r, scale 3) and (3 r, scale 1) are the same training: same values, same v, same confidence."""
    own, external = two_worlds(0.5)
    rng = np.random.default_rng(8)
    pilots = [draw(world, rng, features=features) for world in (own, external)]
    scaled = [
        replace(pilot, reward_chosen_N=3 * pilot.reward_chosen_N, reward_rejected_N=3 * pilot.reward_rejected_N)
        for pilot in pilots
    ]
    dimension = None if features else 2.0
    one = advise(*pilots, Setting(BETA, reward_scale=3.0, dimension=dimension), budget=300)
    other = advise(*scaled, Setting(BETA, dimension=dimension), budget=300)
    assert one.learning_cost["self"].value == pytest.approx(other.learning_cost["self"].value)
    assert one.value_gap.value == pytest.approx(other.value_gap.value)
    assert (one.recommendation, one.confidence) == (other.recommendation, other.confidence)
    unscaled = advise(*pilots, Setting(BETA, dimension=dimension), budget=300)
    assert one.learning_cost["self"].value != pytest.approx(unscaled.learning_cost["self"].value, rel=0.1)


def test_intervals_resample_prompts_not_pairs():
    """Pairs of a prompt that are copies of each other must not narrow the interval."""
    pilot = draw(world_of(0), np.random.default_rng(0), prompts=40, pairs=1)
    arrays = {field.name: getattr(pilot, field.name) for field in fields(pilot)}
    copies = Pilot(**{name: None if array is None else np.repeat(array, 10, axis=0) for name, array in arrays.items()})
    for name in ("reward_gap", "kl_teacher_student"):
        once, often = describe(pilot, Setting(BETA))[name], describe(copies, Setting(BETA))[name]
        assert (often.low, often.value, often.high) == pytest.approx((once.low, once.value, once.high))


def two_worlds(lead):
    """The external teacher is moved along the reward by `lead` nats a unit; both are near the student."""
    world = world_of(3)
    own = replace(world, teacher_Y=softmax(np.log(world.student_Y) + 0.2 * world.reward_Y))
    return own, replace(own, teacher_Y=softmax(np.log(world.student_Y) + (0.2 + lead) * world.reward_Y))


@pytest.mark.parametrize(("lead", "better"), [(1.5, "external"), (-1.5, "self")])
@pytest.mark.parametrize("features", [True, False])
def test_clear_cases(lead, better, features):
    own, external = two_worlds(lead)
    rng = np.random.default_rng(4)
    pilots = [draw(world, rng, features=features) for world in (own, external)]
    setting = Setting(BETA, dimension=None if features else 2.0)
    advice = advise(*pilots, setting, budget=100_000)
    assert advice.recommendation == better and advice.confidence > 0.95
    truth = external.target_value("soft_value") - own.target_value("soft_value")
    assert advice.value_gap.low < truth < advice.value_gap.high
    assert better in advice.reason


def test_advice_is_symmetric():
    own, external = two_worlds(0.3)
    rng = np.random.default_rng(5)
    pilots = [draw(world, rng) for world in (own, external)]
    one, other = (advise(*p, Setting(BETA), budget=300) for p in (pilots, pilots[::-1]))
    assert {one.recommendation, other.recommendation} == {"self", "external"}
    assert one.difference.value == pytest.approx(-other.difference.value)


def chance_of_a_difference(pilot):
    """Two draws from P* of one prompt are different completions: over ordered pairs of its weighted samples."""
    chances = []
    for prompt in range(pilot.prompts):
        samples = [
            tuple(getattr(pilot, f"{what}_{side}_N")[n] for what in ("student", "teacher", "reward"))
            for side in ("chosen", "rejected")
            for n in np.flatnonzero(pilot.prompt_N == prompt)
        ]
        weights = [2 * np.exp(t) / (np.exp(t) + np.exp(s)) * np.exp(r / BETA) for s, t, r in samples]
        pairs = [(i, j) for i in range(len(samples)) for j in range(len(samples)) if i != j]
        total = sum(weights[i] * weights[j] for i, j in pairs)
        chances.append(sum(weights[i] * weights[j] for i, j in pairs if samples[i] != samples[j]) / total)
    return np.mean(chances)


def test_confidence_widens_the_resamples():
    """At a difference of two standard errors the claim is that of 1.6: .95, not .98."""
    own, external = two_worlds(0.5)
    rng = np.random.default_rng(9)
    pilots = [draw(world, rng) for world in (own, external)]
    found = []
    for budget in np.geomspace(5, 100_000, 60):
        advice = advise(*pilots, Setting(BETA), budget=budget)
        error = (advice.difference.high - advice.difference.low) / (2 * 1.96)
        found.append((abs(advice.difference.value) / error, advice.confidence))
    near = [confidence for distance, confidence in found if 1.0 < distance < 2.5]
    assert len(near) > 5
    for distance, confidence in found:
        if 1.0 < distance < 2.5:
            assert confidence == pytest.approx(norm.cdf(distance / WIDENING), abs=0.03)


def test_difference_and_crossover_by_their_formulas():
    own, external = two_worlds(0.8)
    rng = np.random.default_rng(6)
    pilots = [draw(world, rng, features=False) for world in (own, external)]
    setting = Setting(BETA, dimension=3.0)
    advice = advise(*pilots, setting, budget=200)
    v = {}
    for kind, pilot in zip(("self", "external"), pilots, strict=True):
        v[kind] = 3.0 * chance_of_a_difference(pilot) / (2.0 * describe(pilot, setting)["label_information"].value)
        assert advice.learning_cost[kind].value == pytest.approx(v[kind])
    gap, extra = advice.value_gap.value, v["external"] - v["self"]
    assert advice.difference.value == pytest.approx(extra / (2 * BETA * 200) - gap)
    assert gap > 0
    expected = extra / (2 * BETA * gap) if extra > 0 else math.inf
    assert advice.crossover.value == pytest.approx(expected)


def test_without_a_dimension_only_dominance_decides():
    """A pilot of teacher samples that all succeed by far: the better target, and labels that say little."""
    rng = np.random.default_rng(7)
    size = 120

    def pilot(reward_chosen, reward_rejected):
        logs = rng.uniform(-50, -40, size=size)  # completions of one prompt that are all different
        return Pilot(np.repeat(np.arange(30), 4), logs, logs, logs, logs, reward_chosen, reward_rejected)

    student = rng.normal(size=size)
    near = pilot(student + 0.3 * rng.normal(size=size), student)
    far = pilot(student + 8.0 + rng.normal(size=size), student)
    open_case = advise(near, far, Setting(BETA), budget=500)
    assert open_case.recommendation is None and open_case.break_even_dimension > 0
    assert "when fewer than" in open_case.reason and math.isnan(open_case.confidence)
    below, above = (
        advise(near, far, Setting(BETA, dimension=open_case.break_even_dimension * factor), budget=500)
        for factor in (0.5, 2.0)
    )
    assert (below.recommendation, above.recommendation) == ("external", "self")
    worse = pilot(student - 8.0 + rng.normal(size=size), student)
    decided = advise(near, worse, Setting(BETA), budget=500)
    assert decided.recommendation == "self" and decided.confidence > 0.95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": 19}, "has 19 prompts"),
        ({"prompts": 20, "pairs": 2, "wide": 9}, "40 pairs for 9 features; it needs five a feature"),
    ],
)
def test_too_small_a_pilot_is_refused(change, words):
    wide = change.pop("wide", 0)
    pilot = draw(world_of(0), np.random.default_rng(0), **change)
    if wide:
        extra = np.random.default_rng(0).normal(size=(len(pilot.prompt_N), wide))
        pilot = replace(pilot, features_chosen_ND=extra, features_rejected_ND=extra[::-1])
    with pytest.raises(PilotTooSmall, match=words):
        advise(pilot, pilot, Setting(BETA), budget=100)


def test_pairs_whose_rewards_are_equal_are_no_evidence():
    pilot = draw(world_of(0), np.random.default_rng(0))
    flat = replace(pilot, reward_rejected_N=pilot.reward_chosen_N)
    with pytest.raises(PilotTooSmall, match="only 0 of the external pilot's 240 pairs have rewards that differ"):
        advise(pilot, flat, Setting(BETA), budget=100)


@pytest.mark.parametrize("features", [True, False])
def test_the_same_pilot_twice_is_a_tie(features):
    pilot = draw(world_of(0), np.random.default_rng(0), features=features)
    advice = advise(pilot, pilot, Setting(BETA), budget=100)
    assert advice.recommendation is None and advice.confidence == 0.5
    assert "worth the same" in advice.reason and math.isinf(advice.crossover.value)


def test_one_pair_a_prompt_is_refused():
    pilot = draw(world_of(0), np.random.default_rng(0), prompts=100, pairs=1)
    with pytest.raises(PilotTooSmall, match="the self pilot has 100 pairs for 100 prompts"):
        advise(pilot, pilot, Setting(BETA), budget=100)


def exchanged(pilot):
    """Teacher and student log-probabilities the wrong way round."""
    return replace(
        pilot,
        student_chosen_N=pilot.teacher_chosen_N,
        teacher_chosen_N=pilot.student_chosen_N,
        student_rejected_N=pilot.teacher_rejected_N,
        teacher_rejected_N=pilot.student_rejected_N,
    )


def test_log_probabilities_that_do_not_fit_the_samples_are_refused():
    pilot = draw(world_of(0, distance=2.0), np.random.default_rng(0))
    for wrong in (exchanged(pilot), replace(pilot, teacher_chosen_N=np.full(240, -5000.0))):
        with pytest.raises(ValueError, match="not those its samples were drawn by"):
            advise(pilot, wrong, Setting(BETA), budget=100)


def test_sound_pilots_are_not_refused():
    """The check of the log-probabilities passes 200 pilots of 20 worlds, near and far."""
    for seed in range(20):
        world = world_of(seed, distance=0.2 * seed)
        for trial in range(10):
            check(draw(world, np.random.default_rng((seed, trial)), prompts=20, pairs=4), "self")


@pytest.mark.parametrize("case", ["constant", "collinear", "one only", "widths", "with a dimension"])
def test_features_that_do_not_fit_are_named(case):
    pilot = draw(world_of(0), np.random.default_rng(0))
    other, dimension, extra = pilot, None, None
    words = {
        "constant": "vary in 2 directions within pairs: drop features \\[2\\]",
        "collinear": "drop features that others determine",
        "one only": "'self': 2, 'external': None",
        "widths": "'self': 2, 'external': 3",
        "with a dimension": "drop the dimension",
    }[case]
    if case == "with a dimension":
        dimension = 2.0
    elif case == "one only":
        other = replace(pilot, features_chosen_ND=None, features_rejected_ND=None)
    else:
        sides = pilot.features_chosen_ND, pilot.features_rejected_ND
        extra = {
            "constant": [np.ones(240), np.ones(240)],
            "collinear": [side.sum(-1) for side in sides],
            "widths": list(np.random.default_rng(1).normal(size=(2, 240))),
        }[case]
        wide = [np.column_stack([side, column]) for side, column in zip(sides, extra, strict=True)]
        other = replace(pilot, features_chosen_ND=wide[0], features_rejected_ND=wide[1])
    if case in ("constant", "collinear"):
        pilot = other
    with pytest.raises(ValueError, match=words):
        advise(pilot, other, Setting(BETA, dimension=dimension), budget=100)
