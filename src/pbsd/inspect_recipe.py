"""Look before training: `render` shows both roles' prompts, `doctor` checks a recipe and tries one step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.markup import escape

from pbsd import rewards
from pbsd.api import load_model, load_tokenizer, make_renderer, model_folder, resolve_rewards, stop_and_pad_ids
from pbsd.config import PBSDConfig
from pbsd.data import PromptDataset
from pbsd.progress import console
from pbsd.recipe import RunArguments
from pbsd.records import Prompt
from pbsd.render import OverlongError, Renderer
from pbsd.run import build_trainer


def render(run: RunArguments, config: PBSDConfig, *, count: int) -> None:
    """Print the prompts of the first `count` training rows for both roles, with ids and lengths, and how many rows of
    the whole split would be dropped."""
    screen = console()
    tokenizer = load_tokenizer(run.model_name_or_path, config)
    rows = run.rows("train") or []
    unlimited = replace(make_renderer(tokenizer, config), max_prompt_length=None, max_teacher_prompt_length=None)
    budgets = {"student": config.max_prompt_length, "teacher": config.max_teacher_prompt_length}
    for index, row in enumerate(rows):
        if index == count:
            break
        prompt = unlimited(row, index)
        for role, budget in budgets.items():
            ids = prompt.ids(role)  # type: ignore[arg-type]
            limit = "no budget" if budget is None else f"budget {budget}" + (" EXCEEDED" if len(ids) > budget else "")
            screen.rule(f"row {index}, {role}: {len(ids)} tokens, {limit}", align="left")
            screen.print(escape(str(tokenizer.decode(list(ids)))), soft_wrap=True)
            screen.print(f"[dim]ids {list(ids)}[/dim]", soft_wrap=True)
    limited = make_renderer(tokenizer, config)
    over = sum(_is_over(limited, row, index) for index, row in enumerate(rows))
    fate = "would be dropped" if config.overlong == "drop" else "would stop the run (overlong='error')"
    screen.rule(f"{over} of {len(rows)} rows are over a prompt budget and {fate}", align="left")


def _is_over(renderer: Renderer, row: Any, index: int) -> bool:
    try:
        renderer(row, index)
    except OverlongError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and the mend if something is wrong."""

    check: str
    text: str
    mend: str = ""


def doctor(run: RunArguments, config: PBSDConfig) -> bool:
    """Print a line per check; returns whether everything is in order. A failed check says what to mend, and the checks
    that do not depend on it still run."""
    screen = console()
    healthy = True
    for name, check in (
        ("machine", _machine),
        ("model", _model),
        ("data", _data),
        ("templates", _templates),
        ("lengths", _lengths),
        ("stop tokens", _stop_tokens),
        ("options", _options),
        ("one dry step", _dry_step),
    ):
        try:
            findings = list(check(run, config))
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            findings = [Finding(name, str(error), "see above")]
        for finding in findings:
            healthy = healthy and not finding.mend
            mark = "[red]mend[/red]" if finding.mend else "[green]ok[/green]  "
            screen.print(f"{mark} {name}: {escape(finding.text)}", soft_wrap=True)
            if finding.mend and finding.mend != "see above":
                screen.print(f"       -> {escape(finding.mend)}", soft_wrap=True)
    return healthy


Check = Callable[[RunArguments, PBSDConfig], Iterator[Finding]]


