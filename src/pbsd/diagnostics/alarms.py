"""Alarms: rules on the logged metrics that name a collapse while it happens."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pbsd.diagnostics.series import EARLY, Level, Series

SPIKES = 3
"""Outliers within a window that are no accident."""
KL_FLOOR = 10.0
"""Growth of KL(T || pi) in nats that learning the target can need: KL(T || P*) = log E_T[exp(r')] - E_T[r'] is at most
the range of the tilt r' = reward_scale r / beta, 10 for a reward in [0, 1] at the default beta."""
TOKEN_KL_FLOOR = 0.2
"""The same in nats per token, where a method matches its teacher: it only keeps multiples of almost nothing quiet."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A rule that has begun to fire.

    Attributes:
        step: the optimisation step after which it fired.
        healthy_until: the last step before the rule's window: a checkpoint of that step or an earlier one had not seen
            what the rule complains of.
        message: what was measured, and what people do about it.
    """

    rule: str
    step: int
    healthy_until: int
    message: str


Check = Callable[[Mapping[str, Series], float], str | None]
"""From the series and the threshold to what was measured, where the rule fires."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of `RULES`.

    Attributes:
        threshold: the default.
        meaning: when it fires; `{}` is the threshold.
        series: what it reads, by the names of `SERIES`; the first one's window is the rule's. Others may be missing.
        advice: what people do about it.
        at_start: whether it judges the first `EARLY` values alone and so does not wait for a whole window.
    """

    threshold: float
    meaning: str
    series: tuple[str, ...]
    check: Check
    advice: str
    at_start: bool = False


SERIES: dict[str, tuple[str, ...]] = {
    "reward": ("reward/student",),
    "teacher_reward": ("reward/teacher",),
    "reward_range": ("reward/range",),
    "judged": ("reward/judged",),
    "entropy": ("health/student_entropy",),
    "length": ("tokens/student_length",),
    "truncated": ("tokens/student_truncated",),
    "saturated": ("pairs/saturated",),
    "chosen": ("teacher/log_ratio_chosen", "reference/log_ratio_chosen"),
    "margin": ("pairs/margin",),
    "kl": ("teacher/kl_teacher_student",),
    "token_kl": ("teacher/token_kl_student_teacher", "teacher/token_kl"),
    "gradient": ("grad_norm",),
}
"""Name -> the metric it reads, the first that is logged. A metric that a method lacks keeps its rules silent."""


def _misleading_teacher(series: Mapping[str, Series], threshold: float) -> str | None:
    if not len(series["teacher_reward"].values) == len(series["reward"].values) == EARLY:
        return None  # once, and never where a run goes on from a checkpoint that lacks one of them
    teacher, student = series["teacher_reward"].now, series["reward"].now
    if not student.above(teacher):
        return None
    if student.mean - teacher.mean <= threshold * abs(student.mean):
        return None
    return f"at the start the teacher's mean reward is {teacher.mean:.3g}, the student's {student.mean:.3g}"


def _flat_reward(series: Mapping[str, Series], threshold: float) -> str | None:
    ranges, means = series["reward_range"].values, [series[role].values for role in ("reward", "teacher_reward")]
    if len(ranges) != EARLY or any(len(values) not in (0, EARLY) for values in means):
        return None  # once, as `_misleading_teacher`
    rewards = [value for values in means for value in values]
    if not rewards or max(*ranges, max(rewards) - min(rewards)) > threshold:
        return None
    return f"in the first {EARLY} logs every sample has the reward {rewards[0]:.3g}"


def _unjudged(series: Mapping[str, Series], threshold: float) -> str | None:
    if len(series["judged"].values) < EARLY:
        return None
    share = 1 - series["judged"].now.mean
    return f"{share:.0%} of the samples have no reward" if share > threshold else None


def _reward_collapse(series: Mapping[str, Series], threshold: float) -> str | None:
    reward = series["reward"].now
    lost = [
        high
        for high in series["reward"].highs
        if high.above(reward) and high.mean - reward.mean > threshold * abs(high.mean)
    ]
    if not lost:
        return None
    return f"the student's mean reward is {reward.mean:.3g}, it was {max(high.mean for high in lost):.3g} before"


def _entropy_collapse(series: Mapping[str, Series], threshold: float) -> str | None:
    entropy, start = series["entropy"].now, series["entropy"].start
    if start is None or not (start.above(entropy) and entropy.mean < (1 - threshold) * start.mean):
        return None
    reward = series["reward"]
    if reward.start is not None and reward.now.above(reward.start):
        return None  # surer and better: it has learnt the task
    return f"the student's entropy is {entropy.mean:.3g} nats per token, at the start {start.mean:.3g}"


def _length_explosion(series: Mapping[str, Series], threshold: float) -> str | None:
    length, start = series["length"].now, series["length"].start
    if start is None or not (length.above(start) and length.mean > threshold * start.mean):
        return None
    return f"the student's completions have {length.mean:.0f} tokens, at the start {start.mean:.0f}"


def _truncation(series: Mapping[str, Series], threshold: float) -> str | None:
    cut, start = series["truncated"].now, series["truncated"].start
    if start is None or not (cut.above(start) and cut.mean > threshold and start.mean < threshold / 2):
        return None
    return f"{cut.mean:.0%} of the student's completions reach max_completion_length, at the start {start.mean:.0%}"


def _saturation(series: Mapping[str, Series], threshold: float) -> str | None:
    saturated = series["saturated"].now
    if saturated.mean <= threshold:
        return None
    return f"{saturated.mean:.0%} of the pairs have a margin beyond 4, where the loss is flat or fights what is settled"


def _likelihood_displacement(series: Mapping[str, Series], threshold: float) -> str | None:
    start, margin_start = series["chosen"].start, series["margin"].start
    if start is None or margin_start is None:
        return None
    chosen, margin = series["chosen"].now, series["margin"].now
    if not (margin.above(margin_start) and start.above(chosen) and start.mean - chosen.mean > threshold):
        return None
    return (
        f"the margin rose from {margin_start.mean:.3g} to {margin.mean:.3g}, yet the log-ratio of the chosen "
        f"completions fell from {start.mean:.3g} to {chosen.mean:.3g} nats: both sides lose to something else"
    )


def _kl_growth(name: str, floor: float, what: str, unit: str) -> Check:
    def check(series: Mapping[str, Series], threshold: float) -> str | None:
        kl, start = series[name].now, series[name].start
        if start is None or not kl.above(start):
            return None
        if kl.mean - start.mean <= max((threshold - 1) * abs(start.mean), floor):
            return None
        return f"{what} is {kl.mean:.3g} nats per {unit}, at the start {start.mean:.3g}"

    return check


def _gradient_spikes(series: Mapping[str, Series], threshold: float) -> str | None:
    gradient = series["gradient"]
    before = [value for value in gradient.before if value > 0]  # a step without anything to learn has none
    if len(before) < gradient.window / 2:
        return None
    usual = statistics.median(before)
    spikes = [value for value in gradient.newest if value > threshold * usual]
    if len(spikes) < SPIKES:
        return None
    return f"{len(spikes)} of {gradient.window} gradient norms reach up to {max(spikes):.3g}, the usual is {usual:.3g}"


RULES: dict[str, Rule] = {
    "misleading_teacher": Rule(
        0.2,
        f"the teacher's first {EARLY} mean rewards are more than {{}} of the student's below them",
        ("teacher_reward", "reward"),
        _misleading_teacher,
        "The context leads the teacher astray, and a KL to it or imitation of it the student: read both prompts (pbsd "
        "render), look for contexts that are cut or of another row; context: none does without",
        at_start=True,
    ),
    "flat_reward": Rule(
        1e-9,
        f"the rewards of the first {EARLY} logged values are all within {{}} of each other (methods that learn from "
        "rewards)",
        ("reward_range", "reward", "teacher_reward"),
        _flat_reward,
        "Equal rewards teach nothing. Read what the graders say (`grades` in samples.jsonl; pbsd doctor shows three): "
        "a format that the grader does not read, answers of another kind, or a task that is too hard or too easy",
        at_start=True,
    ),
    "unjudged": Rule(
        0.5,
        "more than {} of the samples could not be judged",
        ("judged",),
        _unjudged,
        "Look at reward/*/timeout and reward/*/error in the log and at `grades` in samples.jsonl: a reference that "
        "cannot be read, or a reward_timeout that is too short",
        at_start=True,
    ),
    "reward_collapse": Rule(
        0.5,
        "the student's mean reward lost more than {} of its best earlier window, or of its first values",
        ("reward",),
        _reward_collapse,
        "Go back to the checkpoint before, with a lower learning_rate (a third) or warm-up; with a moving teacher, "
        "teacher: initial or a slower ema_decay; for pairs, an nll_coef",
    ),
    "entropy_collapse": Rule(
        0.9,
        "the student's entropy lost more than {} of what it had at the start, without more reward for it",
        ("entropy", "reward"),
        _entropy_collapse,
        "Lower learning_rate, raise beta or num_generations; with a moving teacher, teacher: initial",
    ),
    "length_explosion": Rule(
        3.0,
        "the student's completions are more than {} times as long as at the start",
        ("length",),
        _length_explosion,
        "Read the longest ones in samples.jsonl: repetition calls for a lower learning_rate; honest reasoning for more "
        "max_completion_length, or length_explosion: null",
    ),
    "truncation": Rule(
        0.5,
        "more than {} of the student's completions reach the length limit, at the start less than half of that",
        ("truncated",),
        _truncation,
        "Read them in samples.jsonl: a stop token that is unlearnt calls for a lower learning_rate or an nll_coef, "
        "honest reasoning for more max_completion_length",
    ),
    "saturation": Rule(
        0.9,
        "more than {} of the pairs have a margin beyond 4",
        ("saturated",),
        _saturation,
        "Lower beta (the margin is beta times a log-ratio), choose loss_type: squared, which holds margins at the "
        "reward gap, or a pair_policy with harder pairs",
    ),
    "likelihood_displacement": Rule(
        5.0,
        "the margin grew while the log-ratio of the chosen completions fell by more than {} nats",
        ("chosen", "margin"),
        _likelihood_displacement,
        "Raise nll_coef (the likelihood anchor), choose loss_type: squared or bradley_terry, or lower learning_rate",
    ),
    "kl_blow_up": Rule(
        3.0,
        f"KL(teacher || student) is more than {{}} times what it was at the start, and {KL_FLOOR:g} nats more",
        ("kl",),
        _kl_growth("kl", KL_FLOOR, "KL(teacher || student)", "completion"),
        "The student leaves the teacher's support: raise beta, add imitation_coef or nll_coef, or lower learning_rate",
    ),
    "token_kl_blow_up": Rule(
        3.0,
        "KL(teacher || student) at the student's tokens (sampled_token: KL(student || teacher)), where a method learns "
        f"from it, is more than {{}} times what it was at the start, and {TOKEN_KL_FLOOR:g} nats per token more",
        ("token_kl",),
        _kl_growth("token_kl", TOKEN_KL_FLOOR, "the KL between teacher and student", "token"),
        "Lower learning_rate; with a moving teacher, teacher: initial or a slower ema_decay",
    ),
    "gradient_spikes": Rule(
        10.0,
        f"{SPIKES} gradient norms of a window are more than {{}} times the median of the window before",
        ("gradient",),
        _gradient_spikes,
        "Lower learning_rate or max_grad_norm, more warm-up; look at the samples of those steps for broken rows",
    ),
}
"""The rules by name. A threshold of None switches a rule off."""


def resolve_thresholds(given: Mapping[str, Any]) -> dict[str, float]:
    """The thresholds of the rules that are on: the given ones over the defaults.

    Raises ValueError for an unknown rule, or for a threshold that is neither a positive number nor None.
    """
    for name, value in given.items():
        if name not in RULES:
            raise ValueError(f"alarms: there is no rule {name!r}; the rules are {', '.join(RULES)}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and 0 < value < math.inf):
            raise ValueError(f"alarms: {name} needs a positive threshold, or null to switch it off; got {value!r}")
    chosen = {name: given.get(name, rule.threshold) for name, rule in RULES.items()}
    return {name: float(value) for name, value in chosen.items() if value is not None}


class AlarmMonitor:
    """Applies the rules to every log.

    A rule is reported when it begins to fire, and again only after it has been silent for a whole window.

    Args:
        thresholds: rule -> threshold; other rules are off.
        window: logged values in a window, at least 5.
    """

    def __init__(self, thresholds: Mapping[str, float], window: int) -> None:
        self.thresholds = dict(thresholds)
        self.window = window
        self.series = {name: Series(window) for name in SERIES}
        self.silent_for = dict.fromkeys(RULES, window)

    def observe(self, step: int, logs: Mapping[str, float]) -> list[Alarm]:
        """The alarms that begin with the metrics logged after `step`. Values that are missing or not finite are passed
        over: a window then reaches further back."""
        for name, keys in SERIES.items():
            value = next((logs[key] for key in keys if key in logs), math.nan)
            if math.isfinite(value):
                self.series[name].add(step, float(value))
        alarms = []
        for name, threshold in self.thresholds.items():
            rule = RULES[name]
            window = self.series[rule.series[0]]
            found = rule.check(self.series, threshold) if window.is_full or rule.at_start else None
            if found and self.silent_for[name] >= self.window:
                alarms.append(Alarm(name, step, window.healthy_until, f"{found}. {rule.advice}."))
            self.silent_for[name] = 0 if found else self.silent_for[name] + 1
        return alarms

    @property
    def firing(self) -> list[str]:
        """The rules that fire at the newest log."""
        return [name for name, logs in self.silent_for.items() if logs == 0]

    def state_dict(self) -> dict[str, Any]:
        """Numbers, texts and lists only."""
        return {
            "window": self.window,
            "silent_for": dict(self.silent_for),
            "series": {
                name: {
                    "values": list(one.values),
                    "steps": list(one.steps),
                    "early": one.early and asdict(one.early),
                    "first": one.first and asdict(one.first),
                    "best": one.best and asdict(one.best),
                }
                for name, one in self.series.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of another window."""
        if state["window"] != self.window:
            raise ValueError(
                f"the checkpoint's alarm_window is {state['window']}, this run's is {self.window}: keep it"
            )
        self.silent_for |= state["silent_for"]
        for name, saved in state["series"].items():
            one = Series(self.window)
            one.values.extend(saved["values"])
            one.steps.extend(saved["steps"])
            levels = (saved.get(key) for key in ("early", "first", "best"))
            one.early, one.first, one.best = (level and Level(**level) for level in levels)
            self.series[name] = one
