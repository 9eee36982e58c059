"""How far `adaptive_generations` moves the default's target, by enumeration over everything that can be drawn."""

import itertools
import math
from collections import Counter

import pytest
import torch

from pbsd.config import PBSDConfig
from pbsd.losses.projection import direct_loss, imitation_loss, mixture_log_ratio
from pbsd.methods.pbsd import _teacher_share
from pbsd.records import Rollout

STUDENT = (0.5, 0.45, 0.05)
TEACHER = (0.2, 0.2, 0.6)
RIGHT = (0.0, 1.0, 1.0)  # completions of one token: one wrong, two right
FIRST, REST, BETA = 2, 6, 0.1  # K_S = K_T = 4


def draws(size, chances):
    """Every multiset of outcomes, as a list, with its probability."""
    for counts in itertools.product(range(size + 1), repeat=len(chances)):
        if sum(counts) == size:
            ways = math.factorial(size) // math.prod(map(math.factorial, counts))
            chance = ways * math.prod(p**n for p, n in zip(chances, counts, strict=True))
            yield [outcome for outcome, n in enumerate(counts) for _ in range(n)], chance


def batches(adaptive):
    """(student's samples, teacher's samples, probability) of a prompt; a handover of 1."""
    for first, p in draws(FIRST if adaptive else 4, STUDENT):
        taught = 4
        if adaptive:
            rollouts = [Rollout(0, "student", (1,), "", True, (0.0,), correct=bool(RIGHT[y])) for y in first]
            taught = _teacher_share(rollouts, REST, 1.0)
        for more, q in draws(REST - taught if adaptive else 0, STUDENT):
            for teacher, r in draws(taught, TEACHER):
                yield first + more, teacher, p * q * r


def policy_gradient(adaptive):
    """Expected gradient of a student sample's -J by its logits, the divergence left out."""
    total, rows = torch.zeros(3, dtype=torch.float64), 0.0
    chances: Counter[tuple[int, ...]] = Counter()
    for own, _, chance in batches(adaptive):
        chances[tuple(own)] += chance
    for own, chance in chances.items():
        logits = torch.tensor(STUDENT, dtype=torch.float64).log().requires_grad_()
        policy = logits.log_softmax(-1)[list(own)][:, None]
        reward = torch.tensor([RIGHT[y] for y in own], dtype=torch.float64)
        zero = torch.zeros_like(policy)
        group = torch.zeros(len(own), dtype=torch.long)
        direct_loss(policy, zero, torch.ones_like(zero), reward, group, beta=BETA).sum().backward()
        total += chance * logits.grad
        rows += chance * len(own)
    return total / rows


def imitated(adaptive):
    """What imitation's expected gradient asks for: the weight of each outcome, normalised."""
    found = [*batches(adaptive)]
    outcomes = torch.tensor([own + teacher for own, teacher, _ in found])
    is_own = torch.tensor([[True] * len(own) + [False] * len(teacher) for own, teacher, _ in found])
    chance = torch.tensor([p for _, _, p in found], dtype=torch.float64)
    reward = torch.tensor(RIGHT, dtype=torch.float64)[outcomes]
    student, teacher = (torch.tensor(p, dtype=torch.float64).log()[outcomes] for p in (STUDENT, TEACHER))
    fails = is_own * (1 - reward)
    failing = (fails.sum(-1, keepdim=True) - fails) / (is_own.sum(-1, keepdim=True) - is_own.long())
    policy = student.clone().requires_grad_()
    ratio = mixture_log_ratio(teacher, student, teacher_fraction=(~is_own).double().mean(-1, keepdim=True))
    loss = imitation_loss(failing * policy, reward, beta=BETA, log_ratio_BG=ratio, reward_max=1.0)
    (chance * loss).sum().backward()
    weights = torch.stack([-policy.grad[outcomes == y].sum() for y in range(3)])
    return (weights / weights.sum()).tolist()


def test_the_setting_is_the_default_s():
    args = PBSDConfig(output_dir="none", use_cpu=True)
    assert (args.first_generations, args.num_generations + args.num_teacher_generations) == (FIRST, FIRST + REST)


def test_the_policy_gradient_shrinks_by_a_fourteenth():
    """By hand, with half of the samples right: 1, 3 or 6 of the six are the teacher's when none, one or both of the
    first two fail. The baseline b of a first sample, the mean of the student's others, is then E[b | it is right] =
    ((1 + 5/2) / 6 + (3/2) / 4) / 2 = 23/48 and E[b | it is wrong] = ((1 + 3/2) / 4 + 0) / 2 = 15/48, so its reward
    weighs 1 - 23/48 + 15/48 = 5/6; that of a later sample weighs 1. Of the former there are 2, of the latter 2.75 on
    average: (2 * 5/6 + 2.75) / 4.75 = 53/57."""
    exact = torch.tensor([p * (0.5 - r) for p, r in zip(STUDENT, RIGHT, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(policy_gradient(adaptive=False), exact)
    torch.testing.assert_close(policy_gradient(adaptive=True), exact * 53 / 57)


def test_the_imitated_target_moves_among_right_answers():
    """P* has the wrong answer at exp(-10) and the right ones at 1/4 and 3/4, as the teacher; shared out by need the
    samples ask for .228 and .772."""
    target = [0.2 * math.exp(-10), 0.2, 0.6]
    assert imitated(adaptive=False) == pytest.approx([w / sum(target) for w in target], rel=1e-9)
    assert imitated(adaptive=True)[1:] == pytest.approx([0.228, 0.772], abs=5e-4)
