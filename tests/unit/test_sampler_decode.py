"""The decoding loop: prompts forwarded once, stopped rows dropped, tokens and log-probabilities as the slow way gives.

Tiny models of several families are built here; the oracle is `generate` (greedy) or a full forward over prompt and
completion for every token (draws and log-probabilities).
"""

import logging

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import Cache

from pbsd.rollouts import SampleRequest, SamplingParams, TransformersSampler
from pbsd.rollouts.decode import cache_argument, prefill, prefill_chunks
from pbsd.rollouts.draw import Draw, inverse_cdf
from pbsd.rollouts.packed_linear import packed_linears

VOCABULARY, EOS, PAD = 300, 1, 0
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
    "initializer_range": 0.3,
}
GPT2_SIZES = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-eager": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES, pad_token_id=PAD, bos_token_id=EOS, eos_token_id=EOS)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=6)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=6)),
}
DECODED = ("llama", "llama-eager", "qwen3", "gpt2", "mistral")

PROMPTS = [tuple(range(10, 10 + length)) for length in (3, 40, 1, 17, 18, 3)]


def build(family):
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


@pytest.fixture
def llama():
    return build("llama")


def sampler(max_batch_size=64, eos=(EOS,)):
    return TransformersSampler(eos_token_ids=eos, pad_token_id=PAD, max_batch_size=max_batch_size)


def tried(model, **options):
    """A sampler that has already looked at the model's cache by a few tokens."""
    used = sampler(**options)
    used.sample(model, [SampleRequest((3,), 1, (0,))], SamplingParams(1))
    return used


def requests(n=4):
    return [SampleRequest(prompt, n, (7, row)) for row, prompt in enumerate(PROMPTS)]


def ids(groups):
    return [[sample.ids for sample in group] for group in groups]


@torch.no_grad()
def slow(model, request, index, params, stops=(EOS,)):
    """One completion by its definition: a full forward per token, softmax and cumulative sum in float64."""
    tokens, logprobs = [], []
    for uniform in request.uniforms(index, params.max_completion_length):
        logits = model(input_ids=torch.tensor([[*request.prompt_ids, *tokens]])).logits[0, -1].double()
        cumulative = (logits / params.temperature).softmax(-1).cumsum(-1)
        tokens.append(int((cumulative <= uniform).sum()))
        logprobs.append(float(logits.log_softmax(-1)[tokens[-1]]))
        if tokens[-1] in stops:
            break
    return tuple(tokens), logprobs


class Forwards:
    """Shapes of the token ids of every forward pass of a model."""

    def __init__(self, model):
        self.shapes = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.shapes.append(tuple(kwargs["input_ids"].shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_samples_what_the_definition_says(family, caplog):
    """Tokens equal, log-probabilities within 1e-4; families with windows or soft-capping use `generate`, and say so."""
    model = build(family)
    params = SamplingParams(9, temperature=0.9)
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        groups = sampler().sample(model, requests(n=2), params)
    assert ("sampled by generate" in caplog.text) == (family not in DECODED)
    for request, group in zip(requests(n=2), groups, strict=True):
        for index, sample in enumerate(group):
            tokens, logprobs = slow(model, request, index, params)
            assert sample.ids == tokens
            assert sample.logprobs == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_greedy_as_generate_is(family):
    model = build(family)
    for request, (sample,) in zip(
        requests(n=1), sampler().sample(model, requests(n=1), SamplingParams(9, temperature=0.0)), strict=True
    ):
        prompt = torch.tensor([request.prompt_ids])
        output = model.generate(
            prompt, max_new_tokens=9, do_sample=False, eos_token_id=EOS, pad_token_id=PAD, attention_mask=prompt * 0 + 1
        )
        assert list(sample.ids) == output[0, prompt.shape[1] :].tolist()[: len(sample.ids)]


def typed(base, annotation):
    """A Llama whose forward calls its cache `store`."""
    name = cache_argument(base)

    class Renamed(LlamaForCausalLM):
        def forward(self, input_ids=None, position_ids=None, store=None, use_cache=None, logits_to_keep=0, **kwargs):
            own = {name: store, "position_ids": position_ids, "use_cache": use_cache, "logits_to_keep": logits_to_keep}
            return super().forward(input_ids, **own, **kwargs)

    Renamed.forward.__annotations__["store"] = annotation
    base.__class__ = Renamed
    return base


@pytest.mark.parametrize("annotation", [Cache, Cache | None, "Cache | None", "Optional[cache_utils.DynamicCache]"])
def test_the_cache_is_found_by_its_type(llama, annotation, caplog):
    """transformers 5.23 calls it `past_key_values` and 5.24 `cache`; here it has neither name."""
    expected = ids(sampler().sample(llama, requests(n=2), SamplingParams(5)))
    renamed = typed(llama, annotation)
    assert cache_argument(renamed) == "store"
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        assert ids(sampler().sample(renamed, requests(n=2), SamplingParams(5))) == expected
    assert "generate" not in caplog.text


def test_a_forward_without_a_cache_goes_to_generate(llama):
    renamed = typed(llama, int)
    assert cache_argument(renamed) is None
    assert not sampler()._decodes(renamed)


def test_a_refused_family_is_reported_once(caplog):
    model, own = build("gemma3"), sampler()
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        own.sample(model, requests(n=1), SamplingParams(2))
        own.sample(model, requests(n=1), SamplingParams(2))
    assert caplog.text.count("Gemma3ForCausalLM is sampled by generate") == 1


def test_attention_that_asks_for_more_than_softmax_goes_to_generate(llama, caplog):
    """No declaration tells of it: the layers pass an option that only the attention function sees."""
    for layer in llama.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "s_aux": torch.zeros(4)}), with_kwargs=True
        )
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        groups = sampler().sample(llama, requests(n=1), SamplingParams(4))
    assert "s_aux" in caplog.text
    assert ids(groups) == ids(sampler().sample(build("llama"), requests(n=1), SamplingParams(4)))
    assert llama.config._attn_implementation == "sdpa"


