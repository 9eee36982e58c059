"""Look before training: `render` shows both roles' prompts, `doctor` checks a recipe and tries one step."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import psutil
import torch
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from pbsd import rewards
from pbsd.api import SelfDistillationTrainer, load_tokenizer, make_renderer, resolve_rewards, stop_and_pad_ids
from pbsd.config import RolloutConfig
from pbsd.config.base import ContextRule
from pbsd.data import PromptDataset, as_written, count_without_context, shown_contexts
from pbsd.loading import load_model, model_folder
from pbsd.progress import console
from pbsd.recipe import RunArguments
from pbsd.records import Prompt
from pbsd.render import OverlongError, Renderer
from pbsd.run import build_trainer
from pbsd.run_paths import check_output_dir

_SHOWN = 160
"""Characters of a sample's end that the doctor shows."""


def render(run: RunArguments, config: RolloutConfig, *, count: int) -> None:
    """Print the prompts of the first `count` training rows for both roles, and the completion where the method learns
    the rows' own, with ids and lengths, and how many rows of the whole split would be dropped."""
    screen = console()
    tokenizer = load_tokenizer(run.model_name_or_path, config)
    rows = as_written(run.rows("train") or [])
    contexts = shown_contexts(rows, config.context_rule, config.seed)
    limited = make_renderer(tokenizer, config, training=True)
    unlimited = replace(
        limited,
        max_prompt_length=None,
        max_teacher_prompt_length=None,
        max_reference_length=None if config.max_reference_length is None else sys.maxsize,
    )
    if config.context_rule != ContextRule():
        screen.print(_describe_arm(config))
    if any(row.get("tools") for row in rows[:count]):
        screen.print(f"tools: {limited.tools_source}", highlight=False)
    for index, row in enumerate(rows):
        if index == count:
            break
        prompt = unlimited(row, index, context=contexts[index])
        shown = {
            "student": (prompt.student_ids, config.max_prompt_length),
            "teacher": (prompt.teacher_ids, config.max_teacher_prompt_length),
            "completion": (prompt.reference_ids, config.max_reference_length),
        }
        for what, (ids, budget) in shown.items():
            if not ids:
                continue
            limit = "no budget" if budget is None else f"budget {budget}" + (" EXCEEDED" if len(ids) > budget else "")
            screen.rule(f"row {index}, {what}: {len(ids)} tokens, {limit}", align="left")
            screen.print(escape(str(tokenizer.decode(list(ids)))), soft_wrap=True)
            screen.print(f"[dim]ids {list(ids)}[/dim]", soft_wrap=True)
    over = sum(_is_over(limited, row, index, contexts[index]) for index, row in enumerate(rows))
    budget_name = "prompt budget" if config.max_reference_length is None else "prompt or completion budget"
    fate = "would be dropped" if config.overlong == "drop" else "would stop the run (overlong='error')"
    # Not as the rule's title, which a narrow screen cuts.
    screen.rule()
    screen.print(f"{over} of {len(rows)} rows are over a {budget_name} and {fate}", highlight=False)


def _describe_arm(config: RolloutConfig) -> str:
    what = {
        "paired": "the teacher sees its row's context",
        "shuffled": f"the teacher sees another row's context (seed {config.seed})",
        "none": "the teacher sees no context",
    }
    arm, dose = config.context_rule
    return f"context: {arm}: {what[arm]}" + ("" if dose == 1 else f", the first {dose:g} of its characters")


def _is_over(renderer: Renderer, row: Any, index: int, context: Any) -> bool:
    try:
        renderer(row, index, context=context)
    except OverlongError:
        return True
    return False


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor: what was found, and the mend if something is wrong, or a note if it may be meant."""

    text: str
    mend: str = ""
    note: str = ""


class Patient:
    """A recipe's parts, each loaded when a check first asks for it."""

    def __init__(self, run: RunArguments, config: RolloutConfig) -> None:
        self.run = run
        self.config = config

    @cached_property
    def model(self) -> Any:
        return load_model(self.run.model_name_or_path, self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.run.model_name_or_path, self.config)

    @cached_property
    def prompts(self) -> list[Prompt]:
        functions = resolve_rewards(self.run.rewards(), self.config)
        rows = self.run.rows("train")
        assert rows is not None
        return PromptDataset.from_rows(
            rows,
            make_renderer(self.tokenizer, self.config, training=True),
            required=set().union(*(rewards.required_columns(function) for function in functions)),
            drop_overlong=self.config.overlong == "drop",
            context=self.config.context_rule,
            seed=self.config.seed,
            needs_context=self.config.reads_context,
        ).prompts


