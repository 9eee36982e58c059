"""Options of the methods that learn from rewards of the student's samples alone: GRPO, online DPO."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pbsd.config.base import RolloutConfig, option
from pbsd.losses.policy_gradient import AdvantageScale
from pbsd.losses.preference import PreferenceLoss
from pbsd.teacher import TeacherKind

GRPOLoss = Literal["dapo", "bnpo", "grpo", "dr_grpo"]


@dataclass
class GRPOConfig(RolloutConfig):
    """Options of group-relative policy optimisation (arXiv 2402.03300). Defaults are those of TRL 1.16's GRPO trainer.

    Every step samples afresh and makes one gradient step, so the importance ratio is 1 and nothing is ever clipped: the
    options of the clip (epsilon, importance_sampling_level ...) have no place here. Samples are the policy's own:
    another temperature, or truncation, is refused.
    """

    output_dir: str | None = option("runs/grpo", "The run folder.")
    learning_rate: float = option(1e-6, "Peak learning rate (TRL).")
    num_generations: int = option(8, "Completions per prompt, at least 2: a group (TRL).")
    beta: float = option(0.0, "Weight of the KL to the initial policy; 0 keeps no reference (TRL).")
    use_bias_correction_kl: bool = option(
        True,
        "Multiply the KL's estimator k3 by the importance ratio: the gradient is that of KL(policy || ref) (TRL).",
    )
    scale_rewards: AdvantageScale = option("group", "Advantages over the deviation of: group, batch, none (TRL).")
    loss_type: GRPOLoss = option(
        "dapo",
        "Mean over: all tokens of the step (dapo; bnpo is the same here, for a step is never cut by micro-batches), "
        "completions of their token means (grpo), completions of sums over max_completion_length (dr_grpo).",
    )
    num_iterations: int = option(1, "Gradient steps per batch; only 1.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_iterations != 1:
            raise ValueError(f"num_iterations must be 1 (every step samples afresh), got {self.num_iterations}")
        if self.num_generations < 2:
            raise ValueError(
                f"GRPO compares the completions of a prompt: num_generations must be at least 2, got "
                f"{self.num_generations}"
            )
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be at least 0, got {self.beta}")
        if not self.samples_policy:
            raise ValueError(
                "GRPO's gradient is that of samples of the policy itself: it needs temperature=1, top_p=1, top_k=0, no "
                "min_p and no generation_kwargs"
            )
        self._refuse_unread(use_bias_correction_kl=(self.beta > 0, "beta above 0"))

    @property
    def teacher_kind(self) -> TeacherKind | None:
        return "initial" if self.beta > 0 else None

    @property
    def objective(self) -> str:
        reference = f"KL to the initial policy {self.beta:g}" if self.beta else "no reference"
        return f"{self.loss_type} loss, advantages scaled by {self.scale_rewards}, {reference}"


@dataclass
class OnlineDPOConfig(RolloutConfig):
    """Options of online DPO (arXiv 2402.04792): PBSD's loss without a teacher. Both sides of a pair are the student's,
    the rewards say which is chosen, and the reference is the initial policy under the student's prompt.

    Defaults are TRL 1.16's, except for the temperature: its 0.9 samples another policy than the loss is of.
    """

    output_dir: str | None = option("runs/online_dpo", "The run folder.")
    learning_rate: float = option(5e-7, "Peak learning rate (TRL).")
    num_generations: int = option(2, "Completions per prompt, at least 2 (TRL).")
    beta: float = option(0.1, "Strength of the pull to the reference (TRL).")
    loss_type: PreferenceLoss = option(
        "logistic", "Pair loss: logistic (DPO's, TRL's sigmoid), bradley_terry or squared."
    )
    reward_scale: float = option(1.0, "Multiplies the reward gap in bradley_terry and squared.")
    pairs: Literal["best_worst", "all"] = option(
        "best_worst", "One pair per prompt, best against worst reward, or every two. Ties are dropped and counted."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_generations < 2:
            raise ValueError(f"a pair needs two completions: num_generations is {self.num_generations}, raise it to 2")
        if not (0 < self.beta < math.inf and math.isfinite(self.reward_scale)):
            raise ValueError(f"beta must be positive and reward_scale finite, got {self.beta} and {self.reward_scale}")
        self._refuse_unread(reward_scale=(self.loss_type != "logistic", "loss_type bradley_terry or squared"))

    @property
    def teacher_kind(self) -> TeacherKind | None:
        return "initial"

    @property
    def objective(self) -> str:
        return f"{self.loss_type} loss on {self.pairs} pairs, reference the initial policy, beta {self.beta:g}"
