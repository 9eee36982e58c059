"""Every way of scoring against its slow definition: one row at a time, no padding, log-softmax of the full logits."""

import copy
import logging

import pytest
import torch
import transformers
from decoders import DECODERS, GROUPS, PAD, ROWS, VOCABULARY, build
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from pbsd.scoring import ScoringGroup, enable_scoring, frozen_logits, score, score_frozen, token_chunks
from pbsd.scoring.layout import singles


@pytest.fixture(params=DECODERS)
def decoder(request):
    return build(request.param)


def slow(model, prompt, completion):
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float().log_softmax(-1)
    return torch.stack([logits[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def gradients(model, values):
    model.zero_grad()
    # Weights that differ by token, so that no error cancels in a sum.
    sum(((value.squeeze() * torch.arange(1, 1 + value.numel())).sum()) for value in values).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rows_of(scores):
    return [row[: len(completion)] for row, (_, completion) in zip(scores.logprobs_BT, ROWS, strict=True)]


def assert_same_gradients(found, expected):
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize("packed", [None, "mask", "no"])
def test_equals_the_definition_in_value_and_gradient(decoder, packed):
    assert enable_scoring(decoder).packed is not None
    scores = score(decoder, GROUPS, pad_id=PAD, packed=packed)
    for row, (prompt, completion) in enumerate(ROWS):
        expected = slow(decoder, prompt, completion)
        torch.testing.assert_close(scores.logprobs_BT[row, : len(completion)], expected, atol=2e-5, rtol=0)
        assert scores.mask_BT[row].tolist() == [1.0] * len(completion) + [0.0] * (5 - len(completion))
        assert scores.logprobs_BT[row, len(completion) :].abs().sum() == 0
    found = gradients(decoder, rows_of(scores))
    assert_same_gradients(found, gradients(decoder, [slow(decoder, *row) for row in ROWS]))


def test_llama_is_scored_in_blocks_and_eager_attention_by_mask():
    assert enable_scoring(build("llama")).packed == "blocks"
    assert enable_scoring(build("gpt2")).packed == "blocks"
    assert enable_scoring(build("llama-eager")).packed == "mask"


@pytest.mark.parametrize("side", ["left", "right"])
def test_equals_a_padded_batch_of_the_model_itself(side):
    """Padded on either side, with attention mask and positions as `generate` makes them."""
    model = build("qwen3")
    length = max(len(prompt + completion) for prompt, completion in ROWS)
    ids, mask = torch.zeros(len(ROWS), length, dtype=torch.long), torch.zeros(len(ROWS), length, dtype=torch.long)
    starts = []
    for row, (prompt, completion) in enumerate(ROWS):
        start = length - len(prompt + completion) if side == "left" else 0
        ids[row, start : start + len(prompt + completion)] = torch.tensor(prompt + completion)
        mask[row, start : start + len(prompt + completion)] = 1
        starts.append(start + len(prompt) - 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)
    for row, ((_, completion), start, found) in enumerate(
        zip(ROWS, starts, rows_of(score(model, GROUPS, pad_id=PAD)), strict=True)
    ):
        expected = torch.stack([logits[row, start + t, token] for t, token in enumerate(completion)])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


LORA = {
    "attention": ["q_proj", "v_proj", "down_proj"],
    "head too": ["q_proj", "lm_head"],
}


@pytest.mark.parametrize("checkpointing", [False, True, "reentrant"])
@pytest.mark.parametrize("lora", [None, *LORA])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_under_adapters_and_gradient_checkpointing(name, lora, checkpointing):
    model = build(name)
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=LORA[lora], init_lora_weights=False))
    expected = [slow(model, *row) for row in ROWS]
    wanted = gradients(model, expected)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        model.enable_input_require_grads()
    model.train()  # no dropout in these models; checkpointing is off in evaluation mode
    scores = score(model, GROUPS, pad_id=PAD)
    for found, value in zip(rows_of(scores), expected, strict=True):
        torch.testing.assert_close(found, value, atol=2e-5, rtol=0)
    assert_same_gradients(gradients(model, rows_of(scores)), wanted)


@pytest.mark.parametrize("packed", ["blocks", "mask"])
def test_a_prompt_is_computed_once_for_its_completions(packed):
    """16 + 7 inputs in the longest row: 7 of the prompt and 4 + 1 + 0 completion tokens that something follows."""
    model = build("llama")
    enable_scoring(model)
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, out: seen.append(args[0].shape))
    score(model, GROUPS, pad_id=PAD, packed=packed)
    score(model, GROUPS, pad_id=PAD, packed="no")
    assert seen == [(3, 7 + 4 + 1), (7, 7 + 4)]


