"""Scored rollouts of one prompt -> preference pairs, with counts of what was dropped, and why (docs/paper_map.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Literal

from pbsd.records import Pair, Rollout

Pairing = Literal["cross", "all"]
PairPolicy = Literal["all", "correct", "improving", "oriented"]

SATURATED_MARGIN = 4.0
"""|margin| beyond which a pair has almost no gradient left: sigmoid'(margin) is below 0.018."""


def make_pairs(
    rollouts: Sequence[Rollout],
    *,
    pairing: Pairing,
    pair_policy: PairPolicy,
    needs_rewards: bool,
    keep_ties: bool = False,
) -> tuple[list[Pair], Counter[str]]:
    """Pairs among the rollouts of a batch; only rollouts of the same prompt are paired.

    `pairing` says which two meet: `cross`, every teacher sample (chosen) with every student sample (rejected); `all`,
    every two of the union, where two samples of the same role are put in the order of their rewards.
    `pair_policy` says which stay:

    - `all`: every one (the paper's).
    - `correct`: chosen is correct by the first reward function.
    - `improving`: reward of chosen above reward of rejected.
    - `oriented`: turned round when the rejected one has the higher reward; ties go, or with `keep_ties` stay with
      label 1/2.

    Args:
        needs_rewards: the loss reads both rewards, so a pair with an unjudged rollout cannot be used.

    Returns:
        The pairs, and counts under `dropped_unjudged` (a reward that is needed is missing), `dropped_incorrect`,
        `dropped_not_improving`, `dropped_tie` and `swapped`.
    """
    pairs: list[Pair] = []
    counts: Counter[str] = Counter()
    for first, second in _candidates(rollouts, pairing):
        reward_first, reward_second = rollouts[first].reward, rollouts[second].reward
        same_role = rollouts[first].role == rollouts[second].role
        if (needs_rewards or same_role or pair_policy != "all") and (reward_first is None or reward_second is None):
            counts["dropped_unjudged"] += 1
            continue
        gap = 0.0 if reward_first is None or reward_second is None else reward_first - reward_second
        swap = gap < 0 and (same_role or pair_policy == "oriented")
        chosen, rejected = (second, first) if swap else (first, second)
        tie = gap == 0 and (pair_policy == "oriented" or (same_role and not needs_rewards))
        if tie and not keep_ties:
            counts["dropped_tie"] += 1
        elif pair_policy == "correct" and not rollouts[chosen].correct:
            counts["dropped_incorrect"] += 1
        elif pair_policy == "improving" and (abs(gap) if swap else gap) <= 0:
            counts["dropped_not_improving"] += 1
        else:
            counts["swapped"] += swap and not same_role
            pairs.append(Pair(chosen, rejected, label=0.5 if tie else 1.0, swapped=swap and not same_role))
    return pairs, counts


def _candidates(rollouts: Sequence[Rollout], pairing: Pairing) -> Iterator[tuple[int, int]]:
    """Index pairs of the same prompt, teacher samples first."""
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for index, rollout in enumerate(rollouts):
        teacher, student = groups.setdefault(rollout.prompt, ([], []))
        (teacher if rollout.role == "teacher" else student).append(index)
    for teacher, student in groups.values():
        if pairing == "cross":
            yield from product(teacher, student)
        else:
            yield from combinations(teacher + student, 2)
