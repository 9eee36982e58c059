"""Online DPO (arXiv 2402.04792): PBSD without its teacher.

Both sides of a pair are the student's fresh samples, the rewards say which is chosen, and the reference of the implicit
reward is the initial policy under the student's own prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from pbsd.config import OnlineDPOConfig
from pbsd.losses.preference import preference_loss
from pbsd.methods.method import EngineMethod
from pbsd.pairs import make_pairs
from pbsd.records import Batch, Metrics, Pair, Prompt, Rollout
from pbsd.samples import (
    Loss,
    log_ratios,
    no_loss,
    observe_pair,
    observe_student,
    pair_record,
    score_reference,
    score_student,
)


class OnlineDPO(EngineMethod[OnlineDPOConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        rollouts, metrics = self.sample(prompts, {"student": self.args.num_generations}, step)
        rollouts = score_reference(self.engine, prompts, rollouts)
        pairs, dropped = make_pairs(rollouts, pairing="all", pair_policy="oriented", needs_rewards=True)
        if self.args.pairs == "best_worst":
            pairs = widest(pairs, rollouts)
        metrics.count("pairs/kept", len(pairs))
        for reason in ("dropped_unjudged", "dropped_tie"):
            metrics.count(f"pairs/{reason}", dropped[reason])
        return Batch(tuple(prompts), tuple(rollouts), tuple(pairs)), metrics

    def weight(self, batch: Batch) -> float:
        return float(len(batch.pairs))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if not batch.pairs:
            return no_loss(self.engine, model, batch)
        paired = sorted({index for pair in batch.pairs for index in (pair.chosen, pair.rejected)})
        used, scores = score_student(self.engine, model, batch, paired)
        place = {index: row for row, index in enumerate(used)}
        policy_B = scores.sequence_logprobs_B
        reference_B = policy_B.new_tensor([math.fsum(batch.rollouts[index].reference_logprobs) for index in used])
        reward_B = policy_B.new_tensor([batch.rollouts[index].reward for index in used])
        chosen_B = torch.tensor([place[pair.chosen] for pair in batch.pairs], device=policy_B.device)
        rejected_B = torch.tensor([place[pair.rejected] for pair in batch.pairs], device=policy_B.device)
        loss_B = preference_loss(
            policy_B[chosen_B],
            policy_B[rejected_B],
            reference_B[chosen_B],
            reference_B[rejected_B],
            beta=self.args.beta,
            loss=self.args.loss_type,
            reward_chosen_B=reward_B[chosen_B],
            reward_rejected_B=reward_B[rejected_B],
            reward_scale=self.args.reward_scale,
        )

        found = log_ratios(self.engine, batch, used, scores, against="reference")
        metrics, samples = Metrics(), []
        metrics.observe("loss/preference", loss_B.tolist())
        metrics.count("tokens/trained", scores.mask_BT.sum().item())
        for pair, value in zip(batch.pairs, loss_B.tolist(), strict=True):
            ratios = found[pair.chosen]["log_ratio"], found[pair.rejected]["log_ratio"]
            margin = self.args.beta * (ratios[0] - ratios[1])
            observe_pair(metrics, batch, pair, ratios, margin, against="reference")
            samples.append(pair_record(batch, pair, found, margin, value))
        observe_student(metrics, batch, used, scores)
        return loss_B.sum(), metrics, samples


def widest(pairs: Sequence[Pair], rollouts: Sequence[Rollout]) -> list[Pair]:
    """Of each prompt's pairs the first with the largest reward gap: best against worst."""

    def gap(pair: Pair) -> float:
        chosen, rejected = rollouts[pair.chosen].reward, rollouts[pair.rejected].reward
        assert chosen is not None and rejected is not None, "unjudged samples are in no pair"
        return chosen - rejected

    best: dict[int, Pair] = {}
    for pair in pairs:
        prompt = rollouts[pair.chosen].prompt
        if prompt not in best or gap(pair) > gap(best[prompt]):
            best[prompt] = pair
    return list(best.values())
