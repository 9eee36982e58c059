"""On-policy self-distillation, OPSD (arXiv 2601.18734).

The student samples; at every token it is drawn to the distribution that the teacher, which also sees the privileged
context, has at the same prefix: by default KL(T || pi) with every vocabulary entry's term capped. No reward is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pbsd.config import OPSDConfig
from pbsd.distillation import distill
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt
from pbsd.samples import Loss, observe_student, rollout_record


class OPSD(EngineMethod[OPSDConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        rollouts, metrics = self.sample(prompts, {"student": self.args.num_generations}, step)
        return Batch(tuple(prompts), tuple(rollouts)), metrics

    def weight(self, batch: Batch) -> float:
        """Completion tokens: the loss is their mean."""
        return float(batch.sampled_tokens)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        metrics = Metrics()
        used, scores, divergence_BT = distill(self.engine, model, batch, range(len(batch.rollouts)), self.args, metrics)

        metrics.observe("loss/divergence", divergence_BT[scores.mask_BT.bool()].tolist())
        metrics.count("tokens/trained", scores.mask_BT.sum().item())
        observe_student(metrics, batch, used, scores)
        values = (divergence_BT.sum(-1) / scores.mask_BT.sum(-1)).tolist()
        samples = [rollout_record(batch, index, loss=value) for index, value in zip(used, values, strict=True)]
        return divergence_BT.sum(), metrics, samples