def test_a_layer_that_ignores_the_attention_interface_is_noticed(llama, caplog):
    """Such a layer would see its completion only; here one goes back to a config of its own before each forward."""
    llama.model.layers[1].self_attn.register_forward_pre_hook(
        lambda module, args: setattr(module, "config", LlamaConfig(**SIZES, attn_implementation="sdpa"))
    )
    with caplog.at_level(logging.WARNING, logger="pbsd"):
        groups = sampler().sample(llama, requests(n=1), SamplingParams(4))
    assert "1 of 2 layers used the attention interface" in caplog.text
    assert ids(groups) == ids(sampler().sample(build("llama"), requests(n=1), SamplingParams(4)))


def test_prompts_are_forwarded_once_and_every_step_is_one_token(llama):
    """Six requests, five distinct prompts, of which those of 17 and 18 tokens are padded together. Then one forward of
    width 1 for each token of the longest completion but its last."""
    used = tried(llama, eos=())
    forwards = Forwards(llama)
    groups = used.sample(llama, requests(n=5), SamplingParams(7))
    prefills = [shape for shape in forwards.shapes if shape[0] != 30]
    assert sorted(prefills) == [(1, 1), (1, 3), (1, 40), (2, 18)]
    assert [shape for shape in forwards.shapes if shape[0] == 30] == [(30, 1)] * 6
    assert all(len(sample.ids) == 7 for group in groups for sample in group)


def test_a_group_split_over_batches_is_prefilled_once(llama):
    together = sampler().sample(llama, requests(n=10), SamplingParams(6))
    used = tried(llama, max_batch_size=7)
    forwards = Forwards(llama)
    split = used.sample(llama, requests(n=10), SamplingParams(6))
    assert ids(split) == ids(together)
    wide = [rows * length for rows, length in forwards.shapes if length > 1]
    assert sum(wide) <= 3 + 40 + 18 * 2  # the prompt of length 1 looks like a step


