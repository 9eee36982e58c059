"""transformers' own options: which are refused, and why. Every other one does what transformers' documentation says.

The names are those of all versions that pbsd runs with; an installed version that lacks one never sees it. The test
tests/tiny/test_training_arguments.py holds every field of the installed version: one that is new there fails by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from transformers import TrainingArguments

from pbsd.config.sharding import INSTEAD, REASON

EVALUATION_METRICS = ("accuracy", "accuracy_low", "accuracy_high", "greedy_accuracy")
"""What `evaluate` gives, as `eval_accuracy` and so on, that a best model can be chosen by."""


class Refusal(NamedTuple):
    """Why an option is refused and what to do instead; `accepts` lets through more values than the default and what
    transformers makes of it."""

    why: str
    accepts: Callable[[Any], bool] = lambda value: False


_SHARDING = f"{REASON}; {INSTEAD}"
_EVALUATION = (
    "evaluation samples completions and measures their accuracy, it runs no loss and collects no predictions; leave it "
    "out"
)
_DRAWN = "the items of a step are prompts, whose completions are not drawn yet and have no length; leave it out"


def _all_off(fsdp_config: Any) -> bool:
    """What older versions of transformers make of an fsdp_config that was left out."""
    if isinstance(fsdp_config, str) and fsdp_config.startswith("{"):
        fsdp_config = json.loads(fsdp_config)  # as on the command line
    own = {"min_num_params", "xla", "xla_fsdp_v2", "xla_fsdp_grad_ckpt"}
    return isinstance(fsdp_config, dict) and fsdp_config.keys() <= own and not any(fsdp_config.values())


REFUSED: dict[str, Refusal] = {
    # Sharding
    "fsdp": Refusal(_SHARDING),
    "fsdp_config": Refusal(_SHARDING, _all_off),
    "deepspeed": Refusal(_SHARDING),
    "parallelism_config": Refusal(_SHARDING),
    "tp_size": Refusal(_SHARDING, lambda value: value in (0, 1)),
    # The loss and the forward pass
    "label_smoothing_factor": Refusal(
        "it smooths the labels of transformers' own loss, which is not used here; for noisy preferences PBSD has "
        "label_smoothing"
    ),
    "neftune_noise_alpha": Refusal(
        "noise on the embeddings makes the scored policy another than the sampled one; leave it out"
    ),
    "use_liger_kernel": Refusal(
        "it replaces the model's forward after pbsd has added its scoring to it; full logits are never made here as it "
        "is: lower train_batch_tokens where memory is short"
    ),
    "liger_kernel_config": Refusal("use_liger_kernel is refused; leave it out"),
    "auto_find_batch_size": Refusal(
        "it begins the training again on weights that it has changed already; lower train_batch_tokens instead, which "
        "bounds the memory of a forward and backward pass and leaves the result as it is"
    ),
    "include_num_input_tokens_seen": Refusal(
        "a batch here holds prompts and completions, no padded input; the logs have tokens/generated_total and "
        "tokens/trained",
        lambda value: value in (False, "no"),
    ),
    "ddp_static_graph": Refusal("the graph of a step depends on its samples; leave it out"),
    # Evaluation and prediction
    "per_device_eval_batch_size": Refusal(
        "held-out prompts are decoded generation_batch_size completions at a time; set that instead"
    ),
    "prediction_loss_only": Refusal(_EVALUATION),
    "eval_do_concat_batches": Refusal(_EVALUATION),
    "eval_use_gather_object": Refusal(_EVALUATION),
    "eval_accumulation_steps": Refusal(_EVALUATION),
    "include_for_metrics": Refusal(_EVALUATION),
    "batch_eval_metrics": Refusal(_EVALUATION),
    "label_names": Refusal(_EVALUATION),
    "bf16_full_eval": Refusal(
        "evaluation samples from the weights as they are trained; load them in bfloat16 with model_init_kwargs "
        '{"dtype": "bfloat16"}'
    ),
    "fp16_full_eval": Refusal(
        'evaluation samples from the weights as they are trained; set their type with model_init_kwargs {"dtype": ...}'
    ),
    "do_predict": Refusal("nothing is predicted; measure a model with `pbsd evaluate`"),
    # Data
    "train_sampling_strategy": Refusal(_DRAWN, lambda value: value == "sequential"),
    "group_by_length": Refusal(_DRAWN),
    "length_column_name": Refusal(_DRAWN),
    "remove_unused_columns": Refusal("reward functions read the columns of the data set; leave it False"),
    # Saving and debugging
    "debug": Refusal(
        "it looks into what transformers' own forward gives, and scoring gives something else; a loss that is not "
        "finite ends training and says so, and torch.autograd.set_detect_anomaly(True) finds where it comes from"
    ),
    "enable_jit_checkpoint": Refusal(
        "it saves in the middle of a step; at SIGTERM `pbsd train` saves at the end of the step (in Python: "
        "pbsd.run.stop_on_sigterm)"
    ),
    "hub_strategy": Refusal(
        "the finished model is pushed, and no checkpoints; leave it out", lambda value: str(_plain(value)) == "end"
    ),
    "hub_always_push": Refusal("the finished model is pushed, once; leave it out"),
    "resume_from_checkpoint": Refusal(
        "transformers leaves it to scripts to read; use `pbsd train RECIPE --resume`, or in Python "
        "trainer.train(resume_from_checkpoint=...)"
    ),
}  # fmt: skip

_IN_BACKWARD = ("lomo", "layerwise")
_ACCELERATOR_CONFIG: dict[str, tuple[Any, str]] = {
    "split_batches": (False, "per_device_train_batch_size is what each process gets"),
    "dispatch_batches": (None, "batches of prompts are no tensors that one process could send to the others"),
    "even_batches": (True, "every process must take part in every step"),
    "gradient_accumulation_kwargs": (None, "gradients are summed over a step and shared once, at its end"),
}
"""Fields of accelerator_config with the one value that works (None and False count as one), and why."""


def refuse_options(args: TrainingArguments) -> None:
    """Raise ValueError naming the first of transformers' options that would be ignored, or would do harm, here."""
    defaults = {
        option.name: option.default if option.default_factory is MISSING else option.default_factory()
        for option in fields(args)
    }
    for name, refusal in REFUSED.items():
        value, default = _plain(getattr(args, name, None)), defaults.get(name)
        is_off = value == default or (not default and not value)
        if not is_off and not refusal.accepts(value):
            raise ValueError(f"{name}={value!r} is refused: {refusal.why}")


