"""Sharding is refused: wherever it comes from, by name, before anything is sampled.

A teacher acts by putting its weights behind the student's parameters. A sharded model keeps its weights elsewhere, so
that under FSDP2 the teacher would be the student, and nothing would say so. What is known to work is data parallelism,
every process holding the whole model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

REASON = (
    "sharded weights are not supported: the teacher's weights are put in place of the student's, which a sharded model "
    "ignores, so that the teacher would silently be the student"
)
INSTEAD = (
    "start one process per device with torchrun, each with the whole model; where memory is short, train an adapter "
    "(use_peft), load the model in bfloat16 (model_init_kwargs), set gradient_checkpointing and lower "
    "train_batch_tokens"
)

_SWITCHES = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "SM_HP_MP_PARAMETERS",
)
_FAMILIES = ("FSDP_", "ACCELERATE_DEEPSPEED_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
_WHOLE = {"", "0", "1", "false", "no", "none", "off"}
"""Values of a switch or a size that shard nothing."""
_LOADING = ("tp_plan", "tp_size", "distributed_config", "device_mesh")
_PLUGINS = ("fsdp_plugin", "deepspeed_plugin", "megatron_lm_plugin", "torch_tp_plugin")
_DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU", "MULTI_HPU", "MULTI_MLU", "MULTI_MUSA", "MULTI_NPU", "MULTI_SDAA",
                  "MULTI_XPU"}  # fmt: skip
"""accelerate's distributed types under which every process holds the whole model; any other is refused."""


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Raise ValueError naming the variables (`accelerate launch` sets them) that ask for sharding.

    A variable of a family counts without its switch too: whoever sets it expects sharding, and none would be done.
    """
    environment = os.environ if environment is None else environment
    found = [name for name in _SWITCHES if _is_on(name, environment.get(name, ""))]
    found += sorted(name for name in environment if name.startswith(_FAMILIES) and _is_on(name, environment[name]))
    if found:
        raise ValueError(
            f"the environment sets {', '.join(found)} (`accelerate launch` does, with a sharding configuration), but "
            f"{REASON}. Unset it, or choose another accelerate configuration; {INSTEAD}"
        )


def _is_on(name: str, value: str) -> bool:
    if name in _SWITCHES:
        return value.lower() not in _WHOLE - {"1"}
    if name.startswith("PARALLELISM_CONFIG_") and not name.endswith("_SIZE"):
        return False  # how, not whether
    return value.lower() not in _WHOLE


def check_loading(model_init_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for keyword arguments of from_pretrained that shard the model while it is loaded."""
    for name in _LOADING:
        if model_init_kwargs.get(name) is not None:
            raise ValueError(f"model_init_kwargs has {name}, but {REASON}. Leave it out; {INSTEAD}")


def check_model(model: nn.Module) -> None:
    """Raise ValueError for a model whose weights are not whole and in one place."""
    if how := next(_sharding(model), None):
        raise ValueError(f"the model is {how}, but {REASON}. Pass the whole model, on one device; {INSTEAD}")


def _sharding(model: nn.Module) -> Iterator[str]:
    if getattr(model, "is_distributed_loading_by_transformers", False):
        yield "sharded by transformers as it was loaded (distributed_config)"
    if (getattr(model, "tp_size", None) or 1) > 1:
        yield f"tensor-parallel (tp_size {model.tp_size})"
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kind := kinds & {"FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine", "DataParallel"}:
            yield f"wrapped in {min(kind)}"
    for name, parameter in model.named_parameters():
        if any(kind.__name__ == "DTensor" for kind in type(parameter.data).__mro__):
            yield f"sharded (its {name} is a DTensor)"
        if hasattr(parameter, "ds_id"):
            yield f"sharded by DeepSpeed (its {name} is)"
    devices = {str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        yield f"spread by device_map over {', '.join(sorted(devices))}"


def check_accelerator(accelerator: Any) -> None:
    """Raise ValueError unless accelerate trains data-parallel: whatever made it shard, or was dropped on the way."""
    state = accelerator.state
    found = [name for name in _PLUGINS if getattr(state, name, None) is not None]
    kind = str(getattr(state.distributed_type, "value", state.distributed_type))
    if kind not in _DATA_PARALLEL:
        found.append(f"distributed type {kind}")
    sizes = getattr(accelerator, "parallelism_config", None)
    for name in ("dp_shard_size", "tp_size", "cp_size", "sp_size"):
        if (size := getattr(sizes, name, None) or 1) > 1:
            found.append(f"parallelism_config with {name} {size}")
    if found:
        raise ValueError(f"accelerate is set up with {', '.join(found)}, but {REASON}. Leave it out; {INSTEAD}")


def check_devices(gpus_in_one_process: int) -> None:
    """Raise ValueError where one process would spread a batch over its GPUs (nn.DataParallel)."""
    if gpus_in_one_process > 1:
        raise ValueError(
            f"this one process sees {gpus_in_one_process} GPUs, over which transformers would split every batch "
            "(nn.DataParallel): a step here is a whole batch of prompts, which cannot be split so. Start one process "
            "per GPU (torchrun --standalone --nproc_per_node N -m pbsd.cli train ...), or show it one GPU "
            "(CUDA_VISIBLE_DEVICES=0)"
        )
