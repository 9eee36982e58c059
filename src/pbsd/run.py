"""A run: its folder, and the path from a recipe to a table of accuracy before and after.

The folder holds config.yaml, manifest.json, metrics.jsonl, samples.jsonl, alarms.jsonl if there was any,
eval_before.json, eval_after.json, checkpoint-N/, model/, model_files.json and, when the run is finished, summary.json.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from accelerate.utils import gather_object
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from pbsd import checkpoints
from pbsd.accuracy import Accuracy, ProblemResult, paired_difference
from pbsd.api import SelfDistillationTrainer
from pbsd.config import RolloutConfig
from pbsd.determines import MAY_CHANGE, changeable_options, determining_options
from pbsd.hub import push_model, write_model_card
from pbsd.progress import ProgressBar, status
from pbsd.reading import read_lines, read_object, reading
from pbsd.recipe import RunArguments, dump_recipe
from pbsd.run_paths import check_output_dir, lock_folder, move_aside
from pbsd.run_start import MANIFEST, MODEL, MODEL_FILES, SUMMARY, Start, fresh_start, manifest, model_facts, plan_resume
from pbsd.strict_json import strict
from pbsd.trainer import MethodTrainer

logger = logging.getLogger(__name__)


_RESTORE = "bring the file back, or move the folder away to start again"


class Stopped(Exception):
    """Training was stopped by SIGTERM after saving; the run can be resumed."""


class RunFolder:
    """Files of one run. Lines of steps that a resumed run will do again are cut off before it goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, *, resume: bool, checkpoint: Path | None = None) -> None:
        """Make the folder ready to go on from a checkpoint of it or, without one, from the beginning.

        Without `resume`, an earlier run there is moved aside, never overwritten. With it, checkpoints that are newer
        than the one to go on from are damaged: they are renamed, so that nothing takes them for whole ones.
        """
        if resume:
            step = checkpoints.step_of(checkpoint) if checkpoint else 0
            (self.path / SUMMARY).unlink(missing_ok=True)
            for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "curve.jsonl"):
                _cut_after_step(self.path / name, step)
            if checkpoint:
                _cut_after_lines(self.path / "metrics.jsonl", checkpoints.logged(checkpoint))
            for number, path in checkpoints.by_step(self.path).items():
                if number > step:
                    checkpoints.set_aside(path)
        else:
            move_aside(self.path)
        self.path.mkdir(parents=True, exist_ok=True)

    def lock(self) -> IO[str]:
        """Held until it is closed or the process ends. Raises ValueError while another run writes to this folder."""
        return lock_folder(self.path, "another run is writing here: wait for it, or set another output_dir")

    def append(self, name: str, records: list[dict[str, Any]]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(strict(record), ensure_ascii=False) + "\n" for record in records)

    def write(self, name: str, content: Any) -> None:
        """Whole or not at all."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(
            content if isinstance(content, str) else json.dumps(strict(content), indent=2) + "\n", "utf-8"
        )
        os.replace(temporary, self.path / name)

    def read(self, name: str) -> Any:
        """The JSON object in a file; None where there is no file. Raises ValueError, naming it, where it holds none."""
        path = self.path / name
        return read_object(path, _RESTORE) if path.is_file() else None


def train(run: RunArguments, config: RolloutConfig, *, resume: bool = False) -> dict[str, Any]:
    """Run a recipe to its end and return the summary (also in summary.json).

    Raises:
        ValueError: something in the recipe, the model or the data does not fit.
        Stopped: SIGTERM came; a checkpoint was saved.
    """
    folder = RunFolder(check_output_dir(config.output_dir, run.reads(config)))
    # transformers would push the run folder, training prompts and all; only the model is pushed, at the end.
    trainer = build_trainer(run, replace(config, push_to_hub=False))
    main = trainer.is_world_process_zero()
    lock = folder.lock() if main else None
    try:
        return _train(run, config, trainer, folder, resume=resume)
    finally:
        if lock is not None:
            lock.close()


def _train(
    run: RunArguments, config: RolloutConfig, trainer: SelfDistillationTrainer, folder: RunFolder, *, resume: bool
) -> dict[str, Any]:
    main = trainer.is_world_process_zero()
    trainer.made_of = trainer.what_determines()
    changeable = {**trainer.made_of[MAY_CHANGE], **changeable_options(run)}
    made_of = {**trainer.made_of, "recipe": determining_options(run), MAY_CHANGE: changeable}

    def plan() -> Start:
        if not resume:
            return fresh_start(folder.path)
        start = plan_resume(
            folder.path,
            _earlier_manifest(folder),
            made_of,
            last_step=trainer.last_step(),
            save_only_model=config.save_only_model,
        )
        if start.checkpoint is not None:
            _tell_lost_lines(folder.path / "metrics.jsonl", start.checkpoint)
        return start

    # Before anything of an earlier run is touched: refuse to resume something else.
    start = _on_main_process(trainer, plan)
    if main:
        print(start.line if start.finished else f"{start.line}\n{_stops(trainer)}", flush=True)
    if start.finished:
        summary = folder.read(SUMMARY)
        if main and config.push_to_hub:
            _push(folder, config, summary.get("stopped_by"))
        return summary
    if main:
        folder.start(resume=resume, checkpoint=start.checkpoint)
        folder.write(MANIFEST, manifest(made_of, start))  # first: without it the rest is nobody's
        folder.write("config.yaml", dump_recipe(run, config))
    trainer.accelerator.wait_for_everyone()

    before = _measured(trainer, folder, "eval_before.json", "accuracy before training", step=0)
    trainer.add_callback(RunLog(folder))
    trainer.on_alarm = lambda alarm: folder.append("alarms.jsonl", [alarm])
    trainer.on_samples = lambda step, samples: folder.append("samples.jsonl", [{"step": step, **s} for s in samples])
    with stop_on_sigterm() as stop:
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=str(start.checkpoint) if start.checkpoint else None)
        finally:
            bar = trainer.pop_callback(ProgressBar)
            if isinstance(bar, ProgressBar):
                bar.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(
            f"stopped by a signal after step {trainer.state.global_step}; the same command with --resume goes on"
        )
    trainer.save_model(str(folder.path / MODEL))
    if main:
        write_model_card(folder.path / MODEL, trainer)
        folder.write(MODEL_FILES, model_facts(folder.path))
    after = _measured(trainer, folder, "eval_after.json", "accuracy after training", step=trainer.state.global_step)
    summary = _summary(trainer, before, after)
    if main:
        folder.write(SUMMARY, summary)
        if config.push_to_hub:
            _push(folder, config, trainer.stopped_by)
    return summary


def _on_main_process(trainer: MethodTrainer, function: Callable[[], Start]) -> Start:
    """Its value, or its error, on all processes."""
    found: tuple[Start | None, str | None] = (None, None)
    if trainer.is_world_process_zero():
        try:
            found = function(), None
        except (OSError, ValueError) as error:
            found = None, str(error)
    start, problem = gather_object([found])[0]
    if start is None:
        raise ValueError(problem)
    return start


def _push(folder: RunFolder, config: RolloutConfig, stopped_by: dict[str, Any] | None) -> None:
    if stopped_by is not None:
        logger.warning("not pushed: alarm %s ended training; see summary.json", stopped_by["rule"])
    else:
        logger.warning("pushed to %s", push_model(folder.path / MODEL, config))


def leave_process_group() -> None:
    """End distributed training in this process, if it was distributed.

    gloo's threads free the tensors of the last collective under a lock, for which they need the GIL. A process that
    takes the group down at that moment hangs, and one that exits aborts with its work done; a pause lets them finish.
    """
    if torch.distributed.is_initialized():
        time.sleep(0.5)
        torch.distributed.destroy_process_group()


def build_trainer(run: RunArguments, config: RolloutConfig) -> SelfDistillationTrainer:
    """The recipe's trainer, with our progress bar in place of transformers'."""
    if run.num_threads is not None:
        torch.set_num_threads(run.num_threads)
    trainer = SelfDistillationTrainer(
        model=run.model_name_or_path,
        args=config,
        train_dataset=run.rows("train"),
        eval_dataset=run.rows("test"),
        reward_funcs=run.rewards(),
        peft_config=run.peft_config(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not config.disable_tqdm:
        trainer.add_callback(ProgressBar())
    return trainer


class RunLog(TrainerCallback):
    """Writes what training logs to metrics.jsonl."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and not checkpoints.is_end_of_training(logs) and state.is_world_process_zero:
            self.folder.append("metrics.jsonl", [{"step": state.global_step, **logs}])


