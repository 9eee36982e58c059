"""Scoring: token log-probabilities of completions under a model.

`layout.py` places prompts and completions in rows, packed or padded; `forward.py` runs a model on them and finds out
what is exact for it; `score.py` is what the rest of the package calls.
"""

from pbsd.scoring.forward import Capability, enable_scoring
from pbsd.scoring.layout import ScoringGroup, singles
from pbsd.scoring.score import FrozenLogits, Scores, frozen_logits, frozen_scores, score, score_frozen, token_chunks

__all__ = [
    "Capability",
    "FrozenLogits",
    "Scores",
    "ScoringGroup",
    "enable_scoring",
    "frozen_logits",
    "frozen_scores",
    "score",
    "score_frozen",
    "singles",
    "token_chunks",
]
