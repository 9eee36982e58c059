"""A new adapter on top of a model's own, which stays as it is, saved as one.

    logits of   W + s1 B1 A1 + s2 B2 A2           (s = alpha / rank)

What is saved is one adapter of both, [A1; A2] and [B1 s1 / s2, B2] with scale s2, for the base that the first one
names: plain PEFT loads it to the same logits. Its second half is B2 and A2 unchanged, so a run resumes bit for bit.
"""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pbsd.adapters import (
    ADAPTER_WEIGHTS,
    PREFIX,
    check_base_is_unchanged,
    check_base_is_what_it_is_called,
    describe,
    fingerprints,
    only_active,
    peft_package,
    write_adapter,
)

_ANY_LORA = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
        "peft_type", "peft_version", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
        "use_rslora",
    }
)  # fmt: skip
"""Options under which a LoRA layer is W + s B A, whatever their values."""

logger = logging.getLogger(__name__)


def stacked(model: Any, peft_config: Any) -> Any:
    """A new adapter on top of the model's own, which stays as it is."""
    first = only_active(model)
    config, new_config = model.peft_config[first], copy.deepcopy(peft_config)
    for which, own in (("the model's adapter", config), ("peft_config", new_config)):
        if reason := _not_plain(own):
            raise ValueError(
                f"a new adapter cannot be stacked on the model's own: {which} has {reason}, so that the two could not "
                "be saved as one. Leave out peft_config to train the model's own adapter on, or merge it into the base "
                "(merge_and_unload, save_pretrained) and give that folder as the model"
            )
    base = model.get_base_model()
    check_base_is_what_it_is_called(base)
    probe = fingerprints(base)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    second = next(name for name in ("new", "new_2", "new_3") if name not in model.peft_config)
    new_config.base_model_name_or_path, new_config.revision = config.base_model_name_or_path, config.revision
    model.add_adapter(second, new_config)
    trained = {id(p) for key, p in model.named_parameters() if f".{second}." in f"{key}."}
    # The one that is trained comes first: transformers loads a checkpoint into the first.
    model.base_model.set_adapter([second, first])
    model.active_adapter = second
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    check_base_is_unchanged(model, probe, new_config)

    def save_pretrained(self: Any, save_directory: Any, **options: Any) -> None:
        state, both = combined(self, first, second, options.get("state_dict"))
        write_adapter(save_directory, state, both, **options)

    def load_adapter(self: Any, model_id: Any, *_: Any, **__: Any) -> None:
        _load_second(self, Path(model_id) / ADAPTER_WEIGHTS, first, second)

    model.save_pretrained = MethodType(save_pretrained, model)
    model.load_adapter = MethodType(load_adapter, model)
    logger.warning(
        "the model is an adapter (%s) on the base %s: it stays as it is, and a new adapter (%s) is trained on top. The "
        "teacher starts as the base with the first. What is saved is one adapter of both, for the same base",
        describe(config),
        config.base_model_name_or_path or "in memory",
        describe(new_config),
    )
    return model


def _not_plain(config: Any) -> str:
    """What makes an adapter something else than W + s B A; empty if nothing does."""
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        return f"peft_type {describe(config)}"
    plain = type(config)()
    different = [
        f"{name}={getattr(config, name)!r}"
        for name in vars(plain)
        if name not in _ANY_LORA and getattr(config, name) != getattr(plain, name)
    ]
    return ", ".join(different)


def _lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    base = model.get_base_model()
    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def combined(
    model: Any, first: str, second: str, state_dict: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Any]:
    """The two adapters as one: its tensors and its configuration."""
    states = {
        name: peft_package().get_peft_model_state_dict(
            model, state_dict=state_dict, adapter_name=name, save_embedding_layers=False
        )
        for name in (first, second)
    }
    layers = _lora_layers(model)
    shapes: dict[str, tuple[int, float]] = {}
    state: dict[str, Tensor] = {}
    for layer, module in layers.items():
        held = [name for name in (second, first) if name in module.r]
        scale = module.scaling[held[0]]
        shapes[layer] = (sum(module.r[name] for name in held), scale)
        for key in (key for key in {**states[first], **states[second]} if key.startswith(f"{PREFIX}{layer}.lora_")):
            along = 1 if _is_up(key) else 0
            parts = [
                states[name][key].float() * (module.scaling[name] / scale)
                if along and name != held[0]
                else states[name][key]
                for name in (first, second)
                if name in held
            ]
            state[key] = torch.cat([part.to(parts[-1].dtype) for part in parts], dim=along)
    return state, _combined_config(model, first, second, shapes)


def _is_up(key: str) -> bool:
    """Whether a tensor's second dimension is the rank: B, not A."""
    return re.search(r"\.lora_(embedding_)?B\b", key) is not None


def _combined_config(model: Any, first: str, second: str, shapes: Mapping[str, tuple[int, float]]) -> Any:
    """A configuration that names every layer's rank and scale, those of most layers as its `r` and `lora_alpha`."""
    config, ours = copy.deepcopy(model.peft_config[first]), model.peft_config[second]
    (rank, scale), _ = Counter(shapes.values()).most_common(1)[0]
    others = {layer: own for layer, own in shapes.items() if own != (rank, scale)}
    ends = {layer.rpartition(".")[2] for layer in shapes}
    linear = {
        name.removesuffix(".base_layer")
        for name, module in model.get_base_model().named_modules()
        if ".lora_" not in name and hasattr(module, "weight")
    }
    by_ends = {name for name in linear if name.rpartition(".")[2] in ends} == set(shapes)
    config.target_modules = ends if by_ends else set(shapes)
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    config.r, config.lora_alpha, config.use_rslora = rank, _alpha(rank, scale), False
    config.rank_pattern = {re.escape(layer): own_rank for layer, (own_rank, _) in others.items()}
    config.alpha_pattern = {re.escape(layer): _alpha(*own) for layer, own in others.items()}
    config.lora_dropout, config.init_lora_weights = ours.lora_dropout, True
    return config


def _alpha(rank: int, scale: float) -> float:
    alpha = rank * scale
    return int(alpha) if alpha == int(alpha) else alpha


def _load_second(model: Any, file: Path, first: str, second: str) -> None:
    """Take the new adapter's half out of a checkpoint, in which it is saved with the first."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: the adapter cannot be resumed from there")
    saved = load_file(file)
    own: dict[str, Tensor] = {}
    for layer, module in _lora_layers(model).items():
        if second not in module.r:
            continue
        skipped = module.r.get(first, 0)
        for key in (key for key in saved if key.startswith(f"{PREFIX}{layer}.lora_")):
            own[key] = saved[key].narrow(int(_is_up(key)), skipped, module.r[second]).contiguous()
    result = peft_package().set_peft_model_state_dict(model, own, adapter_name=second)
    ours = set(peft_package().get_peft_model_state_dict(model, adapter_name=second, save_embedding_layers=False))
    if ours != set(own) or result.unexpected_keys:
        raise ValueError(f"{file} holds other layers than this run's adapter: keep the model and peft_config")