class _StopAtStepEnd(TrainerCallback):
    """Saves and stops at the end of the running step once asked to."""

    requested = False

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.requested:
            control.should_save = True
            control.should_training_stop = True


@contextmanager
def stop_on_sigterm() -> Iterator[_StopAtStepEnd]:
    """Inside the block SIGTERM, and SIGHUP unless it is ignored (nohup), ask the callback to stop instead of ending the
    process."""
    stop = _StopAtStepEnd()

    def ask(signum: int, frame: Any) -> None:
        stop.requested = True
        logger.warning("%s: saving at the end of this step, then stopping", signal.Signals(signum).name)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stops(trainer: MethodTrainer) -> str:
    engine = trainer.engine
    names = engine.tokenizer.batch_decode([[stop] for stop in engine.sampler.eos_token_ids])
    return f"completions end at {', '.join(map(repr, names))}"


def _earlier_manifest(folder: RunFolder) -> dict[str, Any] | None:
    earlier: dict[str, Any] | None = folder.read(MANIFEST)
    if earlier is not None and not (
        isinstance(earlier.get("sessions"), list) and isinstance(earlier.get("options"), dict)
    ):
        raise ValueError(f"{folder.path / MANIFEST}: damaged: it lacks the options or sessions of a run: {_RESTORE}")
    return earlier


