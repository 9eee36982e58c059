"""Options. One dataclass per method on transformers' `TrainingArguments`; names follow TRL's where it has one."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

from transformers import TrainingArguments

from pbsd.losses.preference import PreferenceLoss
from pbsd.pairs import Pairing, PairPolicy
from pbsd.rollouts.sampler import SamplingParams
from pbsd.teacher import TeacherKind

DEFAULT_TEACHER_TEMPLATE = "{{ prompt }}\n\n{{ privileged_context }}"


def _option(default: Any, help: str) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class RolloutConfig(TrainingArguments):
    """Options that every method shares: prompts, sampling, rewards, evaluation. Lengths are in tokens."""

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "generation_kwargs",
        "model_init_kwargs",
        "chat_template_kwargs",
    ]

    output_dir: str | None = _option("runs/pbsd", "The run folder.")
    per_device_train_batch_size: int = _option(8, "Prompts per device and forward pass (not completions).")
    learning_rate: float = _option(1e-5, "Peak learning rate.")
    logging_steps: float = _option(1, "Log every so many steps; metrics.jsonl is exact on resume at 1.")
    save_strategy: str = _option("steps", "When to save a checkpoint: steps, epoch or no.")
    save_steps: float = _option(50, "Save a checkpoint every so many steps.")
    save_total_limit: int | None = _option(2, "How many checkpoints to keep.")
    remove_unused_columns: bool = _option(False, "Kept False: reward functions read the data set's columns.")
    lr_scheduler_type: str = _option("constant_with_warmup", "Learning-rate schedule.")

    model_init_kwargs: dict[str, Any] | str | None = _option(
        None,
        "Keyword arguments of from_pretrained (dtype, revision, attn_implementation ...), as JSON on the command line.",
    )
    trust_remote_code: bool = _option(False, "Let models and tokenizers from the hub run their own code.")
    disable_dropout: bool = _option(True, "Set every dropout to 0, so that scores are those of the sampled policy.")

    max_prompt_length: int | None = _option(None, "Longest student prompt. The problem is never cut; see `overlong`.")
    max_teacher_prompt_length: int | None = _option(None, "Longest teacher prompt (privileged context included).")
    overlong: Literal["error", "drop"] = _option(
        "error", "What happens to rows over a prompt budget; drops are counted."
    )
    teacher_prompt_template: str = _option(
        DEFAULT_TEACHER_TEMPLATE,
        "Jinja template of the teacher's prompt (of its last user message, for chats); sees `prompt`, "
        "`privileged_context` and the row's columns.",
    )
    student_thinking_prefix: str = _option("", "Text that starts the student's turn, e.g. '<think>\\n'.")
    teacher_thinking_prefix: str = _option("", "Text that starts the teacher's turn.")
    chat_template_kwargs: dict[str, Any] | str | None = _option(
        None, "Keyword arguments of apply_chat_template, as JSON."
    )

    num_generations: int = _option(4, "Student completions per prompt (K_S), fresh at every step.")
    max_completion_length: int = _option(256, "Longest completion.")
    temperature: float = _option(1.0, "Sampling temperature; at 1 the samples come from the policy itself.")
    top_p: float = _option(1.0, "Nucleus sampling; 1 is off.")
    top_k: int = _option(0, "Sample from the k most likely tokens; 0 is off.")
    min_p: float | None = _option(None, "Drop tokens less likely than min_p times the most likely one.")
    generation_kwargs: dict[str, Any] | str | None = _option(None, "More options of the sampler, as JSON.")
    generation_batch_size: int = _option(64, "Completions decoded together on a device.")
    scoring_batch_tokens: int = _option(16384, "Padded tokens scored together where no gradient is needed.")

    reward_weights: list[float] | None = _option(None, "A weight per reward function; None: all 1.")
    reward_timeout: float = _option(10.0, "Seconds a grader may take for one completion.")
    reward_workers: int = _option(1, "Worker processes for graders, per training process.")
    success_threshold: float = _option(
        1.0, "A completion is correct when the first reward function gives at least this."
    )

    num_generations_eval: int = _option(8, "Completions per held-out problem: accuracy is avg@k at T = 1.")
    eval_seed: int = _option(1234, "Seed of evaluation samples, the same before and after training.")

    def __post_init__(self) -> None:
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "accuracy", True
        super().__post_init__()
        for name, options in _choices(type(self)).items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}; got {getattr(self, name)!r}")
        for name in ("num_generations", "num_generations_eval", "generation_batch_size", "reward_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.sampling_params()
        if "{prompt}" in self.teacher_prompt_template.replace("{{prompt}}", ""):
            raise ValueError(
                "teacher_prompt_template is a Jinja template: write {{ prompt }} and {{ privileged_context }}, "
                f"not {{prompt}}; got {self.teacher_prompt_template!r}"
            )

    def sampling_params(self, *, temperature: float | None = None) -> SamplingParams:
        """Training's sampling parameters; with `temperature`, evaluation's (no truncation)."""
        if temperature is not None:
            return SamplingParams(max_completion_length=self.max_completion_length, temperature=temperature)
        return SamplingParams(
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            generation_kwargs=dict(self.generation_kwargs or {}),  # type: ignore[arg-type]
        )


@dataclass
class PBSDConfig(RolloutConfig):
    """Options of Preference-Based Self-Distillation (arXiv 2605.05040; mathematics in docs/paper_map.md).

    The target is P* proportional to T exp(reward_scale * r / beta). The default objective is ours, chosen in the lab
    (studies/defaults, docs/log.md): the paper's loss on pairs of the union that the rewards put in order, with a
    likelihood anchor. The paper's own is loss_type="logistic", pairing="cross", pair_policy="all", nll_coef=0.
    """

    beta: float = _option(0.1, "Strength of the pull to the teacher; the tilt is reward_scale / beta.")
    loss_type: PreferenceLoss = _option("logistic", "Pair loss: logistic (the paper's), bradley_terry or squared.")
    reward_scale: float = _option(1.0, "eta: multiplies the reward inside the loss.")
    label_smoothing: float = _option(0.0, "Probability that a preference label is wrong, below 1/2.")
    nll_coef: float = _option(
        1.0, "Weight of an anchor: mean negative log-likelihood per token of the chosen completion."
    )
    num_teacher_generations: int = _option(4, "Teacher completions per prompt (K_T).")
    pairing: Pairing = _option("all", "cross: teacher against student samples; all: every two of the union.")
    pair_policy: PairPolicy = _option("oriented", "Which pairs stay: all (the paper), correct, improving or oriented.")
    keep_ties: bool = _option(False, "oriented: keep pairs of equal reward with label 1/2 instead of dropping them.")

    teacher: TeacherKind = _option("initial", "Weights of the teacher: initial, live, ema, refreshed or external.")
    teacher_model: str | None = _option(None, "Name or folder of the model of an external teacher.")
    ema_decay: float = _option(0.99, "ema: weight of the old average at each step (0.99 keeps 99 percent).")
    teacher_refresh_steps: int = _option(50, "refreshed: copy the student (or check the rule) every so many steps.")
    teacher_refresh_margin: float | None = _option(
        None, "refreshed: copy only if the student's mean reward leads the teacher's by this much since the last check."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not (math.isfinite(self.reward_scale) and 0 <= self.nll_coef < math.inf):
            raise ValueError(
                f"reward_scale must be finite and nll_coef at least 0, got {self.reward_scale} and {self.nll_coef}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 1/2), got {self.label_smoothing}")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must lie in [0, 1] and is the weight of the old average, got {self.ema_decay}")
        if self.num_teacher_generations < 1 or self.teacher_refresh_steps < 1:
            raise ValueError("num_teacher_generations and teacher_refresh_steps must be at least 1")
        if (self.teacher == "external") != (self.teacher_model is not None):
            raise ValueError("teacher='external' and teacher_model go together: give both or neither")
        if self.teacher in ("live", "ema") and not self.uses_rewards:
            warnings.warn(
                f"teacher={self.teacher!r} with the logistic loss on all pairs reads no reward: a moving teacher "
                "without labels is a feedback loop that collapses to few completions. Choose "
                "loss_type='bradley_terry' or a pair_policy that reads rewards, or teacher='initial'.",
                stacklevel=2,
            )

    @property
    def uses_rewards(self) -> bool:
        """Whether the reward shapes the target; without it the fixed point is the teacher itself (DESIGN 2.6)."""
        return self.loss_type != "logistic" or self.pair_policy != "all"


def _choices(cls: type) -> dict[str, tuple[str, ...]]:
    own = [name for base in cls.__mro__ if base.__module__ == __name__ for name in base.__annotations__]
    hints = get_type_hints(cls)
    return {name: get_args(hints[name]) for name in own if getattr(hints[name], "__origin__", None) is Literal}
