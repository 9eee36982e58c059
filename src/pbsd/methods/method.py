"""What the trainer knows of a method, and what methods have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor, nn

from pbsd.config import RolloutConfig
from pbsd.diagnostics.rollouts import sample_metrics
from pbsd.engine import Engine, rollout_metrics
from pbsd.records import Batch, Metrics, Prompt, Role, Rollout, prompt_means, sampled_by_role

Config = TypeVar("Config", bound=RolloutConfig)
_SECOND_ROUND = 1


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

    def sample(
        self,
        prompts: Sequence[Prompt],
        counts: Mapping[Role, int],
        step: int,
        *,
        then: Callable[[Sequence[Rollout]], Mapping[Role, Sequence[int]]] | None = None,
    ) -> tuple[list[Rollout], Metrics]:
        """Fresh graded samples of the roles, and their metrics; a teacher's refresh rule sees the rewards. `then` says
        of these how many more each role is to write for each prompt; metrics and the rule then pass over what a role
        of `counts` writes more, since how much that is depends on how its first samples turned out."""
        key: tuple[int, ...] = (self.args.seed, step)
        rollouts, outcomes = self._draw(prompts, counts, key)
        watched = rollouts
        teacher_key = key
        if then is not None:
            second_key = (*key, _SECOND_ROUND)
            more, more_outcomes = self._draw(prompts, then(rollouts), second_key)
            watched = rollouts + [rollout for rollout in more if rollout.role not in counts]
            rollouts, outcomes = rollouts + more, Counter(outcomes) + Counter(more_outcomes)
            teacher_key = key if "teacher" in counts else second_key
        metrics = rollout_metrics(rollouts, watched, outcomes)
        metrics.merge(sample_metrics(prompts, watched, self.args.leakage_phrases or []))
        metrics.merge(self._observe_refresh(prompts, watched, step, teacher_key))
        return rollouts, metrics

    def _draw(
        self, prompts: Sequence[Prompt], counts: Mapping[Role, int | Sequence[int]], key: tuple[int, ...]
    ) -> tuple[list[Rollout], dict[str, int]]:
        """Graded samples, and how often each outcome of a reward function happened."""
        rollouts = self.engine.sample(prompts, counts, key=key, params=self.args.sampling_params())
        rollouts, scores = self.engine.grade(prompts, rollouts)
        return rollouts, scores.outcomes

    def _observe_refresh(
        self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], step: int, teacher_key: tuple[int, ...]
    ) -> Metrics:
        """Tell the teacher's refresh rule the rewards that it waits for, a mean per prompt."""
        metrics = Metrics()
        teacher = self.teacher
        if teacher is None or (challenger := teacher.challenger(step + 1)) is None:
            return metrics
        rewards = {role: _mean_rewards(own) for role, own in sampled_by_role(rollouts)}
        if challenger == "context":
            written = Counter(rollout.prompt for rollout in rollouts if rollout.role == "teacher")
            numbers = [written[index] for index in range(len(prompts))]
            with teacher.as_refreshed():
                # As many as the teacher wrote, by its own random numbers: equal weights give equal rewards.
                candidates, _ = self._draw(prompts, {"teacher": numbers}, teacher_key)
            rewards["student"] = _mean_rewards(candidates)
            metrics.observe("reward/refreshed_teacher", rewards["student"])
            metrics.count("tokens/refreshed_teacher", sum(len(rollout.completion_ids) for rollout in candidates))
        teacher.observe(*(self.engine.gather(rewards.get(role, [])) for role in ("student", "teacher")))
        return metrics

    def after_step(self, step: int) -> None:
        if self.teacher is not None:
            self.teacher.after_step(step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.teacher is None else {"teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])


def _mean_rewards(rollouts: Sequence[Rollout]) -> list[float]:
    """Of every prompt that has a judged one."""
    return [*prompt_means(rollouts, lambda rollout: rollout.reward).values()]
