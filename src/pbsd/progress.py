"""What a person sees of a run: a live bar, and the table at its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

_PLAIN_LINE_EVERY = 10.0
"""Seconds between lines where the output is not a terminal."""


def console() -> Console:
    return Console(highlight=False)


@contextmanager
def status(text: str, *, enabled: bool = True) -> Iterator[None]:
    """A spinner in a terminal, one line elsewhere, with the time it took."""
    if not enabled:
        yield
        return
    screen, started = console(), time.monotonic()
    with screen.status(f"{text} ...") if screen.is_terminal else _nothing():
        yield
    screen.print(f"{text}: {time.monotonic() - started:.0f} s")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class LiveLine:
    """A bar with figures and the time left; where there is no terminal, a plain line every ten seconds."""

    def __init__(self, unit: str, *, bar_from_width: int) -> None:
        self.unit = unit
        self.console = console()
        self.progress = Progress(
            TextColumn(unit),
            MofNCompleteColumn(),
            *([BarColumn(bar_width=20)] if self.console.width >= bar_from_width else []),
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.last_line = -math.inf

    @property
    def started(self) -> bool:
        return bool(self.progress.tasks)

    def start(self, total: int, completed: int) -> None:
        self.progress.add_task(self.unit, total=total, completed=completed, figures="")
        self.progress.start()

    def update(self, completed: int, figures: str) -> None:
        (task,) = self.progress.tasks
        self.progress.update(task.id, completed=completed, figures=figures)
        now = time.monotonic()
        if not self.console.is_terminal and now - self.last_line > _PLAIN_LINE_EVERY:
            self.last_line = now
            left = "-" if task.time_remaining is None else f"{task.time_remaining:.0f} s"
            self.console.print(f"{self.unit} {completed}/{task.total:.0f}  {figures}  left {left}", soft_wrap=True)

    def stop(self) -> None:
        """Give the terminal back, also after an interrupt."""
        self.progress.stop()


class ProgressBar(TrainerCallback):
    """Step, loss, rewards of student and teacher samples, margin, tokens per second and time left."""

    def __init__(self) -> None:
        self.line = LiveLine("step", bar_from_width=110)
        self.clock = time.monotonic()
        self.tokens = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.line.start(state.max_steps, state.global_step)
            self.clock = time.monotonic()

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not self.line.started or not logs or "loss" not in logs:
            return
        now, total = time.monotonic(), logs.get("tokens/generated_total", 0.0)
        rate = (total - self.tokens) / max(now - self.clock, 1e-9) if self.tokens else math.nan
        self.clock, self.tokens = now, total
        figures = (
            f"loss {logs['loss']:.3f} reward student {_figure(logs, 'reward/student')} "
            f"teacher {_figure(logs, 'reward/teacher')} margin {_figure(logs, 'pairs/margin', '+.2f')} "
            f"{'-' if math.isnan(rate) else f'{rate:.0f}'} tok/s"
        )
        self.line.update(state.global_step, figures)

    def close(self) -> None:
        self.line.stop()

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()


def _figure(logs: dict[str, Any], key: str, form: str = ".2f") -> str:
    return format(logs[key], form) if key in logs else "-"


def print_summary(summary: dict[str, Any], folder: str) -> None:
    """The table a run ends with."""
    screen = console()
    if "accuracy" in summary:
        table = Table(
            title=f"Accuracy in % on {summary['problems']} held-out problems (95% intervals, clustered by problem)"
        )
        for column in ("", "before", "after", "difference"):
            table.add_column(column, justify="left" if not column else "right")
        names = {"accuracy": f"avg@{summary['samples_per_problem']}, T = 1", "greedy_accuracy": "greedy"}
        for key, name in names.items():
            value = summary[key]
            table.add_row(
                name,
                _percent(value["before_interval"]),
                _percent(value["after_interval"]),
                _percent(value["difference"], signed=True),
            )
        screen.print(table)
    screen.print(
        f"{summary['steps']} steps, {summary['generated_tokens']:,} generated tokens, {summary['seconds']:.0f} s of "
        f"training. The run lies in {folder}/ (model in {folder}/model)"
    )


def _percent(interval: dict[str, float], *, signed: bool = False) -> str:
    form = "+.1f" if signed else ".1f"
    low, high, estimate = (format(100 * interval[name], form) for name in ("low", "high", "estimate"))
    return f"{estimate} [{low}, {high}]"
