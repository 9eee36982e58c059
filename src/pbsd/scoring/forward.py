"""A language model's forward pass that ends in token log-probabilities instead of logits.

`enable_scoring` gives a model's own `forward` one more keyword, `scoring`. The call goes through whatever wraps the
model (DDP, FSDP, PEFT, autocast), so the head's weights are used where the wrapper expects it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pbsd.logprobs import CHUNK_LOGITS, LogitHead, chunked_logprobs, map_logits, token_entropy, token_logprobs
from pbsd.scoring.layout import Layout, ScoringGroup, make_layout, singles
from pbsd.scoring.prefix_attention import PrefixMask, blocks_available
from pbsd.scoring.router import active_balance

logger = logging.getLogger(__name__)

TokenFunction = Callable[[Tensor, slice], Tensor]
"""(logits [C, V] float32, which tokens of the request they predict) -> a value per token [C], with gradient."""

Packing = Literal["blocks", "mask"]
"""How rows of several completions are made exact: attention in dense blocks, or a mask over the whole row."""

_MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")
_MASKED_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE, _TOLERANCE_HALF = 1e-3, 0.25
"""Mean differences of log-probabilities that rounding may explain, in nats, in float32 and in half precision."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """What `forward(scoring=...)` is asked for.

    `token_function` adds a value per token made from its logits; `hidden_only` gives the hidden states they are made of
    and nothing else.
    """

    layout: Layout
    packed: Packing | None = None
    entropy: bool = True
    token_function: TokenFunction | None = None
    hidden_only: bool = False


class TokenScores(NamedTuple):
    """Per completion token, in the layout's order: log-probability (with gradient), entropy (without), and what the
    request's `token_function` gave, or with `hidden_only` the hidden states; empty where not asked for."""

    logprobs_M: Tensor
    entropy_M: Tensor
    extra_M: Tensor


@dataclass(frozen=True, slots=True)
class Capability:
    """How a model can be scored; `reason` says why not faster.

    Attributes:
        chunked: body and head can be run apart, so that no full logits are made.
        packed: how rows of several completions are exact; None: not at all. Needs `chunked`.
    """

    chunked: bool
    packed: Packing | None
    reason: str = ""


