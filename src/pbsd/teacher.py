"""Whose weights the teacher uses, and when they change.

The teacher runs in the student's own module: `acting` puts the teacher's values behind the trainable parameters and
always puts the student's back. Only trainable parameters are held, so with PEFT any teacher kind costs the size of the
adapter, and `initial` with PEFT costs nothing (the adapter is switched off). An external teacher is its own module.

An average or a blend moves by small steps, which bfloat16 and float16 round to nothing (with a decay of 0.99 and eight
significant bits, always). Of such parameters the teacher's values are kept in float32, and what acts is their rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

TeacherKind = Literal["initial", "live", "ema", "refreshed", "external"]
RefreshMeasure = Literal["student", "context"]
"""Whose reward must lead for a refresh: the student's, or the refreshed teacher's under the teacher's prompt."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Quality:
    """Mean rewards of challenger (see `RefreshMeasure`) and teacher since the last refresh check."""

    challenger_sum: float = 0.0
    challenger_count: int = 0
    teacher_sum: float = 0.0
    teacher_count: int = 0

    @property
    def lead(self) -> float | None:
        """Of the challenger; None while one of the two is unknown."""
        if not self.challenger_count or not self.teacher_count:
            return None
        return self.challenger_sum / self.challenger_count - self.teacher_sum / self.teacher_count


