"""What every method is built from: sample for a role, grade, score under the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from pbsd import rewards
from pbsd.config import RolloutConfig
from pbsd.records import Metrics, Prompt, Role, Rollout
from pbsd.rollouts import Sampler, SampleRequest, SamplingParams
from pbsd.scoring import ScoringGroup, score_frozen
from pbsd.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts a method works with.

    `student` is the unwrapped policy; the forward pass that gets gradient goes through the wrapped one that the trainer
    hands to `Method.loss`. `gather` joins lists over processes.
    """

    student: nn.Module
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    reward_funcs: Sequence[Any]
    args: RolloutConfig
    pad_id: int
    gather: Callable[[list], list]

    @contextmanager
    def acting(self, role: Role) -> Iterator[nn.Module]:
        """The module that plays the role; the teacher's weights are in place only inside the block."""
        if role == "student" or self.teacher is None:
            yield self.student
        else:
            with self.teacher.acting() as module:
                yield module

    def sample(
        self, prompts: Sequence[Prompt], role: Role, n: int, *, key: tuple[int, ...], params: SamplingParams
    ) -> list[Rollout]:
        """`n` completions per prompt under the role's prompt and weights. `key` and the prompt's row name the random
        numbers."""
        requests = [
            SampleRequest(prompt.ids(role), n, (*key, prompt.row, 0 if role == "student" else 1)) for prompt in prompts
        ]
        with self.acting(role) as module:
            groups = self.sampler.sample(module, requests, params)
        return [
            Rollout(
                prompt=index,
                role=role,
                completion_ids=sample.ids,
                text=str(self.tokenizer.decode(list(sample.ids), skip_special_tokens=True)),
                finished=sample.finished,
                sampler_logprobs=sample.logprobs,
            )
            for index, group in enumerate(groups)
            for sample in group
        ]

    def grade(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[list[Rollout], rewards.Scores]:
        """The rollouts with their rewards, and what each reward function said of each."""
        owners = [prompts[rollout.prompt] for rollout in rollouts]
        names = sorted({name for prompt in owners for name in prompt.columns})
        scores = rewards.score(
            self.reward_funcs,
            self.args.reward_weights,
            prompts=[owner.prompt for owner in owners],
            completions=[
                rollout.text if isinstance(owner.prompt, str) else [{"role": "assistant", "content": rollout.text}]
                for owner, rollout in zip(owners, rollouts, strict=True)
            ],
            completion_ids=[list(rollout.completion_ids) for rollout in rollouts],
            columns={name: [owner.columns.get(name) for owner in owners] for name in names},
        )
        graded = [
            replace(rollout, reward=reward, correct=self._is_correct(first.score))
            for rollout, reward, first in zip(
                rollouts, scores.total, next(iter(scores.by_function.values())), strict=True
            )
        ]
        return graded, scores

    def _is_correct(self, score: float | None) -> bool | None:
        return None if score is None else score >= self.args.success_threshold

    def score_teacher(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with the teacher's log-probabilities of their tokens, under the teacher's prompt."""
        groups = [ScoringGroup(prompts[rollout.prompt].teacher_ids, (rollout.completion_ids,)) for rollout in rollouts]
        with self.acting("teacher") as module:
            logprobs = score_frozen(module, groups, pad_id=self.pad_id, max_tokens=self.args.scoring_batch_tokens)
        return [replace(rollout, teacher_logprobs=row) for rollout, row in zip(rollouts, logprobs, strict=True)]


def rollout_metrics(rollouts: Sequence[Rollout], scores: rewards.Scores) -> Metrics:
    """Rewards, lengths, truncation and outcomes by role: what any method logs of its samples."""
    metrics = Metrics()
    roles: tuple[Role, ...] = ("student", "teacher")
    for role in roles:
        own = [rollout for rollout in rollouts if rollout.role == role]
        if not own:
            continue
        metrics.observe(f"reward/{role}", (rollout.reward for rollout in own if rollout.reward is not None))
        metrics.observe(f"tokens/{role}_length", (len(rollout.completion_ids) for rollout in own))
        metrics.observe(f"tokens/{role}_truncated", (not rollout.finished for rollout in own))
        metrics.count(f"tokens/{role}", sum(len(rollout.completion_ids) for rollout in own))
    metrics.count("reward/unjudged", sum(rollout.reward is None for rollout in rollouts))
    for outcome, amount in scores.outcomes.items():
        metrics.count(f"reward/{outcome}", amount)
    return metrics
