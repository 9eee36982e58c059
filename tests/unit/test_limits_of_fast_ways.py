"""Where the fast ways of scoring and sampling would be wrong: found out, and done otherwise."""

import logging

import pytest
import torch
import transformers
from decoders import GROUPS, PAD, SIZES, VOCABULARY, build
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

from pbsd import PBSDConfig
from pbsd.records import Batch, Prompt, Rollout
from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler
from pbsd.scoring import ScoringGroup, enable_scoring, score


def slow(model, prompt, completion):
    """Logits of the row's own places: an adapter's virtual tokens stand before them."""
    logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, -len(prompt) - len(completion) :]
    logprobs = logits.float().log_softmax(-1)
    return torch.stack([logprobs[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def assert_scores(model, groups=GROUPS, atol=2e-5):
    scores = score(model, groups, pad_id=PAD)
    rows = [(group.prompt_ids, completion) for group in groups for completion in group.completion_ids]
    for found, (prompt, completion) in zip(scores.logprobs_BT, rows, strict=True):
        torch.testing.assert_close(found[: len(completion)], slow(model, prompt, completion), atol=atol, rtol=0)


def loud(model):
    """Random small weights make attention nearly uniform, and errors in it nearly without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


# Scoring


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_under_autocast(name):
    """Rotated queries and keys are float32 there and values bfloat16: the blocks' kernels take one type. As exact as
    padded rows of the same model under the same autocast, in value and gradient."""
    model = build(name)
    assert enable_scoring(model).packed == "blocks"
    found = {}
    for packed in ("blocks", "no"):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            scores = score(model, GROUPS, pad_id=PAD, packed=packed)
        scores.logprobs_BT.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[packed] = scores.logprobs_BT.detach(), gradient
    assert (found["blocks"][0] - found["no"][0]).abs().mean() < 0.05
    assert torch.cosine_similarity(found["blocks"][1], found["no"][1], dim=0) > 0.98


def test_capability_is_found_under_autocast_as_without():
    """bfloat16's rounding is many times what full-precision weights are allowed to differ by."""
    model = loud(build("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        capability = enable_scoring(model)
    assert capability.packed == "blocks"
    assert not capability.reason


def test_gross_errors_are_found_in_half_precision_too():
    """A head that is no linear map: logits times 0.2 are a nat or more off, where rounding may explain a quarter."""

    class Muted(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.2
            return output

    torch.manual_seed(0)
    model = loud(Muted(transformers.LlamaConfig(**SIZES))).to(torch.bfloat16)
    assert not enable_scoring(model).chunked
    assert_scores(model, atol=0.1)


def test_attention_that_is_changed_later():
    model = build("llama")
    assert enable_scoring(model).packed == "blocks"
    model.set_attn_implementation("eager")
    assert_scores(model)


def test_attention_dropout_is_left_to_the_model():
    model = build("llama")
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert_scores(model)
    torch.manual_seed(0)
    trained = score(model.train(), GROUPS, pad_id=PAD).logprobs_BT
    assert (trained - score(model.eval(), GROUPS, pad_id=PAD).logprobs_BT).abs().max() > 0.01


def test_windows_by_place_in_the_row(caplog):
    """GPT-Neo's local layers see so many places back, whatever the positions say. Twenty completions of 20 tokens are
    longer than its window of 32; a row of its own is not."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=32, intermediate_size=48, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = loud(transformers.GPTNeoForCausalLM(config))
    groups = [ScoringGroup(tuple(range(2, 8)), tuple(tuple(range(10 + i, 30 + i)) for i in range(20)))]
    assert_scores(model, groups)
    assert "look back by places" in caplog.text


@pytest.mark.parametrize("adapter", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens(adapter):
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), adapter(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    assert not enable_scoring(model).chunked
    assert_scores(model)


def test_parts_count_the_padding_of_models_that_need_it(make_trainer):
    """A prompt of 10 with one completion of 9 tokens and three of 1 is one packed row of 18, four of them 72; as padded
    rows it is four of 18, so that two prompts are 144 tokens."""
    trainer = make_trainer()
    prompts = tuple(Prompt(i, "", {}, (5,) * 10, (5,) * 12) for i in range(4))
    rollouts = tuple(Rollout(i, "student", (7,) * (1 if k else 9), "", True, ()) for i in range(4) for k in range(4))
    batch = Batch(prompts, rollouts)
    assert [len(part.prompts) for part in trainer.engine.parts(batch, 150)] == [4]
    trainer.engine.student.scoring_capability = type(enable_scoring(trainer.engine.student))(True, None)
    assert [len(part.prompts) for part in trainer.engine.parts(batch, 150)] == [2, 2]


# Sampling


def sampler(max_batch_size=64):
    return TransformersSampler(eos_token_ids=[1], pad_token_id=0, max_batch_size=max_batch_size)


def test_a_cache_of_other_states_is_found_out(caplog):
    """DeepSeek keeps a latent in the place of keys and values."""
    config = transformers.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
        first_k_dense_replace=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = loud(transformers.DeepseekV3ForCausalLM(config))
    used = sampler()
    for _ in range(2):
        (samples,) = used.sample(model, [SampleRequest((5, 6, 7), 2, (1,))], SamplingParams(8))
    for sample in samples:
        expected = slow(model, (5, 6, 7), sample.ids)
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-4, rtol=0)
    assert caplog.text.count("is sampled by generate") == 1


def test_plain_models_are_decoded(caplog):
    with caplog.at_level(logging.WARNING):
        for name in ("llama", "qwen3", "granite-scaled-logits"):
            sampler().sample(build(name), [SampleRequest((5, 6, 7), 2, (1,))], SamplingParams(4))
    assert "generate" not in caplog.text


def test_a_state_does_not_take_in_padding():
    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, context_length=128, attention_hidden_size=32
    )
    torch.manual_seed(0)
    model = loud(transformers.RwkvForCausalLM(config))
    requests = [SampleRequest((5, 6, 7), 2, (1,)), SampleRequest((5, 6, 7, 8, 9, 10, 11), 2, (2,))]
    together = sampler().sample(model, requests, SamplingParams(10))
    assert together == [sampler().sample(model, [request], SamplingParams(10))[0] for request in requests]


@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_a_batch_may_end_inside_the_last_of_several_prompts(size):
    """What the next batch goes on with is the last prompt's states, not the first's."""
    requests = [SampleRequest((5, 6, 7), 2, (1,)), SampleRequest((8, 9, 10), 4, (2,))]
    ids = [
        [[sample.ids for sample in group] for group in sampler(n).sample(build("llama"), requests, SamplingParams(12))]
        for n in (size, 64)
    ]
    assert ids[0] == ids[1]


def test_warpers_among_the_generation_kwargs_are_the_options(tmp_path):
    def params(**kwargs):
        args = PBSDConfig(output_dir=str(tmp_path), use_cpu=True, preset="pairs", generation_kwargs=kwargs)
        return args.sampling_params()

    found = params(temperature=0.5, top_p=None, repetition_penalty=1.5)
    assert (found.temperature, found.top_p) == (0.5, 1.0)
    assert found.generation_kwargs == {"repetition_penalty": 1.5}
    with pytest.raises(ValueError, match="top_p must lie in"):
        params(top_p=1.5)
    for kwargs in ({"temperature": 0.3}, {"repetition_penalty": 1.5}):
        with pytest.raises(ValueError, match="imitation_from='union'"):
            PBSDConfig(output_dir=str(tmp_path), use_cpu=True, generation_kwargs=kwargs)


def test_processed_log_probabilities_are_not_the_teachers(make_trainer):
    """Under a repetition penalty the sampler records another distribution's: all are scored, none is reused."""
    trainer = make_trainer(generation_kwargs={"repetition_penalty": 3.0})
    batch, metrics = trainer.method.collect(trainer.train_dataset.prompts[:2], 0)
    assert "teacher/reuse_gap" not in metrics.values
    for rollout in batch.rollouts:
        with trainer.engine.acting("teacher") as teacher:
            expected = slow(teacher, batch.prompts[rollout.prompt].teacher_ids, rollout.completion_ids)
        torch.testing.assert_close(torch.tensor(rollout.teacher_logprobs), expected, atol=1e-5, rtol=0)
