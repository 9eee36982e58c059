"""Can chosen and rejected completions be told apart by their looks alone?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

CAPACITY = 256
"""How many of the newest pairs are compared."""
MINIMUM = 20
"""Fewer different prompts than this give no figure."""
MAX_CHARACTERS = 2000
"""A completion's style is read from its first characters."""

_BUCKETS = 2048
_RIDGE = 0.1
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)


class StyleGap:
    """Held-out AUC of a small classifier of chosen against rejected completions, over the newest pairs.

    Ridge regression on which runs of one to three characters a text has (hashed), in two folds: prompts are split in
    halves, each is judged by the classifier of the other, and the two AUCs are averaged. One pair per prompt and step
    takes part, so that a large group does not count many times. 1/2: no visible difference; 1: looks
    alone tell the sides apart, and the pair loss may be learning looks (a layout, a citation) in place of substance.
    Short answers wear their substance on the surface, so read it against its own start.
    """

    def __init__(self) -> None:
        self._pairs: list[tuple[int, str, str]] = []
        self._features: list[NDArray[np.float32]] = []

    def observe(self, records: Iterable[Mapping[str, Any]]) -> None:
        """The step's records of samples.jsonl; those that are not of pairs are passed over."""
        seen = set()
        for record in records:
            if "chosen" in record and record["row"] not in seen:
                seen.add(record["row"])
                texts = (record[side]["text"][:MAX_CHARACTERS] for side in ("chosen", "rejected"))
                self._add(record["row"], *texts)
        del self._pairs[:-CAPACITY], self._features[:-CAPACITY]

    def auc(self) -> float:
        """NaN where the pairs are of fewer than `MINIMUM` prompts."""
        rows = list(dict.fromkeys(row for row, _, _ in self._pairs))
        if len(rows) < MINIMUM:
            return math.nan
        fold_of = {row: place % 2 for place, row in enumerate(rows)}
        fold_N = torch.tensor([fold_of[row] for row, _, _ in self._pairs])
        # By torch, which keeps to the run's number of threads: numpy's products take every core.
        features_N2F = torch.from_numpy(np.stack(self._features))
        aucs = [_held_out_auc(features_N2F[fold_N != fold], features_N2F[fold_N == fold]) for fold in (0, 1)]
        return float(np.mean(aucs))

    def state_dict(self) -> dict[str, Any]:
        return {"pairs": [list(pair) for pair in self._pairs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pairs, self._features = [], []
        for pair in state["pairs"]:
            self._add(*pair)

    def _add(self, row: int, chosen: str, rejected: str) -> None:
        self._pairs.append((row, chosen, rejected))
        self._features.append(np.stack([character_runs(chosen), character_runs(rejected)]))


def character_runs(text: str) -> NDArray[np.float32]:
    """Which runs of one, two and three characters the text has, hashed, of Euclidean length 1 (0 for an empty text)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    present = np.zeros(_BUCKETS, dtype=np.float32)
    for length in (1, 2, 3):
        size = max(len(codes) - length + 1, 0)
        mixed = np.full(size, length, dtype=np.uint64)
        for place in range(length):
            mixed = (mixed ^ codes[place : place + size]) * _MIX[place]
        present[(mixed >> np.uint64(40)) % np.uint64(_BUCKETS)] = 1.0
    return present / max(np.sqrt(present.sum()), np.float32(1.0))


def rank_auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive's score is above a negative's, ties counting half."""
    ranks = rankdata([*positive, *negative])
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def _held_out_auc(train_N2F: Tensor, test_N2F: Tensor) -> float:
    # Chosen minus rejected stands for both sides: the regression of +1 and -1 on features centred pair by pair.
    differences_NF = train_N2F[:, 0] - train_N2F[:, 1]
    gram_NN = differences_NF @ differences_NF.T + _RIDGE * torch.eye(len(differences_NF))
    dual_N = torch.linalg.solve(gram_NN, torch.ones(len(gram_NN)))
    scores_N2 = test_N2F @ (dual_N @ differences_NF)
    return rank_auc(scores_N2[:, 0].tolist(), scores_N2[:, 1].tolist())
