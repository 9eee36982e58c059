"""What methods share of a batch's samples: scores under student and reference, likelihoods, metrics and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from pbsd.config import TeacherSamplesConfig
from pbsd.config.imitation import Normalization
from pbsd.diagnostics.text import leaks
from pbsd.engine import Engine, group_by_prompt
from pbsd.pairs import SATURATED_MARGIN
from pbsd.records import Batch, Metrics, Pair, Prompt, Rollout
from pbsd.redact import public, scrub
from pbsd.scoring import Scores, ScoringGroup, score, score_frozen
from pbsd.scoring.router import uncounted

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
    with uncounted():
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
    """-log pi(y) of the rollouts, summed over all tokens (`token`), or their means over tokens summed (`sequence`),
    each rollout's times its weight."""
    used, scores = score_student(engine, model, batch, indices)
    nll_B = -scores.sequence_logprobs_B * scores.logprobs_BT.new_tensor([batch.rollouts[i].weight for i in used])
    loss_B = nll_B if normalization == "token" else nll_B / scores.mask_BT.sum(-1)
    metrics = Metrics()
    metrics.observe("loss/nll", (-scores.logprobs_BT)[scores.mask_BT.bool()].tolist())
    metrics.count("tokens/trained", scores.mask_BT.sum().item())
    observe_student(metrics, batch, used, scores)
    samples = [rollout_record(batch, index, loss=value) for index, value in zip(used, loss_B.tolist(), strict=True)]
    return loss_B.sum(), metrics, samples


def guard_leakage(rollouts: Sequence[Rollout], args: TeacherSamplesConfig) -> tuple[list[Rollout], Metrics]:
    """The rollouts, with weights below 1 for teacher samples that cite the context, and how many those were."""
    metrics = Metrics()
    if args.leakage_guard == "off":
        return list(rollouts), metrics
    weight = 0.0 if args.leakage_guard == "drop" else args.leakage_weight
    guarded = [
        replace(rollout, weight=weight)
        if rollout.role == "teacher" and leaks(rollout.text, args.leakage_phrases or [])
        else rollout
        for rollout in rollouts
    ]
    what = "dropped" if args.leakage_guard == "drop" else "downweighted"
    metrics.count(f"teacher/leaking_{what}", sum(rollout.weight < 1 for rollout in guarded))
    return guarded, metrics


def pair_weight(rollouts: Sequence[Rollout], pair: Pair) -> float:
    """What the terms of a pair in the loss are multiplied by."""
    return rollouts[pair.chosen].weight * rollouts[pair.rejected].weight


def observe_student(metrics: Metrics, batch: Batch, used: Sequence[int], scores: Scores) -> None:
    """Entropy on the student's own samples (on the dataset's completions where it samples none), how far their scores
    lie from those the sampler recorded, and `teacher/kl_teacher_student`: log T - log pi of the teacher's samples, in
    nats per completion. Its mean is KL(T || pi) where all samples at temperature 1 are learnt from; where pairs or
    rewards choose among them, it is that of the chosen ones.
    """
    rows = [row for row, index in enumerate(used) if batch.rollouts[index].role != "teacher"]
    taught = [row for row, index in enumerate(used) if batch.rollouts[index].role == "teacher"]
    logprobs, lengths = scores.token_lists(), scores.mask_BT.sum(-1)
    if taught:
        metrics.observe(
            "teacher/kl_teacher_student",
            (math.fsum(batch.rollouts[used[row]].sampler_logprobs) - math.fsum(logprobs[row]) for row in taught),
        )
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
    """Margin, log-ratios to the teacher or the reference (`against`), lengths, and agreement with the rewards."""
    chosen, rejected = batch.rollouts[pair.chosen], batch.rollouts[pair.rejected]
    metrics.observe("pairs/margin", [margin])
    metrics.observe("pairs/saturated", [abs(margin) > SATURATED_MARGIN])
    metrics.observe(f"{against}/log_ratio_chosen", [ratios[0]])
    metrics.observe(f"{against}/log_ratio_rejected", [ratios[1]])
    metrics.count(f"pairs/{chosen.role}_over_{rejected.role}")
    metrics.observe("pairs/length_gap", [len(chosen.completion_ids) - len(rejected.completion_ids)])
    if chosen.reward is not None and rejected.reward is not None:
        metrics.observe("pairs/reward_chosen", [chosen.reward])
        metrics.observe("pairs/reward_rejected", [rejected.reward])
        metrics.observe("pairs/reward_gap", [chosen.reward - rejected.reward])
        if chosen.reward != rejected.reward:
            metrics.observe("pairs/accuracy", [(margin > 0) == (chosen.reward > rejected.reward)])


def rollout_record(batch: Batch, index: int, **figures: Any) -> dict[str, Any]:
    """A line of samples.jsonl for one rollout."""
    return {**_problem(batch, index), **_sample(batch.rollouts[index]), **figures}


def log_ratios(
    engine: Engine, batch: Batch, used: Sequence[int], scores: Scores, *, against: Literal["teacher", "reference"]
) -> dict[int, dict[str, Any]]:
    """log pi - log T (or minus the reference's) of the scored rollouts, in nats: `log_ratio` of each, and with
    `log_token_ratios` its tokens as text and each one's share."""
    texts: dict[int, str] = {}
    if engine.args.log_token_ratios:
        ids = sorted({token for index in used for token in batch.rollouts[index].completion_ids})
        texts = dict(zip(ids, engine.tokenizer.batch_decode([[token] for token in ids]), strict=True))
    found: dict[int, dict[str, Any]] = {}
    for index, policy in zip(used, scores.token_lists(), strict=True):
        rollout = batch.rollouts[index]
        other = rollout.teacher_logprobs if against == "teacher" else rollout.reference_logprobs
        ratios = [ours - theirs for ours, theirs in zip(policy, other, strict=True)]
        found[index] = {"log_ratio": math.fsum(ratios)}
        if texts:
            found[index]["token_texts"] = [texts[token] for token in rollout.completion_ids]
            found[index]["token_log_ratios"] = [round(ratio, 3) for ratio in ratios]
    return found


def pair_record(
    batch: Batch, pair: Pair, ratios: Mapping[int, Mapping[str, Any]], margin: float, loss: float
) -> dict[str, Any]:
    """A line of samples.jsonl for a pair; `ratios` by `log_ratios`."""
    return {
        **_problem(batch, pair.chosen),
        "chosen": {**_sample(batch.rollouts[pair.chosen]), **ratios[pair.chosen]},
        "rejected": {**_sample(batch.rollouts[pair.rejected]), **ratios[pair.rejected]},
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
        "privileged_context": prompt.context,
    }


def _public(said: Any) -> Any:
    """What reward functions said, their errors among it, as it may be written."""
    return _scrubbed(public(said))


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {scrub(str(key)): _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    return scrub(value) if isinstance(value, str) else value


def _sample(rollout: Rollout) -> dict[str, Any]:
    return {
        "text": rollout.text,
        "role": rollout.role,
        "reward": rollout.reward,
        "tokens": len(rollout.completion_ids),
        "finished": rollout.finished,
        "weight": rollout.weight,
        "grades": _public(rollout.grades),
        **({"extra": _public(rollout.extra)} if rollout.extra else {}),
        **{name: getattr(rollout, name) for name in ("temperature", "top_p", "top_k", "min_p")},
    }
