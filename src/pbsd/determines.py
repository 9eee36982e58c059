"""What determines a run: every option by its name, the model, the data and the rewards.

It is recorded when a run starts and in each of its checkpoints. Training goes on only from a run with the same record:
a change is refused by the option's name, or it is one of those that are allowed here by name. An option that is not
named here (a later version of transformers brings one) counts as one that determines the run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import torch

from pbsd.config import RolloutConfig
from pbsd.methods import method_name
from pbsd.redact import is_secret, public, secrets_in
from pbsd.rewards.functions import reward_name
from pbsd.rewards.identity import code_hash, reward_identity

if TYPE_CHECKING:
    from pbsd.data import PromptDataset
    from pbsd.engine import Engine

WITHOUT_EFFECT = frozenset(
    # where files go, and what is shown
    ("output_dir", "run_name", "disable_tqdm", "report_to", "project", "trackio_bucket_id", "trackio_space_id",
     "trackio_static_space_id", "log_level", "log_level_replica", "log_on_each_node", "log_token_ratios",
     "logging_first_step", "logging_nan_inf_filter", "logging_steps", "logging_strategy", "skip_memory_metrics",
     # what is saved and measured on the way
     "save_on_each_node", "save_only_model", "save_steps", "save_strategy", "save_total_limit", "enable_jit_checkpoint",
     "eval_delay", "eval_on_start", "eval_steps", "eval_strategy",
     # what is pushed
     "push_to_hub", "hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
     # how rows and gradients travel
     "dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_persistent_workers",
     "dataloader_pin_memory", "dataloader_prefetch_factor", "ddp_timeout", "local_rank", "torch_empty_cache_steps",
     # read by scripts, not by the trainer
     "do_eval", "do_predict", "do_train", "resume_from_checkpoint")
)  # fmt: skip
"""May change without a word: weights, samples and the measurement at the end stay the same."""

HOW_FAR = frozenset(("max_steps", "num_train_epochs", "on_alarm", "alarms"))
"""May change, and the change is said: when training ends. Schedules that reach to the end follow the new one."""

ROUNDING = frozenset(
    ("generation_batch_size", "scoring_batch_tokens", "train_batch_tokens", "num_threads",
     "reward_timeout", "reward_workers")
)  # fmt: skip
"""May change, and the change is said: sums in another order, and which graders run out of time."""

BY_CONTENT = frozenset(
    ("method", "model_name_or_path", "teacher_model",
     "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "dataset_train_size",
     "dataset_test_size", "dataset_seed",
     "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
)  # fmt: skip
"""Say where something is found: that itself is compared (weights, rows, the adapter's options), not its name."""

DETERMINING = frozenset(
    ("accelerator_config", "activation_checkpointing", "activation_checkpointing_kwargs", "adam_beta1", "adam_beta2",
     "adam_epsilon", "auto_find_batch_size", "average_tokens_across_devices", "batch_eval_metrics", "bf16",
     "bf16_full_eval", "data_seed", "dataloader_drop_last", "dataloader_in_order", "ddp_backend",
     "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph", "debug",
     "deepspeed", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object", "fp16",
     "fp16_full_eval", "fsdp", "fsdp_config", "full_determinism", "gradient_accumulation_steps",
     "gradient_checkpointing", "gradient_checkpointing_kwargs", "greater_is_better", "ignore_data_skip",
     "include_for_metrics", "include_num_input_tokens_seen", "label_names", "label_smoothing_factor", "learning_rate",
     "length_column_name", "liger_kernel_config", "load_best_model_at_end", "lr_scheduler_kwargs", "lr_scheduler_type",
     "max_grad_norm", "metric_for_best_model", "neftune_noise_alpha", "optim", "optim_args", "optim_target_modules",
     "parallelism_config", "per_device_eval_batch_size", "per_device_train_batch_size", "prediction_loss_only",
     "remove_unused_columns", "restore_callback_states_from_checkpoint", "seed", "tf32", "torch_compile",
     "torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "use_cache", "use_cpu",
     "use_liger_kernel", "warmup_steps", "weight_decay",
     # every method's
     "model_init_kwargs", "trust_remote_code", "disable_dropout", "max_prompt_length", "max_teacher_prompt_length",
     "overlong", "teacher_prompt_template", "student_thinking_prefix", "teacher_thinking_prefix",
     "chat_template_kwargs", "tools_template", "num_generations", "max_completion_length", "temperature", "top_p",
     "top_k", "min_p", "generation_kwargs", "reward_weights", "success_threshold", "num_generations_eval", "eval_seed",
     "leakage_phrases", "alarm_window",
     # some methods'
     "teacher", "ema_decay", "teacher_refresh_steps", "teacher_refresh_margin", "teacher_refresh_measure",
     "teacher_refresh_blend", "context", "context_dose", "leakage_guard", "leakage_weight", "preset", "beta",
     "loss_type", "reward_scale", "label_smoothing", "preference_coef", "group_coef", "imitation_coef",
     "imitation_from", "imitation_weights", "imitation_prompts", "imitation_gate", "reward_max", "direct_coef",
     "direct_kl_gradient", "nll_coef", "coef_schedule", "num_teacher_generations", "adaptive_generations", "pairing",
     "pair_policy", "keep_ties", "reuse_sampler_logprobs", "distillation_mode", "distillation_alpha",
     "distillation_topk", "distillation_add_tail", "distillation_entry_clip", "num_loss_tokens_to_skip",
     "use_successful_as_teacher", "dont_reprompt_on_self_success", "include_environment_feedback",
     "environment_feedback_only_without_solution", "feedback_column", "remove_thinking_from_demonstration",
     "reprompt_template", "use_bias_correction_kl", "scale_rewards", "num_iterations", "pairs", "loss_normalization",
     "rft_source", "deduplicate",
     # a recipe's
     "reward_funcs")
)  # fmt: skip
"""A change is refused."""

_WITH_THE_BEST_MODEL = frozenset(("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"))
"""Determine a run that ends with its best checkpoint: which ones there are to choose from."""

_WITH_ALARMS_THAT_STOP = frozenset(("logging_steps", "logging_strategy", "logging_first_step"))
"""Determine a run that an alarm may end: alarms look at logs."""

_AT_TIMES = _WITH_THE_BEST_MODEL | _WITH_ALARMS_THAT_STOP
"""Are compared where they determine both of two runs."""

_MAY_HOLD_SECRETS = frozenset(("model_init_kwargs",))
"""Determining options in which a secret is no part of what determines: the token that the hub asks for."""

MAY_CHANGE = "may_change"
_OF_THE_ADAPTERS_FOLDER = ("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode")


def determining_options(options: Any) -> dict[str, Any]:
    """Those of a config's or `RunArguments`' options that a resumed run may not change, as JSON has them.

    Raises ValueError, naming it, for one with a secret in it: that is not written, so it could not be compared.
    """
    allowed = WITHOUT_EFFECT | HOW_FAR | ROUNDING | BY_CONTENT
    if isinstance(options, RolloutConfig):
        if options.load_best_model_at_end:
            allowed -= _WITH_THE_BEST_MODEL
        if options.on_alarm == "stop":
            allowed -= _WITH_ALARMS_THAT_STOP
    _refuse_secrets(options, allowed)
    return _as_json({name: value for name, value in _values(options).items() if name not in allowed})


def _refuse_secrets(options: Any, allowed: AbstractSet[str]) -> None:
    names = [
        option.name
        for option in dataclasses.fields(options)
        if option.name not in allowed | _MAY_HOLD_SECRETS and not is_secret(option.name)
    ]
    if place := next(secrets_in({name: getattr(options, name, None) for name in names}), None):
        raise ValueError(
            f"{place} is or holds a secret, or what looks like one: no file of a run may have it, and as it determines "
            "the run, a resumed run could not be compared with it. Leave it out here, and put the secret into an "
            "environment variable that your reward reads"
        )


def changeable_options(options: Any) -> dict[str, Any]:
    """Those that it may change and that bear on its end or its rounding, as JSON has them."""
    return _as_json({name: value for name, value in _values(options).items() if name in HOW_FAR | ROUNDING})


def what_determines(
    args: RolloutConfig, engine: Engine, datasets: Mapping[str, PromptDataset | None], processes: int
) -> dict[str, Any]:
    """The record of a run that is about to start, as JSON has it: the student still has its initial weights."""
    external = None if engine.teacher is None else engine.teacher.external
    tokenizer = engine.tokenizer
    return _as_json(
        {
            "method": method_name(args),
            "seeds": {"seed": args.seed, "data_seed": args.data_seed, "eval_seed": args.eval_seed},
            "processes": processes,
            "options": determining_options(args),
            "adapter": _adapter_options(engine.student),
            "rewards": [reward_identity(function) for function in engine.reward_funcs],
            "initial_weights_sha256": weights_hash(engine.student),
            "teacher_weights_sha256": None if external is None else weights_hash(external),
            "teacher_prompt_template_sha256": _sha256(args.teacher_prompt_template),
            "chat_template_sha256": _sha256(str(tokenizer.chat_template or "")),
            "tokenizer_sha256": _sha256(json.dumps(sorted(tokenizer.get_vocab().items()))),
            "rows": {
                name: {"used": len(dataset), "dropped": dataset.dropped, "sha256": dataset.fingerprint()}
                for name, dataset in datasets.items()
                if dataset is not None
            },
            MAY_CHANGE: {
                **changeable_options(args),
                "reward_code": _reward_code(engine.reward_funcs),
            },
        }
    )


def refuse_changes(earlier: Mapping[str, Any], now: Mapping[str, Any], where: Any) -> None:
    """Raises ValueError, naming everything in which a run that is to go on differs from its record."""
    names: list[str] = []
    inner_names: list[str] = []
    values: list[str] = []
    for name in now:
        old, new = _compared(earlier.get(name), now[name])
        if name == MAY_CHANGE or old == new:
            continue
        names.append(name)
        if isinstance(old, dict) and isinstance(new, dict) and name != "rows":
            inner = _changed(old, new)
            inner_names += inner
            values += [f"{key} {_shown(old.get(key))} -> {_shown(new.get(key))}" for key in inner]
        elif not name.endswith("sha256") and name != "rows":
            values.append(f"{name} {_shown(old)} -> {_shown(new)}")
    if names:
        details = f" ({'; '.join(values)})" if values else ""
        others = ", ".join(dict.fromkeys(names + inner_names))
        raise ValueError(
            f"{where}: the run to be resumed began with other {others} than this command gives{details}: repeat the "
            "command that started it, or leave out --resume to start from the beginning"
        )


def allowed_changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what a run goes on with that it did not begin with, and may."""
    old, new = earlier.get(MAY_CHANGE, {}), now[MAY_CHANGE]
    said = [f"{key} {_shown(old.get(key))} -> {_shown(new[key])}" for key in _changed(old, new) if key != "reward_code"]
    if old.get("reward_code") != new["reward_code"]:
        said.append("the code of " + ", ".join(_changed(old.get("reward_code") or {}, new["reward_code"])))
    return said


def goes_as_far(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether nothing has changed of when training ends."""
    old, new = earlier.get(MAY_CHANGE, {}), now[MAY_CHANGE]
    return all(old.get(name) == new.get(name) for name in HOW_FAR)


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapter_options(student: Any) -> dict[str, Any] | None:
    """What its PEFT configurations say, by adapter where there are several; None without an adapter."""
    configs = getattr(student, "peft_config", None)
    if not isinstance(configs, dict):
        return None
    found = {
        name: {key: value for key, value in config.to_dict().items() if key not in _OF_THE_ADAPTERS_FOLDER}
        for name, config in configs.items()
    }
    return next(iter(found.values())) if len(found) == 1 else found


def _reward_code(functions: Sequence[Any]) -> dict[str, Any]:
    """Hashes of source files by the rewards' names, so that a run says when it goes on with others."""
    found: dict[str, list[str | None]] = {}
    for function in functions:
        found.setdefault(reward_name(function), []).append(code_hash(function))
    return {name: hashes[0] if len(hashes) == 1 else hashes for name, hashes in found.items()}


def _values(options: Any) -> dict[str, Any]:
    values: dict[str, Any] = options.to_dict() if hasattr(options, "to_dict") else dataclasses.asdict(options)
    return values


def _compared(old: Any, new: Any) -> tuple[Any, Any]:
    """Without the options that determine one of the two runs only."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old, new
    leave_out = (old.keys() ^ new.keys()) & _AT_TIMES
    first, second = ({key: one[key] for key in one if key not in leave_out} for one in (old, new))
    return first, second


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _as_json(value: Any) -> Any:
    """As it is read back from a file, which holds no secret."""
    return public(json.loads(json.dumps(value, default=_plain)))


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