PatientT = TypeVar("PatientT", bound=Patient)


def doctor(run: RunArguments, config: RolloutConfig) -> bool:
    """Print a line per check; returns whether everything is in order. A failed check says what to mend, and the checks
    that do not depend on it still run."""
    return run_checks(
        Patient(run, config),
        {
            "machine": _machine,
            "model": _model,
            "data": _data,
            "templates": _templates,
            "lengths": _lengths,
            "stop tokens": _stop_tokens,
            "options": check_options,
            "one dry step": _dry_step,
        },
    )


def run_checks(patient: PatientT, checks: Mapping[str, Callable[[PatientT], Iterator[Finding]]]) -> bool:
    """Print a line per finding; whether none has a mend. A check that raises is a finding too, which refers to an
    earlier one with the same error."""
    screen, healthy = console(), True
    raised: dict[str, str] = {}
    for name, check in checks.items():
        try:
            findings = list(check(patient))
        except Exception as error:  # one check's failure, of whatever library, is not the others'
            kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
            said = f"{kind}{error}" if str(error) else type(error).__name__
            first = raised.setdefault(said, name)
            findings = [Finding("failed", said if first == name else f"see {first}, above")]
        for finding in findings:
            healthy = healthy and not finding.mend
            mark = "[green]ok[/green]  " if not finding.note else "[yellow]note[/yellow]"
            mark = "[red]mend[/red]" if finding.mend else mark
            screen.print(f"{mark} {name}: {escape(finding.text)}", soft_wrap=True)
            if advice := finding.mend or finding.note:
                screen.print(f"       -> {escape(advice)}", soft_wrap=True)
    return healthy


def _machine(patient: Patient) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    folder = check_output_dir(patient.config.output_dir, patient.run.reads(patient.config)).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    yield Finding(
        f"{device}, {torch.get_num_threads()} threads, {memory.available / 2**30:.1f} GiB memory free, "
        f"{free / 2**30:.1f} GiB disk free at {folder}, torch {torch.__version__}",
        "" if free > 2**30 else "less than 1 GiB is free for checkpoints: make room or set another output_dir",
    )


def _model(patient: Patient) -> Iterator[Finding]:
    run, config, model = patient.run, patient.config, patient.model
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    # Gradients and two Adam moments beside the weights, and the teacher's copy, where all weights are trained.
    copies = 1 if run.use_peft else 4 + (config.teacher_kind not in (None, "live", "external"))
    enough = weights * copies < psutil.virtual_memory().available or torch.cuda.is_available()
    yield Finding(
        f"{type(model).__name__} with {sum(p.numel() for p in model.parameters()):,} parameters from "
        f"{model_folder(run.model_name_or_path)}; weights, optimizer and teacher take about "
        f"{weights * copies / 2**30:.2f} GiB before activations",
        "" if enough else "this is more memory than is free: use_peft, or a smaller model",
    )


def _data(patient: Patient) -> Iterator[Finding]:
    prompts, test = patient.prompts, patient.run.rows("test")
    yield Finding(f"{len(prompts)} training rows, {'no' if test is None else len(test)} held-out rows")
    if patient.config.reads_context:
        yield describe_contexts(patient.config, [prompt.columns for prompt in prompts])
    if test is not None:
        shared = {str(prompt.prompt) for prompt in prompts} & {str(row["prompt"]) for row in test}
        if shared:
            yield Finding(f"{len(shared)} held-out prompts are also trained on", "split them apart")


def describe_contexts(config: RolloutConfig, rows: Sequence[Mapping[str, Any]]) -> Finding:
    """What the teacher sees, and a note where rows have no context that it could see."""
    arm, without = _describe_arm(config), count_without_context(rows)
    if not without or config.context_rule.arm == "none":
        return Finding(arm)
    return Finding(
        f"{arm}; {without} of {len(rows)} training rows have no privileged_context: both roles see the same there",
        note="fill them, or leave these rows out, if the teacher is to know more than the student there",
    )


def _templates(patient: Patient) -> Iterator[Finding]:
    prompt, first = patient.prompts[0], patient.tokenizer.bos_token_id
    yield Finding(f"first row: student {len(prompt.student_ids)} tokens, teacher {len(prompt.teacher_ids)} tokens")
    if prompt.columns.get("tools"):
        yield Finding(f"tools: {make_renderer(patient.tokenizer, patient.config).tools_source}")
    if first is not None and prompt.student_ids[:2] == (first, first):
        yield Finding("the prompt starts with two BOS tokens", "take the BOS out of the prompt's text")


