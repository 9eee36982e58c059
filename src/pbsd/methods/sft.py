"""Supervised fine-tuning, SFT: the likelihood of the dataset's own completions. Nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from pbsd.completions import marked_text
from pbsd.config import SFTConfig
from pbsd.methods.method import EngineMethod
from pbsd.records import Batch, Metrics, Prompt, Rollout
from pbsd.samples import Loss, likelihood_loss, likelihood_weight


class SFT(EngineMethod[SFTConfig]):
    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        references = [
            Rollout(
                prompt=index,
                role="reference",
                completion_ids=prompt.reference_ids,
                text=marked_text(self.engine.tokenizer, prompt.reference_ids, finished=True),
                finished=True,
                sampler_logprobs=(),
            )
            for index, prompt in enumerate(prompts)
        ]
        metrics = Metrics()
        metrics.observe("tokens/reference_length", (len(rollout.completion_ids) for rollout in references))
        return Batch(tuple(prompts), tuple(references)), metrics

    def weight(self, batch: Batch) -> float:
        return likelihood_weight(batch, range(len(batch.rollouts)), self.args.loss_normalization)

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        return likelihood_loss(self.engine, model, batch, range(len(batch.rollouts)), self.args.loss_normalization)
