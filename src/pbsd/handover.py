"""Does the teacher's reasoning help the student, or does the teacher only know the answer?

A teacher that is shown the answer can write it whatever it wrote before. Its reward then says nothing of its steps, and
a student that imitates them learns steps which do not lead to the answer. To tell, the student finishes what the
teacher began: behind its own prompt stands the first half of a teacher sample. Of the success rates S of the student's
samples, T of the teacher's and H of these,

    handover = (H - S) / (sqrt(S T) - S), within [0, 1].

Were every step as likely to be right as any other, independently, the half of the teacher's steps and the half of the
student's would succeed at sqrt(S T): the handover is 1 there and above, and 0 where the teacher's first half is no
better than the student's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pbsd.engine import Engine
from pbsd.records import Prompt, Rollout

_DECAY = 0.9
"""What a step's prompts count for in the next: about ten steps make up the means."""
_ROUND = 2
"""Tells the random numbers of these samples from those of the step's other rounds."""

Author = Literal["student", "teacher", "both"]


@dataclass(slots=True)
class Handover:
    """Decaying sums of the success rates of prompts, and of the numbers of prompts, by who wrote the samples."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(get_args(Author), 0.0))
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(get_args(Author), 0.0))

    def observe(self, successes: Mapping[Author, Sequence[float]]) -> None:
        """A step's success rates, of all processes."""
        for author, values in successes.items():
            self.sums[author] = _DECAY * self.sums[author] + sum(values)
            self.counts[author] = _DECAY * self.counts[author] + len(values)

    @property
    def value(self) -> float:
        """1 while nothing is known, or no sample of the student succeeds; 0 where the teacher is not better."""
        if not all(self.counts.values()):
            return 1.0
        student, teacher, both = (self.sums[name] / self.counts[name] for name in get_args(Author))
        if teacher <= student:
            return 0.0
        if student == 0:
            return 1.0
        return min(1.0, max(0.0, (both - student) / (math.sqrt(student * teacher) - student)))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


def success_rates(rollouts: Sequence[Rollout]) -> list[float]:
    """Of every prompt with a judged sample the share of these that are correct."""
    found: dict[int, list[bool]] = {}
    for rollout in rollouts:
        if rollout.correct is not None:
            found.setdefault(rollout.prompt, []).append(rollout.correct)
    return [sum(own) / len(own) for own in found.values()]


def finish_teacher_samples(
    engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], step: int
) -> tuple[list[Rollout], int]:
    """The first teacher sample of every prompt, finished by the student from its middle and graded, and how many
    tokens that took."""
    begun = {rollout.prompt: rollout for rollout in reversed(rollouts) if rollout.role == "teacher"}
    starts = {index: rollout.completion_ids[: len(rollout.completion_ids) // 2] for index, rollout in begun.items()}
    continued = [
        replace(prompt, student_ids=prompt.student_ids + starts.get(i, ())) for i, prompt in enumerate(prompts)
    ]
    ends = engine.sample(
        continued,
        {"student": [int(index in starts) for index in range(len(prompts))]},
        key=(engine.args.seed, step, _ROUND),
        params=engine.args.sampling_params(),
    )
    wholes = []
    for end in ends:
        ids = starts[end.prompt] + end.completion_ids
        text = str(engine.tokenizer.decode(list(ids), skip_special_tokens=True))
        wholes.append(replace(end, completion_ids=ids, text=text))
    return engine.grade(prompts, wholes)[0], sum(len(end.completion_ids) for end in ends)
