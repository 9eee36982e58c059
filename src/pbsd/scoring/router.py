"""Routers of a mixture of experts: their load-balancing loss joins the step's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from pbsd.scoring.layout import PADDING, PROMPT, Layout

_active: ContextVar[RouterBalance | None] = ContextVar("router_balance", default=None)


class RouterBalance:
    """transformers' auxiliary loss of a mixture of experts, coef * E * sum_e f_e P_e (arXiv 2101.03961, eq. 4 to 6),
    over all tokens that a step scores with gradient, in all layers and processes: f_e is the number of top-k choices of
    expert e per token (no gradient), P_e its mean probability. As in rows that are not packed, a prompt's tokens count
    once for each of its completions.

    f_e is of the whole step. So it is counted first (`counting`, a forward pass over every part); after that the loss
    is a sum over tokens, and does not depend on how the step is cut.
    """

    def __init__(self, coef: float, top_k: int, experts: int) -> None:
        self.coef = coef
        self.top_k = top_k
        self.experts = experts
        self.share = torch.zeros(())
        self._is_counting = False
        # Of the step: choices of each expert, sums of their probabilities, tokens times layers.
        self._choices_E, self._probs_E = torch.zeros(2, experts, dtype=torch.float64)
        self._tokens = 0.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Begin a step: the block's forward passes with gradient are those whose tokens count."""
        self._choices_E, self._probs_E = torch.zeros(2, self.experts, dtype=torch.float64)
        self._tokens = 0.0
        self._is_counting = True
        token = _active.set(self)
        try:
            yield
        finally:
            self._is_counting = False
            _active.reset(token)

    def reduce(self, add_up: Callable[[Tensor], Tensor], device: torch.device) -> float:
        """Add the counts up over processes. Returns the step's loss; NaN where nothing was scored."""
        own = torch.cat([self._choices_E, self._probs_E, self._choices_E.new_tensor([self._tokens])])
        counts = add_up(own.to(device))
        self._choices_E, self._probs_E = counts[:-1].view(2, self.experts)
        self._tokens = counts[-1].item()
        if not self._tokens:
            return math.nan
        return self.coef * self.experts * (self._choices_E @ self._probs_E).item() / self._tokens**2

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """After the block, `share` is what its forward passes with gradient add to the step's loss, with gradient."""
        self.share = torch.zeros(())
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def observe(self, router_logits: Sequence[Tensor], layout: Layout) -> None:
        """Take in the routers' logits, a [tokens, E] for each layer, of one forward pass."""
        weight_T1 = _sequences(layout)[:, None]
        for logits in router_logits:
            probs_TE = logits.view(-1, self.experts).softmax(-1).float()
            probs_E = (probs_TE * weight_T1.to(probs_TE)).sum(0)
            if self._is_counting:
                chosen_TE = torch.zeros_like(probs_TE).scatter_(1, probs_TE.topk(self.top_k, -1).indices, 1.0)
                self._choices_E = self._choices_E.to(probs_E.device) + (chosen_TE * weight_T1.to(chosen_TE)).sum(0)
                self._probs_E = self._probs_E.to(probs_E.device) + probs_E.detach()
                self._tokens += weight_T1.sum().item()
            elif self._tokens:
                slope_E = (self.coef * self.experts / self._tokens**2 * self._choices_E).to(probs_E)
                self.share = self.share.to(probs_E.device) + slope_E @ probs_E


def active_balance() -> RouterBalance | None:
    """Who wants the routers' logits of a forward pass that is run now; only those with gradient are asked for."""
    return _active.get() if torch.is_grad_enabled() else None


@contextmanager
def uncounted() -> Iterator[None]:
    """For forward passes whose result is multiplied by 0."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def router_balance(lm: Any) -> RouterBalance | None:
    """The balance that a causal language model's configuration asks for (`output_router_logits`), None if for none. It
    is compared once with what the model itself gives.

    Raises ValueError for a model whose auxiliary loss is another.
    """
    config = lm.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        return None
    try:
        balance, gap = _measured(lm, config)
    except Exception as error:  # a forward with other outputs fails in any way
        balance, gap = None, f"{type(error).__name__}: {error}"
    if balance is None or gap:
        raise ValueError(
            f"output_router_logits asks for the auxiliary loss of the router of {type(lm).__name__}, which is not the "
            f"one that pbsd computes exactly over the micro-batches of a step ({gap}): train without it, with "
            'model_init_kwargs {"output_router_logits": false}'
        )
    return balance


@torch.no_grad()
def _measured(lm: Any, config: Any) -> tuple[RouterBalance, str]:
    """The balance, and how far it is from the model's own auxiliary loss on a few tokens, in words; empty if it is the
    same."""
    embedding = lm.get_input_embeddings().weight
    ids_1L = torch.randint(embedding.shape[0], (1, 12), generator=torch.Generator().manual_seed(0))
    outputs = lm(input_ids=ids_1L.to(embedding.device), use_cache=False, output_router_logits=True)
    coef, top_k = (
        getattr(lm, name) if hasattr(lm, name) else getattr(config, name)
        for name in ("router_aux_loss_coef", "num_experts_per_tok")
    )
    balance = RouterBalance(coef, top_k, outputs.router_logits[0].shape[-1])
    prompt_1L = torch.full_like(ids_1L, PROMPT)
    layout = Layout((1,), ids_1L, torch.arange(12)[None], prompt_1L, torch.tensor([11]), torch.tensor([0]))
    with balance.counting():
        balance.observe(outputs.router_logits, layout.to(embedding.device))
    ours, theirs = balance.reduce(lambda counts: counts, embedding.device), coef * float(outputs.aux_loss)
    return balance, "" if math.isclose(ours, theirs, rel_tol=1e-2) else f"{ours:.4g} is not {theirs:.4g}"


def _sequences(layout: Layout) -> Tensor:
    """How many sequences each place of the flattened rows stands in: a prompt's tokens in one for each completion."""
    rows, length = layout.ids_RL.shape
    of_completion = layout.completion_RL.flatten()
    first = layout.source_M[of_completion[layout.source_M] == PROMPT]  # where each completion begins
    completions_R = torch.bincount(first // length, minlength=rows)
    weight_T = torch.where(of_completion == PROMPT, completions_R.repeat_interleave(length), 1)
    return torch.where(of_completion == PADDING, 0, weight_T)
