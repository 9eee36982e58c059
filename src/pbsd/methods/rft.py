"""Rejection fine-tuning, RFT (arXiv 2308.01825): the likelihood of rewarded samples.

The publication samples once from a frozen model; here student, teacher or both are sampled afresh at every step.
Samples of reward at least `success_threshold` are kept, equal ones of a prompt once; `leakage_guard` drops or weighs
down those of the teacher that cite its context.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pbsd.config import RFTConfig
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt, Role
from pbsd.samples import Loss, guard_leakage, likelihood_loss, likelihood_weight, no_loss


class RFT(EngineMethod[RFTConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        args = self.args
        counts: dict[Role, int] = {"teacher": args.num_teacher_generations, "student": args.num_generations}
        if args.rft_source != "both":
            counts = {args.rft_source: counts[args.rft_source]}
        rollouts, metrics = self.sample(prompts, counts, step)
        rollouts, guard_metrics = guard_leakage(rollouts, args)
        metrics.merge(guard_metrics)
        batch = Batch(tuple(prompts), tuple(rollouts))
        rewarded = sum(self._is_rewarded(batch, index) for index in range(len(rollouts)))
        leaking = sum(self._is_rewarded(batch, index) for index, rollout in enumerate(rollouts) if not rollout.weight)
        metrics.observe("reward/kept", [len(self.kept(batch)) / len(rollouts)])
        metrics.count("reward/dropped_unrewarded", len(rollouts) - rewarded)
        metrics.count("reward/dropped_leaking", leaking)
        metrics.count("reward/dropped_duplicate", rewarded - leaking - len(self.kept(batch)))
        return batch, metrics

    def kept(self, batch: Batch) -> list[int]:
        """The rollouts to learn from."""
        seen, kept = set(), []
        for index, rollout in enumerate(batch.rollouts):
            identity = (rollout.prompt, rollout.completion_ids)
            if rollout.weight and self._is_rewarded(batch, index) and not (self.args.deduplicate and identity in seen):
                seen.add(identity)
                kept.append(index)
        return kept

    def _is_rewarded(self, batch: Batch, index: int) -> bool:
        reward = batch.rollouts[index].reward
        return reward is not None and reward >= self.args.success_threshold

    def weight(self, batch: Batch) -> float:
        return likelihood_weight(batch, self.kept(batch), self.args.loss_normalization)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        kept = self.kept(batch)
        if not kept:
            return no_loss(self.engine, model, batch)
        return likelihood_loss(self.engine, model, batch, kept, self.args.loss_normalization)
