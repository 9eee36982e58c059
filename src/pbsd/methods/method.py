"""What the trainer knows of a method, and what methods have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from pbsd.config import RolloutConfig
from pbsd.diagnostics.rollouts import sample_metrics
from pbsd.engine import Engine, rollout_metrics
from pbsd.records import Batch, Metrics, Prompt, Role, Rollout

Config = TypeVar("Config", bound=RolloutConfig)


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
        """Summed loss with gradient, metrics, and a JSON-ready record per sample or pair. Calls `model` even if the
        batch's weight is 0, as gradient synchronisation needs every process to take part."""

    def after_step(self, step: int) -> None:
        """Called after optimisation step `step` (1 is the first)."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EngineMethod(Generic[Config]):
    """A method's state is that of the engine's teacher (or reference), if it has one."""

    def __init__(self, args: Config, engine: Engine) -> None:
        self.args = args
        self.engine = engine
        self.teacher = engine.teacher

    def sample(self, prompts: Sequence[Prompt], counts: Mapping[Role, int], step: int) -> tuple[list[Rollout], Metrics]:
        """Fresh graded samples of the roles, and their metrics; a teacher's refresh rule sees the rewards."""
        args, engine = self.args, self.engine
        rollouts = engine.sample(prompts, counts, key=(args.seed, step), params=args.sampling_params())
        rollouts, scores = engine.grade(prompts, rollouts)
        if self.teacher is not None and self.teacher.kind == "refreshed":
            self.teacher.observe(
                engine.gather([r.reward for r in rollouts if r.role == "student" and r.reward is not None]),
                engine.gather([r.reward for r in rollouts if r.role == "teacher" and r.reward is not None]),
            )
        metrics = rollout_metrics(rollouts, scores)
        metrics.merge(sample_metrics(prompts, rollouts, args.leakage_phrases or []))
        return rollouts, metrics

    def after_step(self, step: int) -> None:
        if self.teacher is not None:
            self.teacher.after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
