"""How far a study is: which runs are to be done, doing them, and writing what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pbsd.compare.execute import execute
from pbsd.compare.files import RUNS, ResultFiles
from pbsd.compare.plan import Run, final_runs, resolved_options, tuning_runs
from pbsd.compare.pool import run_jobs
from pbsd.compare.store import Store
from pbsd.compare.study import Study
from pbsd.compare.table import write_table
from pbsd.compare.tuning import choices_by_trials, choices_of_another, chosen_options
from pbsd.redact import scrub

Selection = Callable[[Run], bool]


class StudyRunner:
    """A study with its working folder and its result files.

    Final runs are planned where their choice is made; none is started before every choice is, so no test problem is
    seen earlier. Runs that the result files hold are finished too; `discard`: those of other settings may be dropped.
    """

    def __init__(self, study: Study, work: Path, out: Path, *, discard: bool = False) -> None:
        self.study, self.store, self.discard = study, Store(work), discard
        self.files = ResultFiles(out)
        beside = {} if out.resolve() == study.path.parent.resolve() else ResultFiles(study.path.parent).runs()
        self.store.elsewhere = beside | self.files.runs()
        self.tuning = tuning_runs(study)
        self.store.options |= resolved_options(self.tuning)
        self.choices: list[dict[str, Any]] = []
        self.final: list[Run] = []
        self.all_chosen = False
        self._choose()

    def _choose(self) -> None:
        """Make the choices that can be made and plan the final runs that need no other."""
        study = self.study
        self.choices = choices_of_another(study) if study.choices else choices_by_trials(study, self.store, self.tuning)
        chosen = chosen_options(self.choices)
        made = {place: options for place, options in chosen.items() if options is not None}
        self.all_chosen = len(made) == len(chosen)
        self.final = [run for run in final_runs(study, made) if run.place in made or run.place not in chosen]
        self.store.options |= resolved_options(self.final)

    def show(self, selected: Selection, jobs: int) -> None:
        """List the runs; those of open choices are shown under their first trial's options."""
        final = self.final
        if not self.all_chosen:
            chosen = chosen_options(self.choices)
            trials = {place: self.study.methods[place.method].trials for place in self.study.places()}
            final = final_runs(self.study, {p: chosen.get(p) or (t[0] if t else {}) for p, t in trials.items()})
        runs = [run for run in (*self.tuning, *final) if selected(run)]
        costs = Costs(self.store, self.tuning + self.final)
        # A final run of an open choice has no options yet, so it cannot be finished.
        done = {run.key for run in runs if run.key in self.store.options and self.store.is_finished(run)}
        for run in runs:
            cost = costs.seconds(run)
            print(f"{'done' if run.key in done else '-':5} {'?' if cost is None else f'{cost:.0f} s':>7}  {run.name}")
        todo = [run for run in runs if run.key not in done]
        left = _duration(costs.total(todo, jobs))
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are done; left {left} on {jobs} processes")
        if others := self.store.other_results():
            print(f"{others} results in {self.store.path} are of other settings and are not used")

    def execute(self, selected: Selection, *, jobs: int, max_runs: int | None, save_steps: int) -> dict[str, str]:
        """Do the selected runs that are not finished; returns the failed ones with their reasons."""
        failures: dict[str, str] = {}
        todo = self._unfinished(self.tuning, selected)[:max_runs]
        self._execute(todo, jobs, save_steps, failures)
        self._choose()
        if not self.all_chosen:
            open_runs = len(self._unfinished(self.tuning, lambda run: True))
            print(f"{open_runs} tuning runs are not finished: final runs wait, since all choices come before any test")
            return failures
        if max_runs is None or len(todo) < max_runs:
            left = None if max_runs is None else max_runs - len(todo)
            self._execute(self._unfinished(self.final, selected)[:left], jobs, save_steps, failures)
        return failures

    def write(self) -> None:
        """The result files and the table, of what is finished here or in the files as they are now.

        Raises:
            ValueError: the files hold runs that this study does not use, which are nowhere else here.
        """
        self.check()
        units = self.study.units()
        runs = {run.unit: run for run in self.final}
        finished = []
        for unit in units:
            result = self.store.result(runs[unit]) if unit in runs else None
            if result is not None:
                cell = unit.cell
                identity = {
                    "method": unit.method, "world": cell.world, "task": cell.task, "scale": cell.scale,
                    "seed": unit.seed,
                }  # fmt: skip
                finished.append((identity, result))
        trials = [result for run in self.tuning if (result := self.store.result(run)) is not None]
        summaries = (
            "key", "steps", "generated_tokens", "ended_by", "tested_step", "prompts_per_step", "alarms", "versions"
        )  # fmt: skip
        self.files.write(
            {
                "study": self.study.describe(),
                "choices": self.choices,
                "runs": [{**identity, **{key: result[key] for key in summaries}} for identity, result in finished],
            },
            trials,
            finished,
        )
        print(write_table(self.files.folder))

    def check(self) -> None:
        """Take in what the files hold by now. Raises ValueError when they hold runs that would be lost by writing."""
        found = self.files.runs()
        self.store.elsewhere |= found
        self._choose()
        used = {run.key for run in (*self.tuning, *self.final) if self.store.is_finished(run)}
        lost = self.store.not_here({key: run for key, run in found.items() if key not in used})
        if lost and not self.discard:
            raise ValueError(
                f"{self.files.folder / RUNS} holds {len(lost)} runs that are not of this study as it is now, such as "
                f"{lost[0]}, and would be overwritten: give another folder by --out, or drop them by --discard"
            )

    def _unfinished(self, runs: Sequence[Run], selected: Selection) -> list[Run]:
        return [run for run in runs if selected(run) and not self.store.is_finished(run)]

    def _execute(self, runs: Sequence[Run], jobs: int, save_steps: int, failures: dict[str, str]) -> None:
        tasks = [(run, self.store.folder(run), self.store.options[run.key], save_steps) for run in runs]
        left = set(range(len(runs)))
        for index, outcome in run_jobs(execute, tasks, processes=jobs):
            left.remove(index)
            run, started = runs[index], f"[{len(runs) - len(left)}/{len(runs)}] {runs[index].name}"
            if outcome.error is not None:
                failures[run.name] = outcome.error
                self._keep_details(run, outcome.details)
                print(f"{started}  FAILED: {outcome.error}", flush=True)
                continue
            result = self.store.result(run)
            assert result is not None, f"{run.name} ended without its result"
            remaining = Costs(self.store, self.tuning + self.final).total([runs[i] for i in left], jobs)
            print(
                f"{started}  validation {result['curve'][0]['accuracy']:.3f} -> {result['curve'][-1]['accuracy']:.3f}  "
                f"{result['steps']} steps  {result['seconds']:.0f} s  left {_duration(remaining)}",
                flush=True,
            )

    def _keep_details(self, run: Run, details: str) -> None:
        folder = self.store.folder(run)
        if folder.is_dir():
            (folder / "failure.txt").write_text(f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{scrub(details)}", "utf-8")


class Costs:
    """What a run takes, from the finished ones that are most like it, in proportion to its budget."""

    _ALIKE: tuple[Callable[[Run], Any], ...] = (
        lambda run: (run.method, run.cell.task, run.cell.scale),
        lambda run: (run.method, run.cell.scale),
        lambda run: run.cell.scale,
    )

    def __init__(self, store: Store, runs: Sequence[Run]) -> None:
        self._rates: dict[tuple[int, Any], list[float]] = {}
        for run in runs:
            result = store.result(run)
            if result is not None and "seconds" in result:  # not of another machine
                for level, alike in enumerate(self._ALIKE):
                    rate = result["seconds"] / run.budget.generated_tokens
                    self._rates.setdefault((level, alike(run)), []).append(rate)

    def seconds(self, run: Run) -> float | None:
        """None where nothing like it is finished."""
        for level, alike in enumerate(self._ALIKE):
            if rates := self._rates.get((level, alike(run))):
                return sum(rates) / len(rates) * run.budget.generated_tokens
        return None

    def total(self, runs: Sequence[Run], jobs: int) -> float | None:
        """On `jobs` processes; None where nothing like one of the runs is finished."""
        costs = [self.seconds(run) for run in runs]
        known = [cost for cost in costs if cost is not None]
        return sum(known) / jobs if len(known) == len(costs) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 60 else f"{minutes // 60} h {minutes % 60:02} min"
