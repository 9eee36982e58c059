"""Linear layers with their weights in oneDNN's blocked layout, for the many small products of decoding on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_ROWS = 32
"""The layout is chosen for this many rows; it serves any number."""


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """While the block lasts, every `nn.Linear` of `model` on the CPU computes with a packed copy of its weight.

    `F.linear` takes a row-major weight and blocks it in every call, which pays for thousands of rows but not for the
    few of a decoding step. A packed copy is made once, at a layer's first call, and dropped at the end: one more copy
    of the weights for as long as the block lasts, which must not change them. Results differ from `F.linear` by
    rounding only. Under autocast the copy is in autocast's type, which also saves casting the weights in every step.
    Subclasses, layers with a `forward` of their own and other devices are left alone.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and _packable(layer)]
    for layer in layers:
        vars(layer)["forward"] = _PackedLinear(layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _packable(layer: nn.Linear) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and type(layer.weight.data) is Tensor
        and layer.weight.device.type == "cpu"
        and "forward" not in vars(layer)
    )


class _PackedLinear:
    """The `forward` of one layer. The two operators are those that torch's own CPU compiler packs weights with."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.dtype: torch.dtype | None = None

    def __call__(self, x: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype != self.dtype:
            self._pack(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), self.weight, self.bias, "none", [], "")

    def _pack(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.layer.weight.detach().to(dtype), _ROWS)
        self.bias = None if self.layer.bias is None else self.layer.bias.detach().to(dtype)
