"""Options that methods share, on transformers' `TrainingArguments`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from pbsd.config.sharding import check_environment, check_loading
from pbsd.config.training_arguments import check_values, needs_metric, refuse_options
from pbsd.diagnostics.alarms import RULES, resolve_thresholds
from pbsd.diagnostics.text import check_phrases
from pbsd.redact import public_options
from pbsd.rollouts.sampler import SamplingParams
from pbsd.teacher import RefreshMeasure, TeacherKind

ContextArm = Literal["paired", "shuffled", "none"]
"""Which context the teacher is shown: its row's, another row's, or nothing."""


class ContextRule(NamedTuple):
    """What the teacher is shown: whose context, and the share of its characters, from its beginning."""

    arm: ContextArm = "paired"
    dose: float = 1.0


LeakageGuard = Literal["off", "drop", "downweight"]

_TEXT_OPTIONS_OF_TRANSFORMERS = frozenset(
    ("output_dir", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules",
     "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "torch_compile_backend", "torch_compile_mode",
     "liger_kernel_config", "logging_strategy", "logging_dir", "include_num_input_tokens_seen", "log_level",
     "log_level_replica", "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id",
     "trackio_static_space_id", "eval_strategy", "include_for_metrics", "save_strategy", "hub_model_id", "hub_strategy",
     "hub_revision", "metric_for_best_model", "accelerator_config", "parallelism_config",
     "dataloader_multiprocessing_context", "label_names", "train_sampling_strategy", "length_column_name",
     "ddp_backend", "fsdp", "fsdp_config", "deepspeed", "debug", "resume_from_checkpoint")
)  # fmt: skip
"""Options with text in them that are written into files; one that a later version brings is not, until it is named."""

_WARPERS = ("temperature", "top_p", "top_k", "min_p")
DEFAULT_TEACHER_TEMPLATE = "{{ prompt }}\n\n{{ privileged_context }}"


def option(default: Any, help: str) -> Any:
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def as_dict(option: dict[str, Any] | str | None) -> dict[str, Any]:
    """A dict option's value once the config is made: by then transformers has parsed the command line's JSON."""
    assert not isinstance(option, str), f"{option!r} is not among its config's _VALID_DICT_FIELDS"
    return dict(option or {})


@dataclass
class RolloutConfig(TrainingArguments):
    """Options that every method shares: prompts, sampling, rewards, evaluation. Lengths are in tokens."""

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "generation_kwargs",
        "model_init_kwargs",
        "chat_template_kwargs",
        "alarms",
    ]

    output_dir: str | None = option("runs/pbsd", "The run folder.")
    per_device_train_batch_size: int = option(8, "Prompts per device and forward pass (not completions).")
    learning_rate: float = option(1e-5, "Peak learning rate.")
    logging_steps: float = option(1, "Log every so many steps; metrics.jsonl is exact on resume at 1.")
    save_strategy: str = option("steps", "When to save a checkpoint: steps, epoch or no.")
    save_steps: float = option(50, "Save a checkpoint every so many steps.")
    save_total_limit: int | None = option(2, "How many checkpoints to keep.")
    remove_unused_columns: bool = option(False, "Only False: reward functions read the data set's columns.")
    lr_scheduler_type: str = option("constant_with_warmup", "Learning-rate schedule.")

    model_init_kwargs: dict[str, Any] | str | None = option(
        None,
        "Keyword arguments of from_pretrained (dtype, revision, attn_implementation ...), as JSON on the command line.",
    )
    trust_remote_code: bool = option(False, "Let models and tokenizers from the hub run their own code.")
    disable_dropout: bool = option(
        True,
        "Switch off dropout, layer drop and router jitter, so that scores are those of the sampled policy; a model "
        "that is still random is refused.",
    )

    max_prompt_length: int | None = option(None, "Longest student prompt. The problem is never cut; see `overlong`.")
    max_teacher_prompt_length: int | None = option(None, "Longest teacher prompt (privileged context included).")
    overlong: Literal["error", "drop"] = option(
        "error", "What happens to rows over a prompt budget; drops are counted."
    )
    teacher_prompt_template: str = option(
        DEFAULT_TEACHER_TEMPLATE,
        "Jinja template of the teacher's prompt (of its last user message, for chats); sees `prompt`, "
        "`privileged_context` and the row's columns.",
    )
    tools_template: str | None = option(
        None,
        "How a row's `tools` come into both prompts. null: the chat template writes them, or the prompt's own text "
        "does; else the row is refused. A Jinja template (sees `tools`, as JSON schemas, and the row's columns): what "
        "it gives goes before the system message. Empty: nowhere, they are for the rewards.",
    )
    student_thinking_prefix: str = option("", "Text that starts the student's turn, e.g. '<think>\\n'.")
    teacher_thinking_prefix: str = option("", "Text that starts the teacher's turn.")
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None, "Keyword arguments of apply_chat_template, as JSON."
    )

    num_generations: int = option(4, "Student completions per prompt (K_S), fresh at every step.")
    max_completion_length: int = option(256, "Longest completion.")
    temperature: float = option(1.0, "Sampling temperature; at 1 the samples come from the policy itself.")
    top_p: float = option(1.0, "Nucleus sampling; 1 is off.")
    top_k: int = option(0, "Sample from the k most likely tokens; 0 is off.")
    min_p: float | None = option(None, "Drop tokens less likely than min_p times the most likely one.")
    generation_kwargs: dict[str, Any] | str | None = option(None, "More options of the sampler, as JSON.")
    generation_batch_size: int = option(64, "Completions decoded together on a device.")
    scoring_batch_tokens: int = option(16384, "Tokens scored together where no gradient is needed.")
    train_batch_tokens: int = option(
        16384, "Tokens in one forward and backward pass, per device; larger micro-batches are cut by prompts."
    )

    reward_weights: list[float] | None = option(None, "A weight per reward function; None: all 1.")
    reward_timeout: float = option(10.0, "Seconds a grader may take for one completion.")
    reward_workers: int = option(1, "Worker processes for graders, per training process.")
    success_threshold: float = option(
        1.0, "A completion is correct when the first reward function gives at least this."
    )

    num_generations_eval: int = option(8, "Completions per held-out problem: accuracy is avg@k at T = 1.")
    eval_seed: int = option(1234, "Seed of evaluation samples, the same before and after training.")

    leakage_phrases: list[str] | None = option(
        None,
        "Regular expressions, case ignored, that count as citing the context beside those of pbsd.diagnostics.text.",
    )
    log_token_ratios: bool = option(
        True,
        "Write each token's text and log-ratio to samples.jsonl, for methods that have one; off saves disk space where "
        "completions are long.",
    )
    alarms: dict[str, Any] | str | None = option(
        None,
        "Thresholds of the collapse alarms as JSON {rule: threshold}, null switches a rule off. Rules, where {} stands "
        "for the threshold, and defaults: "
        + "; ".join(f"{name}, {rule.meaning} ({rule.threshold:g})" for name, rule in RULES.items())
        + ".",
    )
    alarm_window: int = option(
        20,
        "Logs that a rule looks at, at least 5. A rule that compares with the start is silent for two windows; "
        "misleading_teacher looks at the first 5 alone.",
    )
    on_alarm: Literal["warn", "stop"] = option(
        "warn",
        "warn: log the alarm and write it to alarms.jsonl; stop: also end training, without saving the last step, and "
        "name the last healthy checkpoint, the newest from before the alarm's window.",
    )

    def __post_init__(self) -> None:
        check_environment()
        refuse_options(self)
        if needs_metric(self) and self.metric_for_best_model is None:
            self.metric_for_best_model, self.greater_is_better = "accuracy", True
        super().__post_init__()
        check_values(self)
        check_loading(as_dict(self.model_init_kwargs))
        for name, options in _choices(type(self)).items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}; got {getattr(self, name)!r}")
        for name in (
            "num_generations",
            "num_generations_eval",
            "generation_batch_size",
            "reward_workers",
            "scoring_batch_tokens",
            "train_batch_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.sampling_params()
        check_phrases(self.leakage_phrases or [])
        self._check_alarms()
        if "{prompt}" in self.teacher_prompt_template.replace("{{prompt}}", ""):
            raise ValueError(
                "teacher_prompt_template is a Jinja template: write {{ prompt }} and {{ privileged_context }}, "
                f"not {{prompt}}; got {self.teacher_prompt_template!r}"
            )

    def _refuse_unread(self, **readers: tuple[bool, str]) -> None:
        """Raise ValueError for options that were set and that nothing reads. `readers` has for each whether these
        options read it, and which would."""
        defaults = {own.name: own.default for own in fields(self)}
        for name, (is_read, reader) in readers.items():
            if not is_read and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(self, name)!r} is read with {reader} alone: leave it out")

    def to_dict(self) -> dict[str, Any]:
        """The options as trackers, checkpoints and the run's files are given them: those that are known to hold no
        secret (numbers, our own, and transformers' by name), each without what is one (see `pbsd.redact`)."""
        return public_options(super().to_dict(), _written(type(self)))

    def _check_alarms(self) -> None:
        resolve_thresholds(as_dict(self.alarms))
        if self.alarm_window < 5:
            raise ValueError(f"alarm_window must be at least 5, got {self.alarm_window}")
        if self.on_alarm == "warn":
            return
        if self.logging_strategy == "no":
            raise ValueError("on_alarm='stop' watches what is logged, but logging_strategy='no' logs nothing")
        if self.save_strategy == "no":
            raise ValueError("on_alarm='stop' keeps the last healthy checkpoint, but save_strategy='no' saves none")
        if self.save_total_limit is None:
            return
        by_steps = (
            self.save_strategy == self.logging_strategy == "steps" and min(self.save_steps, self.logging_steps) >= 1
        )
        reach = (self.save_total_limit - 1) * self.save_steps if by_steps else 0
        if reach < self.alarm_window * self.logging_steps:
            raise ValueError(
                "on_alarm='stop' keeps the newest checkpoint from before the alarm's window, which may be deleted by "
                f"then with save_total_limit={self.save_total_limit}: (save_total_limit - 1) * save_steps must be at "
                "least alarm_window * logging_steps, all in steps; raise save_total_limit or set it to null"
            )

    @property
    def uses_rewards(self) -> bool:
        """Whether rewards bear on what is learnt."""
        return True

    @property
    def alarm_thresholds(self) -> dict[str, float]:
        """The rules that are on."""
        unused = {} if self.uses_rewards else {"flat_reward": None}
        return resolve_thresholds({**unused, **as_dict(self.alarms)})

    @property
    def context_rule(self) -> ContextRule:
        """Which context the teacher is shown, and how much of it."""
        return ContextRule()

    def sampling_params(self, *, temperature: float | None = None) -> SamplingParams:
        """Training's sampling parameters; with `temperature`, evaluation's (no truncation)."""
        if temperature is not None:
            return SamplingParams(max_completion_length=self.max_completion_length, temperature=temperature)
        options = {name: getattr(self, name) for name in _WARPERS}
        kwargs = as_dict(self.generation_kwargs)
        options |= {name: value for name, value in kwargs.items() if name in _WARPERS and value is not None}
        processors = {name: value for name, value in kwargs.items() if name not in _WARPERS}
        return SamplingParams(max_completion_length=self.max_completion_length, generation_kwargs=processors, **options)

    @property
    def samples_policy(self) -> bool:
        """Whether completions are drawn from the policy itself: temperature 1, nothing truncated or processed."""
        params = self.sampling_params()
        truncated = params.top_p < 1 or params.top_k or params.min_p
        return params.temperature == 1 and not truncated and not params.generation_kwargs

    @property
    def teacher_kind(self) -> TeacherKind | None:
        """Whose weights are kept beside the student's: the teacher's, or the reference's (initial); None: nobody's."""
        return None

    @property
    def reads_context(self) -> bool:
        """Whether the rows' privileged context is what the teacher knows more than the student."""
        return False

    @property
    def max_reference_length(self) -> int | None:
        """Longest reference completion, for methods that train on the rows' own; None: they are not read."""
        return None

    @property
    def objective(self) -> str:
        """What is optimised, in a few words, for people."""
        return type(self).__name__


@dataclass
class TeacherConfig(RolloutConfig):
    """Options of methods with a teacher."""

    _how_to_use_rewards: ClassVar[str] = ""

    teacher: TeacherKind = option("initial", "Weights of the teacher: initial, live, ema, refreshed or external.")
    teacher_model: str | None = option(None, "Name or folder of the model of an external teacher.")
    ema_decay: float = option(0.99, "ema: weight of the old average at each step (0.99 keeps 99 percent).")
    teacher_refresh_steps: int = option(50, "refreshed: copy the student (or check the rule) every so many steps.")
    teacher_refresh_margin: float | None = option(
        None,
        "refreshed: copy only if the mean reward of the challenger leads the teacher's by more than this, 0 or above; "
        "null copies without asking.",
    )
    teacher_refresh_measure: RefreshMeasure = option(
        "student",
        "Challenger of the margin. student: its samples since the last check; context: the refreshed teacher's, under "
        "its prompts, as many as the teacher wrote, in the step of the check (counted as generated).",
    )
    teacher_refresh_blend: float = option(1.0, "refreshed: weight of the student in the new teacher; 1 copies it.")
    context: ContextArm = option(
        "paired",
        "Control arms. paired: the teacher sees its row's privileged_context; shuffled: that of another row, never an "
        "equal one, in an order drawn by `seed` (rows without one stay without; other columns that the template reads "
        "stay the row's own); none: nothing but the problem. Held-out rows are always paired: no teacher reads them.",
    )
    context_dose: float = option(
        1.0, "Share of the context's characters that the teacher is shown, the first ones: half of a solution, say."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context != "paired" and not self.reads_context:
            raise ValueError(
                f"context={self.context!r} is for a teacher that reads privileged_context, which with these options "
                f"of {type(self).__name__} none does: leave it out"
            )
        if not 0 < self.context_dose <= 1:
            raise ValueError(f"context_dose must lie in (0, 1], got {self.context_dose}; for 0 set context='none'")
        if self.context_dose < 1 and (self.context == "none" or not self.reads_context):
            raise ValueError("context_dose shortens the context that a teacher reads, and none reads one: leave it out")
        if not 0 <= self.ema_decay <= 1:
            raise ValueError(f"ema_decay must lie in [0, 1] and is the weight of the old average, got {self.ema_decay}")
        if self.teacher_refresh_steps < 1:
            raise ValueError(f"teacher_refresh_steps must be at least 1, got {self.teacher_refresh_steps}")
        if (self.teacher == "external") != (self.teacher_model is not None):
            raise ValueError("teacher='external' and teacher_model go together: give both or neither")
        if self.teacher_refresh_margin is not None and not (self.teacher == "refreshed" and self.samples_both):
            raise ValueError(
                "teacher_refresh_margin compares rewards of student and teacher samples for teacher='refreshed'; "
                f"{type(self).__name__} with teacher={self.teacher!r} cannot: leave it out"
            )
        if self.teacher_refresh_margin is not None and not 0 <= self.teacher_refresh_margin < math.inf:
            raise ValueError(
                f"teacher_refresh_margin must be at least 0, got {self.teacher_refresh_margin}: a teacher is not to be "
                "replaced by a worse one"
            )
        if not 0 < self.teacher_refresh_blend <= 1:
            raise ValueError(f"teacher_refresh_blend must lie in (0, 1], got {self.teacher_refresh_blend}")
        if self.teacher_refresh_measure != "student" and self.teacher_refresh_margin is None:
            raise ValueError(
                "teacher_refresh_measure is read with teacher_refresh_margin alone: set it, or leave both out"
            )
        self._refuse_unread(
            ema_decay=(self.teacher == "ema", "teacher='ema'"),
            teacher_refresh_steps=(self.teacher == "refreshed", "teacher='refreshed'"),
            teacher_refresh_blend=(self.teacher == "refreshed", "teacher='refreshed'"),
        )
        moves_unasked = self.teacher in ("live", "ema") or (
            self.teacher == "refreshed" and self.teacher_refresh_margin is None
        )
        if moves_unasked and not self.uses_rewards:
            warnings.warn(
                f"teacher={self.teacher!r} with {self.objective} reads no reward: a moving teacher without labels is a "
                f"feedback loop that collapses to few completions. Choose {self._how_to_use_rewards}teacher='initial'.",
                stacklevel=2,
            )

    @property
    def teacher_kind(self) -> TeacherKind | None:
        return self.teacher

    @property
    def reads_context(self) -> bool:
        return True

    @property
    def context_rule(self) -> ContextRule:
        return ContextRule(self.context, self.context_dose)

    @property
    def samples_both(self) -> bool:
        """Whether both roles sample, so that a refresh rule can compare their rewards."""
        return False

    @property
    def uses_rewards(self) -> bool:
        """Whether the reward shapes the target; if not, the teacher itself is the fixed point (docs/paper_map.md)."""
        return False


@dataclass
class TeacherSamplesConfig(TeacherConfig):
    """Options of methods that learn from the teacher's samples."""

    leakage_guard: LeakageGuard = option(
        "off",
        "Teacher samples that cite the context instead of solving (pbsd.diagnostics.text.LEAKS, `leakage_phrases`). "
        "drop: they are in no pair and in no loss; downweight: their terms in the loss are multiplied by "
        "leakage_weight, a pair's by both its sides' weights, and what the sum is divided by stays. Both are counted.",
    )
    leakage_weight: float = option(0.1, "downweight: weight of a teacher sample that cites the context, below 1.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.leakage_weight < 1:
            raise ValueError(f"leakage_weight must lie in (0, 1), got {self.leakage_weight}: for 0 choose drop")
        if self.leakage_guard != "off" and not self.learns_from_teacher:
            raise ValueError(
                f"leakage_guard={self.leakage_guard!r} looks at the teacher's samples, and none are drawn: leave it out"
            )
        self._refuse_unread(leakage_weight=(self.leakage_guard == "downweight", "leakage_guard='downweight'"))

    @property
    def learns_from_teacher(self) -> bool:
        """Whether the teacher samples."""
        return True


def _written(cls: type) -> frozenset[str]:
    """The options that may be written into files."""
    ours = {name for base in cls.__mro__ if base.__module__.startswith("pbsd.") for name in base.__annotations__}
    numbers = {
        name
        for name, kind in get_type_hints(cls).items()
        if set(get_args(kind) or [kind]) <= {int, float, bool, type(None)} or get_origin(kind) is Literal
    }
    return frozenset(ours | numbers | _TEXT_OPTIONS_OF_TRANSFORMERS)


def _choices(cls: type) -> dict[str, tuple[str, ...]]:
    own = [name for base in cls.__mro__ if base.__module__.startswith("pbsd.config") for name in base.__annotations__]
    hints = get_type_hints(cls)
    return {name: get_args(hints[name]) for name in own if getattr(hints[name], "__origin__", None) is Literal}
