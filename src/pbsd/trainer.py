"""One trainer for every method, on `transformers.Trainer`: it knows a method only through `methods.method.Method`.

What is ours here: a step's prompts are collected together, whatever the micro-batches; the loss is divided by the
global weight; the method's state is in every checkpoint (`ResumableTrainer` says how they are written and read).
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME

from pbsd import checkpoints
from pbsd.accuracy import Accuracy, measure_accuracy
from pbsd.config import RolloutConfig
from pbsd.data import PromptDataset
from pbsd.determines import what_determines
from pbsd.diagnostics.alarms import Alarm, AlarmMonitor
from pbsd.diagnostics.style import StyleGap
from pbsd.engine import Engine
from pbsd.hub import MODEL_CARD_TAGS, write_model_card
from pbsd.loop import unused_parameters
from pbsd.methods.method import Method
from pbsd.products import fast_linears
from pbsd.records import Batch, Metrics, Prompt
from pbsd.resumable import ResumableTrainer, ResumeHooks
from pbsd.scoring.router import uncounted

_TOKENS_OF_MEASUREMENTS = ("tokens/refreshed_teacher", "tokens/handover")
"""Sampled in a step beside its batch, to learn how much, not from."""

logger = logging.getLogger(__name__)


class MethodTrainer(ResumableTrainer):
    """Trains by a `Method`. See `pbsd.PBSDTrainer` for the constructor users call.

    Attributes:
        generated_tokens: tokens sampled for training so far, student's and teacher's, over all processes.
        train_seconds: time spent training, over all sessions of a resumed run.
        on_samples: called on the main process with each step's number and sample records.
        on_alarm: called on the main process with the record of an alarm that begins.
        stopped_by: the record of the alarm that ended training, with `on_alarm: stop`.
    """

    args: RolloutConfig
    train_dataset: PromptDataset | None
    eval_dataset: PromptDataset | None
    _tag_names = MODEL_CARD_TAGS

    def __init__(
        self,
        model: nn.Module,
        args: RolloutConfig,
        *,
        engine: Engine,
        method: Method,
        train_dataset: PromptDataset | None,
        eval_dataset: PromptDataset | None,
        prepare_rows: Callable[[Any], PromptDataset],
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # type: ignore[arg-type]
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=engine.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # The loss is already divided by the weight of the whole step.
        self.loss_is_scaled_for_ga = True
        self.engine = engine
        engine.reward_log.trainer_state = lambda: self.state
        self.method = method
        self.prepare_rows = prepare_rows
        self.generated_tokens = 0
        self.train_seconds = 0.0
        self.on_samples: Callable[[int, list[dict[str, Any]]], None] | None = None
        self.on_alarm: Callable[[dict[str, Any]], None] | None = None
        self.stopped_by: dict[str, Any] | None = None
        self._alarms = AlarmMonitor(args.alarm_thresholds, args.alarm_window)
        self._style_gap = StyleGap()
        self.balance_experts(engine.student)
        self._metrics = Metrics()
        self._reward_metrics = Metrics()
        self._samples: list[dict[str, Any]] = []
        self._step_started = time.monotonic()
        self._step_tokens = 0
        self.add_callback(_StepHooks(self))
        self.add_callback(ResumeHooks(self))
        if engine.teacher is not None:
            engine.teacher.to_student_device()
        if isinstance(self.model, PreTrainedModel):
            self.model.add_model_tags(self._tag_names)

    def _wrap_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        """transformers has decided by now how DDP is to wrap the model."""
        model = super()._wrap_model(*args, **kwargs)
        self._search_unused_parameters_only_if_any()
        return model

    def _search_unused_parameters_only_if_any(self) -> None:
        """DDP walks the graph of every forward pass for parameters without gradient, unless it is told that there are
        none. An option that the user has set stays."""
        handler = getattr(self.accelerator, "ddp_handler", None)
        asked = self.args.ddp_find_unused_parameters is not None
        if handler is None or asked or self.accelerator.num_processes == 1 or not handler.find_unused_parameters:
            return
        if unused := unused_parameters(self.engine.student, self.engine.pad_id):
            logger.info("%d parameters get no gradient, e.g. %s: DDP searches for them", len(unused), unused[0])
        else:
            handler.find_unused_parameters = False

    # One optimisation step

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Prompt]], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Collect the step's prompts in one go, then cut the batch into micro-batches. Returns them and the weight of
        the whole step over all processes. There are none when training goes on from the checkpoint of the last step."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], torch.zeros((), device=device)
        micro_batches = list(islice(epoch_iterator, num_batches))
        prompts = [prompt for micro_batch in micro_batches for prompt in micro_batch]
        if not prompts:
            return [], torch.zeros((), device=device)
        self.training_weights()
        self._step_started = time.monotonic()
        self.begin_step()
        self.engine.reward_log.take()  # of an evaluation
        batch, metrics = self.method.collect(prompts, self.state.global_step)
        self._keep(metrics)
        self._keep_reward_metrics(self.engine.reward_log.take())
        generated = batch.sampled_tokens + sum(metrics.counts.get(name, 0) for name in _TOKENS_OF_MEASUREMENTS)
        self._count_routing(batch)
        totals = torch.tensor([self.method.weight(batch), generated], dtype=torch.float64, device=device)
        weight, tokens = self.accelerator.reduce(totals, reduction="sum")
        self._step_tokens = int(tokens)
        return batch.split(map(len, micro_batches)), weight

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of a micro-batch, in parts by token budget; the result does not depend on the parts."""
        parts: list[Any] = [*self.engine.parts(inputs, self.args.train_batch_tokens)]
        if self.accelerator.num_processes > 1:
            parts += [_Idle(inputs)] * (max(gather_object([len(parts)])) - len(parts))
        loss = torch.zeros((), device=self.args.device)
        with fast_linears(model):
            for part in parts[:-1]:
                with self.accelerator.no_sync(model):
                    loss += super().training_step(model, part, num_items_in_batch)
            return loss + super().training_step(model, parts[-1], num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        if isinstance(inputs, _Idle):
            with uncounted():
                return self.method.loss(model, inputs.batch.split([1, len(inputs.batch.prompts) - 1])[0])[0] * 0.0
        with nullcontext() if self.balance is None else self.balance.collecting():
            loss_sum, metrics, samples = self.method.loss(model, inputs)
        if not torch.isfinite(loss_sum):
            raise ValueError(
                f"step {self.state.global_step + 1}: the loss is {loss_sum.item()}: weights or scores are no "
                "longer finite. Start again with a lower learning_rate or a higher beta; the last checkpoint holds the "
                "weights from before"
            )
        self._keep(metrics, samples)
        assert num_items_in_batch is not None, "the weight of the step is set by get_batch_samples"
        # Data-parallel wrappers average gradients over processes; the weight is already the sum over them.
        loss = loss_sum / max(float(num_items_in_batch), 1e-12)
        return (loss if self.balance is None else loss + self.balance.share) * self.accelerator.num_processes

    def _count_routing(self, batch: Batch) -> None:
        """Where experts are balanced: run the step's scoring once, to know how it loads them as a whole."""
        if self.balance is None:
            return
        student = self.engine.student.train()
        with self.balance.counting(), fast_linears(student):
            for part in self.engine.parts(batch, self.args.train_batch_tokens):
                self.method.loss(student, part)
        loss = self.balance.reduce(partial(self.accelerator.reduce, reduction="sum"), self.args.device)
        if not math.isnan(loss):
            own = Metrics()
            own.observe("loss/router_aux", [loss])
            self._keep(own)

    def _keep(self, metrics: Metrics, samples: Iterable[dict[str, Any]] = ()) -> None:
        """Until they are logged."""
        if self.args.logging_strategy != "no":
            self._metrics.merge(metrics)
            self._samples += samples

    def _keep_reward_metrics(self, metrics: Metrics) -> None:
        if self.args.logging_strategy != "no":
            self._reward_metrics.merge(metrics)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # cost is counted in generated tokens

    # Metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the method's metrics of the steps since the last log, joined over processes, to training logs."""
        if "loss" in logs:
            metrics, logged, samples = Metrics(), Metrics(), []
            for other, other_logged, records in gather_object([(self._metrics, self._reward_metrics, self._samples)]):
                metrics.merge(other)
                logged.merge(other_logged)
                samples += records
            self._metrics, self._reward_metrics, self._samples = Metrics(), Metrics(), []
            logs.update(sorted(metrics.summary().items()))
            logs["tokens/generated_total"] = self.generated_tokens
            logs["time/train_seconds"] = self.train_seconds
            self._diagnose(logs, samples)
            logs.update(_with_free_names(logged.summary(), logs))
            if self.on_samples and self.is_world_process_zero():
                self.on_samples(self.state.global_step, samples)
        super().log(logs, start_time)

    def _diagnose(self, logs: dict[str, float], samples: list[dict[str, Any]]) -> None:
        """Adds what is known of several steps only: the style gap, and how many alarm rules fire."""
        self._style_gap.observe(samples)
        if "pairs/margin" in logs:
            logs["pairs/style_gap"] = self._style_gap.auc()
        for alarm in self._alarms.observe(self.state.global_step, logs):
            self._raise_alarm(alarm)
        logs["health/alarms"] = len(self._alarms.firing)

    def _raise_alarm(self, alarm: Alarm) -> None:
        """Log an alarm and hand it on; with `on_alarm: stop`, the first ends training after this step."""
        healthy = self._newest_checkpoint(alarm.healthy_until)
        record = {**asdict(alarm), "healthy_checkpoint": healthy and healthy.name}
        stops = self.args.on_alarm == "stop"
        if stops and self.stopped_by is None:
            self.stopped_by = record
            self.control.should_training_stop = True
        if self.is_world_process_zero():
            logger.warning(
                "step %d, alarm %s: %s %s; %s",
                alarm.step,
                alarm.rule,
                alarm.message,
                "Training stops" if stops else "Training goes on",
                f"the last checkpoint from before is {healthy}" if healthy else "there is no checkpoint from before",
            )
            if self.on_alarm:
                self.on_alarm(record)

    def _newest_checkpoint(self, until: int) -> Path | None:
        """The newest whole checkpoint of step `until` or before."""
        steps = checkpoints.by_step(Path(self.args.output_dir or "."))
        return steps.get(max((step for step in steps if step <= until), default=-1))

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """avg@k at T = 1 and greedy accuracy of the student on held-out prompts, as `eval_accuracy` and so on."""
        self.engine.reward_log.take()  # of an earlier measurement
        metrics = self.measure_accuracy(eval_dataset).metrics(metric_key_prefix)
        logged = Metrics()
        for other in gather_object([self.engine.reward_log.take()]):
            logged.merge(other)
        own = {f"{metric_key_prefix}_{name}": value for name, value in logged.summary().items()}
        metrics |= _with_free_names(own, metrics)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def measure_accuracy(self, eval_dataset: Any = None) -> Accuracy:
        """The same with the counts of every problem; of these rows, or of the trainer's `eval_dataset`."""
        dataset = self.eval_dataset if eval_dataset is None else self.prepare_rows(eval_dataset)
        if dataset is None:
            raise ValueError("no eval_dataset: pass held-out rows to the trainer or to evaluate()")
        share = dataset.prompts[self.accelerator.process_index :: self.accelerator.num_processes]
        with self.evaluation_weights():
            return Accuracy.join(gather_object([measure_accuracy(self.engine, share)]))

    # Checkpoints

    def what_determines(self) -> dict[str, Any]:
        rows = {"train": self.train_dataset, "test": self.eval_dataset}
        return what_determines(self.args, self.engine, rows, self.accelerator.num_processes)

    def training_state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "generated_tokens": self.generated_tokens,
            "train_seconds": self.train_seconds,
            "alarms": self._alarms.state_dict(),
            "style_gap": self._style_gap.state_dict(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.generated_tokens = state["generated_tokens"]
        self.train_seconds = state["train_seconds"]
        self._alarms.load_state_dict(state["alarms"])
        self._style_gap.load_state_dict(state["style_gap"])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As transformers' `_save`, without training_args.bin, which holds `hub_token` and the like, and with our model
        card in place of PEFT's, which names folders of this machine."""
        folder = Path(output_dir or self.args.output_dir or ".")
        with self._args_without_secrets():
            super()._save(output_dir, state_dict)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        if self.args.should_save and (folder / "README.md").is_file():
            write_model_card(folder, self)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with self._args_without_secrets():
            super()._push_from_checkpoint(checkpoint_folder)

    @contextmanager
    def _args_without_secrets(self) -> Iterator[None]:
        """Inside the block, pickling the options gives a plain dict of those that may be written."""
        args = self.args
        self.args = _PicklesWithoutSecrets(args)  # type: ignore[assignment]
        try:
            yield
        finally:
            self.args = args

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The step at which an alarm stopped training is not saved: that could delete the healthy checkpoint, and a
        resumed run comes back to the alarm from the checkpoint before, and to the same end."""
        if self.stopped_by is None:
            super()._save_checkpoint(model, trial)

    def on_failed_save(self) -> None:
        self._metrics.count("health/failed_saves")

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        if self.is_world_process_zero():
            write_model_card(Path(self.args.output_dir or "."), self)


def _with_free_names(logged: Mapping[str, float], logs: Mapping[str, float]) -> Mapping[str, float]:
    """What reward functions log. Raises ValueError for a name that the logs have already."""
    if taken := sorted(logged.keys() & (logs.keys() | {"step", "epoch"})):
        raise ValueError(
            f"a reward function logs the metric {', '.join(map(repr, taken))}, a name of pbsd's own: rename it"
        )
    return logged


class _PicklesWithoutSecrets:
    """Options that are read as they are, and pickled as a dict of what `to_dict` lets through."""

    def __init__(self, args: RolloutConfig) -> None:
        self._args = args

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, ([*self._args.to_dict().items()],)  # torch loads it without running code


@dataclass(frozen=True, slots=True)
class _Idle:
    """A part without weight, for a process with fewer parts than another: all take part in every forward pass of a
    sharded model."""

    batch: Batch


class _StepHooks(TrainerCallback):
    """Moves the method (its teacher) after the optimiser and before the step's checkpoint."""

    def __init__(self, trainer: MethodTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.method.after_step(state.global_step)
        self.trainer.generated_tokens += self.trainer._step_tokens
        self.trainer.train_seconds += time.monotonic() - self.trainer._step_started
