"""What every method is built from: sample for a role, grade, score under the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from pbsd import rewards
from pbsd.chat import tool_schemas
from pbsd.completions import marked_text, message, plain_text
from pbsd.config import RolloutConfig
from pbsd.records import Batch, Metrics, Prompt, Role, Rollout, prompt_means, sampled_by_role
from pbsd.render import Renderer
from pbsd.rollouts import Sample, Sampler, SampleRequest, SamplingParams
from pbsd.scoring import ScoringGroup, enable_scoring, score_frozen, singles
from pbsd.teacher import Teacher

_ROLE_KEY: dict[Role, int] = {"student": 0, "teacher": 1}


@dataclass(slots=True)
class RewardLog:
    """What passes between the trainer and reward functions: its state, and what they tell `log_metric`."""

    trainer_state: Callable[[], Any] = lambda: None
    metrics: Metrics = field(default_factory=Metrics)

    def take(self) -> Metrics:
        """The metrics since the last call."""
        taken, self.metrics = self.metrics, Metrics()
        return taken


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts a method works with.

    `student` is the unwrapped policy; the forward pass that gets gradient goes through the wrapped one that the trainer
    hands to `Method.loss`. `gather` joins lists over processes.
    """

    student: nn.Module
    teacher: Teacher | None
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    sampler: Sampler
    reward_funcs: Sequence[Any]
    args: RolloutConfig
    pad_id: int
    gather: Callable[[list], list]
    reward_log: RewardLog = field(default_factory=RewardLog)

    @contextmanager
    def acting(self, role: Role) -> Iterator[nn.Module]:
        """The module that plays the role; the teacher's weights are in place only inside the block."""
        if role == "student" or self.teacher is None:
            yield self.student
        else:
            with self.teacher.acting() as module:
                yield module

    def sample(
        self,
        prompts: Sequence[Prompt],
        counts: Mapping[Role, int | Sequence[int]],
        *,
        key: tuple[int, ...],
        params: SamplingParams,
    ) -> list[Rollout]:
        """`counts[role]` completions per prompt (one number, or one for each) under each role's prompt and weights, in
        the order of `counts`. `key`, the prompt's row and the role name the random numbers. Roles of equal weights are
        sampled together."""
        requests: dict[Role, dict[int, SampleRequest]] = {}
        for role, n in counts.items():
            numbers = [n] * len(prompts) if isinstance(n, int) else n
            requests[role] = {
                index: SampleRequest(prompt.ids(role), number, (*key, prompt.row, _ROLE_KEY[role]))
                for index, (prompt, number) in enumerate(zip(prompts, numbers, strict=True))
                if number
            }
        groups: dict[Role, list[list[Sample]]] = {}
        if len(counts) == 2 and self.teacher is not None and self.teacher.is_student:
            together = iter(
                self.sampler.sample(self.student, [r for own in requests.values() for r in own.values()], params)
            )
            groups = {role: list(islice(together, len(own))) for role, own in requests.items()}
        else:
            for role, own in requests.items():
                with self.acting(role) as module:
                    groups[role] = self.sampler.sample(module, [*own.values()], params)
        return [
            Rollout(
                prompt=index,
                role=role,
                completion_ids=sample.ids,
                text=marked_text(self.tokenizer, sample.ids, finished=sample.finished),
                finished=sample.finished,
                sampler_logprobs=sample.logprobs,
                temperature=sample.temperature,
                top_p=sample.top_p,
                top_k=sample.top_k,
                min_p=sample.min_p,
            )
            for role in groups
            for index, group in zip(requests[role], groups[role], strict=True)
            for sample in group
        ]

    def grade(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[list[Rollout], rewards.Scores]:
        """The rollouts with their rewards, and what each reward function said of each."""
        owners = [prompts[rollout.prompt] for rollout in rollouts]
        completions = [self._completion(owner, rollout) for owner, rollout in zip(owners, rollouts, strict=True)]
        names = sorted({name for prompt in owners for name in prompt.columns})
        scores = rewards.score(
            self.reward_funcs,
            self.args.reward_weights,
            prompts=[owner.prompt for owner in owners],
            completions=completions,
            completion_ids=[list(rollout.completion_ids) for rollout in rollouts],
            columns={name: [owner.columns.get(name) for owner in owners] for name in names},
            extras={"trainer_state": self.reward_log.trainer_state()},
            texts=[owner.turn(rollout.role) + rollout.text for owner, rollout in zip(owners, rollouts, strict=True)],
            parsed=[None if isinstance(own, str) else own[0].get("tool_calls") for own in completions],
        )
        for name, values in scores.metrics.items():
            self.reward_log.metrics.observe(name, values)
        names = list(scores.by_function)
        graded = [
            replace(
                rollout,
                reward=reward,
                correct=self._is_correct(grades[0].score),
                grades={name: grade.summary for name, grade in zip(names, grades, strict=True)},
                extra=extra,
            )
            for rollout, reward, extra, *grades in zip(
                rollouts, scores.total, scores.extra, *scores.by_function.values(), strict=True
            )
        ]
        return graded, scores

    def _completion(self, prompt: Prompt, rollout: Rollout) -> str | list[dict[str, Any]]:
        """What reward functions of TRL's signature get of a rollout: text for a text, messages for a chat."""
        if isinstance(prompt.prompt, str):
            return plain_text(self.tokenizer, rollout.completion_ids)
        tools = tool_schemas(prompt.columns.get("tools"))
        return [message(self.tokenizer, rollout.completion_ids, prompt_ids=prompt.ids(rollout.role), tools=tools)]

    def _is_correct(self, score: float | None) -> bool | None:
        return None if score is None else score >= self.args.success_threshold

    def score_teacher(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], *, reuse: bool, only: Role | None = None
    ) -> tuple[list[Rollout], Metrics]:
        """The rollouts, all or those of one role with the teacher's log-probabilities of their tokens, under the
        teacher's prompt.

        With `reuse`, the teacher's own samples keep those that the sampler recorded, all but the first, which is scored
        to tell the difference: `teacher/reuse_gap`, nats per token, is rounding as long as sampler and scorer agree.
        """
        own = [index for index, rollout in enumerate(rollouts) if rollout.role == "teacher"]
        kept = set(own[1:]) if reuse else set()
        scored = [i for i, rollout in enumerate(rollouts) if i not in kept and only in (None, rollout.role)]
        groups, order = group_by_prompt(prompts, [rollouts[index] for index in scored], "teacher")
        with self.acting("teacher") as module:
            rows = score_frozen(module, groups, pad_id=self.pad_id, max_tokens=self.args.scoring_batch_tokens)
        logprobs = {index: rollouts[index].sampler_logprobs for index in kept}
        logprobs |= {scored[place]: row for place, row in zip(order, rows, strict=True)}
        metrics = Metrics()
        if kept:
            first = rollouts[own[0]].sampler_logprobs
            gaps = [abs(ours - theirs) for ours, theirs in zip(logprobs[own[0]], first, strict=True)]
            metrics.observe("teacher/reuse_gap", [sum(gaps) / len(gaps)])
        return [replace(rollout, teacher_logprobs=logprobs.get(i, ())) for i, rollout in enumerate(rollouts)], metrics

    def parts(self, batch: Batch, max_tokens: int) -> list[Batch]:
        """The batch in parts of whole prompts whose scoring under the student takes at most `max_tokens` tokens (a
        single prompt may exceed it)."""
        groups, _ = group_by_prompt(batch.prompts, batch.rollouts, "student")
        is_packed = enable_scoring(self.student).packed is not None
        sizes: list[int] = []
        rows = longest = 0
        for group in groups:
            own = [group] if is_packed else singles([group])
            own_longest = max(row.tokens for row in own)
            if sizes and (rows + len(own)) * max(longest, own_longest) <= max_tokens:
                sizes[-1] += 1
                rows, longest = rows + len(own), max(longest, own_longest)
            else:
                sizes.append(1)
                rows, longest = len(own), own_longest
        return batch.split(sizes)


