"""What the trainer knows of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pbsd.records import Batch, Metrics, Prompt


class Method(Protocol):
    """One optimisation step: `collect` once for all its prompts, then `loss` per micro-batch.

    The trainer divides the summed loss by the summed `weight` over all micro-batches and processes, so the result does
    not depend on how the step was cut up.
    """

    def collect(self, prompts: Sequence[Prompt], step: int) -> tuple[Batch, Metrics]:
        """Sample, grade and prepare the batch of step `step` (0 is the first). No gradient."""

    def weight(self, batch: Batch) -> float:
        """What the summed loss of the batch is to be divided by, e.g. its number of pairs."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Metrics, list[dict[str, Any]]]:
        """Summed loss with gradient, metrics, and a JSON-ready record per sample pair. Calls `model` even if the
        batch's weight is 0, as gradient synchronisation needs every process to take part."""

    def after_step(self, step: int) -> None:
        """Called after optimisation step `step` (1 is the first)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
