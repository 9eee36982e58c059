"""Options of the methods that learn completions by likelihood: rejection fine-tuning, supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pbsd.config.base import RolloutConfig, TeacherSamplesConfig, option
from pbsd.teacher import TeacherKind

Normalization = Literal["token", "sequence"]


@dataclass
class ImitationConfig(RolloutConfig):
    """How the likelihood is averaged."""

    loss_normalization: Normalization = option(
        "token",
        "Negative log-likelihood: token, the mean over all trained tokens of the step (TRL's SFT), so long completions "
        "weigh more; sequence, the mean over completions of their token means.",
    )


@dataclass
class RFTConfig(ImitationConfig, TeacherSamplesConfig):
    """Options of rejection fine-tuning (arXiv 2308.01825): likelihood of rewarded samples, here drawn afresh at every
    step. A sample is kept when its reward is at least `success_threshold`."""

    output_dir: str | None = option("runs/rft", "The run folder.")
    rft_source: Literal["student", "teacher", "both"] = option(
        "student", "Whose samples are learnt from: student (the publication), teacher or both."
    )
    num_teacher_generations: int = option(4, "Teacher completions per prompt, for rft_source teacher or both.")
    deduplicate: bool = option(True, "Equal completions of a prompt count once (the publication keeps distinct ones).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_teacher_generations < 1:
            raise ValueError(f"num_teacher_generations must be at least 1, got {self.num_teacher_generations}")
        if self.rft_source == "student" and self.teacher != "initial":
            raise ValueError(f"rft_source='student' has no use for teacher={self.teacher!r}: choose teacher or both")

    @property
    def teacher_kind(self) -> TeacherKind | None:
        return None if self.rft_source == "student" else self.teacher

    @property
    def reads_context(self) -> bool:
        return self.learns_from_teacher

    @property
    def learns_from_teacher(self) -> bool:
        return self.rft_source != "student"

    @property
    def samples_both(self) -> bool:
        return self.rft_source == "both"

    @property
    def uses_rewards(self) -> bool:
        return True

    @property
    def objective(self) -> str:
        return (
            f"likelihood of samples of {self.rft_source} with reward at least {self.success_threshold:g}, mean per "
            f"{self.loss_normalization}"
        )


@dataclass
class SFTConfig(ImitationConfig):
    """Options of supervised fine-tuning on the rows' own completions: column `completion` (text, or an assistant's
    message) or, where a row has none, its `privileged_context`. Nothing is sampled for training. Completions over
    max_completion_length follow `overlong`."""

    output_dir: str | None = option("runs/sft", "The run folder.")
    learning_rate: float = option(2e-5, "Peak learning rate (TRL).")

    @property
    def max_reference_length(self) -> int | None:
        return self.max_completion_length

    @property
    def objective(self) -> str:
        return f"likelihood of the rows' completions, mean per {self.loss_normalization}"
