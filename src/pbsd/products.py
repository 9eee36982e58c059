"""Linear layers in float32 on CPUs whose vector units torch leaves half unused.

torch gives float32 products to MKL, which takes 512-bit instructions on Intel's processors only; on others that have
them oneDNN, which comes with torch too, is about twice as fast (docs/engine.md). Results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CPU_FACTS = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's float32 products are taken by oneDNN."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        is_intel = "GenuineIntel" in CPU_FACTS.read_text("utf-8")
    except OSError:
        return False
    return not is_intel and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, with gradient: [..., K], [N, K], [N] -> [..., N]."""
    if (
        onednn_is_faster()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        and x.dim() > 1
        and x.numel()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    ):
        product: Tensor = _Linear.apply(x, weight, bias)
        return product
    return F.linear(x, weight, bias)


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """While the block lasts, every `nn.Linear` of `model` computes by `linear`. A backward pass belongs in the block as
    well, since checkpointed layers compute again there. Subclasses and layers with a `forward` of their own are left
    alone."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and "forward" not in vars(layer)]
    if not onednn_is_faster():
        layers = []
    for layer in layers:
        vars(layer)["forward"] = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    """Keeps for the backward pass what `F.linear` keeps: nothing for the gradient of a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_bias = ctx.needs_input_grad[2]
        grad_MN = grad.flatten(0, -2)
        return (
            None if weight is None else _product(grad, weight.t()),
            None if x is None else _product(grad_MN.t(), x.flatten(0, -2).t()),
            grad_MN.sum(0) if wants_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
