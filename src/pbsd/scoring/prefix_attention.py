"""Attention over packed rows [prompt | c1 | c2 | ...] that computes only what the packed mask leaves.

A masked square costs the square of the row, most of it hidden. Here a row is three dense blocks: the prompt over itself
(causal), every completion token over the prompt, and each completion over itself (causal). The last two are merged by
their log-sum-exps; backward runs the same kernels with the merged output and log-sum-exp, which gives each block's
exact share of the gradient (as in ring attention, arXiv 2310.01889). The kernels are PyTorch's own flash attention for
CPU. They are private operators, so `blocks_available` asks for them first, and `enable_scoring` compares the result.

A model finds its way here by its mask: `PrefixMask` stands in the place of a 4-D mask, and transformers' attention
function for "sdpa" is replaced by one that looks for it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pbsd.scoring.layout import PROMPT, Layout


class PrefixMask(Tensor):
    """A stand-in for the mask of a layout, [R, 1, L, L] in shape and one element in memory; never read as numbers."""

    plan: _Plan

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What is made of it, if anything, is a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @staticmethod
    def of(layout: Layout) -> PrefixMask:
        rows, length = layout.ids_RL.shape
        blank = torch.zeros(1, dtype=torch.bool, device=layout.ids_RL.device).expand(rows, 1, length, length)
        mask = torch.Tensor._make_subclass(PrefixMask, blank)
        mask.plan = _Plan(layout)
        return mask


_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_FLASH_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
"""(query, key, value, dropout, causal) -> (output, log-sum-exp), and its gradient."""


def blocks_available(device: torch.device) -> bool:
    """Whether the kernels exist here; if so, makes transformers' "sdpa" attention understand `PrefixMask`."""
    if device.type != "cpu" or _FLASH is None:
        return False
    if ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _sdpa
    return ALL_ATTENTION_FUNCTIONS["sdpa"] is _sdpa


