"""PEFT adapters: how they are loaded and written, and what must hold for what is written to load to the same logits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import cached_file, find_adapter_config_file

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

logger = logging.getLogger(__name__)


def peft_package() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need the peft package: pip install 'pbsd[peft]'") from error
    return peft


def is_peft_model(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def adapter_config(name: str, **hub: Any) -> Any:
    """The configuration of the adapter in a folder or on the hub; None where there is none, as in a whole model.

    Raises ValueError for one that cannot be read, or that names no base.
    """
    if not has_adapter(name, **hub):
        return None
    try:
        config = peft_package().PeftConfig.from_pretrained(name, **hub)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{name}/{ADAPTER_CONFIG} could not be read: {error}") from error
    if not config.base_model_name_or_path:
        raise ValueError(
            f"{name}/{ADAPTER_CONFIG} names no base_model_name_or_path: write the base's name there, or pass "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    return config


def has_adapter(name: str, **hub: Any) -> bool:
    try:
        return find_adapter_config_file(name, **hub) is not None
    except (OSError, ValueError):  # no such name: loading it as a model says so
        return False


def load_adapter(name: str, config: Any, load_base: Callable[[str, str | None], Any], **hub: Any) -> Any:
    """The base that the adapter names with the adapter on it, to be trained on.

    Args:
        load_base: (name, revision) -> the base model.

    Raises ValueError where the base cannot be had, or its layers are not those that the adapter was made for.
    """
    base_name = config.base_model_name_or_path
    if base_name != name and has_adapter(base_name):
        raise ValueError(
            f"model {name!r} is an adapter on {base_name!r}, which is an adapter itself: merge that one into its base "
            "(PeftModel.merge_and_unload, save_pretrained) and name the merged folder as base_model_name_or_path"
        )
    try:
        base = load_base(base_name, config.revision)
    except ValueError as error:
        raise ValueError(
            f"model {name!r} is an adapter on the base {base_name!r}, which could not be loaded: {error}. Mend "
            f"base_model_name_or_path in {name}/{ADAPTER_CONFIG}"
        ) from error
    _resize_embeddings(base, name, hub)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = peft_package().PeftModel.from_pretrained(base, name, is_trainable=True, **hub)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ValueError(f"the adapter {name!r} could not be loaded on its base {base_name!r}: {error}") from error
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise ValueError(f"the adapter {name!r} does not fit its base {base_name!r}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return model


def _resize_embeddings(base: Any, name: str, hub: Mapping[str, Any]) -> None:
    """Give the base the rows of the embeddings that were saved with the adapter, as after added tokens."""
    file = cached_file(name, ADAPTER_WEIGHTS, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None:
        return
    embeddings = {id(layer.weight) for layer in (base.get_input_embeddings(), base.get_output_embeddings()) if layer}
    ours = {key: value.shape for key, value in base.named_parameters(remove_duplicate=False) if id(value) in embeddings}
    try:
        with safe_open(file, framework="pt") as tensors:
            saved = {
                key.removeprefix(PREFIX).replace("modules_to_save.", "").replace("base_layer.", ""): key
                for key in tensors.keys()  # noqa: SIM118 (not a dict)
            }
            rows = {tensors.get_slice(saved[key]).get_shape()[0] for key in ours.keys() & saved.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} could not be read: {error}") from error
    if rows and rows != {shape[0] for shape in ours.values()}:
        base.resize_token_embeddings(max(rows), mean_resizing=False)


def describe(config: Any) -> str:
    rank = getattr(config, "r", None)
    return str(getattr(config.peft_type, "value", config.peft_type)) + (f", rank {rank}" if rank else "")


def starts_as_identity(peft_config: Any) -> bool:
    """Whether a new adapter of this configuration, switched off, gives the weights that training started from, also
    after training: biases that it trains would stay."""
    return getattr(peft_config, "init_lora_weights", False) is True and getattr(peft_config, "bias", "none") == "none"


def only_active(model: Any) -> str:
    active = model.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"the model has {len(active)} active adapters ({', '.join(active)}), and which one is to be trained cannot "
            "be told: choose one by set_adapter, or merge one into the base (merge_and_unload, save_pretrained)"
        )
    return str(active[0])


def write_adapter(
    folder: Any, state: Mapping[str, Tensor], config: Any, *, is_main_process: bool = True, **_: Any
) -> None:
    """A folder that PEFT loads as an adapter. Other options of PEFT's `save_pretrained` do not bear on it."""
    if not is_main_process:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    save_file(tensors, Path(folder) / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))