def check_values(args: TrainingArguments) -> None:
    """The same for options that work with some values only, once transformers has read them. A schedule that waits for
    a metric is told that more is better."""
    optimizer = str(_plain(args.optim))
    if any(part in optimizer for part in _IN_BACKWARD):
        raise ValueError(
            f"optim={optimizer!r} is refused: it changes weights inside the backward pass, of which a step here has "
            "several (train_batch_tokens); choose one that steps once, such as adamw_torch or adafactor"
        )
    for name, (only, why) in _ACCELERATOR_CONFIG.items():
        value = getattr(args.accelerator_config, name, only)
        if value != only and (value or only):
            raise ValueError(f"accelerator_config with {name}={value!r} is refused: {why}; leave it out")
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in EVALUATION_METRICS:
        raise ValueError(
            f"metric_for_best_model={metric!r} is refused: evaluation gives {', '.join(EVALUATION_METRICS)}; choose one"
        )
    if _waits_for_metric(args):
        assert not isinstance(args.lr_scheduler_kwargs, str), "transformers has parsed it"
        mode = "max" if args.greater_is_better else "min"
        args.lr_scheduler_kwargs = {"mode": mode, **(args.lr_scheduler_kwargs or {})}
    if not args.average_tokens_across_devices and args.world_size > 1:
        raise ValueError(
            "average_tokens_across_devices=False is refused with several processes: the loss of a step is divided by "
            "its weight over all of them, so that their number does not change it; leave it out"
        )


def needs_metric(args: TrainingArguments) -> bool:
    """Whether something is chosen by what evaluation measures."""
    return args.load_best_model_at_end or _plain(args.save_strategy) == "best" or _waits_for_metric(args)


def _waits_for_metric(args: TrainingArguments) -> bool:
    return _plain(args.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy")


def _plain(value: Any) -> Any:
    """An enumeration's value; anything else as it is."""
    return getattr(value, "value", value) if isinstance(value, str) else value