@functools.wraps(sdpa_attention_forward)
def _sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if not isinstance(attention_mask, PrefixMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    unknown = sorted({"softcap", "s_aux"} & {name for name, given in kwargs.items() if given is not None})
    if args or kwargs.get("dropout") or unknown:
        raise ValueError(f"prefix attention knows no {', '.join(unknown) or 'dropout'}")
    if torch.is_autocast_enabled(query.device.type):  # which knows the public operator, not the kernels under it
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    return _PrefixAttention.apply(query, key, value, attention_mask.plan, kwargs.get("scaling")), None


class _Plan:
    """Places of a layout's blocks.

    Attributes:
        prompt: longest prompt; the first block is the rows' first `prompt` places.
        after: shortest prompt; the second block's queries are the places from there on.
        beyond_R11P: -inf at the first block's places past the end of each row's prompt, else 0; None if there are none.
        is_prompt_R1L, is_completion_R1L: which tokens are which (padding is neither).
        row_M, place_M: where each completion token lies in the rows.
        own_BT: for each completion, the places of its tokens in the flattened rows, filled up with its first.
        own_row_M, own_place_M: where each completion token lies in `own_BT`.
    """

    def __init__(self, layout: Layout) -> None:
        completion_RL = layout.completion_RL
        self.is_prompt_R1L = (completion_RL == PROMPT)[:, None]
        self.is_completion_R1L = (completion_RL >= 0)[:, None]
        prompt_R = self.is_prompt_R1L.sum((1, 2))
        self.prompt, self.after = int(prompt_R.max()), int(prompt_R.min())
        self.beyond_R11P = None
        if self.prompt > self.after:
            beyond_R1P = ~self.is_prompt_R1L[:, :, : self.prompt]
            self.beyond_R11P = torch.zeros(beyond_R1P.shape).to(beyond_R1P.device).masked_fill_(beyond_R1P, -torch.inf)
            self.beyond_R11P = self.beyond_R11P[:, None]
        self.row_M, self.place_M = (completion_RL >= 0).nonzero(as_tuple=True)
        number_M = completion_RL[self.row_M, self.place_M]
        starts_M = torch.ones_like(number_M, dtype=torch.bool)
        starts_M[1:] = (number_M.diff() != 0) | (self.row_M.diff() != 0)
        self.own_row_M = starts_M.cumsum(0) - 1
        first_B = starts_M.nonzero().squeeze(-1)
        self.own_place_M = torch.arange(len(number_M), device=number_M.device) - first_B[self.own_row_M]
        flat_M = self.row_M * completion_RL.shape[1] + self.place_M
        longest = int(self.own_place_M.max()) + 1 if len(flat_M) else 0
        self.own_BT = flat_M[first_B, None].repeat(1, longest)
        self.own_BT[self.own_row_M, self.own_place_M] = flat_M

    def own(self, heads_RHLD: Tensor) -> Tensor:
        """[R, H, L, D] -> each completion's tokens, [B, H, T, D]."""
        return heads_RHLD.transpose(1, 2).flatten(0, 1)[self.own_BT].transpose(1, 2)

    def add_own(self, total_RHLD: Tensor, part_BHTD: Tensor) -> None:
        """Add what belongs to the completions' tokens to its places in the rows."""
        total_RHLD[self.row_M, :, self.place_M] += part_BHTD[self.own_row_M, :, self.own_place_M]


class _PrefixAttention(torch.autograd.Function):
    """query [R, H, L, D], key and value [R, K, L, D] (K divides H) -> [R, L, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: _Plan, scale: float | None) -> Tensor:
        rows, heads, length, width = query.shape
        start, end, row, place = plan.after, plan.prompt, plan.row_M, plan.place_M
        out_RLHD = query.new_zeros(rows, length, heads, width)
        lse_RHL = torch.zeros(rows, heads, length, device=query.device)
        prompt_key, prompt_value = key[:, :, :end], value[:, :, :end]
        out, lse_RHL[:, :, :end] = _FLASH(query[:, :, :end], prompt_key, prompt_value, 0.0, True, scale=scale)
        out_RLHD[:, :end] = out.transpose(1, 2)
        if len(row):
            mask = None if plan.beyond_R11P is None else plan.beyond_R11P.to(query.dtype)
            cross = _FLASH(query[:, :, start:], prompt_key, prompt_value, 0.0, False, attn_mask=mask, scale=scale)
            own = _FLASH(plan.own(query), plan.own(key), plan.own(value), 0.0, True, scale=scale)
            cross_MHD, cross_MH = (part[row, :, place - start] for part in cross)
            own_MHD, own_MH = (part[plan.own_row_M, :, plan.own_place_M] for part in own)
            lse_MH = torch.logaddexp(cross_MH, own_MH)
            lse_RHL[row, :, place] = lse_MH
            merged_MHD = cross_MHD.float() * (cross_MH - lse_MH).exp().unsqueeze(-1)
            merged_MHD += own_MHD.float() * (own_MH - lse_MH).exp().unsqueeze(-1)
            out_RLHD[row, place] = merged_MHD.to(query.dtype)
        ctx.plan, ctx.scale = plan, scale
        ctx.save_for_backward(query, key, value, out_RLHD, lse_RHL)
        return out_RLHD

    @staticmethod
    def backward(ctx: Any, grad_RLHD: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out_RLHD, lse_RHL = ctx.saved_tensors
        plan, scale = ctx.plan, ctx.scale
        start, end = plan.after, plan.prompt
        out, grad = out_RLHD.transpose(1, 2), grad_RLHD.transpose(1, 2)
        # exp(score - inf) is 0: a query that is not of the block has no share in its gradient.
        lse = lse_RHL.masked_fill(~plan.is_prompt_R1L, torch.inf)[:, :, :end].contiguous()
        prompt_key, prompt_value = key[:, :, :end], value[:, :, :end]
        parts = _FLASH_BACKWARD(
            grad[:, :, :end], query[:, :, :end], prompt_key, prompt_value, out[:, :, :end], lse, 0.0, True, scale=scale
        )
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for total, part in zip(grads, parts, strict=True):
            total[:, :, :end] = part
        if len(plan.row_M):
            mask = None if plan.beyond_R11P is None else plan.beyond_R11P.to(query.dtype)
            lse = lse_RHL.masked_fill(~plan.is_completion_R1L, torch.inf)[:, :, start:].contiguous()
            cross_query, *cross_parts = _FLASH_BACKWARD(
                grad[:, :, start:], query[:, :, start:], prompt_key, prompt_value, out[:, :, start:], lse,
                0.0, False, attn_mask=mask, scale=scale,
            )  # fmt: skip
            grads[0][:, :, start:] += cross_query
            for total, part in zip(grads[1:], cross_parts, strict=True):
                total[:, :, :end] += part
            lse_BHT = torch.full_like(plan.own(lse_RHL.unsqueeze(-1)).squeeze(-1), torch.inf)
            lse_BHT[plan.own_row_M, :, plan.own_place_M] = lse_RHL[plan.row_M, :, plan.place_M]
            own = (plan.own(tensor) for tensor in (grad, query, key, value, out))
            for total, part in zip(grads, _FLASH_BACKWARD(*own, lse_BHT, 0.0, True, scale=scale), strict=True):
                plan.add_own(total, part)
        return *grads, None, None
