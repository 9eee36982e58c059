"""What a version of another package may take away without an error: the fast ways of sampling and scoring."""

import logging

import pytest
from conftest import tiny_model
from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config, Qwen3Config

from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler
from pbsd.scoring import enable_scoring


def models(tokenizer):
    options = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
        "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    yield tiny_model(tokenizer)
    for config in (Qwen2Config(**options), Qwen3Config(**options), MistralConfig(sliding_window=None, **options)):
        yield AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("index", range(4))
def test_common_models_are_sampled_and_scored_in_the_fast_way(tokenizer, caplog, index):
    """Prompts shared, rows packed in blocks, no word of a slower way."""
    model = list(models(tokenizer))[index]
    sampler = TransformersSampler(eos_token_ids=[tokenizer.eos_token_id], pad_token_id=0, max_batch_size=8)
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        sampler.sample(model, [SampleRequest((5, 6, 7), 3, (0,))], SamplingParams(max_completion_length=4))
        capability = enable_scoring(model)
    assert [record.message for record in caplog.records] == []
    assert capability.chunked and capability.packed == "blocks"