def _measured(trainer: MethodTrainer, folder: RunFolder, name: str, what: str, *, step: int) -> Accuracy | None:
    """Measure accuracy, or read what an earlier session of this run has measured after the same step."""
    if trainer.eval_dataset is None:
        return None
    if (done := folder.read(name)) is not None and done.get("step") == step:
        with reading(folder.path / name, "remove it, and it is measured again"):
            return Accuracy.from_json(done["problems"])
    with status(f"measuring {what}", enabled=trainer.is_world_process_zero() and not trainer.args.disable_tqdm):
        accuracy = trainer.measure_accuracy()
    if trainer.is_world_process_zero():
        folder.write(name, {"step": step, **accuracy.metrics("eval"), "problems": accuracy.to_json()})
    return accuracy


def _summary(trainer: MethodTrainer, before: Accuracy | None, after: Accuracy | None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "generated_tokens": trainer.generated_tokens,
        "seconds": round(trainer.train_seconds, 3),
        "steps": trainer.state.global_step,
    }
    if trainer.stopped_by is not None:
        summary["stopped_by"] = trainer.stopped_by
    if before is None or after is None:
        return summary
    for key, attribute, value in (
        ("accuracy", "sampled", lambda problem: problem.accuracy),
        ("greedy_accuracy", "greedy", _greedy),
    ):
        first, second = getattr(before, attribute), getattr(after, attribute)
        summary[key] = {
            "before": first.estimate,
            "after": second.estimate,
            "before_interval": first.as_dict(),
            "after_interval": second.as_dict(),
            "difference": paired_difference(before, after, value).as_dict(),
        }
    summary["problems"] = len(after.problems)
    summary["samples_per_problem"] = trainer.args.num_generations_eval
    return summary


def _greedy(problem: ProblemResult) -> float:
    return math.nan if problem.greedy_correct is None else float(problem.greedy_correct)


def _cut_after_step(path: Path, step: int) -> None:
    if not path.is_file():
        return
    with reading(path, "fix or remove the line without a step"):
        kept = [record for record in read_lines(path) if record["step"] <= step]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), "utf-8")
    os.replace(temporary, path)


def _tell_lost_lines(path: Path, checkpoint: Path) -> None:
    """Say where lines are gone that had been written when the checkpoint was saved (a full disk, an editor)."""
    number, step = checkpoints.logged(checkpoint), checkpoints.step_of(checkpoint)
    with reading(path, _RESTORE):
        found = sum(record["step"] <= step for record in read_lines(path)) if path.is_file() else 0
    if found < number:
        print(
            f"{path}: {found} lines up to step {step} of the {number} that had been written when {checkpoint.name} was "
            "saved: the others are lost",
            flush=True,
        )


def _cut_after_lines(path: Path, number: int) -> None:
    """Leave out what was logged at the checkpoint's step after it had been saved: it is logged again."""
    lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
    if len(lines) > number:
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in lines[:number]), "utf-8")
        os.replace(temporary, path)