def language_model(model: Any) -> Any:
    """The causal language model inside wrappers (DDP, torch.compile, PEFT)."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
            model = inner
        else:
            return model


def enable_scoring(model: nn.Module) -> Capability:
    """Add `scoring` to the model's forward, once, and find out by a tiny forward pass what is exact with it.

    Call it before the model is wrapped for distributed or mixed-precision training. Says once, in the log, when the
    model has to be scored in a slower way, and why.
    """
    lm = language_model(model)
    known = getattr(lm, "scoring_capability", None)
    if isinstance(known, Capability):
        return known
    capability = _capability(model, lm)
    lm.scoring_capability = capability
    if capability.reason:
        way = "packed rows under a mask" if capability.packed else "padded rows"
        way += "" if capability.chunked else " and full logits"
        logger.warning("%s is scored in %s (exact, but slower): %s", type(lm).__name__, way, capability.reason)
    return capability


def _patch_forward(lm: Any) -> None:
    original = type(lm).forward
    hooked = lm.__dict__.get("forward")  # by accelerate's device hooks, say

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, scoring: ScoringRequest | None = None, **kwargs: Any) -> Any:
        if scoring is not None:
            return _scoring_forward(self, scoring)
        return original(self, *args, **kwargs) if hooked is None else hooked(*args, **kwargs)

    lm.forward = MethodType(forward, lm)


def _scoring_forward(lm: Any, request: ScoringRequest) -> TokenScores:
    layout = request.layout.to(lm.get_input_embeddings().weight.device)
    inputs: dict[str, Any] = {"input_ids": layout.ids_RL, "use_cache": False}
    if request.packed:
        inputs |= {"position_ids": layout.positions_RL, "attention_mask": _attention_mask(lm, layout, request.packed)}
    if (balance := active_balance()) is not None:
        inputs["output_router_logits"] = True
    outputs = lm.base_model(**inputs)
    if balance is not None:
        balance.observe(outputs.router_logits, layout)
    hidden_RLD = outputs.last_hidden_state
    hidden_MD = hidden_RLD.flatten(0, 1)[layout.source_M]
    if request.hidden_only:
        empty = hidden_MD.new_empty(0)
        return TokenScores(empty, empty, hidden_MD)
    head, function = logit_head(lm), request.token_function
    if isinstance(head, LogitHead) and function is None:
        logprobs_M, entropy_M = chunked_logprobs(head, hidden_MD, layout.targets_M, entropy=request.entropy)
        return TokenScores(logprobs_M, entropy_M, logprobs_M.new_empty(0))

    def of_chunk(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        logprobs_C = token_logprobs(logits_CV, layout.targets_M[part])
        entropy_C = token_entropy(logits_CV) if request.entropy else torch.zeros_like(logprobs_C)
        return logprobs_C, entropy_C, logprobs_C.new_empty(0) if function is None else function(logits_CV, part)

    logits = head.logits if isinstance(head, LogitHead) else head
    vocabulary = lm.get_output_embeddings().weight.shape[0]
    chunk_tokens = max(1, CHUNK_LOGITS // vocabulary)
    chunks = map_logits(logits, hidden_MD, of_chunk, chunk_tokens=chunk_tokens)
    return TokenScores(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


def logit_head(lm: Any, layer: Any = None) -> LogitHead | Callable[[Tensor], Tensor]:
    """The head's weights where it is a plain linear layer; where it is not (an adapter on it, quantized), a function to
    float32 logits. `layer` stands in the head's place."""
    config = lm.config.get_text_config()
    layer = lm.get_output_embeddings() if layer is None else layer
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    if type(layer) is nn.Linear:
        return LogitHead(layer.weight, layer.bias, scale, softcap)

    def logits(hidden_TD: Tensor) -> Tensor:
        logits_TV = layer(hidden_TD).float() * scale
        return logits_TV if softcap is None else torch.tanh(logits_TV / softcap) * softcap

    return logits


def frozen_head(lm: Any) -> LogitHead | Callable[[Tensor], Tensor]:
    """The head as it is at this moment, without gradient, on the weights' present storage: also where they are given
    others later by replacing their data, or an adapter on it is switched on or off."""
    head = logit_head(lm)
    if isinstance(head, LogitHead):
        return head.detached()
    layer = lm.get_output_embeddings()
    own: dict[int, Any] = {id(tensor): tensor for tensor in (*layer.parameters(), *layer.buffers())}
    own |= {id(p): nn.Parameter(p.data, requires_grad=False) for p in layer.parameters() if p.requires_grad}
    return logit_head(lm, copy.deepcopy(layer, own))


def _attention_mask(lm: Any, layout: Layout, packed: str | None) -> Any:
    """What stands for the packed mask in the model's attention: one mask, or one per type of layer."""
    config = lm.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or [])

    # Blocks may have been found available before the model was moved or given another attention, or in evaluation mode.
    drops = lm.training and any(getattr(config, name, 0) for name in ("attention_dropout", "attn_pdrop"))
    has_blocks = (
        packed == "blocks"
        and lm.config._attn_implementation == "sdpa"
        and not drops
        and blocks_available(layout.ids_RL.device)
    )

    def mask(window: int | None) -> Any:
        if has_blocks and window is None:
            return PrefixMask.of(layout)
        if lm.config._attn_implementation == "flex_attention":
            return _flex_mask(layout, window)
        mask_R1LL = layout.mask(window=window)
        if lm.config._attn_implementation == "sdpa":
            return mask_R1LL
        return _additive(mask_R1LL, lm.get_input_embeddings().weight.dtype)

    if "sliding_attention" not in types:
        # Without types of layers, a window is for all of them.
        return mask(None if types else window)
    return {name: mask(window if name == "sliding_attention" else None) for name in types}


