"""Rewards: is a completion right, and what is it worth?

A grader judges one completion and returns a `Grade`: `math.py` (`math_text.py` finds the answer, `math_latex.py`,
`math_notation.py` and `math_symbols.py` know how it is written, `math_read.py` reads it, `math_compare.py` and
`math_numbers.py` compare), `tools.py` with `tool_syntax/` and `paper_parity.py`, `format.py`.
`pool.py` runs graders, and `limited.py` users' functions, in worker processes (`process.py`, `worker.py`, `wire.py`)
that are killed at a time limit; `call.py` is one call of a user's function, there or here.
`functions.py` makes graders, users' functions and names into reward functions with TRL's signature.
`batch.py` runs several of them on a batch and adds up; an unknown reward stays unknown.
"""

from pbsd.rewards.batch import Scores, score
from pbsd.rewards.functions import GradedReward, RewardFunction, required_columns, resolve
from pbsd.rewards.grade import Grade
from pbsd.rewards.pool import GraderPool

__all__ = ["Grade", "GradedReward", "GraderPool", "RewardFunction", "Scores", "required_columns", "resolve", "score"]