def test_a_score_does_not_depend_on_its_company_or_the_padding():
    model = build("llama")
    together = rows_of(score(model, GROUPS, pad_id=PAD))
    alone = [value for group in GROUPS for value in score(model, [group], pad_id=PAD).token_lists()]
    for one, other in zip(together, alone, strict=True):
        assert one.tolist() == pytest.approx(other, abs=2e-5)
    other_padding = score(model, GROUPS, pad_id=37)
    assert torch.equal(score(model, GROUPS, pad_id=PAD).logprobs_BT, other_padding.logprobs_BT)


def test_entropy_by_definition():
    """H = -sum p log p at the position that predicts the token."""
    model = build("llama")
    scores = score(model, GROUPS[1:2], pad_id=PAD)
    logp = model(input_ids=torch.tensor([(12, 13, 14, 15, 16, 1)])).logits[0].log_softmax(-1)
    expected = -(logp.exp() * logp).sum(-1)[:-1]
    torch.testing.assert_close(scores.entropy_BT[0], expected.detach(), atol=5e-6, rtol=0)
    assert not scores.entropy_BT.requires_grad
    assert score(model, GROUPS, pad_id=PAD, entropy=False).entropy_BT.abs().sum() == 0


def test_a_token_function_sees_the_logits_of_its_tokens():
    """KL(teacher || student) per token from chunked logits, against full logits of both."""
    student, teacher = build("llama"), build("llama")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.7)
    frozen = frozen_logits(teacher, GROUPS, pad_id=PAD, max_tokens=14)
    assert [len(states) for states in frozen.hidden] == [len(completion) for _, completion in ROWS]
    hidden_MD = torch.cat(frozen.hidden)

    def divergence(logits, part):
        return kl(frozen.logits(hidden_MD[part]), logits)

    def kl(teacher_logits, student_logits):
        p, q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    found = score(student, GROUPS, pad_id=PAD, token_function=divergence).extra_BT
    expected = []
    for row, (prompt, completion) in enumerate(ROWS):
        ids, part = torch.tensor([prompt + completion]), slice(len(prompt) - 1, -1)
        value = kl(teacher(input_ids=ids).logits[0, part].detach(), student(input_ids=ids).logits[0, part])
        torch.testing.assert_close(found[row, : len(completion)], value, atol=2e-5, rtol=1e-4)
        expected.append(value)
    found_gradients = gradients(student, [row[: len(c)] for row, (_, c) in zip(found, ROWS, strict=True)])
    assert_same_gradients(found_gradients, gradients(student, expected))


@pytest.mark.parametrize("name", ["llama", "llama-untied-bias"])
def test_no_tensor_of_tokens_times_vocabulary_is_ever_made(name, monkeypatch):
    """Forward and backward through the whole model, with chunks of two tokens' logits."""
    monkeypatch.setattr("pbsd.logprobs.CHUNK_LOGITS", 2 * VOCABULARY)
    model = build(name)
    enable_scoring(model)
    groups = [ScoringGroup((5, 6), tuple((7,) * 40 for _ in range(4)))]
    largest_parameter = max(parameter.numel() for parameter in model.parameters())
    with _Largest() as chunked:
        score(model, groups, pad_id=PAD).logprobs_BT.sum().backward()
    with _Largest() as plain:
        model(input_ids=torch.tensor([(5, 6) + (7,) * 40] * 4)).logits.log_softmax(-1).sum().backward()
    tokens = 2 + 4 * 39
    assert chunked.largest <= max(largest_parameter, tokens * 48), "a layer's width times the tokens, or a weight"
    assert plain.largest >= 4 * 42 * VOCABULARY


