"""Options of the methods that match the teacher's distribution on the student's samples: OPSD, SDFT, SDPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pbsd.config.base import TeacherConfig, option
from pbsd.teacher import TeacherKind

DistillationMode = Literal["full_logits", "topk_logits", "sampled_token"]

DEFAULT_REPROMPT_TEMPLATE = (
    "{{ prompt }}"
    "{% if solution %}\nCorrect solution:\n\n{{ solution }}\n\n{% endif %}"
    "{% if feedback %}\nThe following is feedback from your unsuccessful earlier attempt:\n\n{{ feedback }}\n\n"
    "{% endif %}"
    "\n\nCorrectly solve the original question.\n"
)


@dataclass
class DistillationConfig(TeacherConfig):
    """The divergence, with TRL's option names. `temperature` divides both sides' logits, as in TRL."""

    distillation_mode: DistillationMode = option(
        "full_logits",
        "full_logits: the whole vocabulary; topk_logits: the student's most likely tokens; sampled_token: the "
        "log-ratio at the sampled token, with the score-function gradient (needs alpha 1).",
    )
    distillation_alpha: float = option(
        0.5,
        "0: KL(teacher || student); 1: KL(student || teacher); between: the Jensen-Shannon divergence with this weight "
        "on the teacher.",
    )
    distillation_topk: int | None = option(None, "How many tokens topk_logits keeps.")
    distillation_add_tail: bool = option(
        False, "topk_logits: one bucket for all other tokens (else the kept ones are renormalised)."
    )
    distillation_entry_clip: float | None = option(
        None, "Cap on each vocabulary entry's term of the divergence, in nats (OPSD's jsd_token_clip); null: none."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distillation_alpha <= 1:
            raise ValueError(f"distillation_alpha must lie in [0, 1], got {self.distillation_alpha}")
        if self.distillation_mode == "topk_logits" and self.distillation_topk is None:
            raise ValueError("distillation_mode='topk_logits' needs distillation_topk: how many tokens to keep")
        if self.distillation_topk is not None and self.distillation_topk < 1:
            raise ValueError(f"distillation_topk must be at least 1, got {self.distillation_topk}")
        is_topk = self.distillation_mode == "topk_logits"
        self._refuse_unread(distillation_add_tail=(is_topk, "distillation_mode='topk_logits'"))
        if self.distillation_entry_clip is not None and self.distillation_entry_clip <= 0:
            raise ValueError(f"distillation_entry_clip must be positive or null, got {self.distillation_entry_clip}")
        if self.distillation_mode == "sampled_token":
            if self.distillation_alpha != 1:
                raise ValueError(
                    "distillation_mode='sampled_token' estimates KL(student || teacher): set distillation_alpha=1"
                )
            if self.distillation_entry_clip is not None:
                raise ValueError("distillation_entry_clip needs whole distributions: not with sampled_token")
            if not self.samples_policy:
                raise ValueError(
                    "distillation_mode='sampled_token' needs samples of the policy itself: set temperature=1, top_p=1, "
                    "top_k=0, no min_p and no generation_kwargs, or choose full_logits or topk_logits"
                )

    @property
    def objective(self) -> str:
        names = {0.0: "KL(teacher || student)", 1.0: "KL(student || teacher)"}
        divergence = names.get(self.distillation_alpha, f"Jensen-Shannon({self.distillation_alpha:g})")
        return f"{divergence} by {self.distillation_mode}, teacher {self.teacher}"


@dataclass
class OPSDConfig(DistillationConfig):
    """Options of on-policy self-distillation (arXiv 2601.18734). Defaults are those of the authors' released script for
    Qwen3-1.7B (fixed teacher, KL(teacher || student) with every entry capped at 0.05, temperature 1.1, top-p 0.95,
    top-k 20, one completion per prompt), except for lengths and the schedule. It reads no reward."""

    output_dir: str | None = option("runs/opsd", "The run folder.")
    learning_rate: float = option(5e-6, "Peak learning rate (OPSD's script).")
    num_generations: int = option(1, "Student completions per prompt (OPSD's script).")
    temperature: float = option(1.1, "Sampling temperature; also divides both sides' logits (OPSD's script).")
    top_p: float = option(0.95, "Nucleus sampling (OPSD's script); 1 is off.")
    top_k: int = option(20, "Sample from the k most likely tokens (OPSD's script); 0 is off.")
    ema_decay: float = option(0.999, "ema: weight of the old average at each step (OPSD's trainer).")
    distillation_alpha: float = option(0.0, "0: KL(teacher || student) (OPSD's script); 1: KL(student || teacher).")
    distillation_entry_clip: float | None = option(
        0.05, "Cap on each vocabulary entry's term of the divergence, in nats (OPSD's jsd_token_clip); null: none."
    )


@dataclass
class SDFTConfig(DistillationConfig):
    """Options of self-distillation fine-tuning: the teacher sees a demonstration. Defaults are those of TRL 1.16's SDFT
    trainer: initial teacher, Jensen-Shannon 1/2 on the student's 100 most likely tokens, renormalised. Not taken over:
    its importance-sampling clip (one gradient step per fresh batch leaves the ratio at 1). It reads no reward."""

    output_dir: str | None = option("runs/sdft", "The run folder.")
    num_generations: int = option(8, "Student completions per prompt (TRL).")
    ema_decay: float = option(0.95, "ema: weight of the old average at each step (TRL's teacher_update_rate 0.05).")
    distillation_mode: DistillationMode = option(
        "topk_logits", "full_logits, topk_logits (TRL's default) or sampled_token."
    )
    distillation_topk: int | None = option(100, "How many tokens topk_logits keeps (TRL).")
    num_loss_tokens_to_skip: int = option(0, "Leave so many first tokens of each completion out of the loss (TRL).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_loss_tokens_to_skip < 0:
            raise ValueError(f"num_loss_tokens_to_skip must be at least 0, got {self.num_loss_tokens_to_skip}")


@dataclass
class SDPOConfig(DistillationConfig):
    """Options of self-distillation policy optimisation: the teacher sees a sibling's successful attempt and feedback.
    Defaults are those of TRL 1.16's SDPO trainer: EMA teacher, KL(student || teacher) at the sampled tokens. Success is
    a reward of at least `success_threshold`. Not taken over: its blend with a policy gradient (`distillation_weight`),
    and the importance-sampling clip (one gradient step per fresh batch leaves the ratio at 1)."""

    output_dir: str | None = option("runs/sdpo", "The run folder.")
    num_generations: int = option(8, "Student completions per prompt (TRL); siblings teach each other.")
    teacher: TeacherKind = option("ema", "Weights of the teacher (TRL's default is ema).")
    ema_decay: float = option(0.95, "ema: weight of the old average at each step (TRL's teacher_update_rate 0.05).")
    distillation_mode: DistillationMode = option(
        "sampled_token", "full_logits, topk_logits or sampled_token (TRL's default)."
    )
    distillation_alpha: float = option(1.0, "1: KL(student || teacher) (TRL's default); 0: KL(teacher || student).")
    use_successful_as_teacher: bool = option(True, "Show the teacher a successful attempt of the same prompt (TRL).")
    dont_reprompt_on_self_success: bool = option(
        True, "A completion is never its own demonstration (TRL); a successful one is shown a sibling's, if any."
    )
    include_environment_feedback: bool = option(False, "Show the teacher the row's feedback (TRL's default is false).")
    environment_feedback_only_without_solution: bool = option(
        False, "Show feedback only where no attempt of the prompt succeeded (TRL)."
    )
    feedback_column: str = option("privileged_context", "Column that holds feedback (TRL's is privileged_context).")
    remove_thinking_from_demonstration: bool = option(False, "Cut <think>...</think> out of the shown attempt (TRL).")
    reprompt_template: str = option(
        DEFAULT_REPROMPT_TEMPLATE,
        "Jinja template of the teacher's prompt; sees `prompt`, `solution` and `feedback` (empty where there is none). "
        "TRL's three templates in one. A prompt over max_teacher_prompt_length is counted and not used.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.use_successful_as_teacher or self.include_environment_feedback):
            raise ValueError(
                "SDPO's teacher sees nothing more than the student: set use_successful_as_teacher, "
                "include_environment_feedback or both"
            )
        if self.num_generations < 2 and self.dont_reprompt_on_self_success and not self.include_environment_feedback:
            raise ValueError("SDPO needs siblings: set num_generations to at least 2, or include_environment_feedback")
        shows_siblings = (self.use_successful_as_teacher, "use_successful_as_teacher")
        shows_feedback = (self.include_environment_feedback, "include_environment_feedback")
        self._refuse_unread(
            dont_reprompt_on_self_success=shows_siblings,
            remove_thinking_from_demonstration=shows_siblings,
            feedback_column=shows_feedback,
        )

    @property
    def reads_context(self) -> bool:
        return False

    @property
    def uses_rewards(self) -> bool:
        return self.use_successful_as_teacher
