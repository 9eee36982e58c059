"""On-policy dynamics and moving teachers: exact statements on spaces seeded by name."""

import itertools

import numpy as np
import pytest
from spaces import EXACT, LABELLED, NAMES, generator, shifted_space, three_levels, tilt

from pbsd.theory.dynamics import Teacher, on_policy, sampled_population
from pbsd.theory.tabular import kl, objective


def centred_log(policy):
    return np.log(policy) - np.log(policy).mean()


# A fixed teacher


@pytest.mark.parametrize("name", NAMES)
def test_plain_logistic_on_policy_ends_at_the_teacher(name):
    """The gradient is zero at pi = T, and a run from the student ends there: no tilt without a reward."""
    student, shift, reward, beta, _ = shifted_space(name)
    teacher = tilt(student, shift)
    at_teacher = sampled_population("logistic", policy=teacher, teacher=teacher, reward=reward, beta=beta)
    assert np.abs(at_teacher.gradient(teacher)).max() < 1e-15
    run = on_policy(
        "logistic", policy=student, shift=shift, reward=reward, beta=beta, steps=4000, learning_rate=4 / beta
    )
    np.testing.assert_allclose(run.policies[-1], teacher, atol=1e-8)
    np.testing.assert_allclose(run.teachers, np.broadcast_to(teacher, run.teachers.shape), atol=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_rate_of_plain_logistic_near_the_teacher(name):
    """pi = T (1 + e): gradient = beta (1 + beta) / 2 (diag T - T T') e + O(e^2), beta / 2 parts of it by the loss's
    curvature and 1/2 by the sampler that follows the policy. Frozen, the same sampler would overshoot."""
    student, shift, reward, beta, _ = shifted_space(name)
    teacher = tilt(student, shift)
    direction = generator(name + "e").normal(size=5)
    size = 1e-4
    gradients = []
    for sign in (1, -1):
        policy = tilt(teacher, sign * size * direction)
        frozen = sampled_population("logistic", policy=policy, teacher=teacher, reward=reward, beta=beta)
        gradients.append(frozen.gradient(policy))
    slope = (gradients[0] - gradients[1]) / (2 * size)
    expected = beta * (1 + beta) / 2 * teacher * (direction - teacher @ direction)
    np.testing.assert_allclose(slope, expected, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", NAMES[:3])
def test_minimising_a_frozen_batch_overshoots(name, beta):
    """log pi - log T is multiplied by -1/beta at every refresh of the sampler: diverges below beta = 1."""
    student, shift, reward, _, _ = shifted_space(name)
    shift = 0.2 * shift
    run = on_policy("logistic", policy=student, shift=shift, reward=reward, beta=beta, steps=4, learning_rate=None)
    errors = np.array([centred_log(policy) - centred_log(run.teachers[0]) for policy in run.policies])
    for step in range(4):
        np.testing.assert_allclose(errors[step + 1], -errors[step] / beta, atol=1e-9)


@pytest.mark.parametrize("name", NAMES[:3])
def test_inner_steps_approach_the_frozen_optimum(name):
    """Many gradient steps on one frozen batch end where `learning_rate=None` does; one per batch never overshoots."""
    student, shift, reward, _, _ = shifted_space(name)
    beta, shift = 0.5, 0.2 * shift
    options = {"policy": student, "shift": shift, "reward": reward, "beta": beta}
    many = on_policy("logistic", steps=1, learning_rate=8.0, inner_steps=2000, **options)
    end = on_policy("logistic", steps=1, learning_rate=None, **options)
    np.testing.assert_allclose(many.policies[1], end.policies[1], atol=1e-8)
    fresh = on_policy("logistic", steps=200, learning_rate=1.0, **options)
    distance = [np.abs(centred_log(p) - centred_log(fresh.teachers[0])).max() for p in fresh.policies]
    assert all(later <= earlier for earlier, later in itertools.pairwise(distance))


@pytest.mark.parametrize("loss", [*LABELLED, "mixture"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_labelled_losses_reach_the_target_with_any_schedule_of_samplers(name, loss):
    """To the end of one frozen batch: P* at once. By single steps with a fresh sampler: P* in the limit; J rises."""
    student, shift, reward, beta, scale = shifted_space(name)
    target = tilt(student, shift + scale * reward / beta)
    losses = dict.fromkeys(LABELLED, 1.0) if loss == "mixture" else loss
    options = {"policy": student, "shift": shift, "reward": reward, "beta": beta, "reward_scale": scale}
    once = on_policy(losses, steps=1, learning_rate=None, **options)
    np.testing.assert_allclose(once.policies[1], target, atol=EXACT)
    run = on_policy(losses, steps=1000, learning_rate=0.5, **options)
    best = objective(target, run.teachers[0], scale * reward, beta)
    assert best - run.objectives[-1] < 1e-3 * (best - run.objectives[0])
    assert best >= run.objectives.max() - EXACT


@pytest.mark.parametrize("name", NAMES[:2])
def test_correct_pairs_learn_the_teacher_given_success(name):
    """pi = T(. | correct) is the fixed point whatever beta: inside the correct set m = 0, outside nothing is left."""
    student, shift, reward, beta, _, correct = three_levels(name)
    teacher = tilt(student, shift)
    given = teacher * correct / (teacher @ correct)
    run = on_policy(
        "logistic", policy=student, shift=shift, reward=reward, beta=beta, steps=2000, learning_rate=4.0 / beta,
        pair_policy="correct", correct=correct,
    )  # fmt: skip
    inside = run.policies[-1] * correct
    np.testing.assert_allclose(inside / inside.sum(), given, atol=1e-3)
    assert (run.policies @ correct)[::100].tolist() == sorted((run.policies @ correct)[::100])
    assert kl(given, run.policies[-1]) < 0.03 * kl(given, student)


@pytest.mark.parametrize("pair_policy", ["improving", "oriented"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_ordered_plain_pairs_have_no_target_but_the_highest_reward(name, pair_policy):
    """Every pair pushes up the reward, none pushes back: J's divergence is not balanced, no finite optimum exists."""
    student, shift, reward, beta, _, correct = three_levels(name)
    options = {"policy": student, "shift": shift, "reward": reward, "beta": beta, "pair_policy": pair_policy}
    with pytest.raises(ValueError, match="no finite optimum"):
        on_policy("logistic", steps=1, learning_rate=None, **options)
    run = on_policy("logistic", steps=1000, learning_rate=4.0 / beta, **options)
    assert (np.diff(run.policies @ correct) > 0).all()
    assert run.policies[-1] @ correct > 0.97


# A moving teacher


@pytest.mark.parametrize(
    "kind", [Teacher("live"), Teacher("ema", ema_decay=0.9), Teacher("refreshed", refresh_every=20)]
)
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_moving_teacher_without_labels_collapses(name, kind):
    """The margin of a live teacher, -beta (shift_i - shift_j), never closes: the completion that the context favours
    most takes everything, whatever its reward. A frozen teacher does not collapse."""
    student, shift, reward, _, _ = shifted_space(name)
    shift = 0.7 * shift.argsort().argsort()
    options = {"policy": student, "shift": shift, "reward": reward, "beta": 1.0}
    run = on_policy("logistic", steps=1000, learning_rate=4.0, teacher=kind, **options)
    frozen = on_policy("logistic", steps=1000, learning_rate=4.0, **options)
    assert run.policies[-1].argmax() == shift.argmax()
    assert run.entropies[-1] < 0.05
    assert frozen.entropies.min() > 0.3
    assert frozen.teacher_moves == 0


def test_collapse_is_onto_a_wrong_answer_when_the_context_misleads():
    """Reward 1 only where the shift is least: the unlabelled live teacher ends at reward 0 from reward 0.8."""
    student, shift, reward = np.array([0.8, 0.1, 0.1]), np.array([0.0, 0.1, 0.2]), np.array([1.0, 0.0, 0.0])
    options = {"policy": student, "shift": shift, "reward": reward, "beta": 1.0}
    run = on_policy("logistic", steps=1500, learning_rate=40.0, teacher=Teacher("live"), **options)
    assert run.rewards[0] == pytest.approx(0.8)
    assert run.rewards[-1] < 0.01
    labelled = on_policy("squared", steps=300, learning_rate=1.0, teacher=Teacher("live"), **options)
    assert labelled.rewards[-1] > 0.99


@pytest.mark.parametrize("loss", LABELLED)
@pytest.mark.parametrize("name", NAMES[:3])
def test_labels_do_not_stop_an_ema_teacher_only_steer_it(name, loss):
    """The student at P* of its teacher: T_n proportional to T_0 exp(n (1 - decay) (shift + eta r / beta)), exactly.

    So nothing is stationary unless beta shift + eta r is constant: entropy still goes to 0, n (1 - decay) steps of a
    live teacher at a time, but onto argmax(beta shift + eta r) instead of argmax shift.
    """
    student, shift, reward, beta, scale = shifted_space(name)
    run = on_policy(
        loss, policy=student, shift=shift, reward=reward, beta=beta, reward_scale=scale, steps=30, learning_rate=None,
        teacher=Teacher("ema", ema_decay=0.9),
    )  # fmt: skip
    drift = shift + scale * reward / beta
    for step in (1, 7, 30):
        np.testing.assert_allclose(run.teachers[step], tilt(run.teachers[0], 0.1 * step * drift), atol=1e-9)
        np.testing.assert_allclose(
            run.policies[step], tilt(run.teachers[step - 1], scale * reward / beta), atol=1e-9
        )  # fmt: skip
    assert tilt(run.teachers[0], 100.0 * drift).argmax() == drift.argmax()
    # The one stationary case: the context's shift is exactly the opposite of the tilt.
    still = on_policy(
        loss, policy=student, shift=-scale * reward / beta, reward=reward, beta=beta, reward_scale=scale, steps=5,
        learning_rate=None, teacher=Teacher("ema", ema_decay=0.9),
    )  # fmt: skip
    np.testing.assert_allclose(still.policies[-1], student, atol=1e-9)


@pytest.mark.parametrize("loss", ["bradley_terry", "squared", "group_log_variance"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_labels_decide_where_a_live_teacher_collapses(name, loss):
    """By gradient steps, live teacher: onto argmax(beta shift + eta r), which is the best reward when eta outweighs."""
    student, shift, reward, beta, _ = shifted_space(name)
    run = on_policy(
        loss, policy=student, shift=shift, reward=reward, beta=beta, reward_scale=50.0, steps=1000,
        learning_rate=0.05 if loss != "bradley_terry" else 2.0, teacher=Teacher("live"),
    )  # fmt: skip
    assert (beta * shift + 50.0 * reward).argmax() == reward.argmax() == run.policies[-1].argmax()
    assert run.entropies[-1] < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_a_minimum_gain_stops_a_refreshed_teacher(name):
    """Each refresh raises E_T[r] by more than min_gain, so there are at most (max r - min r) / min_gain; afterwards the
    student is at P* of the last teacher, with full support. Without a minimum the refreshes go on to collapse."""
    student, shift, reward, beta, scale = shifted_space(name)
    options = {"policy": student, "shift": shift, "reward": reward, "beta": beta, "reward_scale": scale}
    kept = on_policy(
        "squared", steps=60, learning_rate=None, teacher=Teacher("refreshed", refresh_every=1, min_gain=0.05), **options
    )
    assert kept.teacher_moves <= (reward.max() - reward.min()) / 0.05
    np.testing.assert_allclose(kept.policies[-1], tilt(kept.teachers[-1], scale * reward / beta), atol=EXACT)
    np.testing.assert_allclose(kept.policies[-1], kept.policies[-2], atol=EXACT)
    free = on_policy("squared", steps=12, learning_rate=None, teacher=Teacher("refreshed", refresh_every=1), **options)
    np.testing.assert_allclose(
        free.teachers[-1], tilt(free.teachers[0], 12 * (shift + scale * reward / beta)), atol=1e-9
    )
    assert free.teacher_moves == 12
    assert kept.entropies[-1] > free.entropies[-1]
    gains = np.diff(kept.teachers @ reward)
    assert (gains[gains != 0] > 0.05).all()


def test_refresh_interval_and_record():
    """refresh_every 3: the teacher of steps 1 to 3 is the first; entropies and values by their definitions."""
    student, shift, reward, beta, scale = shifted_space("record")
    run = on_policy(
        "squared", policy=student, shift=shift, reward=reward, beta=beta, reward_scale=scale, steps=7,
        learning_rate=0.1, teacher=Teacher("refreshed", refresh_every=3),
    )  # fmt: skip
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(run.teachers)]
    assert changed == [False, False, True, False, False, True, False]
    assert run.teacher_moves == 2
    np.testing.assert_allclose(run.teachers[3], tilt(run.policies[3], shift), atol=EXACT)
    np.testing.assert_allclose(run.entropies, -(run.policies * np.log(run.policies)).sum(1), atol=EXACT)
    assert run.objectives[4] == pytest.approx(objective(run.policies[4], run.teachers[4], scale * reward, beta))
    assert run.initial_objectives[4] == pytest.approx(objective(run.policies[4], run.teachers[0], scale * reward, beta))
    np.testing.assert_allclose(run.rewards, [p @ reward for p in run.policies], atol=EXACT)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "frozen"}, "must be one of"),
        ({"kind": "ema"}, "ema_decay"),
        ({"kind": "ema", "ema_decay": 1.5}, "ema_decay"),
        ({"kind": "live", "ema_decay": 0.5}, "ema_decay"),
        ({"kind": "refreshed"}, "refresh_every"),
        ({"kind": "refreshed", "refresh_every": 0}, "refresh_every"),
        ({"kind": "live", "min_gain": 0.1}, "min_gain"),
    ],
)
def test_unsound_teachers(options, words):
    with pytest.raises(ValueError, match=words):
        Teacher(**options)