def _lengths(patient: Patient) -> Iterator[Finding]:
    longest = max(max(len(prompt.student_ids), len(prompt.teacher_ids)) for prompt in patient.prompts)
    window = getattr(patient.model.config.get_text_config(), "max_position_embeddings", None)
    total = longest + patient.config.max_completion_length
    yield Finding(
        f"longest prompt {longest} + max_completion_length {patient.config.max_completion_length} = {total} tokens, "
        f"the model's window is {window}",
        "lower a budget: positions beyond it were never trained" if window is not None and total > window else "",
    )


def _stop_tokens(patient: Patient) -> Iterator[Finding]:
    stops, pad = stop_and_pad_ids(patient.model, make_renderer(patient.tokenizer, patient.config).chat)
    names = [patient.tokenizer.decode([stop]) for stop in stops]
    yield Finding(f"{names}, padding with {patient.tokenizer.decode([pad])!r}")


def check_options(patient: Patient) -> Iterator[Finding]:
    yield Finding(f"{patient.run.method}: {patient.config.objective}")


_REWARD_ADVICE = (
    "read the three samples above: does the grader read their format, and is the reference of the same kind? If "
    "they are graded rightly the task is too hard or too easy for this model"
)


def _doubt_rewards(logs: Mapping[str, float]) -> str:
    """What is wrong with a step's rewards as a whole, if anything; methods that sample nothing have none."""
    if "reward/judged" not in logs:
        return ""
    if logs["reward/judged"] == 0:
        return "no sample could be judged"
    if logs["reward/range"] == 0:
        reward = logs.get("reward/student", logs.get("reward/teacher", 0.0))
        return f"every sample has the reward {reward:g}"
    return ""


def _graded_samples(trainer: SelfDistillationTrainer) -> str:
    """A sample of the student for each of three prompts, and what the reward functions say of it: a line each."""
    assert trainer.train_dataset is not None
    engine, prompts = trainer.engine, trainer.train_dataset.prompts[:3]
    params = trainer.args.sampling_params()
    rollouts = engine.sample(prompts, {"student": 1}, key=(trainer.args.seed, 0), params=params)
    return "\n".join(
        f"       row {prompts[rollout.prompt].row}: {rollout.text[-_SHOWN:]!r}: "
        + "; ".join(f"{name} {grade}" for name, grade in rollout.grades.items())
        for rollout in engine.grade(prompts, rollouts)[0]
    )


def _dry_step(patient: Patient) -> Iterator[Finding]:
    """One whole step on the first rows, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        dry = replace(
            patient.config, output_dir=folder, max_steps=1, logging_steps=1, save_strategy="no", eval_strategy="no",
            on_alarm="warn", report_to="none", disable_tqdm=True, push_to_hub=False,
        )  # fmt: skip
        trainer = build_trainer(replace(patient.run, dataset_test_split=None), dry)
        trainer.train()
        logs = next(entry for entry in trainer.state.log_history if "loss" in entry)
        doubt = _doubt_rewards(logs)
        shown = _graded_samples(trainer) if doubt else ""
    pairs = f"{int(logs['pairs/kept'])} pairs, " if "pairs/kept" in logs else ""
    learnt, cut = int(logs.get("tokens/trained", 0)), logs.get("tokens/student_truncated", 0.0)
    rewards_by_role = " ".join(
        f"{role} {logs[f'reward/{role}']:.2f}" for role in ("student", "teacher") if f"reward/{role}" in logs
    )
    nothing = "no pair was kept" if pairs else "no sample could be learnt from"
    yield Finding(
        f"loss {logs['loss']:.4f}, {pairs}{learnt} tokens learnt from, "
        + (f"reward {rewards_by_role}, " if rewards_by_role else "")
        + f"{trainer.train_seconds:.1f} s",
        "" if learnt else f"{nothing} in this step: see pairs/dropped_*, reward/* and teacher/reprompted in the log",
    )
    if doubt:
        yield Finding(f"{doubt}\n{shown}", _REWARD_ADVICE)
    if cut > 0.5:
        yield Finding(
            f"{cut:.0%} of the student's completions hit max_completion_length",
            "raise max_completion_length, or check the stop tokens",
        )