def _flex_mask(layout: Layout, window: int | None) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return layout.visible(query, key, row, window=window)

    rows, length = layout.ids_RL.shape
    return create_block_mask(rule, rows, None, length, length, device=str(layout.ids_RL.device))


def _additive(mask_R1LL: Tensor, dtype: torch.dtype) -> Tensor:
    blank = torch.zeros(mask_R1LL.shape, dtype=dtype, device=mask_R1LL.device)
    return blank.masked_fill_(~mask_R1LL, torch.finfo(dtype).min)


def _capability(model: nn.Module, lm: Any) -> Capability:
    """By what the configuration rules out, then by comparing with the model's own logits. Patches the forward."""
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return Capability(False, None, "its adapter puts virtual tokens before the prompt")
    if not hasattr(lm, "get_output_embeddings") or lm.get_output_embeddings() is None or lm.base_model is lm:
        return Capability(False, None, "its body and head cannot be told apart")
    _patch_forward(lm)
    embedding = lm.get_input_embeddings().weight
    obstacle = _packing_obstacle(lm)
    means: list[Packing] = [] if obstacle else ["mask"]
    if means and lm.config._attn_implementation == "sdpa" and blocks_available(embedding.device):
        means.insert(0, "blocks")
    if embedding.is_meta:
        return Capability(True, means[0] if means else None, obstacle)
    # Without autocast, whose rounding would look like an error of ours in full-precision weights.
    with _evaluation_mode(lm), torch.no_grad(), torch.autocast(embedding.device.type, enabled=False):
        if gap := _gap(lm, None):
            return Capability(False, None, f"its head is not a linear map as known here ({gap})")
        for packed in means:
            gap = _gap(lm, packed)
            if not gap:
                return Capability(True, packed, obstacle)
            obstacle = f"packed rows are not exact ({gap})"
    return Capability(True, None, obstacle)


def _packing_obstacle(lm: Any) -> str:
    config = lm.config.get_text_config()
    if types := sorted(set(getattr(config, "layer_types", None) or []) - _MASKED_LAYERS):
        return f"its layers of type {', '.join(types)} take no mask"
    if getattr(lm, "_is_stateful", False):
        return "it carries a state from token to token"
    if "local" in (getattr(config, "attention_layers", None) or []):
        return "its local layers look back by places in the row"
    if lm.config._attn_implementation not in _MASKED_ATTENTION:
        return (
            f"attention {lm.config._attn_implementation!r} takes no mask of ours: load the model with "
            f"attn_implementation={' or '.join(_MASKED_ATTENTION)}"
        )
    return ""


def _gap(lm: Any, packed: Packing | None) -> str:
    """How far the scores of two groups of a few tokens are from the model's own logits, in words; empty if no farther
    than rounding may explain."""
    embedding = lm.get_input_embeddings().weight
    # Not the first ids: special tokens in a row make activations that half precision cannot tell apart.
    ids = torch.randint(embedding.shape[0], (40,), generator=torch.Generator().manual_seed(0)).tolist()
    groups = [
        ScoringGroup(tuple(ids[:8]), (tuple(ids[8:16]), tuple(ids[16:20]))),
        ScoringGroup(tuple(ids[20:25]), (tuple(ids[25:40]),)),
    ]
    padded = make_layout(singles(groups), pad_id=0).to(embedding.device)
    logits_RLV = lm(input_ids=padded.ids_RL, use_cache=False).logits
    expected_M = token_logprobs(logits_RLV.flatten(0, 1)[padded.source_M], padded.targets_M)
    layout = padded if packed is None else make_layout(groups, pad_id=0)
    try:
        found_M = lm(scoring=ScoringRequest(layout, packed)).logprobs_M
    except Exception as error:  # a forward that does not take what ours is given fails in any way
        return f"{type(error).__name__}: {error}"
    gap = (found_M - expected_M).abs().mean().item()
    tolerance = _TOLERANCE if embedding.dtype.itemsize >= 4 else _TOLERANCE_HALF
    return "" if gap <= tolerance else f"log-probabilities differ by {gap:.2g} nats on average"


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
