"""Signal and noise of the projections: exact statements on spaces seeded by name."""

import itertools

import numpy as np
import pytest
from scipy.special import expit, softmax
from spaces import EXACT, NAMES, POLICIES, generator, shifted_space, three_levels, tilt

from pbsd.theory.dynamics import sampled_population
from pbsd.theory.gradient_noise import gradient_snr
from pbsd.theory.tabular import PAIR_LOSSES, imitation_target, population, reward_tilted


@pytest.mark.parametrize("keep_ties", [False, True])
@pytest.mark.parametrize("pair_policy", POLICIES)
@pytest.mark.parametrize("pairing", ["cross", "all"])
@pytest.mark.parametrize("loss", PAIR_LOSSES)
def test_mean_gradient_of_pairs_is_the_expected_one(loss, pairing, pair_policy, keep_ties):
    student, shift, reward, beta, scale, correct = three_levels("mean")
    teacher = tilt(student, shift)
    options = {
        "policy": student, "teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale,
        "pairing": pairing, "pair_policy": pair_policy, "correct": correct, "keep_ties": keep_ties,
        "teacher_samples": 2, "student_samples": 2,
    }  # fmt: skip
    expected = sampled_population(loss, **options).gradient(student)
    np.testing.assert_allclose(gradient_snr(loss, **options).mean, expected, atol=EXACT)


@pytest.mark.parametrize(("teacher_samples", "student_samples"), [(2, 2), (1, 3), (3, 1)])
@pytest.mark.parametrize("loss", ["group_log_variance", "imitation", "direct", "direct_sampled", "nll"])
@pytest.mark.parametrize("name", NAMES[:2])
def test_mean_gradient_of_the_other_losses(name, loss, teacher_samples, student_samples):
    """`direct_sampled` has the mean of `direct`; small groups of `imitation` learn `imitation_target`."""
    student, shift, reward, beta, scale = shifted_space(name, 4)
    options = {
        "policy": student, "teacher": tilt(student, shift), "reward": reward, "beta": beta, "reward_scale": scale,
        "teacher_samples": teacher_samples, "student_samples": student_samples,
    }  # fmt: skip
    plain = "direct" if loss == "direct_sampled" else loss
    expected = sampled_population(plain, imitation_group=teacher_samples, **options).gradient(student)
    np.testing.assert_allclose(gradient_snr(loss, **options).mean, expected, atol=EXACT)