class Teacher:
    """A teacher of one of five kinds.

    Args:
        kind: `initial`, the weights training started from; `live`, the student's current ones; `ema`, an exponential
            moving average; `refreshed`, a copy or blend from time to time; `external`, another model.
        student: the unwrapped student.
        external: the other model, for `external`.
        adapter_is_new: the student's PEFT adapter was made for this run and starts as the identity, so that switching
            it off gives the initial weights.
        ema_decay: weight of the old average at each step: teacher = decay * teacher + (1 - decay) * student.
        refresh_steps: `refreshed` copies (or checks its rule) every so many steps.
        refresh_margin: `refreshed` copies only if the challenger's mean reward since the last check leads the teacher's
            by more than this; None copies without asking.
        refresh_measure: who the challenger is.
        refresh_blend: weight of the student in the refreshed teacher; 1 copies it.
    """

    def __init__(
        self,
        kind: TeacherKind,
        student: nn.Module,
        *,
        external: nn.Module | None = None,
        adapter_is_new: bool = False,
        ema_decay: float = 0.99,
        refresh_steps: int = 50,
        refresh_margin: float | None = None,
        refresh_measure: RefreshMeasure = "student",
        refresh_blend: float = 1.0,
    ) -> None:
        assert (kind == "external") == (external is not None), "an external teacher needs its model, no other kind does"
        self.kind = kind
        self.student = student
        self.external = external
        self.ema_decay = ema_decay
        self.refresh_steps = refresh_steps
        self.refresh_margin = refresh_margin
        self.refresh_measure = refresh_measure
        self.refresh_blend = refresh_blend
        self.quality = Quality()
        self.refreshes = 0
        self._adapter_off = kind == "initial" and adapter_is_new
        holds_copy = kind in ("ema", "refreshed") or (kind == "initial" and not self._adapter_off)
        # What acts, in the parameters' types, and the float32 values behind those that are narrower.
        self.weights: dict[str, Tensor] = self._copy_of_student() if holds_copy else {}
        self.precise: dict[str, Tensor] = {}
        if self.moves_in_small_steps:
            self.precise = {name: value.float() for name, value in self.weights.items() if value.element_size() < 4}
        if external is not None:
            external.requires_grad_(False).eval()

    @property
    def moves_in_small_steps(self) -> bool:
        """Whether its weights become mixtures of the student's and their own."""
        return self.kind == "ema" or (self.kind == "refreshed" and self.refresh_blend < 1)

    @property
    def is_student(self) -> bool:
        """Whether the teacher's weights are the student's at every moment."""
        return self.kind == "live"

    @contextmanager
    def acting(self) -> Iterator[nn.Module]:
        """The teacher's module, in evaluation mode and without gradient; the student is back when the block ends."""
        if self.external is not None:
            with torch.no_grad():
                yield self.external
            return
        was_training = self.student.training
        self.student.eval()
        try:
            with torch.no_grad():
                if self._adapter_off:
                    with self.student.disable_adapter():  # type: ignore[operator]
                        yield self.student
                else:
                    with self._weights_in_place():
                        yield self.student
        finally:
            self.student.train(was_training)

    def to_student_device(self) -> None:
        """Follow the student (or, an external teacher, its device) once it has been placed."""
        device = next(self.student.parameters()).device
        if self.external is not None:
            self.external.to(device)
        for name, parameter in self._trainable():
            for held in (self.weights, self.precise):
                if name in held:
                    held[name] = held[name].to(parameter.device)

    def challenger(self, step: int) -> RefreshMeasure | None:
        """Whose rewards of step `step` (1 is the first) the refresh rule waits for."""
        if self.kind != "refreshed" or self.refresh_margin is None:
            return None
        is_due = self.refresh_measure == "student" or step % self.refresh_steps == 0
        return self.refresh_measure if is_due else None

    @contextmanager
    def as_refreshed(self) -> Iterator[None]:
        """Inside the block the teacher is what a refresh would make of it."""
        own, self.weights = self.weights, self._refreshed()
        try:
            yield
        finally:
            self.weights = own

    def observe(self, challenger_rewards: list[float], teacher_rewards: list[float]) -> None:
        """Rewards of samples for the same prompts, over all processes: what a refresh is decided on."""
        self.quality.challenger_sum += sum(challenger_rewards)
        self.quality.challenger_count += len(challenger_rewards)
        self.quality.teacher_sum += sum(teacher_rewards)
        self.quality.teacher_count += len(teacher_rewards)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the teacher after optimisation step `step` (1 is the first)."""
        if self.kind == "ema":
            self._move(1.0 - self.ema_decay)
        elif self.kind == "refreshed" and step % self.refresh_steps == 0:
            lead = self.quality.lead
            if self.refresh_margin is None or (lead is not None and lead > self.refresh_margin):
                self._move(self.refresh_blend)
                self.refreshes += 1
                logger.info(
                    "teacher refreshed at step %d (mean reward of %s leads by %s)", step, self.refresh_measure, lead
                )
            self.quality = Quality()

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, averages in float32; the tensors are the teacher's own, not copies."""
        quality = self.quality
        return {
            "kind": self.kind,
            "refreshes": self.refreshes,
            "quality": [quality.challenger_sum, quality.challenger_count, quality.teacher_sum, quality.teacher_count],
            "weights": {**self.weights, **self.precise},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of another kind of teacher or of other parameters."""
        if state["kind"] != self.kind:
            raise ValueError(
                f"the checkpoint's teacher is {state['kind']!r}, this run's is {self.kind!r}: keep `teacher`"
            )
        if state["weights"].keys() != self.weights.keys():
            raise ValueError(
                "the checkpoint's teacher holds other parameters than this run trains: keep the model and `peft_config`"
            )
        self.refreshes = state["refreshes"]
        challenger_sum, challenger_count, teacher_sum, teacher_count = state["quality"]
        self.quality = Quality(challenger_sum, int(challenger_count), teacher_sum, int(teacher_count))
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
            if name in self.precise:
                self.precise[name].copy_(value)

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.student.named_parameters() if parameter.requires_grad)

    def _copy_of_student(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self._trainable()}

    def _held(self, name: str) -> Tensor:
        """The teacher's value of a parameter, as precise as it is kept."""
        return self.precise.get(name, self.weights[name])

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """Move the teacher towards the student by `share` of the way."""
        for name, parameter in self._trainable():
            held = self._held(name)
            held.lerp_(parameter.detach().to(held.dtype), share)
            if name in self.precise:
                self.weights[name].copy_(held)

    @torch.no_grad()
    def _refreshed(self) -> dict[str, Tensor]:
        return {
            name: self._held(name).lerp(parameter.to(self._held(name).dtype), self.refresh_blend).to(parameter.dtype)
            for name, parameter in self._trainable()
        }

    @contextmanager
    def _weights_in_place(self) -> Iterator[None]:
        """Point the student's trainable parameters at the teacher's values (no copy), and back at their own, whatever
        interrupts the block or the change itself."""
        own = [(parameter, parameter.data) for _, parameter in self._trainable()]
        try:
            if self.weights:
                for name, parameter in self._trainable():
                    parameter.data = self.weights[name]
            yield
        finally:
            for parameter, data in own:
                parameter.data = data