def _machine(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    folder = Path(config.output_dir or ".").absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    yield Finding(
        "machine",
        f"{device}, {torch.get_num_threads()} threads, {memory.available / 2**30:.1f} GiB memory free, "
        f"{free / 2**30:.1f} GiB disk free at {folder}, torch {torch.__version__}",
        "" if free > 2**30 else "less than 1 GiB is free for checkpoints: make room or set another output_dir",
    )


def _model(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    model = load_model(run.model_name_or_path, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 1 if run.use_peft or config.teacher in ("live", "external") else 2
    # weights, gradients and two Adam moments in the weights' type, and the teacher's copy
    need = parameters * 4 * ((1 if run.use_peft else 4) + copies - 1)
    available = psutil.virtual_memory().available
    yield Finding(
        "model",
        f"{type(model).__name__} with {parameters:,} parameters in {model_folder(run.model_name_or_path)}; weights and "
        f"optimizer take about {need / 2**30:.2f} GiB before activations",
        ""
        if need < available or torch.cuda.is_available()
        else "more than this machine has free: use_peft, or smaller",
    )


def _prompts(run: RunArguments, config: PBSDConfig) -> list[Prompt]:
    tokenizer = load_tokenizer(run.model_name_or_path, config)
    functions = resolve_rewards(run.rewards(), config)
    required = set().union(*(rewards.required_columns(function) for function in functions))
    rows = run.rows("train")
    assert rows is not None
    return PromptDataset.from_rows(
        rows, make_renderer(tokenizer, config), required=required, drop_overlong=config.overlong == "drop"
    ).prompts


def _data(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    prompts = _prompts(run, config)
    test = run.rows("test")
    yield Finding("data", f"{len(prompts)} training rows, {'no' if test is None else len(test)} held-out rows")
    without = sum(prompt.columns.get("privileged_context") in (None, "", []) for prompt in prompts)
    if without:
        yield Finding(
            "data",
            f"{without} of {len(prompts)} training rows have no privileged_context: both roles see the same there",
            "fill the column, or leave these rows out" if without == len(prompts) else "",
        )
    if test is not None:
        shared = {str(prompt.prompt) for prompt in prompts} & {str(row["prompt"]) for row in test}
        if shared:
            yield Finding("data", f"{len(shared)} held-out prompts are also trained on", "split them apart")


def _templates(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    prompt = _prompts(run, config)[0]
    tokenizer = load_tokenizer(run.model_name_or_path, config)
    same = prompt.student_ids == prompt.teacher_ids
    yield Finding(
        "templates",
        f"first row: student {len(prompt.student_ids)} tokens, teacher {len(prompt.teacher_ids)} tokens",
        "both roles see the same prompt: does teacher_prompt_template use privileged_context?" if same else "",
    )
    first = tokenizer.bos_token_id
    doubled = first is not None and prompt.student_ids[:2] == (first, first)
    if doubled:
        yield Finding("templates", "the prompt starts with two BOS tokens", "take the BOS out of the prompt's text")


def _lengths(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    prompts = _prompts(run, config)
    model = load_model(run.model_name_or_path, config)
    longest = max(max(len(prompt.student_ids), len(prompt.teacher_ids)) for prompt in prompts)
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    total = longest + config.max_completion_length
    yield Finding(
        "lengths",
        f"longest prompt {longest} + max_completion_length {config.max_completion_length} = {total} tokens, the model's "
        f"window is {window}",
        "lower a budget: positions beyond it were never trained" if window is not None and total > window else "",
    )


def _stop_tokens(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    tokenizer = load_tokenizer(run.model_name_or_path, config)
    stops, pad = stop_and_pad_ids(load_model(run.model_name_or_path, config), tokenizer)
    yield Finding(
        "stop tokens", f"{[tokenizer.decode([stop]) for stop in stops]}, padding with {tokenizer.decode([pad])!r}"
    )


def _options(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    target = f"tilt eta/beta {config.reward_scale / config.beta:g}"
    yield Finding(
        "options",
        f"{config.loss_type} loss, pairs {config.pairing}/{config.pair_policy}, teacher {config.teacher}, "
        + (target if config.uses_rewards else "no reward is read: the target is the teacher itself"),
    )


def _dry_step(run: RunArguments, config: PBSDConfig) -> Iterator[Finding]:
    """One whole step on the first rows, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        dry = replace(
            config, output_dir=folder, max_steps=1, save_strategy="no", eval_strategy="no", report_to="none",
            disable_tqdm=True, push_to_hub=False,
        )  # fmt: skip
        trainer = build_trainer(replace(run, dataset_test_split=None), dry)
        trainer.train()
        logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
    samples = int(logs.get("pairs/kept", 0))
    yield Finding(
        "one dry step",
        f"loss {logs['loss']:.4f}, {samples} pairs, reward student {logs['reward/student']:.2f} "
        f"teacher {logs['reward/teacher']:.2f}, {trainer.train_seconds:.1f} s",
        "" if samples else "no pair was kept in this step: see pairs/dropped_* and the pair_policy",
    )
    cut = logs.get("tokens/student_truncated", 0.0)
    if cut > 0.5:
        yield Finding(
            "one dry step",
            f"{cut:.0%} of the student's completions hit max_completion_length",
            "raise max_completion_length, or check the stop tokens",
        )
