"""Recipes: a YAML file plus command-line flags -> checked options. An unknown key names the nearest right one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from pbsd.config import PBSDConfig
from pbsd.data import load_rows


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """What a recipe says besides the method's options. Names follow TRL's `ModelConfig` and `ScriptArguments`."""

    model_name_or_path: str = field(metadata={"help": "Hub name, folder, or lab/arithmetic-0.2m."})
    dataset_name: str = field(metadata={"help": "lab/arithmetic, a JSON-lines or Parquet file, a folder, a hub id."})
    reward_funcs: list[str] = field(
        metadata={"help": "math, tool_call, format, package.module:function, or JSON with a built-in's options."}
    )
    method: Literal["pbsd"] = _option("pbsd", "The method.")
    dataset_config: str | None = _option(None, "Configuration of a hub dataset.")
    dataset_train_split: str = _option("train", "Split to train on.")
    dataset_test_split: str | None = _option("test", "Held-out split for accuracy before and after; null: none.")
    dataset_train_size: int | None = _option(None, "Use so many training rows; null: all.")
    dataset_test_size: int | None = _option(None, "Use so many held-out rows; null: all.")
    dataset_seed: int = _option(0, "Seed of a generated dataset.")
    num_threads: int | None = _option(None, "CPU threads of torch; null: its own choice. For tiny models 1 is fastest.")
    use_peft: bool = _option(False, "Train a LoRA adapter instead of all weights.")
    lora_r: int = _option(16, "LoRA rank.")
    lora_alpha: int = _option(32, "LoRA alpha.")
    lora_dropout: float = _option(0.0, "LoRA dropout.")
    lora_target_modules: list[str] | None = _option(None, "Module names that get LoRA; null: PEFT's choice.")

    def rows(self, part: Literal["train", "test"]) -> Sequence[Any] | None:
        """The rows of a part, or None for a test part that the recipe leaves out."""
        split = self.dataset_train_split if part == "train" else self.dataset_test_split
        size = self.dataset_train_size if part == "train" else self.dataset_test_size
        if split is None:
            return None
        if part == "test" and Path(self.dataset_name).is_file():
            raise RecipeError(
                f"dataset {self.dataset_name!r} is one file, which is trained on, so it has no held-out rows: give a "
                "folder with train.jsonl and test.jsonl, or dataset_test_split: null"
            )
        return load_rows(self.dataset_name, split=split, size=size, config=self.dataset_config, seed=self.dataset_seed)

    def rewards(self) -> list[Any]:
        return [json.loads(spec) if spec.startswith("{") else spec for spec in self.reward_funcs]

    def peft_config(self) -> Any:
        if not self.use_peft:
            return None
        from peft import LoraConfig

        return LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.lora_target_modules,
            task_type="CAUSAL_LM",
        )


class RecipeError(ValueError):
    """A recipe or flag that cannot be used."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def load_recipe(path: str | Path, flags: Sequence[str] = ()) -> tuple[RunArguments, PBSDConfig]:
    """Read a recipe; `flags` (`--key value` or `--key=value`) win over it.

    Raises:
        RecipeError: no such file, not YAML, an unknown or missing key, a value of the wrong type or range.
    """
    path = Path(path)
    values = _read(path)
    known = [option.name for part in (RunArguments, PBSDConfig) for option in fields(part) if option.init]
    for key in values:
        _check_key(key, known, f"{path}: unknown key")
    for flag in flags:
        if flag.startswith("--"):
            _check_key(flag[2:].split("=")[0], known, "unknown flag --")
    parser = _Parser([RunArguments, PBSDConfig], allow_abbrev=False)  # type: ignore[list-item]
    words = [word for key, value in values.items() for word in _words(key, value)]
    try:
        run, config = parser.parse_args_into_dataclasses(args=[*words, *flags], look_for_args_file=False)
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from error
    given = {flag[2:].split("=")[0] for flag in flags if flag.startswith("--")}
    for part in (run, config):
        hints = get_type_hints(type(part))
        for key in values.keys() & {option.name for option in fields(part)} - given:
            if values[key] is None and type(None) in get_args(hints[key]):
                setattr(part, key, None)  # the command line has no word for null
    return run, config


def dump_recipe(run: RunArguments, config: PBSDConfig) -> str:
    """The resolved options as a recipe that `load_recipe` reads back."""
    options = config.to_dict()
    values = {option.name: getattr(run, option.name) for option in fields(run)}
    for option in fields(config):
        if option.init and not option.name.endswith("_token") and (value := options.get(option.name)) != {}:
            values[option.name] = value
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    return values


def _check_key(key: str, known: Sequence[str], what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        joint = "" if what.endswith("--") else " "
        raise RecipeError(f"{what}{joint}{key}" + (f"; did you mean {near[0]}?" if near else ""))


def _words(key: str, value: Any) -> list[str]:
    """A YAML value as the command line would give it, so that both are parsed and checked by one parser."""
    if value is None:
        return []
    if isinstance(value, list):
        words = [json.dumps(item) if isinstance(item, dict) else str(item) for item in value]
        return [f"--{key}", *words] if words else []
    return [f"--{key}={json.dumps(value) if isinstance(value, dict | bool) else value}"]
