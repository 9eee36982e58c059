"""One run of a study: train to its budget, measure on the way, test at the end, leave result.json."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import itertools
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import logging as transformers_logging

from pbsd.accuracy import Accuracy, ProblemResult, measure_accuracy
from pbsd.api import SelfDistillationTrainer
from pbsd.checkpoints import described, newest_whole
from pbsd.compare.plan import Run, write_recipe
from pbsd.compare.store import ALARMS, CURVE, METRICS, RESULT, STARTED, read_lines
from pbsd.data import load_rows
from pbsd.engine import Engine
from pbsd.recipe import load_recipe
from pbsd.records import Prompt
from pbsd.redact import PublicFormatter
from pbsd.run import RunFolder, RunLog, Stopped, build_trainer, stop_on_sigterm
from pbsd.run_start import git_revision

logger = logging.getLogger(__name__)

_BEST = "best_weights.pt"
_DIVERGED = "no longer finite"
"""In the refusals of a loss or of weights that are not finite. To diverge is a finding, not a failure of the study."""


def execute(run: Run, folder: Path, options: Mapping[str, Any], save_steps: int) -> None:
    """Do the run, or what is left of it, in its folder; at the end result.json says what was found.

    An interrupted run goes on from its last checkpoint and ends as one left alone, bit for bit on a CPU. `options` are
    those that `plan.resolved_options` gives for the run.

    Raises:
        ValueError: what a recipe, model or data set raises, or training that ended before its budget.
        Stopped: SIGTERM came; a checkpoint was saved.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    files = RunFolder(folder)
    with closing(files.lock()):
        started = {"key": run.key, "options": options}
        resume = files.read(STARTED) == started
        checkpoint, damaged = newest_whole(folder) if resume else (None, {})
        files.start(resume=resume, checkpoint=checkpoint)
        files.write(STARTED, started)
        recipe = write_recipe(run, folder, save_steps=save_steps, save_total_limit=1, logging_steps=1)
        with _log_file(folder / "log.txt"):
            if damaged:
                logger.warning("set aside: %s", described(damaged))
            logger.warning("training %s", f"goes on from {checkpoint}" if checkpoint else "starts from the beginning")
            trainer = build_trainer(*load_recipe(recipe))
            found = _train_and_test(trainer, run, files, checkpoint)
        files.write(RESULT, {"name": run.name, "key": run.key, "options": options, **found, "versions": _versions()})
        for path in (*folder.glob("*checkpoint-*"), folder / _BEST):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _versions() -> dict[str, str | None]:
    packages = {name: importlib.metadata.version(name) for name in ("pbsd", "torch", "transformers")}
    return {**packages, "git_revision": git_revision()}


def _train_and_test(
    trainer: SelfDistillationTrainer, run: Run, files: RunFolder, checkpoint: Path | None
) -> dict[str, Any]:
    curve = Curve(trainer, run, files)
    trainer.on_alarm = lambda alarm: files.append(ALARMS, [alarm])
    with stop_on_sigterm() as stop:
        # In this order: the curve has the last word on whether a step is saved.
        for callback in (RunLog(files), stop, curve):
            trainer.add_callback(callback)
        curve.begin(checkpoint)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except ValueError as error:
            if _DIVERGED not in str(error):
                raise
            curve.end("divergence")
    step = trainer.state.global_step
    if not curve.ended:
        if stop.requested:
            raise Stopped(f"stopped by SIGTERM after step {step}")
        raise ValueError(
            f"training ended at step {step} and {trainer.generated_tokens} generated tokens, before its budget: turn "
            "off what ended it (an alarm, early stopping) in the study's options"
        )
    tested_step = curve.select()
    started = time.monotonic()
    problems = _test(trainer, run)
    return {
        "steps": step,
        "generated_tokens": trainer.generated_tokens,
        "ended_by": curve.ended,
        "tested_step": tested_step,
        "prompts_per_step": trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps,
        "curve": [{key: point[key] for key in ("step", "generated_tokens", "accuracy")} for point in curve.points],
        "metrics": _metrics_by_point(read_lines(files.path / METRICS), [point["step"] for point in curve.points]),
        "alarms": sorted({alarm["rule"] for alarm in read_lines(files.path / ALARMS)}),
        "problems": problems,
        "seconds": round(
            trainer.train_seconds + sum(point["seconds"] for point in curve.points) + time.monotonic() - started, 1
        ),
    }


def _test(trainer: SelfDistillationTrainer, run: Run) -> list[list[int]]:
    """Per test problem its row in the split, samples, correct ones and generated tokens; none for tuning runs."""
    if run.test is None:
        return []
    rows = load_rows(run.recipe["dataset_name"], split="test", size=run.test.problems, seed=run.recipe["dataset_seed"])
    accuracy = _accuracy(trainer.engine, trainer.prepare_rows(rows).prompts, run.test.samples)
    return [[p.row, p.num_samples, p.num_correct, p.generated_tokens] for p in accuracy.problems]


def _accuracy(engine: Engine, prompts: Sequence[Prompt], samples: int) -> Accuracy:
    """avg@samples at T = 1; a model whose weights are not finite generates nothing, so it solves nothing."""
    if not all(parameter.isfinite().all() for parameter in engine.student.parameters()):
        return Accuracy(tuple(ProblemResult(prompt.row, samples, 0, 0, None, 0) for prompt in prompts))
    args = copy.copy(engine.args)
    args.num_generations_eval = samples
    accuracy = measure_accuracy(replace(engine, args=args), prompts, greedy=False)
    unjudged = sum(problem.num_unjudged for problem in accuracy.problems)
    if unjudged:
        raise ValueError(f"{unjudged} samples could not be judged: a study needs a reward that judges every text")
    return accuracy


