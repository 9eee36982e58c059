"""What methods share of a batch's samples: scores under student and reference, likelihoods, metrics and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from pbsd.config.imitation import Normalization
from pbsd.engine import Engine, group_by_prompt
from pbsd.records import Batch, Metrics, Pair, Prompt, Rollout
from pbsd.scoring import Scores, ScoringGroup, score, score_frozen

Loss = tuple[Tensor, Metrics, list[dict[str, Any]]]
"""What `Method.loss` returns: the sum, metrics, and a record per sample or pair."""


def student_rows(batch: Batch, indices: Sequence[int]) -> tuple[list[ScoringGroup], list[int]]:
    """The rollouts as groups under the student's prompts, and which rollout each row of their scores is."""
    groups, order = group_by_prompt(batch.prompts, [batch.rollouts[index] for index in indices], "student")
    return groups, [indices[place] for place in order]


def score_student(engine: Engine, model: nn.Module, batch: Batch, indices: Sequence[int]) -> tuple[list[int], Scores]:
    """Scores of the rollouts with gradient, and which rollout each row is."""
    groups, used = student_rows(batch, indices)
    return used, score(model, groups, pad_id=engine.pad_id)


def no_loss(engine: Engine, model: nn.Module, batch: Batch) -> Loss:
    """For a batch with nothing to learn from: 0 with a graph, by a forward pass in which every process takes part."""
    _, scores = score_student(engine, model, batch, [0])
    return scores.sequence_logprobs_B.sum() * 0.0, Metrics(), []


def score_reference(engine: Engine, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with their log-probabilities under the initial weights and the student's prompt."""
    assert engine.teacher is not None and engine.teacher.kind == "initial", "the reference is the initial policy"
    groups, order = group_by_prompt(prompts, rollouts, "student")
    with engine.acting("teacher") as module:
        rows = score_frozen(module, groups, pad_id=engine.pad_id, max_tokens=engine.args.scoring_batch_tokens)
    scored = list(rollouts)
    for place, row in zip(order, rows, strict=True):
        scored[place] = replace(rollouts[place], reference_logprobs=row)
    return scored


def likelihood_weight(batch: Batch, indices: Sequence[int], normalization: Normalization) -> float:
    """What `likelihood_loss` is divided by: the rollouts' tokens, or their number."""
    if normalization == "token":
        return float(sum(len(batch.rollouts[index].completion_ids) for index in indices))
    return float(len(indices))


def likelihood_loss(
    engine: Engine, model: nn.Module, batch: Batch, indices: Sequence[int], normalization: Normalization
) -> Loss:
    """-log pi(y) of the rollouts, summed over all tokens (`token`), or their means over tokens summed (`sequence`)."""
    used, scores = score_student(engine, model, batch, indices)
    nll_B = -scores.sequence_logprobs_B
    loss_B = nll_B if normalization == "token" else nll_B / scores.mask_BT.sum(-1)
    metrics = Metrics()
    metrics.observe("loss/nll", (-scores.logprobs_BT)[scores.mask_BT.bool()].tolist())
    metrics.count("tokens/trained", scores.mask_BT.sum().item())
    observe_student(metrics, batch, used, scores)
    samples = [rollout_record(batch, index, loss=value) for index, value in zip(used, loss_B.tolist(), strict=True)]
    return loss_B.sum(), metrics, samples


def observe_student(metrics: Metrics, batch: Batch, used: Sequence[int], scores: Scores) -> None:
    """Entropy on the student's own samples (on the dataset's completions where it samples none), and how far their
    scores lie from those the sampler recorded."""
    rows = [row for row, index in enumerate(used) if batch.rollouts[index].role != "teacher"]
    logprobs, lengths = scores.token_lists(), scores.mask_BT.sum(-1)
    entropy_B = scores.entropy_BT.sum(-1) / lengths
    metrics.observe("health/student_entropy", (entropy_B[row].item() for row in rows))
    for row in rows:
        sampled = batch.rollouts[used[row]].sampler_logprobs
        if sampled:
            gap = sum(abs(ours - theirs) for ours, theirs in zip(logprobs[row], sampled, strict=True))
            metrics.observe("health/sampler_gap", [gap / len(sampled)])


def observe_pair(
    metrics: Metrics, batch: Batch, pair: Pair, ratios: tuple[float, float], margin: float, *, against: str
) -> None:
    """Margin, log-ratios to the teacher or the reference (`against`), and agreement with the rewards."""
    metrics.observe("pairs/margin", [margin])
    metrics.observe("pairs/saturated", [abs(margin) > 4.0])
    metrics.observe(f"{against}/log_ratio_chosen", [ratios[0]])
    metrics.observe(f"{against}/log_ratio_rejected", [ratios[1]])
    rewards = batch.rollouts[pair.chosen].reward, batch.rollouts[pair.rejected].reward
    if rewards[0] is not None and rewards[1] is not None:
        metrics.observe("pairs/reward_gap", [rewards[0] - rewards[1]])
        if rewards[0] != rewards[1]:
            metrics.observe("pairs/accuracy", [(margin > 0) == (rewards[0] > rewards[1])])


def rollout_record(batch: Batch, index: int, **figures: Any) -> dict[str, Any]:
    """A line of samples.jsonl for one rollout."""
    return {**_problem(batch, index), **_sample(batch.rollouts[index]), **figures}


def pair_record(batch: Batch, pair: Pair, ratios: tuple[float, float], margin: float, loss: float) -> dict[str, Any]:
    """A line of samples.jsonl for a pair."""
    return {
        **_problem(batch, pair.chosen),
        "chosen": {**_sample(batch.rollouts[pair.chosen]), "log_ratio": ratios[0]},
        "rejected": {**_sample(batch.rollouts[pair.rejected]), "log_ratio": ratios[1]},
        "margin": margin,
        "label": pair.label,
        "swapped": pair.swapped,
        "loss": loss,
    }


def _problem(batch: Batch, index: int) -> dict[str, Any]:
    prompt = batch.prompts[batch.rollouts[index].prompt]
    return {
        "row": prompt.row,
        "prompt": prompt.prompt,
        "privileged_context": prompt.columns.get("privileged_context"),
    }


def _sample(rollout: Rollout) -> dict[str, Any]:
    return {
        "text": rollout.text,
        "role": rollout.role,
        "reward": rollout.reward,
        "tokens": len(rollout.completion_ids),
        "finished": rollout.finished,
        **{name: getattr(rollout, name) for name in ("temperature", "top_p", "top_k", "min_p")},
    }