def test_sharing_a_prompt_changes_nothing(llama):
    """Four completions of each of six prompts in one batch, against every completion in a batch of its own."""
    shared = sampler().sample(llama, requests(n=4), SamplingParams(8))
    for request, group in zip(requests(n=4), shared, strict=True):
        (alone,) = sampler(max_batch_size=1).sample(llama, [request], SamplingParams(8))
        for one, other in zip(alone, group, strict=True):
            assert one.ids == other.ids
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_rows_that_stop_leave_the_batch_and_nothing_changes(llama):
    """One token in thirty stops: the batch shrinks, whole prompts and prefill chunks die long before the last row, and
    what is left is as the definition says. 70 tokens also pass the first doubling of the buffers, at 64."""
    stops = tuple(range(0, VOCABULARY, 30))
    prompts = [*PROMPTS, *(tuple(range(100 + row, 120 + row)) for row in range(6))]
    used = tried(llama, eos=stops)
    forwards = Forwards(llama)
    params = SamplingParams(70)
    asked = [SampleRequest(prompt, 1 + row % 5, (7, row)) for row, prompt in enumerate(prompts)]
    groups = used.sample(llama, asked, params)
    steps = [rows for rows, length in forwards.shapes if length == 1][
        1:
    ]  # without the prefill of the prompt of 1 token
    lengths = [[len(sample.ids) for sample in group] for group in groups]
    ends, flat = sorted(max(group) for group in lengths), sorted(length for group in lengths for length in group)
    assert flat[0] < 5 and flat[-1] > 64
    assert ends[0] <= 20 and ends[3] < 50  # whole prompts die early
    assert len(steps) == flat[-1] - 1
    assert len(set(steps)) > 8
    for step, rows in enumerate(steps):
        going = sum(length > step + 1 for length in flat)
        assert 0 <= 8 * (rows - going) < rows
    for request, group in zip(asked, groups, strict=True):
        for index, sample in enumerate(group):
            assert sample.ids == slow(llama, request, index, params, stops)[0]
            assert sample.finished == (sample.ids[-1] in stops)


def test_bfloat16_and_autocast(llama):
    """What is recorded in bfloat16, and under autocast, is a full forward's in the same arithmetic, to its rounding."""
    params = SamplingParams(8)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    half = build("llama").to(torch.bfloat16)
    with autocast:
        mixed = sampler().sample(llama, requests(n=3), params)
    for groups, model in ((mixed, llama), (sampler().sample(half, requests(n=3), params), half)):
        errors = []
        for request, group in zip(requests(n=3), groups, strict=True):
            for sample in group:
                whole = torch.tensor([[*request.prompt_ids, *sample.ids]])
                with torch.no_grad(), autocast:
                    logits = model(input_ids=whole).logits[0, len(request.prompt_ids) - 1 : -1].float()
                expected = logits.log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
                errors += (expected - torch.tensor(sample.logprobs)).abs().tolist()
        assert sum(errors) / len(errors) < 0.05