class Curve(TrainerCallback):
    """Measures validation accuracy on the way, keeps the best weights where the rule asks for them, lets the learning
    rate fall as the budget is spent, and ends training at the budget.

    Methods that generate nothing have spent the share of their steps, in tokens of the budget.

    Attributes:
        points: {step, generated_tokens, accuracy, seconds} of every measurement; also in curve.jsonl.
        ended: what ended training: `tokens`, `steps` or `divergence`; None while it goes on.
    """

    def __init__(self, trainer: SelfDistillationTrainer, run: Run, files: RunFolder) -> None:
        self.trainer, self.run, self.files = trainer, run, files
        self.points: list[dict[str, Any]] = []
        self.ended: str | None = None
        self._spent_before_step = 0

    def begin(self, checkpoint: Path | None) -> None:
        """Read the points up to the checkpoint, or measure the base model."""
        self.points = read_lines(self.files.path / CURVE)
        if not self.points:
            self._measure(0)
        assert checkpoint is not None or len(self.points) == 1, "points without the training that led to them"

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        if self.run.learning_rate_decay == "linear":
            schedule: LambdaLR = parts["lr_scheduler"]
            schedule.lr_lambdas = [self._decayed(factor) for factor in schedule.lr_lambdas]

    def _decayed(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        """The factor of the recipe's own schedule, times the share of the budget's tokens or steps that is left: asked
        for when a step ends, before its tokens are counted."""
        tokens, steps = self.run.budget
        return lambda step: factor(step) * max(0.0, 1.0 - max(self.trainer.generated_tokens / tokens, step / steps))

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._spent_before_step = self._spent(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        spent, every = self._spent(state.global_step), self.run.validation.every_tokens
        if self.trainer.generated_tokens >= self.run.budget.generated_tokens:
            self.ended = "tokens"
        elif state.global_step >= self.run.budget.max_steps:
            self.ended = "steps"
        if self.ended or spent // every > self._spent_before_step // every:
            self._measure(state.global_step)
        if self.ended:
            control.should_training_stop = True
            # Were the last step saved, a run killed while it is tested would train one step more when resumed.
            control.should_save = False

    def end(self, reason: str) -> None:
        """Training ended by itself, after its last whole step: what was learnt until then is measured."""
        self.ended = reason
        if (step := self.trainer.state.global_step) > self.points[-1]["step"]:
            self._measure(step)

    def select(self) -> int:
        """Put the weights that the rule asks for into the model; returns their step."""
        if self.run.checkpoint == "last":
            return int(self.points[-1]["step"])
        path = self.files.path / _BEST
        try:
            best = torch.load(path, weights_only=True)
            whole = best["sha256"] == _content_hash(best["step"], best["weights"])
        except Exception:  # torch has many for a damaged file: OSError, RuntimeError, pickle's
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged: remove its folder {path.parent}, and the run is done again")
        with torch.no_grad():
            for name, parameter in self.trainer.engine.student.named_parameters():
                parameter.copy_(best["weights"][name])
        return int(best["step"])

    def _spent(self, step: int) -> int:
        budget = self.run.budget
        return self.trainer.generated_tokens or step * budget.generated_tokens // budget.max_steps

    def _measure(self, step: int) -> None:
        started = time.monotonic()
        assert self.trainer.eval_dataset is not None
        accuracy = _accuracy(self.trainer.engine, self.trainer.eval_dataset.prompts, self.run.validation.samples)
        point = {
            "step": step,
            "generated_tokens": self.trainer.generated_tokens,
            "accuracy": accuracy.sampled.estimate,
            "seconds": round(time.monotonic() - started, 2),
        }
        if self.run.checkpoint == "best_validation" and all(point["accuracy"] > p["accuracy"] for p in self.points):
            self._keep_weights(step)
        self.points.append(point)
        self.files.append(CURVE, [point])

    def _keep_weights(self, step: int) -> None:
        """A later best that a resumed run does not know of is written again by it, since it repeats the same steps."""
        temporary = self.files.path / f".{_BEST}.tmp"
        weights = {name: parameter.detach() for name, parameter in self.trainer.engine.student.named_parameters()}
        torch.save({"step": step, "weights": weights, "sha256": _content_hash(step, weights)}, temporary)
        os.replace(temporary, self.files.path / _BEST)


def _content_hash(step: int, weights: Mapping[str, torch.Tensor]) -> str:
    """Of what `best_weights.pt` holds: torch reads a file with a flipped bit without a word."""
    digest = hashlib.sha256(str(step).encode())
    for name, value in weights.items():
        digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _metrics_by_point(lines: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Training metrics between two measurements, in four digits: means over the steps that have a figure."""
    found = []
    for before, step in itertools.pairwise(steps):
        values: dict[str, list[float]] = {}
        for line in lines:
            if before < line["step"] <= step:
                for name, value in line.items():
                    if isinstance(value, int | float) and name != "step" and not name.startswith("time/"):
                        values.setdefault(name, []).append(value)
        means = {name: float(f"{math.fsum(values[name]) / len(values[name]):.4g}") for name in sorted(values)}
        found.append({"step": step, **means})
    return found


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Log records and Python's warnings go to the file instead of the terminal, which several runs share."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(PublicFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    previous, root.handlers = root.handlers, [handler]
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = previous
        handler.close()