# Checks


def check_all_is_saved(model: Any) -> None:
    """Raises ValueError for parameters that would be trained and not saved."""
    if model.active_peft_config.is_prompt_learning:
        return
    states = [peft_package().get_peft_model_state_dict(model, adapter_name=name) for name in model.active_adapters]
    saved = {value.data_ptr() for state in states for value in state.values()}
    lost = [key for key, p in model.named_parameters() if p.requires_grad and p.data_ptr() not in saved]
    if lost:
        raise ValueError(
            f"{len(lost)} parameters would be trained and not saved with the adapter, e.g. {lost[0]}: freeze them "
            "(requires_grad_(False)), name their modules in the adapter's modules_to_save, or train the whole model"
        )


def fingerprints(base: nn.Module) -> dict[str, Tensor]:
    """A few numbers of every floating-point parameter, by name without what adapters add to it."""
    return {
        key.replace(".base_layer", ""): _few(parameter)
        for key, parameter in base.named_parameters()
        if parameter.is_floating_point() and not parameter.is_meta and ".lora_" not in key
    }


def _few(tensor: Tensor) -> Tensor:
    """64 numbers of it, from all over."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // 64)].clone()


def check_base_is_unchanged(model: Any, before: Mapping[str, Tensor], config: Any) -> None:
    """Raises ValueError where making the adapter changed the base, as PiSSA and OLoRA do: PEFT saves the adapter alone,
    which then fits no base that can be loaded."""
    after = fingerprints(model.get_base_model())
    changed = [name for name, few in before.items() if name in after and not torch.equal(few, after[name])]
    if changed:
        raise ValueError(
            f"init_lora_weights={getattr(config, 'init_lora_weights', None)!r} changes the base's own weights "
            f"({len(changed)} tensors, e.g. {changed[0]}), so the saved adapter would load to other logits: set "
            "init_lora_weights to true, gaussian or another that leaves the base as it is"
        )


def check_base_is_what_it_is_called(base: Any) -> None:
    """Raises ValueError where the base in memory is not what its name holds: it had an adapter merged into it, say. An
    adapter on it would be saved with that name, and load to other logits.

    Only names whose files are on this machine can be compared, by a few rows of every tensor.
    """
    name = getattr(base, "name_or_path", "") or ""
    ours = {
        key.replace(".base_layer", ""): p.detach()
        for key, p in base.named_parameters()
        if ".lora_" not in key and not p.is_meta
    }
    for file in _weight_files(name):
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in ours.keys() & set(tensors.keys()):  # other names: nothing is known of them
                    saved = tensors.get_slice(key)
                    if list(saved.get_shape()) == list(ours[key].shape) and not _same(saved, ours[key]):
                        raise ValueError(
                            f"the model in memory is not what {name!r} holds ({key} differs), so an adapter on it, "
                            "saved with that name as its base, would load to other logits: save the model "
                            "(save_pretrained) and give its folder as the model"
                        )
        except SafetensorError:
            continue


def _same(saved: Any, ours: Tensor) -> bool:
    rows = ours.shape[0] if ours.dim() else 0
    for row in {0, rows // 2, rows - 1} if rows else ():
        theirs, own = saved[row : row + 1].to(ours.dtype), ours[row : row + 1].cpu()
        if ours.is_floating_point() and not torch.equal(theirs, own):
            return False
    return True


def _weight_files(name: str) -> list[Path]:
    """The model's safetensors files on this machine, without asking the hub."""
    if not name:
        return []
    if Path(name).is_dir():
        return sorted(Path(name).glob("model*.safetensors"))
    try:
        file = cached_file(
            name,
            "model.safetensors",
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return []
    return [Path(file)] if file else []
