"""A training loop whose checkpoints can be relied on.

What is ours here: a checkpoint is written whole or not at all, with a manifest; nothing that is not finite is saved;
training goes on only from a whole checkpoint of the same run, never beyond its last step, and does again what the
checkpoint came before (the end of an epoch); old checkpoints go by their step.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from pbsd import checkpoints
from pbsd.checkpoints import METHOD_STATE, SAVING
from pbsd.determines import allowed_changes, refuse_changes
from pbsd.loop import Loop

logger = logging.getLogger(__name__)


class ResumableTrainer(Loop):
    """Subclasses say what they keep beside transformers' state, and what determines a run.

    Attributes:
        made_of: what determines the running training; None between two.
    """

    made_of: dict[str, Any] | None = None
    _best: str | None = None
    """The best checkpoint of the run that goes on."""
    _is_saving = False
    _is_rescuing = False
    _epoch_ended = False
    """Whether all that belongs to the end of the epoch (measuring, say) is done."""
    _step_is_whole = False
    """Whether the last step is updated, logged and, where due, saved, and nothing of the next one is."""
    _before_step: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    """`training_state()` and random states when the last step was whole: what a failing step may have changed."""

    def what_determines(self) -> dict[str, Any]:
        raise NotImplementedError

    def training_state(self) -> dict[str, Any]:
        """What goes into method_state.pt."""
        raise NotImplementedError

    def load_training_state(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `train`; True takes the newest whole checkpoint in `output_dir`. When a step fails (a reward
        function, say), the steps before it are saved first.

        Raises ValueError, before anything is loaded, for a damaged checkpoint or one of another run.
        """
        if self.made_of is None:
            self.made_of = self.what_determines()
        self._epoch_ended, self._best = False, None
        measure_first = self.args.eval_on_start
        if resume_from_checkpoint:
            resume_from_checkpoint = str(self._checkpoint_to_resume(resume_from_checkpoint))
            best = checkpoints.best_of(Path(resume_from_checkpoint))
            self._best = str(best) if best is not None and best.is_dir() else None
            self.args.eval_on_start = False  # was done when the run started
        try:
            return super().train(resume_from_checkpoint or None, *args, **kwargs)
        except (Exception, KeyboardInterrupt):
            self._rescue()
            raise
        finally:
            self.args.eval_on_start = measure_first
            self.made_of = None

    def _checkpoint_to_resume(self, wanted: str | bool) -> Path:
        if isinstance(wanted, bool):
            folder = Path(self.args.output_dir or ".")
            found, damaged = checkpoints.newest_whole(folder)
            if found is None:
                raise ValueError(f"no whole checkpoint lies in {folder} {checkpoints.described(damaged)}".rstrip())
            if damaged:
                logger.warning("%s; training goes on from %s", checkpoints.described(damaged), found)
            wanted = str(found)
        checkpoint = Path(wanted)
        checkpoints.require_whole(checkpoint)
        assert self.made_of is not None
        if (earlier := checkpoints.made_of(checkpoint)) is not None:
            refuse_changes(earlier, self.made_of, checkpoint)
            if changes := allowed_changes(earlier, self.made_of):
                logger.warning("%s: training goes on; changed: %s", checkpoint, ", ".join(changes))
        if self.args.load_best_model_at_end:
            checkpoints.require_best(checkpoint)
        return checkpoint

    def last_step(self) -> int:
        """At which training is to end."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = len(self.get_train_dataloader())
        return math.ceil(
            self.args.num_train_epochs * max(1, math.ceil(batches / self.args.gradient_accumulation_steps))
        )

    # What a resumed run does otherwise

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """The best checkpoint is looked for beside the one to go on from: the run folder may have been moved since."""
        found = super()._init_training_state(*args, **kwargs)
        self.state.best_model_checkpoint = self._best
        return found

    def _load_best_model(self) -> None:
        checkpoints.require_whole(Path(str(self.state.best_model_checkpoint)), to_resume=False)
        super()._load_best_model()

    def begin_training(self) -> None:
        """Called when training begins, after a checkpoint's state has been loaded."""
        if self.args.should_save:
            checkpoints.clear_leftovers(Path(self.args.output_dir or "."))
        step, last = self.state.global_step, self.state.max_steps
        if not step:
            return
        if step > last:
            raise ValueError(
                f"the checkpoint is of step {step}, and training is to end at step {last}: raise max_steps or "
                "num_train_epochs, or go on from an earlier checkpoint"
            )
        self.state.compute_steps(self.args, last)  # as these options have it, not those of the earlier session
        if self.args.should_save:
            self._rotate(Path(self.args.output_dir or "."))
        if not self._epoch_ended and self.state.epoch == int(self.state.epoch or 0):
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            nothing = torch.zeros((), device=self.args.device)
            self._maybe_log_save_evaluate(nothing, None, self.model_wrapped, None, self.state.epoch, None, 0.0)

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As transformers' `save_model`. Raises ValueError for weights that are not finite."""
        if not _internal_call:
            self.require_finite({})
        super().save_model(output_dir, _internal_call)

    def require_finite(self, state: Mapping[str, Any] | None = None) -> None:
        """Raises ValueError, naming the first of weights, optimizer's state and `state` with a NaN or an infinity."""
        optimizer = self.optimizer.state_dict()["state"] if state is None and self.optimizer is not None else {}
        state = self.training_state() if state is None else state
        assert self.model is not None
        trained = ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)
        for what, tensors in (
            ("the weights are", trained),
            ("the optimizer's state is", _tensors(optimizer)),
            ("the teacher's weights are", _tensors(state)),
        ):
            for name, value in tensors:
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    newest = next(reversed(checkpoints.by_step(Path(self.args.output_dir or ".")).values()), None)
                    raise ValueError(
                        f"step {self.state.global_step}: {what} no longer finite ({name}), so nothing of it is saved; "
                        + (f"the last checkpoint is {newest}" if newest else "there is no checkpoint from before")
                        + ". Start again with a lower learning_rate or max_grad_norm"
                    )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = self._before_step[0] if self._is_rescuing else self.training_state()
            torch.save({**state, "epoch_ended": self._epoch_ended}, Path(output_dir) / METHOD_STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint) / METHOD_STATE, map_location="cpu", weights_only=True)
            self._epoch_ended = state["epoch_ended"]
            self.load_training_state(state)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A save that fails (a full disk, say) leaves nothing behind and is reported; training goes on, unless it was
        the last step's. Raises ValueError for what is not finite, and OSError for a last checkpoint that failed."""
        self.require_finite()
        folder = Path(self._get_output_dir(trial))
        checkpoint = folder / checkpoints.name_of(self.state.global_step)
        if problem := self._write_checkpoint(model, trial, folder, checkpoint):
            self._report_failed_save(checkpoint, problem)
            return
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            self._rotate(folder)

    def _write_checkpoint(self, model: nn.Module, trial: Any, folder: Path, checkpoint: Path) -> str | None:
        """Every process writes its part, then one seals the checkpoint and gives it its place. Returns what failed."""
        saved, best = folder / SAVING / checkpoint.name, self.state.best_model_checkpoint
        with self._joined_failure() as failure:
            with self._saving():
                super()._save_checkpoint(model, trial)
        if not failure:
            with self._joined_failure() as failure:
                is_best = self.state.best_model_checkpoint == str(saved)
                self.state.best_model_checkpoint = str(checkpoint) if is_best else best
                if self.args.should_save:
                    self.state.save_to_json(str(saved / TRAINER_STATE_NAME))
                    checkpoints.seal(saved, self.made_of)
                    checkpoints.publish(saved, checkpoint)
        if failure:
            self.state.best_model_checkpoint = best
        if self.args.should_save:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        return failure[0] if failure else None

    @contextmanager
    def _joined_failure(self) -> Iterator[list[str]]:
        """What failed in the block on any process is in the list after it, on all of them."""
        failure: list[str] = []
        try:
            yield failure
        except Exception as error:  # storage fails in many types: OSError, safetensors', torch's RuntimeError
            failure.append(str(error) or type(error).__name__)
        failure[:] = gather_object(failure)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Inside the block transformers writes a checkpoint to `_saving/`, and neither pushes nor rotates it."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / SAVING) if self._is_saving else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _rotate(self, folder: Path) -> None:
        try:
            checkpoints.rotate(
                folder,
                self.args.save_total_limit,
                step=self.state.global_step,
                best=self.state.best_model_checkpoint,
            )
        except OSError as error:
            logger.warning("%s: an old checkpoint could not be removed (%s)", folder, error)

    def _report_failed_save(self, checkpoint: Path, problem: str) -> None:
        free = shutil.disk_usage(checkpoint.parent).free / 2**20
        if self.state.global_step >= self.state.max_steps:
            raise OSError(
                f"{checkpoint}: the last checkpoint could not be saved ({problem}); {free:.0f} MiB are free there. "
                "Make room and run the same command with --resume: it goes on from the checkpoint before"
            )
        logger.error(
            "%s: checkpoint not saved (%s); %.0f MiB are free there. Training goes on and saves again in %s steps: "
            "make room, or lower save_total_limit",
            checkpoint,
            problem,
            free,
            self.args.save_steps,
        )
        self.on_failed_save()

    def begin_step(self) -> None:
        """Called before anything of the next step is done."""
        self._step_is_whole = True
        self._before_step = self.training_state(), _random_states()

    def _rescue(self) -> None:
        """Save the last whole step as it was then, unless it is saved already or an update was being made."""
        folder = Path(self.args.output_dir or ".") / checkpoints.name_of(self.state.global_step)
        alone = self.accelerator.num_processes == 1
        if not (self._step_is_whole and alone and self.state.global_step > 0) or folder.exists():
            return
        self._is_rescuing = True
        try:
            _set_random_states(self._before_step[1])
            self._save_checkpoint(self.model_wrapped, None)
        except ValueError as error:  # not finite
            logger.error("the steps before the failure are not saved: %s", error)
        finally:
            self._is_rescuing = False
        if folder.exists():
            logger.error("the steps before the failure are saved in %s; fix it and resume from there", folder)

    def on_failed_save(self) -> None:
        """Called after a save that failed while training goes on."""


class ResumeHooks(TrainerCallback):
    """Knows where in an epoch training is."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._epoch_ended = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._step_is_whole = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._epoch_ended:  # before the checkpoint that training went on from
            control.should_log = control.should_evaluate = control.should_save = False
        self.trainer._epoch_ended = True


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Of a nested state, with their places in it."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list | tuple):
        for place, value in enumerate(state):
            yield from _tensors(value, f"{name}.{place}")
