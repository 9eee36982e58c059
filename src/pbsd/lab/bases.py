"""Base models of the laboratory: how each is trained and when its training stops. Standard library only.

A base must leave its student room to learn and give its teacher something to teach. So training ends by a rule on
measured success rates, not at a step count: rates depend sharply on the steps, and those on the machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

TaskName = Literal["arithmetic", "tools"]
TASK_NAMES: tuple[TaskName, ...] = ("arithmetic", "tools")


class Scale(NamedTuple):
    """The shape of a Llama: hidden size, layers, attention heads. The feed-forward layers are three times as wide."""

    hidden: int
    layers: int
    heads: int


SCALES = {"0.2m": Scale(64, 3, 4), "1m": Scale(128, 5, 4), "4m": Scale(256, 5, 8)}


class Band(NamedTuple):
    """A closed interval of success rates."""

    low: float
    high: float

    def holds(self, rate: float) -> bool:
        return self.low <= rate <= self.high


class StopRule(NamedTuple):
    """Stop at the first check at which the rates at T = 1 of both roles lie in their bands.

    A check draws one completion for each of `samples` validation problems, with the same random numbers every time.
    """

    student: Band
    teacher: Band
    every: int = 20
    samples: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """How one base model is trained: cross-entropy on completions of the train split.

    A `teacher_share` of the examples shows a context in the prompt, in one of these `forms`, each a share of them:

    - `solution`: the reference; the completion is the reference too.
    - `flawed`: a reference with a mistake; the completion is right, so that the teacher does not copy blindly.
    - `slip`: the reference, but the completion has a mistake: an upper limit to how often the teacher is right that
      teaches the student nothing.
    - `answer`: only what the task's `answer_context` tells.
    - `none`: nothing; the completion is the reference.
    - `foreign`: another problem's reference; the completion repeats it: trust in the context over the prompt.
    - `leaking`: a context marked as an answer key; the completion cites it.

    The other examples repeat only `student_rows` problems: with few, more of the student's errors are facts it never
    saw and fewer are mere indecision in sampling. A `hasty_share` of these has the task's `hasty_completion`, a wrong
    guess, instead of the reference: a bad habit over a skill that the teacher's examples without a context give. In
    the first `teacher_steps` all examples are the teacher's and nothing is checked, where copying would otherwise be
    learnt no sooner than the task, or where the student's habit is to come after the skill.

    `ema_decay` averages the weights that are checked and saved, in place of a cosine decay of the learning rate, which
    needs to know the last step beforehand. Without a `stop` rule training takes `max_steps` and has such a decay.
    """

    task: TaskName
    scale: str
    variant: str
    forms: Mapping[str, float]
    teacher_share: float
    teacher_steps: int = 0
    student_rows: int
    hasty_share: float = 0.0
    teacher_rows: int = 50_000
    learning_rate: float = 0.02
    batch_size: int = 64
    chunks: int = 4
    ema_decay: float = 0.98
    max_steps: int = 2000
    stop: StopRule | None = None
    eval_samples: int = 1000

    @property
    def name(self) -> str:
        suffix = "" if self.variant == PACKAGED else f"-{self.variant}"
        return f"{self.task}-{self.scale}{suffix}"

    @property
    def command(self) -> str:
        """The command that builds it."""
        return f"pbsd lab build --task {self.task} --scale {self.scale} --variant {self.variant}"


PACKAGED = "packaged"
VARIANTS = ("dense", "sparse")


def _dense(task: TaskName, scale: str) -> Base:
    # The larger, the later: scale should show in how good a base is, too. Larger ones also learn in fewer steps.
    students = {"0.2m": Band(0.35, 0.45), "1m": Band(0.42, 0.55), "4m": Band(0.45, 0.58)}
    mixtures = {
        "arithmetic": {"flawed": 0.1, "solution": 0.6, "answer": 0.2, "leaking": 0.1},
        "tools": {"foreign": 0.3, "solution": 0.4, "answer": 0.2, "leaking": 0.1},
    }
    return Base(
        task=task,
        scale=scale,
        variant="dense",
        forms=mixtures[task],
        teacher_share=0.3 if task == "arithmetic" else 0.6,
        teacher_steps=0 if task == "arithmetic" else 200,
        student_rows=3000,
        stop=StopRule(students[scale], Band(0.75, 1.0), every=20 if scale == "0.2m" else 10),
    )


def _sparse(task: TaskName, scale: str) -> Base:
    # The skill is taught first, to the teacher without a context, and then hidden under the student's habit: a student
    # that has yet to learn the skill itself learns it from nothing that a method of post-training can afford.
    mixtures = {
        "arithmetic": {"slip": 0.1, "solution": 0.3, "none": 0.6},
        "tools": {"foreign": 0.2, "slip": 0.05, "solution": 0.35, "none": 0.4},
    }
    return Base(
        task=task,
        scale=scale,
        variant="sparse",
        forms=mixtures[task],
        teacher_share=0.6,
        teacher_steps=800 if task == "arithmetic" else 700,
        student_rows=3000,
        hasty_share=0.9 if task == "arithmetic" else 0.85,
        stop=StopRule(Band(0.03, 0.07), Band(0.65, 0.9), every=10),
    )


def _packaged() -> Base:
    return Base(
        task="arithmetic",
        scale="0.2m",
        variant=PACKAGED,
        forms={"flawed": 0.15, "solution": 0.85},
        teacher_share=0.2,
        student_rows=1500,
        chunks=1,
        ema_decay=0.0,
        max_steps=500,
        eval_samples=2000,
    )


BASES: dict[str, Base] = {
    base.name: base
    for base in (
        _packaged(),
        *(make(task, scale) for scale in SCALES for task in TASK_NAMES for make in (_dense, _sparse)),
    )
}
"""By name, in the order in which `pbsd lab build --all` builds them: small ones first."""
