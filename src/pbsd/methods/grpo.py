"""Group-relative policy optimisation, GRPO (arXiv 2402.03300).

The student samples a group per prompt; each sample's advantage is its reward against the group's. There is one gradient
step per batch, so the importance ratio is 1, with the gradient of log pi, and nothing is clipped. With beta, every
token also pays an estimate of its KL to the initial policy. A sample whose reward could not be judged takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pbsd.config import GRPOConfig
from pbsd.losses.policy_gradient import AdvantageScale, group_advantages, k3
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt, Rollout
from pbsd.samples import Loss, no_loss, observe_student, rollout_record, score_reference, score_student

EPSILON = 1e-4
"""Added to the deviation that advantages are divided by, as in TRL."""


class GRPO(EngineMethod[GRPOConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        rollouts, metrics = self.sample(prompts, {"student": self.args.num_generations}, step)
        rollouts = self._with_advantages(rollouts, len(prompts))
        if self.args.beta > 0:
            rollouts = score_reference(self.engine, prompts, rollouts)
        flat = [
            all(not rollout.advantage for rollout in rollouts if rollout.prompt == prompt)
            for prompt in range(len(prompts))
        ]
        metrics.observe("reward/flat_groups", flat)
        return Batch(tuple(prompts), tuple(rollouts)), metrics

    def weight(self, batch: Batch) -> float:
        judged = [rollout for rollout in batch.rollouts if rollout.advantage is not None]
        if self.args.loss_type in ("dapo", "bnpo"):
            return float(sum(len(rollout.completion_ids) for rollout in judged))
        return float(len(judged))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        judged = [index for index, rollout in enumerate(batch.rollouts) if rollout.advantage is not None]
        if not judged:
            return no_loss(self.engine, model, batch)
        used, scores = score_student(self.engine, model, batch, judged)
        logprobs_BT, mask_BT = scores.logprobs_BT, scores.mask_BT
        advantage_B = logprobs_BT.new_tensor([batch.rollouts[index].advantage for index in used])

        ratio_BT = (logprobs_BT - logprobs_BT.detach()).exp()
        loss_BT = -ratio_BT * advantage_B[:, None] * mask_BT
        metrics = Metrics()
        metrics.observe("loss/policy", self._per_completion(loss_BT, mask_BT).tolist())
        if self.args.beta > 0:
            rows = [torch.tensor(batch.rollouts[index].reference_logprobs) for index in used]
            kl_BT = k3(logprobs_BT, pad_sequence(rows, batch_first=True).to(logprobs_BT))
            if self.args.use_bias_correction_kl:
                kl_BT = kl_BT * ratio_BT
            loss_BT = loss_BT + self.args.beta * kl_BT * mask_BT
            metrics.observe("loss/kl", kl_BT[mask_BT.bool()].tolist())
        loss_B = self._per_completion(loss_BT, mask_BT)

        metrics.count("tokens/trained", mask_BT.sum().item())
        observe_student(metrics, batch, used, scores)
        samples = [
            rollout_record(batch, index, advantage=batch.rollouts[index].advantage, loss=value)
            for index, value in zip(used, loss_B.tolist(), strict=True)
        ]
        return loss_B.sum(), metrics, samples

    def _per_completion(self, loss_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """[B], to be summed and divided by `weight`."""
        if self.args.loss_type == "grpo":
            return loss_BT.sum(-1) / mask_BT.sum(-1)
        if self.args.loss_type == "dr_grpo":
            return loss_BT.sum(-1) / self.args.max_completion_length
        return loss_BT.sum(-1)

    def _with_advantages(self, rollouts: Sequence[Rollout], num_prompts: int) -> list[Rollout]:
        """`batch` divides by the deviation of all judged rewards of the step, over all processes."""
        rewards = [float("nan") if rollout.reward is None else rollout.reward for rollout in rollouts]
        reward_PG = torch.tensor(rewards, dtype=torch.float32).view(num_prompts, -1)
        scale: AdvantageScale = "group" if self.args.scale_rewards == "group" else "none"
        advantage_PG = group_advantages(reward_PG, ~reward_PG.isnan(), scale=scale, epsilon=EPSILON)
        if self.args.scale_rewards == "batch":
            every = torch.tensor([reward for reward in self.engine.gather(rewards) if reward == reward])
            if len(every) > 1:
                advantage_PG = advantage_PG / (every.std() + EPSILON)
        return [
            replace(rollout, advantage=None if rollout.reward is None else advantage)
            for rollout, advantage in zip(rollouts, advantage_PG.flatten().tolist(), strict=True)
        ]
