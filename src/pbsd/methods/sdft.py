"""Self-distillation fine-tuning, SDFT: the teacher sees a demonstration.

The student samples; at every token it is drawn to the demonstration-conditioned teacher by a divergence on its own most
likely tokens. Defaults and averages are those of TRL's SDFT trainer. No reward is read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pbsd.config import SDFTConfig
from pbsd.distillation import distill
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt
from pbsd.samples import Loss, observe_student, rollout_record


class SDFT(EngineMethod[SDFTConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        rollouts, metrics = self.sample(prompts, {"student": self.args.num_generations}, step)
        return Batch(tuple(prompts), tuple(rollouts)), metrics

    def weight(self, batch: Batch) -> float:
        """Completions: the loss is the mean over them of their means over tokens."""
        return float(len(batch.rollouts))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        metrics = Metrics()
        used, scores, divergence_BT = distill(self.engine, model, batch, range(len(batch.rollouts)), self.args, metrics)
        mask_BT = scores.mask_BT.clone()
        mask_BT[:, : self.args.num_loss_tokens_to_skip] = 0.0
        loss_B = (divergence_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1.0)

        metrics.observe("loss/divergence", loss_B.tolist())
        metrics.count("tokens/trained", mask_BT.sum().item())
        observe_student(metrics, batch, used, scores)
        samples = [rollout_record(batch, index, loss=value) for index, value in zip(used, loss_B.tolist(), strict=True)]
        return loss_B.sum(), metrics, samples