def group_by_prompt(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], role: Role
) -> tuple[list[ScoringGroup], list[int]]:
    """A group per prompt that has rollouts, under the role's prompt, and which rollout each of their completions is."""
    members: dict[int, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        members.setdefault(rollout.prompt, []).append(index)
    groups = [
        ScoringGroup(prompts[prompt].ids(role), tuple(rollouts[index].completion_ids for index in indices))
        for prompt, indices in sorted(members.items())
    ]
    return groups, [index for _, indices in sorted(members.items()) for index in indices]


def rollout_metrics(rollouts: Sequence[Rollout], watched: Sequence[Rollout], outcomes: Mapping[str, int]) -> Metrics:
    """Rewards, lengths, truncation and outcomes by role: what any method logs of its samples. Means are over prompts,
    of the `watched` samples, whose number says nothing of how they turned out; counts are of all."""
    metrics = Metrics()
    for role, own in sampled_by_role(watched):
        metrics.observe(f"reward/{role}", prompt_means(own, lambda r: r.reward).values())
        metrics.observe(f"tokens/{role}_length", prompt_means(own, lambda r: len(r.completion_ids)).values())
        metrics.observe(f"tokens/{role}_truncated", prompt_means(own, lambda r: not r.finished).values())
    for role, own in sampled_by_role(rollouts):
        metrics.count(f"tokens/{role}", sum(len(rollout.completion_ids) for rollout in own))
    metrics.count("reward/unjudged", sum(rollout.reward is None for rollout in rollouts))
    metrics.observe("reward/judged", (rollout.reward is not None for rollout in rollouts))
    if known := [rollout.reward for rollout in rollouts if rollout.reward is not None]:
        metrics.observe("reward/range", [max(known) - min(known)])
    for outcome, amount in outcomes.items():
        metrics.count(f"reward/{outcome}", amount)
    return metrics
