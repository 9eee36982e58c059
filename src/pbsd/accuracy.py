"""avg@k at temperature 1 and greedy accuracy of the student on held-out prompts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pbsd.engine import Engine
from pbsd.intervals import Interval, difference_interval, share_interval
from pbsd.records import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """Counts of one problem. Samples that could not be judged are in no count of right or wrong.

    `greedy_correct` is None when the greedy completion could not be judged.
    """

    row: int
    num_samples: int
    num_correct: int
    num_unjudged: int
    greedy_correct: bool | None
    generated_tokens: int

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_samples if self.num_samples else math.nan


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Results of all problems, in the order of their rows."""

    problems: tuple[ProblemResult, ...]

    @classmethod
    def join(cls, parts: Iterable[Accuracy]) -> Accuracy:
        problems = {problem.row: problem for part in parts for problem in part.problems}
        return cls(tuple(problems[row] for row in sorted(problems)))

    @property
    def sampled(self) -> Interval:
        """avg@k: mean over problems of the share of correct samples."""
        return share_interval([problem.accuracy for problem in self.problems if problem.num_samples])

    @property
    def greedy(self) -> Interval:
        return share_interval([float(p.greedy_correct) for p in self.problems if p.greedy_correct is not None])

    @property
    def generated_tokens(self) -> int:
        return sum(problem.generated_tokens for problem in self.problems)

    def metrics(self, prefix: str) -> dict[str, float]:
        sampled, greedy = self.sampled, self.greedy
        return {
            f"{prefix}_accuracy": sampled.estimate,
            f"{prefix}_accuracy_low": sampled.low,
            f"{prefix}_accuracy_high": sampled.high,
            f"{prefix}_greedy_accuracy": greedy.estimate,
            f"{prefix}_unjudged": sum(problem.num_unjudged for problem in self.problems),
            f"{prefix}_problems": len(self.problems),
        }

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(problem) for problem in self.problems]

    @classmethod
    def from_json(cls, problems: list[dict[str, Any]]) -> Accuracy:
        return cls(tuple(ProblemResult(**problem) for problem in problems))


def paired_difference(
    before: Accuracy, after: Accuracy, value: Callable[[ProblemResult], float] = lambda problem: problem.accuracy
) -> Interval:
    """Interval of the mean per-problem difference after - before, over the problems judged in both."""
    earlier = {problem.row: value(problem) for problem in before.problems}
    differences = [value(problem) - earlier[problem.row] for problem in after.problems if problem.row in earlier]
    return difference_interval([difference for difference in differences if not math.isnan(difference)])


def measure_accuracy(
    engine: Engine, prompts: Sequence[Prompt], *, role: Any = "student", greedy: bool = True
) -> Accuracy:
    """Sample `num_generations_eval` completions per prompt at T = 1 without truncation, and one greedily.

    A completion is correct when the first reward function gives it at least `success_threshold`. The random numbers
    depend on `eval_seed` and the row only, so two measurements of one model agree and two models are compared on equal
    draws.
    """
    if not prompts:
        return Accuracy(())
    args = engine.args
    key = (args.eval_seed, 0)
    rollouts = engine.sample(
        prompts, {role: args.num_generations_eval}, key=key, params=args.sampling_params(temperature=1.0)
    )
    sampled = len(rollouts)
    if greedy:
        rollouts += engine.sample(prompts, {role: 1}, key=key, params=args.sampling_params(temperature=0.0))
    verdicts = _verdicts(engine, prompts, rollouts)
    by_prompt: dict[int, list[int]] = defaultdict(list)
    for index, rollout in enumerate(rollouts[:sampled]):
        by_prompt[rollout.prompt].append(index)
    return Accuracy(
        tuple(
            ProblemResult(
                row=prompt.row,
                num_samples=sum(verdicts[i] is not None for i in by_prompt[place]),
                num_correct=sum(verdicts[i] is True for i in by_prompt[place]),
                num_unjudged=sum(verdicts[i] is None for i in by_prompt[place]),
                greedy_correct=verdicts[sampled + place] if greedy else None,
                generated_tokens=sum(len(rollouts[i].completion_ids) for i in by_prompt[place]),
            )
            for place, prompt in enumerate(prompts)
        )
    )


def _verdicts(engine: Engine, prompts: Sequence[Prompt], rollouts: list[Rollout]) -> list[bool | None]:
    return [rollout.correct for rollout in engine.grade(prompts, rollouts)[0]]
