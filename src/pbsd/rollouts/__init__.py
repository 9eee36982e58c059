"""Sampling of completions: the `Sampler` protocol and its implementations."""

from pbsd.rollouts.sampler import Sample, Sampler, SampleRequest, SamplingParams
from pbsd.rollouts.transformers_sampler import TransformersSampler

__all__ = ["Sample", "SampleRequest", "Sampler", "SamplingParams", "TransformersSampler"]
