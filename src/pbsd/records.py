"""The frozen records that travel between the parts, and the shape legend.

Shape suffixes of tensors: P prompts, G completions of one prompt, B rows (completions or pairs), T completion tokens,
L prompt and completion tokens, V vocabulary. Log-probabilities are natural and untempered. Token ids stay ragged
(tuples of ints) until a tensor is made for a forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["student", "teacher", "reference"]
"""Who wrote a completion; `reference`: the dataset."""
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One dataset row, rendered once for both roles.

    Attributes:
        row: position in its dataset; keys the random numbers of its samples.
        prompt: the problem as the dataset has it (text or chat messages); reward functions receive it.
        columns: the row's other columns, by name, for the reward functions.
        student_ids, teacher_ids: the token ids each role continues; the thinking prefix, if any, is included.
        reference_ids: the row's own completion, the stop token included; empty unless the method learns it.
        context: what the teacher is shown besides the problem, as text; None: nothing.
        student_turn, teacher_turn: what of the prompt is part of the assistant's turn, for graders: the text that it
            continues, or the mark of a thought that it opens.
    """

    row: int
    prompt: Any
    columns: Mapping[str, Any]
    student_ids: Ids
    teacher_ids: Ids
    reference_ids: Ids = ()
    context: str | None = None
    student_turn: str = ""
    teacher_turn: str = ""

    def ids(self, role: Role) -> Ids:
        return self.teacher_ids if role == "teacher" else self.student_ids

    def turn(self, role: Role) -> str:
        return self.teacher_turn if role == "teacher" else self.student_turn


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion: sampled, or for role `reference` the dataset's.

    Attributes:
        prompt: index into the batch's prompts.
        role: whose prompt (and weights) it was sampled from.
        completion_ids: the sampled tokens, the stop token included.
        finished: whether a stop token ended it (False: the length limit did).
        sampler_logprobs: per token, from the generator, at temperature 1 and without truncation.
        reward: weighted sum of the reward functions; None when it could not be judged.
        correct: whether the first reward function gives at least `success_threshold`; None when it cannot be judged.
        teacher_logprobs: per token under the teacher and its prompt; empty until scored.
        reference_logprobs: per token under the initial weights and the student's prompt; empty until scored.
        teacher_prompt_ids: a teacher's prompt made for this rollout alone; empty: none was made.
        advantage: what the policy gradient weighs it with; None where it takes no part.
        weight: what its terms in the loss are multiplied by; 0: it takes no part in any.
        grades: what each reward function said of it, by name.
        extra: what reward functions told `log_extra`, by column.
        temperature, top_p, top_k, min_p: what it was drawn with (0 is greedy; 1, 0 and None are off).
    """

    prompt: int
    role: Role
    completion_ids: Ids
    text: str
    finished: bool
    sampler_logprobs: tuple[float, ...]
    reward: float | None = None
    correct: bool | None = None
    teacher_logprobs: tuple[float, ...] = ()
    reference_logprobs: tuple[float, ...] = ()
    teacher_prompt_ids: Ids = ()
    advantage: float | None = None
    weight: float = 1.0
    grades: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None

    @property
    def teacher_logprob(self) -> float:
        """log T(y|x,c), summed over the completion."""
        assert len(self.teacher_logprobs) == len(self.completion_ids), "rollout has not been scored by the teacher"
        return math.fsum(self.teacher_logprobs)


def sampled_by_role(rollouts: Sequence[Rollout]) -> Iterator[tuple[Role, list[Rollout]]]:
    """The student's and the teacher's samples, of those that have any."""
    roles: tuple[Role, ...] = ("student", "teacher")
    for role in roles:
        if own := [rollout for rollout in rollouts if rollout.role == role]:
            yield role, own


def prompt_means(rollouts: Iterable[Rollout], value: Callable[[Rollout], float | None]) -> dict[int, float]:
    """By prompt the mean over its rollouts of a value; None and NaN are left out."""
    values: dict[int, list[float]] = {}
    for rollout in rollouts:
        if (found := value(rollout)) is not None and not math.isnan(found):
            values.setdefault(rollout.prompt, []).append(found)
    return {prompt: math.fsum(own) / len(own) for prompt, own in values.items()}


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference between two rollouts of one prompt (indices into the batch's rollouts).

    `label` is the probability that `chosen` is preferred where the loss takes no rewards: 1, or 1/2 for a kept tie.
    `swapped` says that the pair was turned round because the rewards said so.
    """

    chosen: int
    rejected: int
    label: float = 1.0
    swapped: bool = False


@dataclass(slots=True)
class Metrics:
    """Raw observations and counts of one step, so that means and quantiles are exact over any split of the work."""

    values: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)

    def observe(self, key: str, values: Iterable[float]) -> None:
        self.values.setdefault(key, []).extend(float(value) for value in values)

    def count(self, key: str, amount: float = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + amount

    def merge(self, other: Metrics) -> None:
        for key, values in other.values.items():
            self.observe(key, values)
        for key, amount in other.counts.items():
            self.count(key, amount)

    def summary(self) -> dict[str, float]:
        """Means (NaN where nothing was observed) and sums; quantiles for the keys that end in `margin`."""
        result: dict[str, float] = dict(self.counts)
        for key, values in self.values.items():
            result[key] = math.fsum(values) / len(values) if values else math.nan
            if key.endswith("margin") and values:
                ordered = sorted(values)
                for percent in (10, 50, 90):
                    result[f"{key}_p{percent}"] = quantile(ordered, percent / 100)
        return result


def quantile(ordered: Sequence[float], share: float) -> float:
    """By the nearest rank: of the sorted values the one at this share (0 to 1) of the way from first to last. Midway
    between two it is that of the even place, counted from 0."""
    return ordered[round(share * (len(ordered) - 1))]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one optimisation step learns from.

    `totals` are numbers of the whole step over all processes, the same in every part of it.
    """

    prompts: tuple[Prompt, ...]
    rollouts: tuple[Rollout, ...]
    pairs: tuple[Pair, ...] = ()
    totals: Mapping[str, float] = field(default_factory=dict)

    @property
    def sampled_tokens(self) -> int:
        return sum(len(rollout.completion_ids) for rollout in self.rollouts if rollout.role != "reference")

    def split(self, sizes: Iterable[int]) -> list[Batch]:
        """Micro-batches of whole prompts, `sizes` prompts each, in order; every rollout and pair lands in one."""
        parts, start = [], 0
        for size in sizes:
            end = start + size
            kept = [i for i, rollout in enumerate(self.rollouts) if start <= rollout.prompt < end]
            place = {old: new for new, old in enumerate(kept)}
            parts.append(
                Batch(
                    prompts=self.prompts[start:end],
                    rollouts=tuple(replace(self.rollouts[i], prompt=self.rollouts[i].prompt - start) for i in kept),
                    pairs=tuple(
                        replace(pair, chosen=place[pair.chosen], rejected=place[pair.rejected])
                        for pair in self.pairs
                        if pair.chosen in place
                    ),
                    totals=self.totals,
                )
            )
            start = end
        assert start == len(self.prompts), f"split sizes cover {start} of {len(self.prompts)} prompts"
        return parts
