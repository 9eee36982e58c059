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

from pbsd.config import RolloutConfig
from pbsd.data import load_rows
from pbsd.methods import METHODS
from pbsd.reading import read_yaml
from pbsd.redact import REMOVED, cuts_in, public, secrets_in, with_home


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class RunArguments:
    """What a recipe says besides the method's options. Names follow TRL's `ModelConfig` and `ScriptArguments`."""

    model_name_or_path: str = field(metadata={"help": "Hub name, folder, or a lab base: lab/arithmetic-0.2m."})
    dataset_name: str = field(
        metadata={"help": "lab/TASK, lab/TASK-WORLD, a JSON-lines or Parquet file, a folder, a hub id."}
    )
    reward_funcs: list[str] = field(
        metadata={"help": "math, tool_call, format, package.module:function, or JSON with a built-in's options."}
    )
    method: str = _option("pbsd", f"The method: {', '.join(METHODS)}.")
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

    def reads(self, config: RolloutConfig) -> list[str | None]:
        """The names of the models and rows that a run reads, some of them perhaps folders or files."""
        return [self.model_name_or_path, self.dataset_name, getattr(config, "teacher_model", None)]

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


def load_recipe(path: str | Path, flags: Sequence[str] = ()) -> tuple[RunArguments, RolloutConfig]:
    """Read a recipe; `flags` (`--key value` or `--key=value`) win over it.

    Raises:
        RecipeError: no such file, not YAML, an unknown or missing key, a value of the wrong type or range.
    """
    path = Path(path)
    values = _read(path)
    for where, given_here in ((str(path), values), ("the flags", _by_flag(flags))):
        if cut := next(cuts_in(given_here), None):
            raise RecipeError(
                f"{where}: {cut} holds `{REMOVED}`, which stands where a secret was cut when the file was written: "
                "give its value, or leave the option out"
            )
    given = {flag[2:].split("=")[0] for flag in flags if flag.startswith("--")}
    method = _method(values, flags)
    parts: Any = (RunArguments, METHODS[method][0])
    known = [option.name for part in parts for option in fields(part) if option.init]
    for key in values:
        _check_key(key, known, f"{path}: unknown key", method)
    for flag in given:
        _check_key(flag, known, "unknown flag --", method)
    parser = _Parser(parts, allow_abbrev=False)
    words = [word for key, value in values.items() for word in _words(key, value)]
    try:
        parsed = vars(parser.parse_args([*words, *flags]))
        made = []
        for part in parts:
            hints = get_type_hints(part)
            for key in values.keys() & hints.keys() - given:
                if values[key] is None and type(None) in get_args(hints[key]):
                    parsed[key] = None  # the command line has no word for null
            made.append(part(**{option.name: parsed[option.name] for option in fields(part) if option.init}))
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{path}: {error}") from error
    run, config = made
    assert isinstance(run, RunArguments) and isinstance(config, RolloutConfig)
    return run, config


def _by_flag(flags: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    name = ""
    for flag in flags:
        if flag.startswith("--"):
            name, _, value = flag.partition("=")
            found[name] = [value]
        elif name:
            found[name].append(flag)
    return found


def _method(values: dict[str, Any], flags: Sequence[str]) -> str:
    """The method that the flags name, or the recipe; needed before the options can be parsed."""
    name = values.get("method") or "pbsd"
    for place, flag in enumerate(flags):
        if flag.startswith("--method="):
            name = flag.removeprefix("--method=")
        elif flag == "--method" and place + 1 < len(flags):
            name = flags[place + 1]
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        raise RecipeError(
            f"unknown method {name!r}; "
            + (f"did you mean {near[0]}?" if near else f"choose among {', '.join(METHODS)}")
        )
    return str(name)


def dump_recipe(run: RunArguments, config: RolloutConfig) -> str:
    """The resolved options as a recipe that `load_recipe` reads back; secrets are left out, and named at the top."""
    options = config.to_dict()
    given = {option.name: getattr(part, option.name) for part in (run, config) for option in fields(part)}
    left = list(secrets_in(given))
    values = public({option.name: given[option.name] for option in fields(run)})
    for option in fields(config):
        if option.init and option.name in options and (value := options[option.name]) != {}:
            values[option.name] = value
    head = f"# Left out or cut, as they are or hold secrets: {', '.join(left)}\n" if left else ""
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        values = read_yaml(path)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    return {str(key): with_home(value) for key, value in values.items()}


def _check_key(key: str, known: Sequence[str], what: str, method: str) -> None:
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1)
    joint = "" if what.endswith("--") else " "
    others = [name for name, (config, _) in METHODS.items() if key in {option.name for option in fields(config)}]
    hint = f"it is an option of {', '.join(others)}" if others else f"did you mean {near[0]}?" if near else ""
    raise RecipeError(f"{what}{joint}{key}{'; ' if hint else ''}{hint} (method: {method})")


def _words(key: str, value: Any) -> list[str]:
    """A YAML value as the command line would give it, so that both are parsed and checked by one parser."""
    if value is None:
        return []
    if isinstance(value, list):
        words = [json.dumps(item) if isinstance(item, dict) else str(item) for item in value]
        return [f"--{key}", *words] if words else []
    return [f"--{key}={json.dumps(value) if isinstance(value, dict | bool) else value}"]
