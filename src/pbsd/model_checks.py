"""Whether a model can be sampled, scored and trained as the options ask, found out before training."""

from __future__ import annotations

from torch import nn


def disable_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 (modules have no such declared attribute)