def test_noise_by_listing_every_sample():
    """Squared, one teacher and one student sample; imitation, two teacher samples: the definition of tr Cov."""
    student, shift, reward, beta, scale = shifted_space("noise", 4)
    teacher = tilt(student, shift)
    f = beta * np.log(student / teacher) - scale * reward
    basis, options = np.eye(4), {"policy": student, "teacher": teacher, "reward": reward, "beta": beta}
    pairs = {
        (i, j): (teacher[i] * student[j], 2 * beta * (f[i] - f[j]) * (basis[i] - basis[j]))
        for i, j in itertools.product(range(4), repeat=2)
    }
    share = {(i, j): expit(scale * (reward[i] - reward[j]) / beta) for i, j in pairs}
    copies = {
        (i, j): (teacher[i] * teacher[j], student - share[i, j] * basis[i] - (1 - share[i, j]) * basis[j])
        for i, j in pairs
    }
    for loss, samples, (k_t, k_s) in (("squared", pairs, (1, 1)), ("imitation", copies, (2, 0))):
        mean = sum(p * g for p, g in samples.values())
        noise = sum(p * ((g - mean) ** 2).sum() for p, g in samples.values())
        found = gradient_snr(loss, reward_scale=scale, teacher_samples=k_t, student_samples=k_s, **options)
        assert found.noise == pytest.approx(noise, abs=EXACT)
        assert found.snr == pytest.approx(mean @ mean / noise, abs=1e-9)
        exact = population("direct", teacher=teacher, reward=reward, beta=beta, reward_scale=scale).gradient(student)
        assert found.cosine == pytest.approx(mean @ exact / np.sqrt((mean @ mean) * (exact @ exact)), abs=1e-9)
        second = sum(p * (g @ g) for p, g in samples.values())
        assert found.progress == pytest.approx((mean @ exact) ** 2 / ((exact @ exact) * second), abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_group_loss_on_own_samples_is_a_policy_gradient(name):
    """Sample for sample 2 beta times the sampled-KL policy gradient with a leave-one-out baseline."""
    student, shift, reward, beta, scale = shifted_space(name, 4)
    options = {
        "policy": student, "teacher": tilt(student, shift), "reward": reward, "beta": beta, "reward_scale": scale,
        "teacher_samples": 0, "student_samples": 4,
    }  # fmt: skip
    group, direct = gradient_snr("group_log_variance", **options), gradient_snr("direct_sampled", **options)
    np.testing.assert_allclose(group.mean, 2 * beta * direct.mean, atol=EXACT)
    assert group.noise == pytest.approx(4 * beta**2 * direct.noise, abs=EXACT)
    assert group.cosine == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_labelled_contrasts_are_silent_at_the_target(name):
    """At P* every labelled pair has residual 0: no noise at all. Imitation, dense direct and plain pairs stay noisy."""
    student, shift, reward, beta, scale = shifted_space(name, 4)
    teacher = tilt(student, shift)
    options = {
        "policy": tilt(teacher, scale * reward / beta), "teacher": teacher, "reward": reward, "beta": beta,
        "reward_scale": scale, "teacher_samples": 2, "student_samples": 2,
    }  # fmt: skip
    for loss in ("bradley_terry", "squared", "group_log_variance", "direct_sampled"):
        assert gradient_snr(loss, **options).noise < 1e-24
    for loss in ("imitation", "direct", "logistic"):
        assert gradient_snr(loss, **options).noise > 1e-4


def far_teacher(name, distance, *, success):
    """A student right with probability `success`; T proportional to S exp(distance * correct); six completions."""
    reward = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    base = softmax(generator(name).normal(size=6))
    student = np.where(reward == 1, success * base / (base @ reward), (1 - success) * base / (base @ (1 - reward)))
    return student, tilt(student, distance * reward), reward


CONTRAST = {"teacher_samples": 0, "student_samples": 4}
COPY = {"teacher_samples": 4, "student_samples": 0}


@pytest.mark.parametrize("success", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_copies_win_when_the_teacher_is_far_and_contrasts_when_it_is_near(name, success):
    """Four completions each, beta 0.5: signal to noise of imitation against group log-variance on own samples."""
    ratio = []
    for distance in (0.0, 1.0, 2.0, 4.0, 6.0):
        student, teacher, reward = far_teacher(name, distance, success=success)
        options = {"policy": student, "teacher": teacher, "reward": reward, "beta": 0.5}
        copy = gradient_snr("imitation", **COPY, **options)
        ratio.append(copy.snr / gradient_snr("group_log_variance", **CONTRAST, **options).snr)
    assert ratio == sorted(ratio)
    assert ratio[0] < 1 < ratio[-1]


def independent_tokens(length):
    """Every sequence of `length` binary tokens: its number of ones, [Y], and one-hot features, [Y, 2 length]."""
    sequences = np.array(list(itertools.product(range(2), repeat=length)))
    return sequences.sum(1), np.concatenate([np.eye(2)[sequences[:, t]] for t in range(length)], axis=1)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_token_dense_signals_do_not_fade_with_length(distance):
    """No reward, T tilted by `distance` per token: signal to noise of a copy is the same at every length, of the dense
    KL it is unbounded, of a contrast (one scalar per sample) it falls with length."""
    snr = {"imitation": [], "group_log_variance": [], "squared": []}
    for length in (1, 2, 3, 4):
        ones, features = independent_tokens(length)
        options = {
            "policy": softmax(-0.5 * ones), "teacher": softmax((distance - 0.5) * ones),
            "reward": np.zeros(2**length), "beta": 0.5, "features": features,
        }  # fmt: skip
        snr["imitation"].append(gradient_snr("imitation", **COPY, **options).snr)
        snr["group_log_variance"].append(gradient_snr("group_log_variance", **CONTRAST, **options).snr)
        snr["squared"].append(gradient_snr("squared", teacher_samples=2, student_samples=2, **options).snr)
        dense = gradient_snr("direct", **CONTRAST, **options)
        assert dense.noise < 1e-20 < dense.mean @ dense.mean
    np.testing.assert_allclose(snr["imitation"], snr["imitation"][0], rtol=1e-9)
    for loss in ("group_log_variance", "squared"):
        assert (np.diff(snr[loss]) < 0).all()
    # f is then linear in the tokens, so its scale cancels: the contrast does not see how far the teacher is.
    one = {"policy": softmax(-0.5 * np.arange(2)), "reward": np.zeros(2), "beta": 0.5}
    near, far = (
        gradient_snr("group_log_variance", teacher=softmax((d - 0.5) * np.arange(2)), **CONTRAST, **one)
        for d in (0.1, 5)
    )
    assert near.snr == pytest.approx(far.snr, rel=1e-9)


def test_smaller_groups_cost_imitation_its_target():
    """The mean gradient of imitation vanishes at `imitation_target`, not at P*."""
    student, shift, reward, beta, scale = shifted_space("small", 4)
    teacher = tilt(student, shift)
    options = {"teacher": teacher, "reward": reward, "beta": beta, "reward_scale": scale, **COPY}
    displaced = imitation_target(teacher, scale * reward, beta, group=4)
    target = reward_tilted(teacher, scale * reward, beta)
    assert np.abs(gradient_snr("imitation", policy=displaced, **options).mean).max() < 1e-12
    np.testing.assert_allclose(gradient_snr("imitation", policy=target, **options).mean, target - displaced, atol=EXACT)


@pytest.mark.parametrize(
    ("loss", "samples"),
    [("squared", (2, 0)), ("group_log_variance", (1, 0)), ("imitation", (0, 2)), ("direct", (2, 0)), ("hinge", (1, 1))],
)
def test_unsound_gradients(loss, samples):
    student, shift, reward, beta, _ = shifted_space("unsound", 3)
    with pytest.raises(ValueError, match="no gradient|unknown loss"):
        gradient_snr(
            loss, policy=student, teacher=tilt(student, shift), reward=reward, beta=beta,
            teacher_samples=samples[0], student_samples=samples[1],
        )  # fmt: skip
