"""Supervised fine-tuning, SFT: the likelihood of the dataset's own completions. Nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pbsd.config import SFTConfig
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt, Rollout
from pbsd.samples import Loss, negative_log_likelihood, observe_student, rollout_record, score_student


class SFT(EngineMethod[SFTConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        references = [
            Rollout(
                prompt=index,
                role="reference",
                completion_ids=prompt.reference_ids,
                text=str(self.engine.tokenizer.decode(list(prompt.reference_ids), skip_special_tokens=True)),
                finished=True,
                sampler_logprobs=(),
            )
            for index, prompt in enumerate(prompts)
        ]
        metrics = Metrics()
        metrics.observe("tokens/reference_length", (len(rollout.completion_ids) for rollout in references))
        return Batch(tuple(prompts), tuple(references)), metrics

    def weight(self, batch: Batch) -> float:
        if self.args.loss_normalization == "token":
            return float(sum(len(rollout.completion_ids) for rollout in batch.rollouts))
        return float(len(batch.rollouts))

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        used, scores = score_student(self.engine, model, batch, range(len(batch.rollouts)))
        loss_B = negative_log_likelihood(scores, self.args.loss_normalization)

        metrics = Metrics()
        metrics.observe("loss/nll", (-scores.logprobs_BT)[scores.mask_BT.bool()].tolist())
        metrics.count("tokens/trained", scores.mask_BT.sum().item())
        observe_student(metrics, batch, used, scores)
        samples = [rollout_record(batch, index, loss=value) for index, value in zip(used, loss_B.tolist(), strict=True)]
        return loss_B.sum(), metrics, samples
