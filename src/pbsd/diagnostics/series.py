"""One logged metric over a run: what an alarm's rule compares.

A window is the newest `window` logged values of a metric. A rule compares its mean with where the run started (the
first window), with the best earlier window, or with the first values. It does not take noise for a change: a
difference counts only above `NOISE` standard errors, estimated from the scatter within both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

NOISE = 6.0
"""Standard errors that a change must have. It is that many because the best of all windows meets the worst: over 1,000
steps of a constant reward the two are about 5 apart by chance alone (tests simulate the rate of false alarms)."""
EARLY = 5
"""Logged values that stand for the start where a collapse falls into the first window, whose scatter then hides it."""


@dataclass(frozen=True, slots=True)
class Level:
    """Mean of a window and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Level:
        n = len(values)
        mean = math.fsum(values) / n
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        return cls(mean, math.sqrt(variance / n))

    def above(self, other: Level) -> bool:
        """Higher by more than noise."""
        return self.mean - other.mean > NOISE * math.hypot(self.error, other.error)


@dataclass(slots=True)
class Series:
    """One metric: the newest two windows, the first values, the first window and the best one before the newest."""

    window: int
    values: deque[float] = field(init=False)
    steps: deque[int] = field(init=False)
    early: Level | None = None
    first: Level | None = None
    best: Level | None = None

    def __post_init__(self) -> None:
        self.values = deque(maxlen=2 * self.window)
        self.steps = deque(maxlen=2 * self.window)

    def add(self, step: int, value: float) -> None:
        self.values.append(value)
        self.steps.append(step)
        if len(self.values) == EARLY and self.early is None:
            self.early = Level.of(list(self.values))
        if len(self.values) == self.window and self.first is None:
            self.first = self.now
        if before := self.before:
            level = Level.of(before)
            if self.best is None or level.mean > self.best.mean:
                self.best = level

    @property
    def is_full(self) -> bool:
        return len(self.values) >= self.window

    @property
    def newest(self) -> list[float]:
        return list(self.values)[-self.window :]

    @property
    def now(self) -> Level:
        return Level.of(self.newest)

    @property
    def before(self) -> list[float]:
        """The window that ended where the newest began; empty until there is a whole one."""
        return list(self.values)[: self.window] if len(self.values) == 2 * self.window else []

    @property
    def start(self) -> Level | None:
        """The first window, once the newest does not overlap it."""
        return self.first if self.before else None

    @property
    def highs(self) -> list[Level]:
        """The best window before the newest and the first values, where the newest window does not overlap them."""
        early = self.early if len(self.values) >= self.window + EARLY else None
        return [level for level in (self.best, early) if level is not None]

    @property
    def healthy_until(self) -> int:
        """The last step before the newest window."""
        return self.steps[-self.window - 1] if len(self.steps) > self.window else 0