def test_lora_adapters_on_and_off():
    """The adapter's own layers and its base layers are replaced while sampling and are themselves again afterwards."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(
        build("llama"), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    groups = sampler().sample(adapted, requests(n=2), SamplingParams(6))
    for request, group in zip(requests(n=2), groups, strict=True):
        for index, sample in enumerate(group):
            assert sample.ids == slow(adapted.eval(), request, index, SamplingParams(6))[0]
    with adapted.disable_adapter():
        off = sampler().sample(adapted, requests(n=2), SamplingParams(6))
    assert ids(off) == ids(sampler().sample(build("llama"), requests(n=2), SamplingParams(6))) != ids(groups)


def test_training_goes_on_after_sampling(llama):
    """Gradients after sampling are those of a model that never sampled: nothing of the loop is left in the model."""
    gradients = []
    for model in (llama, build("llama")):
        if model is llama:
            sampler().sample(model, requests(n=1), SamplingParams(3))
        model(input_ids=torch.tensor([PROMPTS[1]]), labels=torch.tensor([PROMPTS[1]])).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_sampling_follows_the_weights(llama):
    """No packed weight outlives the call."""
    before = sampler().sample(llama, requests(n=2), SamplingParams(5))
    with torch.no_grad():
        llama.model.layers[0].mlp.down_proj.weight.data.neg_()
    assert ids(sampler().sample(llama, requests(n=2), SamplingParams(5))) != ids(before)


def test_logits_processors_still_work(llama):
    params = SamplingParams(6, generation_kwargs={"suppress_tokens": list(range(2, 200)), "min_new_tokens": 3})
    samples = [sample for group in sampler().sample(llama, requests(), params) for sample in group]
    assert all(token < 2 or token >= 200 for sample in samples for token in sample.ids)
    # Without truncation of any kind the two ways give the same tokens.
    neutral = SamplingParams(6, generation_kwargs={"renormalize_logits": True})
    assert ids(sampler().sample(llama, requests(), neutral)) == ids(
        sampler().sample(llama, requests(), SamplingParams(6))
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_q": 0.9}, "top_q, which is no option"),
        ({"typical_p": 0.9}, "may not set typical_p"),
        ({"eos_token_id": 5}, "may not set eos_token_id"),
        ({"max_time": 1.0}, "may not set max_time"),
    ],
)
def test_options_that_would_be_ignored_are_refused(llama, options, words):
    with pytest.raises(ValueError, match=words):
        sampler().sample(llama, requests(), SamplingParams(4, generation_kwargs=options))


def test_samples_say_what_they_were_drawn_with(llama):
    params = SamplingParams(2, temperature=0.7, top_p=0.9, generation_kwargs={"top_k": 5, "min_p": 0.01})
    sample = sampler().sample(llama, requests(n=1), params)[0][0]
    assert (sample.temperature, sample.top_p, sample.top_k, sample.min_p) == (0.7, 0.9, 5, 0.01)


def test_prefill_chunks_bound_padding_and_size():
    lengths = [1, 1, 3, 10, 12, 13, 100, 110, 125, 126, *[1500] * 4]
    chunks = [[len(prompt) for prompt in chunk] for chunk in prefill_chunks([(5,) * length for length in lengths])]
    assert chunks == [[1, 1], [3], [10, 12], [13], [100, 110, 125], [126], [1500, 1500], [1500, 1500]]
    assert list(prefill_chunks([])) == []
    assert [len(chunk) for chunk in prefill_chunks([(5,) * 5000])] == [1]


def test_prefill_states_are_those_of_each_prompt_alone(llama):
    with torch.no_grad():
        states = prefill(llama, [PROMPTS[3], PROMPTS[4]])
        for row, prompt in enumerate((PROMPTS[3], PROMPTS[4])):
            alone = prefill(llama, [prompt])
            part = states.select([row])
            assert torch.allclose(part.logits_PV, alone.logits_PV, atol=1e-5)
            assert part.keys_PKLD[1].shape == alone.keys_PKLD[1].shape
            assert torch.allclose(part.keys_PKLD[1], alone.keys_PKLD[1], atol=1e-5)


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 1000])
def test_inverse_cdf_by_its_definition(vocabulary):
    """Against a float64 cumulative sum, at uniform numbers that are not within 1e-6 of a step of it."""
    torch.manual_seed(vocabulary)
    logits = 3 * torch.randn(400, vocabulary)
    logits[torch.rand_like(logits) < 0.3] = -torch.inf
    logits[:, vocabulary // 2] = 0.0
    uniforms = torch.rand(400, dtype=torch.float64)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    clear = (cumulative - uniforms[:, None]).abs().amin(-1) > 1e-6
    tokens, normaliser = inverse_cdf(logits, uniforms)
    assert clear.sum() > 380
    assert torch.equal(tokens[clear], (cumulative <= uniforms[:, None]).sum(-1)[clear])
    assert torch.allclose(normaliser.double(), logits.double().logsumexp(-1), atol=1e-6)


def test_impossible_tokens_are_never_drawn():
    """Uniform numbers at both ends, where rounding could step over the first or the last possible token."""
    logits = torch.full((4, 1000), -torch.inf)
    logits[:, 300:900:3] = torch.randn(4, 200)
    ends = torch.tensor([0.0, 1e-300, 1 - 2**-53, 1 - 2**-30], dtype=torch.float64)
    tokens, _ = inverse_cdf(logits, ends)
    assert tokens.tolist() == [300, 300, 897, 897]


@pytest.mark.parametrize("params", [SamplingParams(3), SamplingParams(3, generation_kwargs={"min_new_tokens": 1})])
def test_weights_that_are_not_finite_are_reported(llama, params):
    with torch.no_grad():
        llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="no longer finite"):
        sampler().sample(llama, requests(n=1), params)


def test_log_probabilities_are_untempered_whatever_the_draw():
    torch.manual_seed(0)
    logits = torch.randn(50, 300).bfloat16()
    uniforms = torch.rand(50, dtype=torch.float64)
    for draw in (Draw(), Draw(temperature=0.0), Draw(0.5), Draw(top_k=3), Draw(top_p=0.3), Draw(min_p=0.2)):
        tokens, logprobs = draw(logits, uniforms)
        expected = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        assert torch.allclose(logprobs.double(), expected, atol=1e-5)
    exact = torch.randn(50, 300)  # without ties, which top-k keeps
    assert torch.equal(Draw(top_k=1)(exact, uniforms)[0], exact.argmax(-1))


@pytest.mark.parametrize("rows", [1, 5, 33, 300])
def test_packed_linears_equal_plain_ones(rows):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 7, bias=False))
    x = torch.randn(rows, 2, 48)
    with torch.no_grad():
        plain = model(x)
        with packed_linears(model):
            packed = model(x)
    assert torch.allclose(plain, packed, atol=1e-5)
    assert all("forward" not in vars(layer) for layer in model)
