"""What the samples of a step say before anything is learnt from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pbsd.diagnostics.text import context_overlap, hedging_rate, leaks
from pbsd.records import Metrics, Prompt, Rollout, sampled_by_role


def sample_metrics(prompts: Sequence[Prompt], rollouts: Sequence[Rollout], phrases: Sequence[str] = ()) -> Metrics:
    """Entropy, hedging, leakage and overlap with the context by role, and the gap in length between the roles.

    - `health/{role}_entropy_sampled`: minus the mean log-probability of a sample's tokens, in nats per token. Its mean
      is the entropy at temperature 1 without truncation; elsewhere it is the cross-entropy of what is sampled.
    - `health/{role}_hedging`: phrases of doubt per 100 words (`text.HEDGES`).
    - `health/{role}_leakage`: share of samples that cite the context (`text.LEAKS`, and `phrases`).
    - `health/{role}_context_overlap`: see `text.context_overlap`; only where the teacher's prompts show a context.
    - `tokens/length_gap`: a prompt's mean length of the teacher's samples less that of the student's, in tokens.

    The student never sees the context: its leakage and overlap are the base rates of the teacher's, and when they rise
    it is learning to cite.
    """
    metrics = Metrics()
    lengths = {}
    for role, own in sampled_by_role(rollouts):
        lengths[role] = _mean_lengths(own)
        surprise = (-math.fsum(r.sampler_logprobs) / len(r.sampler_logprobs) for r in own)
        metrics.observe(f"health/{role}_entropy_sampled", surprise)
        metrics.observe(f"health/{role}_hedging", _defined(hedging_rate(rollout.text) for rollout in own))
        metrics.observe(f"health/{role}_leakage", (leaks(rollout.text, phrases) for rollout in own))
        if any(prompt.context is not None for prompt in prompts):
            metrics.observe(f"health/{role}_context_overlap", _defined(_overlaps(prompts, own)))
    if len(lengths) == 2:
        student, teacher = lengths["student"], lengths["teacher"]
        metrics.observe("tokens/length_gap", (teacher[prompt] - student[prompt] for prompt in teacher))
    return metrics


def _overlaps(prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Iterable[float]:
    for rollout in rollouts:
        prompt = prompts[rollout.prompt]
        if prompt.context is not None:
            yield context_overlap(rollout.text, prompt.context, _text(prompt.prompt))


def _text(prompt: Any) -> str:
    """All of a prompt's words, of every message of a chat."""
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") or "" for message in prompt]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )


def _mean_lengths(rollouts: Sequence[Rollout]) -> dict[int, float]:
    """By prompt."""
    lengths: dict[int, list[int]] = {}
    for rollout in rollouts:
        lengths.setdefault(rollout.prompt, []).append(len(rollout.completion_ids))
    return {prompt: sum(own) / len(own) for prompt, own in lengths.items()}


def _defined(values: Iterable[float]) -> Iterable[float]:
    return (value for value in values if not math.isnan(value))
