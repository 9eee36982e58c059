"""Preference-Based Self-Distillation (arXiv 2605.05040).

The target is the teacher tilted by the reward, P*(y) proportional to T(y|x,c) exp(eta r(x,y) / beta). The student
learns it from the gap between teacher samples and its own fresh samples: with h(y) = beta [log pi(y|x) - log T(y|x,c)],
the margin h(y+) - h(y-) of every pair is moved towards what the rewards say of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pbsd.config import PBSDConfig
from pbsd.engine import Engine, rollout_metrics
from pbsd.losses.preference import preference_loss
from pbsd.pairs import make_pairs
from pbsd.records import Batch, Metrics, Pair, Prompt
from pbsd.scoring import Scores, ScoringGroup, score
from pbsd.teacher import Teacher


class PBSD:
    """The method as the trainer's `Method`."""

    def __init__(self, args: PBSDConfig, engine: Engine) -> None:
        assert engine.teacher is not None, "PBSD needs a teacher"
        self.args = args
        self.engine = engine
        self.teacher: Teacher = engine.teacher

    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        args, engine = self.args, self.engine
        key, params = (args.seed, step), args.sampling_params()
        rollouts = engine.sample(prompts, "teacher", args.num_teacher_generations, key=key, params=params)
        rollouts += engine.sample(prompts, "student", args.num_generations, key=key, params=params)
        rollouts, scores = engine.grade(prompts, rollouts)
        rollouts = engine.score_teacher(prompts, rollouts)
        pairs, dropped = make_pairs(
            rollouts,
            pairing=args.pairing,
            pair_policy=args.pair_policy,
            needs_rewards=args.loss_type != "logistic",
            keep_ties=args.keep_ties,
        )

        metrics = rollout_metrics(rollouts, scores)
        metrics.count("pairs/kept", len(pairs))
        for reason in ("dropped_unjudged", "dropped_incorrect", "dropped_not_improving", "dropped_tie", "swapped"):
            metrics.count(f"pairs/{reason}", dropped[reason])
        if args.teacher == "refreshed":
            self.teacher.observe(
                engine.gather([r.reward for r in rollouts if r.role == "student" and r.reward is not None]),
                engine.gather([r.reward for r in rollouts if r.role == "teacher" and r.reward is not None]),
            )
        return Batch(tuple(prompts), tuple(rollouts), tuple(pairs)), metrics

    def weight(self, batch: Batch) -> float:
        return float(len(batch.pairs))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics, list[dict[str, Any]]]:
        used = sorted({index for pair in batch.pairs for index in (pair.chosen, pair.rejected)}) or [0]
        place = {index: row for row, index in enumerate(used)}
        groups = [
            ScoringGroup(batch.prompts[rollout.prompt].student_ids, (rollout.completion_ids,))
            for rollout in (batch.rollouts[index] for index in used)
        ]
        policy = score(model, groups, pad_id=self.engine.pad_id)
        if not batch.pairs:
            return policy.sequence_logprobs_B.sum() * 0.0, Metrics(), []

        device = policy.logprobs_BT.device
        policy_B = policy.sequence_logprobs_B
        teacher_B = torch.tensor([batch.rollouts[index].teacher_logprob for index in used], device=device)
        rewards_B = torch.tensor([_number(batch.rollouts[index].reward) for index in used], device=device)
        chosen_B = torch.tensor([place[pair.chosen] for pair in batch.pairs], device=device)
        rejected_B = torch.tensor([place[pair.rejected] for pair in batch.pairs], device=device)

        labels_B = torch.tensor([pair.label for pair in batch.pairs], device=device)
        smoothing_B = (1.0 - labels_B) + self.args.label_smoothing * (2.0 * labels_B - 1.0)
        pair_loss_B = preference_loss(
            policy_B[chosen_B],
            policy_B[rejected_B],
            teacher_B[chosen_B],
            teacher_B[rejected_B],
            beta=self.args.beta,
            loss=self.args.loss_type,
            reward_chosen_B=rewards_B[chosen_B],
            reward_rejected_B=rewards_B[rejected_B],
            reward_scale=self.args.reward_scale,
            label_smoothing=smoothing_B,
        )
        nll_B = -policy_B / policy.mask_BT.sum(-1)
        loss = pair_loss_B.sum() + self.args.nll_coef * nll_B[chosen_B].sum()

        log_ratio_B = (policy_B.detach() - teacher_B).tolist()
        metrics, samples = Metrics(), []
        metrics.observe("loss/preference", pair_loss_B.tolist())
        metrics.observe("loss/nll", nll_B[chosen_B].tolist())
        for pair, pair_loss in zip(batch.pairs, pair_loss_B.tolist(), strict=True):
            ratios = log_ratio_B[place[pair.chosen]], log_ratio_B[place[pair.rejected]]
            margin = self.args.beta * (ratios[0] - ratios[1])
            self._observe_pair(metrics, batch, pair, ratios, margin)
            samples.append(_record(batch, pair, ratios, margin, pair_loss))
        self._observe_student(metrics, batch, used, policy)
        return loss, metrics, samples

    def after_step(self, step: int) -> None:
        self.teacher.after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.teacher.load_state_dict(state["teacher"])

    def _observe_pair(
        self, metrics: Metrics, batch: Batch, pair: Pair, ratios: tuple[float, float], margin: float
    ) -> None:
        metrics.observe("pairs/margin", [margin])
        metrics.observe("pairs/saturated", [abs(margin) > 4.0])
        metrics.observe("teacher/log_ratio_chosen", [ratios[0]])
        metrics.observe("teacher/log_ratio_rejected", [ratios[1]])
        rewards = batch.rollouts[pair.chosen].reward, batch.rollouts[pair.rejected].reward
        if rewards[0] is not None and rewards[1] is not None:
            metrics.observe("pairs/reward_gap", [rewards[0] - rewards[1]])
            if rewards[0] != rewards[1]:
                metrics.observe("pairs/accuracy", [(margin > 0) == (rewards[0] > rewards[1])])

    def _observe_student(self, metrics: Metrics, batch: Batch, used: list[int], policy: Scores) -> None:
        """Entropy on the student's own samples, and how far its scores lie from those the sampler recorded."""
        rows = [row for row, index in enumerate(used) if batch.rollouts[index].role == "student"]
        logprobs, lengths = policy.token_lists(), policy.mask_BT.sum(-1)
        entropy_B = policy.entropy_BT.sum(-1) / lengths
        metrics.observe("health/student_entropy", (entropy_B[row].item() for row in rows))
        for row in rows:
            sampled = batch.rollouts[used[row]].sampler_logprobs
            gap = sum(abs(ours - theirs) for ours, theirs in zip(logprobs[row], sampled, strict=True))
            metrics.observe("health/sampler_gap", [gap / len(sampled)])


def _number(reward: float | None) -> float:
    return float("nan") if reward is None else reward


def _record(batch: Batch, pair: Pair, ratios: tuple[float, float], margin: float, loss: float) -> dict[str, Any]:
    """One line of samples.jsonl."""
    prompt = batch.prompts[batch.rollouts[pair.chosen].prompt]
    sides = {}
    for side, index, ratio in (("chosen", pair.chosen, ratios[0]), ("rejected", pair.rejected, ratios[1])):
        rollout = batch.rollouts[index]
        sides[side] = {
            "text": rollout.text,
            "role": rollout.role,
            "reward": rollout.reward,
            "tokens": len(rollout.completion_ids),
            "finished": rollout.finished,
            "log_ratio": ratio,
        }
    return {
        "row": prompt.row,
        "prompt": prompt.prompt,
        "privileged_context": prompt.columns.get("privileged_context"),
        **sides,
        "margin": margin,
        "label": pair.label,
        "swapped": pair.swapped,
        "loss": loss,
    }