class _Largest(TorchDispatchMode):
    """The largest storage, in elements, that any operator makes or hands on; autograd's backward included."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("budget", [1, 10, 30, 10_000])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_frozen_scores_do_not_depend_on_the_budget(name, budget):
    model = build(name)
    rows = score_frozen(model, GROUPS, pad_id=PAD, max_tokens=budget)
    assert [len(row) for row in rows] == [len(completion) for _, completion in ROWS]
    flat = [value for row in rows for value in row]
    assert flat == pytest.approx([v for row in ROWS for v in slow(model, *row).tolist()], abs=2e-5)


@pytest.mark.parametrize("budget", [1, 10, 12, 24, 10_000])
def test_chunks_keep_every_completion_in_order_within_the_budget(budget):
    chunks = list(token_chunks(GROUPS, budget))
    assert [(g.prompt_ids, c) for chunk in chunks for g in chunk for c in g.completion_ids] == ROWS
    for chunk in chunks:
        padded = len(chunk) * max(group.tokens for group in chunk)
        assert padded <= budget or [len(group.completion_ids) for group in chunk] == [1]


class TestFallbacks:
    """Models that are not exact in packed rows are scored in padded ones, and it is said once."""

    def models(self):
        bloom = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2)
        mamba = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
        return {
            "ALiBi": transformers.BloomForCausalLM(bloom).eval(),
            "state space": transformers.MambaForCausalLM(mamba).eval(),
        }

    def test_they_are_exact(self, caplog):
        for name, model in self.models().items():
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                capability = enable_scoring(model)
                scores = score(model, GROUPS, pad_id=PAD)
                score(model, GROUPS, pad_id=PAD)
            assert (capability.chunked, capability.packed) == (True, None), name
            assert (
                len([r for r in caplog.records if "padded rows" in r.message and capability.reason in r.message]) == 1
            )
            for found, row in zip(rows_of(scores), ROWS, strict=True):
                torch.testing.assert_close(found, slow(model, *row), atol=2e-5, rtol=0)

    def test_an_unknown_head_is_found_out(self):
        """A model that does to its logits what no configuration says is scored by its own logits."""

        class Odd(transformers.LlamaForCausalLM):
            def forward(self, *args, **kwargs):
                output = super().forward(*args, **kwargs)
                output.logits = output.logits * 0.5
                return output

        model = Odd(build("llama").config)
        model.load_state_dict(build("llama").state_dict())
        assert not enable_scoring(model).chunked
        for found, row in zip(rows_of(score(model, GROUPS, pad_id=PAD)), ROWS, strict=True):
            torch.testing.assert_close(found, slow(model, *row), atol=2e-5, rtol=0)
        with pytest.raises(ValueError, match="whole distributions"):
            frozen_logits(model, GROUPS, pad_id=PAD, max_tokens=100)

    def test_an_unknown_attention_mask_is_found_out(self):
        """A model that ignores the mask it is given."""

        class Deaf(transformers.LlamaModel):
            def forward(self, *args, attention_mask=None, **kwargs):
                return super().forward(*args, **kwargs)

        model = build("llama")
        model.model.__class__ = Deaf
        assert enable_scoring(model).packed is None
        for found, row in zip(rows_of(score(model, GROUPS, pad_id=PAD)), ROWS, strict=True):
            torch.testing.assert_close(found, slow(model, *row), atol=2e-5, rtol=0)


def test_a_copied_model_scores_by_its_own_weights():
    model = build("llama")
    before = score(model, GROUPS, pad_id=PAD).logprobs_BT.detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_input_embeddings().weight.mul_(0.5)
        assert torch.equal(
            twin(input_ids=torch.tensor([[5, 6]])).logits, build_twin(twin)(torch.tensor([[5, 6]])).logits
        )
    assert (score(twin, GROUPS, pad_id=PAD).logprobs_BT - before).abs().max() > 0.1
    assert torch.equal(score(model, GROUPS, pad_id=PAD).logprobs_BT, before)


def build_twin(model):
    fresh = build("llama")
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_singles_have_one_completion_each():
    assert [(g.prompt_ids, *g.completion_ids) for g in singles(GROUPS)] == ROWS
