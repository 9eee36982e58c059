"""Models by name: whole ones, and adapters on their base; and which adapter is trained.

A model may come with an adapter: a folder with adapter_config.json, or a `PeftModel`. Without `peft_config` that
adapter is trained on. With one, a new adapter is trained on top of it, which stays as it is (`pbsd.stacking`).
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from types import MethodType
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from pbsd.adapters import (
    ADAPTER_CONFIG,
    adapter_config,
    check_all_is_saved,
    check_base_is_unchanged,
    check_base_is_what_it_is_called,
    describe,
    fingerprints,
    has_adapter,
    is_peft_model,
    load_adapter,
    only_active,
    peft_package,
    write_adapter,
)
from pbsd.config import RolloutConfig
from pbsd.config.base import as_dict
from pbsd.lab import checkpoint_path
from pbsd.reading import read_object
from pbsd.stacking import stacked

LAB_PREFIX = "lab/"
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json")

logger = logging.getLogger(__name__)


def model_folder(name: str) -> str:
    """The folder of a lab base model, packaged or built, for `lab/...`; any other name as it is."""
    if name.startswith(LAB_PREFIX) and not Path(name).exists():
        return str(checkpoint_path(name.removeprefix(LAB_PREFIX)))
    return name


def load_model(model: str | PreTrainedModel, args: RolloutConfig) -> Any:
    """The model by name or folder (float32 unless `model_init_kwargs` says otherwise), or the given one. A name that is
    an adapter's gives its base with the adapter on it, a `PeftModel`; its `revision` is the adapter's."""
    if not isinstance(model, str):
        if args.model_init_kwargs:
            raise ValueError("model_init_kwargs are for a model given by name; this one is loaded already: drop them")
        return model
    options = {"dtype": "float32", "trust_remote_code": args.trust_remote_code, **as_dict(args.model_init_kwargs)}
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")

    def whole(name: str, revision: str | None) -> Any:
        folder = model_folder(name)
        if (generation := Path(folder) / "generation_config.json").is_file():
            read_object(generation, "bring it back: transformers passes over it, and its stop tokens would be lost")
        try:
            return AutoModelForCausalLM.from_pretrained(folder, **{**options, "revision": revision})
        except MemoryError:
            raise
        except Exception as error:  # files are read by several libraries, which fail in many types
            raise ValueError(f"model {name!r} could not be loaded: {error or type(error).__name__}") from error

    folder, revision = model_folder(model), options.get("revision")
    config = adapter_config(folder, revision=revision)
    if config is None:
        return whole(model, revision)
    if weights := [*Path(folder).glob("model*.safetensors"), *Path(folder).glob("pytorch_model*.bin")]:
        raise ValueError(
            f"model {model!r} holds both an adapter ({ADAPTER_CONFIG}) and a whole model ({weights[0].name}), and "
            "which one is meant cannot be told: move one of them to a folder of its own"
        )
    return load_adapter(folder, config, whole, revision=revision)


def tokenizer_folder(name: str) -> str:
    """Where the tokenizer of a model lies: an adapter may have none of its own, and uses its base's."""
    if not has_adapter(name) or any(_has_file(name, file) for file in _TOKENIZER_FILES):
        return name
    return model_folder(adapter_config(name).base_model_name_or_path)


def _has_file(name: str, file: str) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None


def prepare_adapter(model: Any, peft_config: Any, revision: str | None = None) -> Any:
    """The model whose adapter is trained: its own, a new one on a whole model, or a new one on top of its own. Says in
    the log which, where the model came with one. `revision`: of a whole model; it is saved with a new adapter.

    Raises ValueError for adapters that cannot be trained so that what is saved loads to the same logits.
    """
    if peft_config is not None and not isinstance(peft_config, peft_package().PeftConfig):
        raise ValueError(f"peft_config must be a peft.PeftConfig, got {type(peft_config).__name__}")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "the model holds an adapter that transformers loaded into it, and saving it would leave out all that is "
            "trained outside of the adapter: pass the adapter's folder by name, or "
            "PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    if is_peft_model(model):
        model = _continued(model) if peft_config is None else stacked(model, peft_config)
    elif peft_config is not None:
        model = _new(model, copy.deepcopy(peft_config), revision)
    if is_peft_model(model):
        check_all_is_saved(model)
    return model


def _new(model: Any, peft_config: Any, revision: str | None) -> Any:
    check_base_is_what_it_is_called(model)
    probe = fingerprints(model)
    adapted = peft_package().get_peft_model(model, peft_config, revision=revision)
    check_base_is_unchanged(adapted, probe, peft_config)
    return adapted


def _continued(model: Any) -> Any:
    name = only_active(model)
    config = model.peft_config[name]
    own = [p for key, p in model.named_parameters() if f".{name}." in f"{key}." or config.is_prompt_learning]
    if not any(parameter.requires_grad for parameter in own):
        if config.is_prompt_learning or getattr(config, "bias", "none") != "none":
            raise ValueError(
                f"the model has no trainable parameter: load its adapter ({describe(config)}) with is_trainable=True"
            )
        model.set_adapter(name)
        config.inference_mode = False
    check_base_is_what_it_is_called(model.get_base_model())
    logger.warning(
        "the model is an adapter (%s) on the base %s: training goes on with this adapter, and the teacher starts as "
        "the base with the adapter as it is now",
        describe(config),
        config.base_model_name_or_path or "in memory",
    )
    if name != "default":
        _save_at_the_root(model, name)
    return model


def _save_at_the_root(model: Any, name: str) -> None:
    """Save the active adapter where PEFT looks for it, at the folder's root, whatever it is called here; other adapters
    of the model act on nothing and are left out."""

    def save_pretrained(self: Any, save_directory: Any, **options: Any) -> None:
        state = peft_package().get_peft_model_state_dict(self, state_dict=options.get("state_dict"), adapter_name=name)
        write_adapter(save_directory, state, copy.copy(self.peft_config[name]), **options)

    model.save_pretrained = MethodType(save_pretrained, model)
