"""Options of PBSD."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pbsd.config.base import TeacherSamplesConfig, as_dict, option
from pbsd.losses.preference import PreferenceLoss
from pbsd.losses.projection import KLGradient
from pbsd.pairs import Pairing, PairPolicy

PROJECTIONS = ("preference", "group", "imitation", "direct")
SCHEDULED = (*(f"{name}_coef" for name in PROJECTIONS), "nll_coef", "reward_scale")

Preset = Literal["mixed", "pairs", "published"]
_PAIRS = {
    "preference_coef": 1.0, "nll_coef": 1.0, "imitation_coef": 0.0, "imitation_from": "teacher",
    "imitation_weights": "group", "imitation_prompts": "all", "imitation_gate": "none", "direct_coef": 0.0,
    "adaptive_generations": False, "pairing": "all", "pair_policy": "oriented",
}  # fmt: skip
PRESETS: dict[Preset, dict[str, Any]] = {
    "mixed": {
        **_PAIRS, "preference_coef": 0.0, "nll_coef": 0.0, "imitation_coef": 1.0, "imitation_from": "union",
        "imitation_weights": "exact", "imitation_prompts": "failing", "imitation_gate": "handover", "direct_coef": 1.0,
        "adaptive_generations": True,
    },
    "pairs": _PAIRS,
    "published": {**_PAIRS, "pairing": "cross", "pair_policy": "all", "nll_coef": 0.0},
}  # fmt: skip
"""What the options are that are left at null."""


@dataclass
class PBSDConfig(TeacherSamplesConfig):
    """Options of Preference-Based Self-Distillation (arXiv 2605.05040; mathematics in docs/paper_map.md).

    The target is P* proportional to T exp(reward_scale * r / beta). Four projections of it can be mixed: the loss is
    the sum of coefficient times mean, over pairs for `preference` (and the `nll` anchor on their chosen side), over
    prompts for `group` and `imitation`, over student samples for `direct`. `preference` with `bradley_terry` or
    `squared`, `group`, and `direct` have P* as their optimum, so their coefficients may be scheduled without moving the
    target (`imitation` has it with exact weights, or for large groups; the anchor and ordered logistic pairs do not;
    docs/theory.md). `adaptive_generations` moves it somewhat (docs/paper_map.md).

    A preset says how they are mixed, and every option of it can be given by itself. `mixed`, the default, is the
    strongest on average of what studies/strength compares: imitation of the tilted teacher by the union of the samples
    where the student fails, as far as the teacher's first half helps it, and the direct term on the student's own
    samples, which are shared out by need; it learns from no pairs, but watches them. `pairs` is the paper's loss on
    pairs of the union that the rewards put in order, with a likelihood anchor (studies/defaults). `published` is the
    paper's own objective.
    """

    _VALID_DICT_FIELDS = [*TeacherSamplesConfig._VALID_DICT_FIELDS, "coef_schedule"]
    _how_to_use_rewards: ClassVar[str] = "loss_type='bradley_terry' or a pair_policy that reads rewards, or "

    preset: Preset = option("mixed", "mixed, pairs or published: sets the options whose default is null.")
    beta: float = option(0.1, "Strength of the pull to the teacher; the tilt is reward_scale / beta.")
    loss_type: PreferenceLoss = option("logistic", "Pair loss: logistic (the paper's), bradley_terry or squared.")
    reward_scale: float = option(1.0, "eta: multiplies the reward inside the loss.")
    label_smoothing: float = option(0.0, "Probability that a preference label is wrong, below 1/2.")
    preference_coef: float = option(None, "Weight of the pair loss (the paper's objective).")
    group_coef: float = option(0.0, "Weight of the log-variance of h - r over all judged samples of a prompt.")
    imitation_coef: float = option(None, "Weight of the reward-tilted cross-entropy on the samples of imitation_from.")
    imitation_from: Literal["teacher", "union"] = option(
        None,
        "imitation: the teacher's samples, or the union with the student's, each weighed by T over the mixture that "
        "the prompt's samples come from.",
    )
    imitation_weights: Literal["group", "exact"] = option(
        None,
        "imitation: exp(reward_scale r / beta) over its sum in the group, biased in small groups, or over its value at "
        "reward_max: exact, and little weight on prompts where nothing is rewarded.",
    )
    imitation_prompts: Literal["all", "failing"] = option(
        None,
        "imitation: all prompts alike, or each weighed by the share of the student's other samples that fail, so that "
        "it leads where success is rare and leaves the rest to the other terms.",
    )
    imitation_gate: Literal["none", "handover", "failing_handover"] = option(
        None,
        "imitation: handover multiplies its weight, and the teacher's share under adaptive_generations, by how much of "
        "the teacher's advantage is there when the student finishes what the teacher began (one sample per prompt and "
        "step): little where the teacher knows the answer and not the way (pbsd.handover). failing_handover measures "
        "it where the student's first samples fail, for imitation_prompts='failing'.",
    )
    reward_max: float = option(1.0, "Largest reward there can be; read by imitation_weights='exact'.")
    direct_coef: float = option(
        None,
        "Weight of -J on the student's samples: beta times the full-vocabulary KL to the teacher minus the reward.",
    )
    direct_kl_gradient: KLGradient = option(
        "exact", "direct: exact (P* is the optimum) or pathwise, the usual term, which ignores later divergence."
    )
    nll_coef: float = option(
        None, "Weight of an anchor: mean negative log-likelihood per token of the chosen completion."
    )
    coef_schedule: dict[str, Any] | str | None = option(
        None,
        "Coefficients over training, as JSON: {name: [[step, value], ...]}, linear between points, constant outside "
        f"them; two points at one step are a jump. Names: {', '.join(SCHEDULED)}.",
    )
    num_teacher_generations: int = option(4, "Teacher completions per prompt (K_T); 0 where no objective needs them.")
    adaptive_generations: bool = option(
        None,
        "Share K_S + K_T completions out by need: the student writes half of K_S; of the rest the teacher writes the "
        "share of these that fail, times the handover where imitation_gate measures it (at least one), the student the "
        "others. Moves the target somewhat (docs/paper_map.md).",
    )
    pairing: Pairing = option(None, "cross: teacher against student samples; all: every two of the union.")
    pair_policy: PairPolicy = option(None, "Which pairs stay: all (the paper), correct, improving or oriented.")
    keep_ties: bool = option(False, "oriented: keep pairs of equal reward with label 1/2 instead of dropping them.")

    reuse_sampler_logprobs: bool = option(
        True,
        "Take the teacher's log-probabilities of its own samples from the sampler (see `teacher/reuse_gap`), unless "
        "generation_kwargs process the logits: then the sampler's are of another distribution.",
    )

    def __post_init__(self) -> None:
        for name, value in PRESETS.get(self.preset, {}).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive, got {self.beta}")
        if not (math.isfinite(self.reward_scale) and 0 <= self.nll_coef < math.inf):
            raise ValueError(
                f"reward_scale must be finite and nll_coef at least 0, got {self.reward_scale} and {self.nll_coef}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 1/2), got {self.label_smoothing}")
        for name in PROJECTIONS:
            if not 0 <= (value := getattr(self, f"{name}_coef")) < math.inf:
                raise ValueError(f"{name}_coef must be at least 0, got {value}")
        _check_schedule(self.coef_schedule or {})
        if not any(self.may_use(name) for name in (*PROJECTIONS, "nll")):
            raise ValueError(f"every coefficient is 0: set one of {', '.join(f'{name}_coef' for name in PROJECTIONS)}")
        if self.num_teacher_generations < 0:
            raise ValueError(f"num_teacher_generations must be at least 0, got {self.num_teacher_generations}")
        if not self.num_teacher_generations and (
            self.may_use("imitation") or (self.uses_pairs and self.pairing == "cross")
        ):
            raise ValueError(
                "num_teacher_generations must be at least 1 for imitation and for pairing='cross': raise it, or choose "
                "pairing='all', imitation_coef=0 and adaptive_generations=False"
            )

        self._check_unread()
        self._refuse_unread(keep_ties=(self.pair_policy == "oriented", "pair_policy='oriented'"))
        weighs_own = self.imitation_prompts == "failing" and self.imitation_from == "union"
        if weighs_own and self.may_use("imitation") and self.first_generations < 2:
            warnings.warn(
                "imitation_prompts='failing' weighs a student's sample by the others of its prompt, and a lone one as "
                "if they failed, which moves the target: raise num_generations (to 3 under adaptive_generations), or "
                "choose imitation_prompts='all'",
                stacklevel=2,
            )
        if self.measures_handover and self.imitation_gate == "failing_handover" and self.first_generations < 2:
            raise ValueError(
                "imitation_gate='failing_handover' weighs a student's sample by the others: it needs at least 2 that "
                f"are drawn first, here {self.first_generations}; raise num_generations (to 3 under "
                "adaptive_generations)"
            )
        if self.adaptive_generations and not self.num_teacher_generations:
            raise ValueError("adaptive_generations shares samples out between student and teacher: raise K_T above 0")
        if (self.imitation_from == "union" or self.may_use("direct")) and not self.samples_policy:
            raise ValueError(
                "imitation_from='union' and direct_coef are exact for samples of the policy itself: they need "
                "temperature=1, top_p=1, top_k=0, no min_p and no generation_kwargs"
            )
        if self.may_use("group") and self.num_generations + self.num_teacher_generations < 2:
            raise ValueError("group_coef compares a prompt's samples: num_generations + num_teacher_generations >= 2")
        if self.imitation_weights == "exact" and self.may_use("imitation") and min(self._reward_scales) < 0:
            raise ValueError(
                "imitation_weights='exact' has no bound where reward_scale is negative: turn the rewards round instead"
            )
        if self.leakage_guard == "downweight" and self.may_use("group"):
            raise ValueError(
                "leakage_guard='downweight' has no meaning for group_coef, whose variance weighs its samples alike: "
                "choose drop, or group_coef=0"
            )

    def _check_unread(self) -> None:
        """Options that were set and that nothing in the objective reads."""
        smooths = self.may_use("preference") and self.loss_type != "squared"
        exact = self.may_use("imitation") and self.imitation_weights == "exact"
        for name, default, is_read, reader in (
            ("label_smoothing", 0.0, smooths, "preference_coef above 0 and another loss_type than squared"),
            (
                "reward_scale",
                1.0,
                self._tilts,
                "loss_type other than logistic, group_coef, imitation_coef or direct_coef",
            ),
            ("reward_max", 1.0, exact, "imitation_coef with imitation_weights='exact'"),
            ("direct_kl_gradient", "exact", self.may_use("direct"), "direct_coef above 0"),
        ):
            if not is_read and (getattr(self, name) != default or name in as_dict(self.coef_schedule)):
                raise ValueError(
                    f"{name} has no effect under this objective ({self.objective}): it needs {reader}; or leave it out"
                )

    def may_use(self, projection: str) -> bool:
        """Whether the coefficient of a projection (or of `nll`) is positive at any step."""
        name = f"{projection}_coef"
        points = as_dict(self.coef_schedule).get(name)
        return getattr(self, name) > 0 if points is None else any(value > 0 for _, value in points)

    def at_step(self, name: str, step: int) -> float:
        """A coefficient or the reward scale at step `step` (0 is the first), by `coef_schedule`."""
        points = as_dict(self.coef_schedule).get(name)
        return getattr(self, name) if points is None else _interpolate(points, step)

    @property
    def _reward_scales(self) -> list[float]:
        """Those of the schedule's points; the scale goes between them."""
        points = as_dict(self.coef_schedule).get("reward_scale")
        return [self.reward_scale] if points is None else [value for _, value in points]

    @property
    def first_generations(self) -> int:
        """Samples of the student for each prompt that are drawn before anything is known of it."""
        return -(-self.num_generations // 2) if self.adaptive_generations else self.num_generations

    @property
    def measures_handover(self) -> bool:
        return self.imitation_gate != "none" and (self.may_use("imitation") or self.adaptive_generations)

    @property
    def learns_from_teacher(self) -> bool:
        return self.num_teacher_generations > 0

    @property
    def samples_both(self) -> bool:
        return self.learns_from_teacher

    @property
    def uses_pairs(self) -> bool:
        return self.may_use("preference") or self.may_use("nll")

    @property
    def _tilts(self) -> bool:
        """Whether a term in use reads reward_scale."""
        labelled = self.may_use("preference") and self.loss_type != "logistic"
        return labelled or any(self.may_use(name) for name in PROJECTIONS[1:])

    @property
    def uses_rewards(self) -> bool:
        # Pairs of one role are put in the order of their rewards under any policy.
        in_order = self.pair_policy != "all" or self.pairing == "all"
        return (self._tilts and any(self._reward_scales)) or (in_order and self.uses_pairs)

    @property
    def objective(self) -> str:
        active = [name for name in PROJECTIONS if self.may_use(name)]
        pairs = f"{self.loss_type} loss, pairs {self.pairing}/{self.pair_policy}" if self.uses_pairs else "no pairs"
        target = f"tilt eta/beta {self.reward_scale / self.beta:g}"
        return (
            f"{' + '.join(active) or 'nll'} ({pairs}), teacher {self.teacher}, "
            + (target if self.uses_rewards else "no reward is read: the target is the teacher itself")
        )  # fmt: skip


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, Mapping):
        raise ValueError(f"coef_schedule must map names to points [[step, value], ...], got {schedule!r}")
    for name, points in schedule.items():
        if name not in SCHEDULED:
            raise ValueError(f"coef_schedule: {name!r} cannot be scheduled; choose among {', '.join(SCHEDULED)}")
        fine = isinstance(points, Sequence) and points and all(
            isinstance(point, Sequence) and len(point) == 2 and all(isinstance(x, int | float) for x in point)
            for point in points
        )  # fmt: skip
        if not fine or [step for step, _ in points] != sorted(step for step, _ in points):
            raise ValueError(f"coef_schedule: {name} needs points [[step, value], ...] in the order of steps: {points}")
        if any(not math.isfinite(value) or (value < 0 and name != "reward_scale") for _, value in points):
            raise ValueError(f"coef_schedule: values of {name} must be finite and not negative: {points}")


def _interpolate(points: Sequence[Sequence[float]], step: int) -> float:
    """Linear between the points, constant outside them; of two points at one step the later holds from there on."""
    before = [point for point in points if point[0] <= step]
    after = [point for point in points if point[0] > step]
    if not before or not after:
        return float((before[-1] if before else after[0])[1])
    (start, low), (end, high) = before[-1], after[0]
    return low + (high - low) * (step - start) / (end - start)
