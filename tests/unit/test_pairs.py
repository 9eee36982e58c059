"""Pair policies on a group worked out by hand."""

import pytest

from pbsd.pairs import make_pairs
from pbsd.records import Rollout


def rollout(role, reward, prompt=0):
    return Rollout(prompt, role, (1,), "", True, (0.0,), reward, correct=reward == 1.0)


# Indices:          0 T right             1 T wrong              2 S right              3 S wrong
GROUP = [rollout("teacher", 1.0), rollout("teacher", 0.0), rollout("student", 1.0), rollout("student", 0.0)]


def pairs_of(group, **options):
    options = {"pairing": "cross", "pair_policy": "all", "needs_rewards": False, **options}
    pairs, counts = make_pairs(group, **options)
    return [(pair.chosen, pair.rejected) for pair in pairs], {key: n for key, n in counts.items() if n}


@pytest.mark.parametrize(
    ("options", "expected", "counts"),
    [
        ({}, [(0, 2), (0, 3), (1, 2), (1, 3)], {}),
        ({"pair_policy": "correct"}, [(0, 2), (0, 3)], {"dropped_incorrect": 2}),
        ({"pair_policy": "improving"}, [(0, 3)], {"dropped_not_improving": 3}),
        # (1, 2) is turned round: the student's right sample is chosen over the teacher's wrong one.
        ({"pair_policy": "oriented"}, [(0, 3), (2, 1)], {"dropped_tie": 2, "swapped": 1}),
        ({"pair_policy": "oriented", "keep_ties": True}, [(0, 2), (0, 3), (2, 1), (1, 3)], {"swapped": 1}),
        # The union has 6 pairs; those within a role are put in the order of their rewards.
        ({"pairing": "all"}, [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], {}),
        ({"pairing": "all", "pair_policy": "improving"}, [(0, 1), (0, 3), (2, 3)], {"dropped_not_improving": 3}),
    ],
)
def test_policies(options, expected, counts):
    assert pairs_of(GROUP, **options) == (expected, counts)


def test_same_role_order_follows_the_reward():
    group = [rollout("student", 0.0), rollout("student", 1.0), rollout("student", 1.0)]
    assert pairs_of(group, pairing="all") == ([(1, 0), (2, 0)], {"dropped_tie": 1})
    # A loss that reads rewards can use the tie: both rewards are its label.
    assert pairs_of(group, pairing="all", needs_rewards=True)[0] == [(1, 0), (2, 0), (1, 2)]


def test_kept_tie_has_label_one_half():
    pairs, _ = make_pairs(
        [GROUP[0], GROUP[2]], pairing="cross", pair_policy="oriented", needs_rewards=False, keep_ties=True
    )
    assert [pair.label for pair in pairs] == [0.5]


def test_unjudged_is_not_wrong():
    """An unknown reward stops a pair where a reward is needed, and only there."""
    group = [rollout("teacher", None), rollout("student", 0.0)]
    assert pairs_of(group) == ([(0, 1)], {})
    assert pairs_of(group, needs_rewards=True) == ([], {"dropped_unjudged": 1})
    assert pairs_of(group, pair_policy="improving") == ([], {"dropped_unjudged": 1})


def test_prompts_never_mix_and_every_candidate_is_counted():
    group = [rollout(r.role, r.reward, prompt) for prompt in range(3) for r in GROUP]
    for pairing, candidates in (("cross", 3 * 4), ("all", 3 * 6)):
        for policy in ("all", "correct", "improving", "oriented"):
            pairs, counts = make_pairs(group, pairing=pairing, pair_policy=policy, needs_rewards=True)
            dropped = sum(n for key, n in counts.items() if key != "swapped")
            assert len(pairs) + dropped == candidates
            assert all(group[pair.chosen].prompt == group[pair.rejected].prompt for pair in pairs)
