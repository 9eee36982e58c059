"""A run: its folder, and the path from a recipe to a table of accuracy before and after.

The folder holds config.yaml, manifest.json, metrics.jsonl, samples.jsonl, alarms.jsonl if there was any,
eval_before.json, eval_after.json, checkpoint-N/, model/ and, when the run is finished, summary.json.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from pbsd.accuracy import Accuracy, ProblemResult, paired_difference
from pbsd.api import SelfDistillationTrainer
from pbsd.config import RolloutConfig
from pbsd.hub import push_model, write_model_card
from pbsd.methods import method_name
from pbsd.progress import ProgressBar, status
from pbsd.reading import read_lines, read_object, reading
from pbsd.recipe import RunArguments, dump_recipe
from pbsd.redact import public
from pbsd.run_paths import check_output_dir, lock_folder, move_aside
from pbsd.strict_json import strict
from pbsd.trainer import METHOD_STATE, MethodTrainer

logger = logging.getLogger(__name__)


_MAY_CHANGE = (
    "max_steps", "num_train_epochs", "output_dir", "logging_", "save_", "eval_s", "eval_on", "report_to", "run_name",
    "disable_tqdm", "push_to_hub", "hub_", "log_", "dataloader_num_workers", "generation_batch_size",
    "scoring_batch_tokens", "train_batch_tokens", "reward_timeout", "reward_workers", "resume_from_checkpoint", "do_",
    "on_alarm", "alarms",
)  # fmt: skip
"""Beginnings of the options that a resumed run may have otherwise."""


_RESTORE = "bring the file back, or move the folder away to start again"


class Stopped(Exception):
    """Training was stopped by SIGTERM after saving; the run can be resumed."""


class RunFolder:
    """Files of one run. Lines of steps that a resumed run will do again are cut off before it goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, *, resume: bool) -> Path | None:
        """Make the folder ready. Returns the checkpoint to resume from, if any.

        Without `resume`, an earlier run there is moved aside, never overwritten.
        """
        checkpoint = self.newest_checkpoint()
        if resume:
            step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
            for name in ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "curve.jsonl"):
                _cut_after_step(self.path / name, step)
        else:
            move_aside(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        return checkpoint if resume else None

    def lock(self) -> IO[str]:
        """Held until it is closed or the process ends. Raises ValueError while another run writes to this folder."""
        return lock_folder(self.path, "another run is writing here: wait for it, or set another output_dir")

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written to its end: trainer_state.json comes last, so it must be whole."""
        folders = [path for path in self.path.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
        for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
            try:
                json.loads((folder / "trainer_state.json").read_text())
            except (OSError, ValueError):
                logger.warning("%s is incomplete (the run was killed while saving); passed over", folder)
                continue
            if (folder / METHOD_STATE).is_file():
                return folder
        return None

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
    checkpoint = folder.newest_checkpoint() if resume else None
    # Before anything of an earlier run is touched: refuse to resume something else.
    made_of = manifest(trainer, _earlier_manifest(folder) if resume else None, checkpoint)
    trainer.accelerator.wait_for_everyone()
    if main:
        folder.start(resume=resume)
        folder.write("manifest.json", made_of)  # first: it says whose folder this is
        folder.write("config.yaml", dump_recipe(run, config))
    trainer.accelerator.wait_for_everyone()

    before = _measured(trainer, folder, "eval_before.json", "accuracy before training", step=0)
    trainer.add_callback(RunLog(folder))
    trainer.on_alarm = lambda alarm: folder.append("alarms.jsonl", [alarm])
    trainer.on_samples = lambda step, samples: folder.append("samples.jsonl", [{"step": step, **s} for s in samples])
    with stop_on_sigterm() as stop:
        trainer.add_callback(stop)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar = trainer.pop_callback(ProgressBar)
            if isinstance(bar, ProgressBar):
                bar.close()
    if stop.requested and trainer.state.global_step < trainer.state.max_steps:
        raise Stopped(
            f"stopped by a signal after step {trainer.state.global_step}; the same command with --resume goes on"
        )
    trainer.save_model(str(folder.path / "model"))
    if main:
        write_model_card(folder.path / "model", trainer)
    after = _measured(trainer, folder, "eval_after.json", "accuracy after training", step=trainer.state.global_step)
    summary = _summary(trainer, before, after)
    if main:
        folder.write("summary.json", summary)
        if config.push_to_hub and trainer.stopped_by is not None:
            logger.warning("not pushed: alarm %s ended training; see summary.json", trainer.stopped_by["rule"])
        elif config.push_to_hub:
            logger.warning("pushed to %s", push_model(folder.path / "model", config))
    if lock is not None:
        lock.close()
    return summary


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
        if logs and "train_runtime" not in logs and state.is_world_process_zero:
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


def manifest(trainer: MethodTrainer, earlier: dict[str, Any] | None, checkpoint: Path | None) -> dict[str, Any]:
    """What the run is made of; a resumed run's sessions are all listed.

    Raises ValueError when a resumed run would go on from other weights, templates, seeds or data than it began with.
    """
    args = trainer.args
    session = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "resumed_from": checkpoint.name if checkpoint else None,
        "command": public(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("pbsd", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy")
        },
        "git_revision": git_revision(),
    }
    made_of = {
        "method": method_name(args),
        "seeds": {"seed": args.seed, "data_seed": args.data_seed, "eval_seed": args.eval_seed},
        "processes": trainer.accelerator.num_processes,
        "options": determining_options(args),
        "initial_weights_sha256": weights_hash(trainer.engine.student),
        "teacher_prompt_template_sha256": _sha256(args.teacher_prompt_template),
        "chat_template_sha256": _sha256(str(trainer.engine.tokenizer.chat_template or "")),
        "rows": {
            name: {"used": len(dataset), "dropped": dataset.dropped, "sha256": dataset.fingerprint()}
            for name, dataset in (("train", trainer.train_dataset), ("test", trainer.eval_dataset))
            if dataset is not None
        },
    }
    made_of = json.loads(json.dumps(public(made_of), default=str))  # as it is read back
    changed = [name for name, value in made_of.items() if earlier is not None and earlier.get(name) != value]
    if earlier is not None and "options" in changed:
        old, new = earlier.get("options", {}), made_of["options"]
        changed += sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        raise ValueError(
            f"{args.output_dir}: the run to be resumed began with other {', '.join(changed)} than this command gives: "
            "repeat the command that started it, or leave out --resume to start anew"
        )
    return {**made_of, "sessions": [*(earlier or {"sessions": []})["sessions"], session]}


def _earlier_manifest(folder: RunFolder) -> dict[str, Any] | None:
    earlier: dict[str, Any] | None = folder.read("manifest.json")
    if earlier is not None and not (
        isinstance(earlier.get("sessions"), list) and isinstance(earlier.get("options"), dict)
    ):
        raise ValueError(
            f"{folder.path / 'manifest.json'}: damaged: it lacks the options or sessions of a run: {_RESTORE}"
        )
    return earlier


def determining_options(args: RolloutConfig) -> dict[str, Any]:
    """All options that bear on the result of a run, as JSON has them."""
    options = {key: value for key, value in args.to_dict().items() if not key.startswith(_MAY_CHANGE)}
    made: dict[str, Any] = json.loads(json.dumps(options, default=str))
    return made


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def git_revision() -> str | None:
    """Of the working folder, with `+changes` when it is not clean; None outside a checkout."""
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if changed.strip() else "")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _cut_after_step(path: Path, step: int) -> None:
    if not path.is_file():
        return
    with reading(path, "fix or remove the line without a step"):
        kept = [record for record in read_lines(path) if record["step"] <= step]
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), "utf-8")
    os.replace(temporary, path)
