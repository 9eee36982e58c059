"""The mask of a packed row and its attention in blocks, by hand, against masked attention, and with errors put in."""

import pytest
import torch
from decoders import GROUPS, PAD, WINDOW, build
from torch.nn.attention.flex_attention import create_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pbsd.scoring import ScoringGroup, enable_scoring, score
from pbsd.scoring.forward import ScoringRequest, _flex_mask
from pbsd.scoring.layout import make_layout
from pbsd.scoring.prefix_attention import PrefixMask


def hidden_differ(model, layout, **changed):
    """Whether log-probabilities change when the packed call is made with something wrong in it."""
    right = model(scoring=ScoringRequest(layout, "mask")).logprobs_M
    states = model.base_model(
        **{"input_ids": layout.ids_RL, "position_ids": layout.positions_RL, "attention_mask": layout.mask(), **changed}
    ).last_hidden_state
    logits_MV = model.lm_head(states).flatten(0, 1)[layout.source_M].log_softmax(-1)
    wrong = logits_MV.gather(-1, layout.targets_M[:, None]).squeeze(-1)
    return (right - wrong).abs().max().item()


def test_negative_controls():
    """The check itself (gap 0 with nothing wrong), then: no mask, and positions that run on over completions."""
    model = build("llama")
    enable_scoring(model)
    layout = make_layout(GROUPS, pad_id=PAD)
    running = torch.arange(layout.ids_RL.shape[1]).expand_as(layout.ids_RL)
    with torch.no_grad():
        assert hidden_differ(model, layout) < 1e-5
        assert hidden_differ(model, layout, attention_mask=None) > 0.1
        assert hidden_differ(model, layout, position_ids=running) > 0.1


def test_a_sliding_window_is_in_the_mask():
    """Sequences of 12 tokens in a window of 4: a packed score without the window would be another."""
    model, wide = build("mistral-windowed"), build("mistral-windowed")
    wide.config.sliding_window = None
    windowed, full = (score(m, GROUPS, pad_id=PAD).logprobs_BT for m in (model, wide))
    assert (windowed - full).abs().max() > 0.1


def test_flex_attention_sees_the_same():
    """Flex attention's block mask, evaluated at every place, is the boolean mask."""
    layout = make_layout(GROUPS, pad_id=PAD)
    for window in (None, WINDOW):
        block_mask = _flex_mask(layout, window)
        rows, length = layout.ids_RL.shape
        assert torch.equal(create_mask(block_mask.mask_mod, rows, 1, length, length, "cpu"), layout.mask(window=window))


def test_the_mask_by_hand():
    """Prompt of 2, completions of 2 and 3 (their last tokens are no inputs): places p0 p1 a0 b0 b1."""
    layout = make_layout([ScoringGroup((5, 6), ((7, 8), (9, 10, 11)))], pad_id=PAD)
    assert layout.ids_RL.tolist() == [[5, 6, 7, 9, 10]]
    assert layout.positions_RL.tolist() == [[0, 1, 2, 2, 3]]
    assert layout.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert layout.source_M.tolist() == [1, 2, 1, 3, 4]
    assert layout.targets_M.tolist() == [7, 8, 9, 10, 11]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_blocks_is_masked_attention(dtype):
    """Output and gradients on ragged rows, grouped key-value heads and a scale of its own."""
    layout = make_layout(GROUPS, pad_id=PAD)
    rows, length = layout.ids_RL.shape
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, length, heads, 16, generator=generator, dtype=torch.float32)
        for heads in (4, 2, 2)
    )  # fmt: skip
    weight = torch.randn(rows, length, 4, 16, generator=generator) * (layout.completion_RL != -2)[:, :, None, None]

    def run(attention, dtype):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in (query, key, value)]
        out = attention(*(leaf.transpose(1, 2) for leaf in leaves))
        (out.float() * weight).sum().backward()
        real = (layout.completion_RL != -2)[:, :, None, None]
        return [out.float() * real, *(leaf.grad.float() for leaf in leaves)]

    def masked(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=layout.mask(), scale=0.3, enable_gqa=True
        ).transpose(1, 2)

    def blocks(query, key, value):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](None, query, key, value, PrefixMask.of(layout), scaling=0.3)[0]

    enable_scoring(build("llama"))
    tolerance = 2e-6 if dtype == torch.float32 else 0.02
    for found, expected in zip(run(blocks, dtype), run(masked, torch.float32), strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
