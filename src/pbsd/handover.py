"""Does the teacher's reasoning help the student, or does the teacher only know the answer?

A teacher that is shown the answer can write it whatever it wrote before. Its reward then says nothing of its steps, and
a student that imitates them learns steps which do not lead to the answer. To tell, the student finishes what the
teacher began: behind its own prompt stands the first half of a teacher sample. Of the success rates S of the student's
samples, T of the teacher's and H of these,

    handover = (H - S) / (sqrt(S T) - S), within [0, 1].

Were every step as likely to be right as any other, independently, the half of the teacher's steps and the half of the
student's would succeed at sqrt(S T): the handover is 1 there and above, and 0 where the teacher's first half is no
better than the student's own.

Averaged over all prompts that speaks of the teacher as a whole. Where imitation is for the prompts on which the student
fails, a student that has become as good on the whole may still have much to learn on those: there S, T and H are
averaged with the share of the student's samples that fail as the prompt's weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from pbsd.completions import marked_text
from pbsd.engine import Engine
from pbsd.records import Prompt, Rollout

_DECAY = 0.9
"""What a step's prompts count for in the next: about ten steps make up the means."""
_ROUND = 2
"""Tells the random numbers of these samples from those of the step's other rounds."""

Author = Literal["student", "teacher", "both"]
Success = tuple[float, float]
"""Of a prompt: its weight, and the weighted mean of its samples that are correct (as 1)."""


@dataclass(slots=True)
class Handover:
    """Decaying sums of the weighted success rates of prompts, and of the weights, by who wrote the samples."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(get_args(Author), 0.0))
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(get_args(Author), 0.0))

    def observe(self, successes: Mapping[Author, Sequence[Success]]) -> None:
        """A step's success rates, of all processes."""
        for author, values in successes.items():
            self.sums[author] = _DECAY * self.sums[author] + sum(success for _, success in values)
            self.counts[author] = _DECAY * self.counts[author] + sum(weight for weight, _ in values)

    @property
    def value(self) -> float:
        """1 while nothing is known, or the student has not succeeded where it is looked at; 0 where the teacher is not
        better."""
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


def successes(samples: Mapping[Author, Sequence[Rollout]]) -> dict[Author, list[Success]]:
    """Of every prompt with judged samples of an author the share of these that are correct, all prompts alike."""
    return {
        author: [(1.0, sum(own) / len(own)) for own in _judged(rollouts).values()]
        for author, rollouts in samples.items()
    }


def successes_where_failing(samples: Mapping[Author, Sequence[Rollout]], first: int) -> dict[Author, list[Success]]:
    """The same, a prompt weighed by the share of the student's samples that fail. A student's sample is weighed by the
    others, which say nothing of its own luck; prompts with fewer than two of these are left out. Of the student's only
    the `first` of a prompt count: how many more it gets depends on these."""
    drawn: Counter[int] = Counter()
    early = []
    for rollout in samples["student"]:
        drawn[rollout.prompt] += 1
        if drawn[rollout.prompt] <= first:
            early.append(rollout)
    samples = {**samples, "student": early}
    student = {prompt: own for prompt, own in _judged(early).items() if len(own) > 1}
    failing = {prompt: own.count(False) / len(own) for prompt, own in student.items()}

    def weighed(author: Author) -> list[Success]:
        # The student's: a mean over its n samples of (correct) x (share of the n - 1 others that fail)
        itself = int(author == "student")
        return [
            (failing[prompt], failing[prompt] * sum(own) / (len(own) - itself))
            for prompt, own in _judged(samples[author]).items()
            if prompt in failing
        ]

    return {author: weighed(author) for author in samples}


def _judged(rollouts: Sequence[Rollout]) -> dict[int, list[bool]]:
    found: dict[int, list[bool]] = {}
    for rollout in rollouts:
        if rollout.correct is not None:
            found.setdefault(rollout.prompt, []).append(rollout.correct)
    return found


def finish_teacher_samples(
    engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], step: int
) -> tuple[list[Rollout], int]:
    """The first teacher sample of every prompt, finished by the student from its middle and graded, and how many
    tokens that took."""
    begun = {rollout.prompt: rollout for rollout in reversed(rollouts) if rollout.role == "teacher"}
    if not begun:
        return [], 0
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
        text = marked_text(engine.tokenizer, ids, finished=end.finished)
        wholes.append(replace(end, completion_ids=ids, text=text))
    return engine.grade(prompts, wholes)[0], sum(len(end.completion_ids) for end in ends)
