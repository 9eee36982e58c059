"""What the samples of a step say before anything is learnt from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pbsd.diagnostics.text import context_overlap, hedging_rate, leaks
from pbsd.records import Metrics, Prompt, Rollout, prompt_means, sampled_by_role


def sample_metrics(prompts: Sequence[Prompt], rollouts: Sequence[Rollout], phrases: Sequence[str] = ()) -> Metrics:
    """Entropy, hedging, leakage and overlap with the context by role, and the gap in length between the roles.

    - `health/{role}_entropy_sampled`: minus the mean log-probability of a sample's tokens, in nats per token. Its mean
      is the entropy at temperature 1 without truncation; elsewhere it is the cross-entropy of what is sampled.
    - `health/{role}_hedging`: phrases of doubt per 100 words (`text.HEDGES`).
    - `health/{role}_leakage`: share of samples that cite the context (`text.LEAKS`, and `phrases`).
    - `health/{role}_context_overlap`: see `text.context_overlap`; only where the teacher's prompts show a context.
    - `tokens/length_gap`: a prompt's mean length of the teacher's samples less that of the student's, in tokens.

    Means are over prompts, of each prompt's mean. The student never sees the context: its leakage and overlap are the
    base rates of the teacher's, and when they rise it is learning to cite.
    """
    metrics = Metrics()
    lengths = {}
    for role, own in sampled_by_role(rollouts):
        lengths[role] = prompt_means(own, lambda r: len(r.completion_ids))
        kinds: dict[str, Callable[[Rollout], float | None]] = {
            "entropy_sampled": lambda r: -math.fsum(r.sampler_logprobs) / len(r.sampler_logprobs),
            "hedging": lambda r: hedging_rate(r.text),
            "leakage": lambda r: leaks(r.text, phrases),
        }
        if any(prompt.context is not None for prompt in prompts):
            kinds["context_overlap"] = lambda r: _overlap(prompts[r.prompt], r)
        for name, value in kinds.items():
            metrics.observe(f"health/{role}_{name}", prompt_means(own, value).values())
    if len(lengths) == 2:
        student, teacher = lengths["student"], lengths["teacher"]
        metrics.observe("tokens/length_gap", (teacher[prompt] - student[prompt] for prompt in teacher))
    return metrics


def _overlap(prompt: Prompt, rollout: Rollout) -> float | None:
    return None if prompt.context is None else context_overlap(rollout.text, prompt.context, _text(prompt.prompt))


def _text(prompt: Any) -> str:
    """All of a prompt's words, of every message of a chat."""
    if isinstance(prompt, str):
        return prompt
    contents = [message.get("content") or "" for message in prompt]
    return "\n".join(
        content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        for content in contents
    )
