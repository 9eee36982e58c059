"""`pbsd doctor --no_weights`: what can be checked of a recipe for a large machine on a small one, without network.

Options are parsed, the model is built without memory from its configuration, the memory of a run is estimated, and the
recipe's data are rendered for both roles. A named benchmark stands for itself by its example rows, and a model that is
no folder here by a tokenizer with one token per character and a chat template like Qwen3's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pbsd import benchmarks, rewards
from pbsd.adapters import adapter_config
from pbsd.api import load_tokenizer, make_renderer, resolve_rewards
from pbsd.config import RolloutConfig
from pbsd.data import as_written, check_contexts
from pbsd.inspect_recipe import Finding, Patient, check_options, describe_contexts, run_checks
from pbsd.lab.tiny_model import build_tokenizer
from pbsd.loading import model_folder
from pbsd.memory import MemoryEstimate, empty_model, estimate, model_config, packed_tokens
from pbsd.recipe import load_recipe
from pbsd.records import Prompt
from pbsd.rewards import GradedReward

QWEN3_LIKE_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
        {%- set messages = messages[1:] %}
    {%- endif %}
    {{- '# Tools\\n\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Like Qwen3's, without its words about tools and without tool responses: an empty thought when thinking is off, and no
earlier thoughts in the history."""


def stand_in_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = QWEN3_LIKE_TEMPLATE
    tokenizer.model_max_length = 10**9  # its tokens are characters
    return tokenizer


class WeightlessPatient(Patient):
    """A recipe's parts without weights, and with stand-ins for what only the hub has."""

    @cached_property
    def adapter(self) -> Any:
        """The configuration of the adapter that is trained: the recipe's, or the model's own; None: all weights are."""
        return self.run.peft_config() or adapter_config(model_folder(self.run.model_name_or_path))

    @cached_property
    def model(self) -> Any:
        config = model_config(self.run.model_name_or_path, trust_remote_code=self.config.trust_remote_code)
        return empty_model(config, self.config, self.adapter)

    @property
    def has_own_tokenizer(self) -> bool:
        return Path(model_folder(self.run.model_name_or_path)).is_dir()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        if self.has_own_tokenizer:
            return load_tokenizer(self.run.model_name_or_path, self.config)
        return stand_in_tokenizer()

    @cached_property
    def rows(self) -> Sequence[Any]:
        if benchmarks.is_named(self.run.dataset_name):
            return benchmarks.find(self.run.dataset_name).example(self.run.dataset_train_split).rows
        return as_written(self.run.rows("train") or [])

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Without budgets: the stand-in's tokens are characters."""
        limited = make_renderer(self.tokenizer, self.config)
        renderer = replace(limited, max_prompt_length=None, max_teacher_prompt_length=None)
        return [renderer(row, index) for index, row in enumerate(self.rows)]

    @cached_property
    def budgeted(self) -> RolloutConfig:
        """The options with prompt budgets; where one is null, the longest prompt of the rows by the model's own
        tokenizer.

        Raises ValueError where that tokenizer is not here.
        """
        config = self.config
        asks = config.teacher_kind is not None and config.max_teacher_prompt_length is None
        if config.max_prompt_length is not None and not asks:
            return config
        if not self.has_own_tokenizer or benchmarks.is_named(self.run.dataset_name):
            if config.max_prompt_length is not None:
                return config  # the teacher's budget is then the student's
            raise ValueError(
                "max_prompt_length is null, and the rows' lengths are not known without the model's tokenizer and its "
                "data: set max_prompt_length and max_teacher_prompt_length"
            )
        longest: dict[str, Any] = {
            "max_prompt_length": max(len(prompt.student_ids) for prompt in self.prompts),
            "max_teacher_prompt_length": max(len(prompt.teacher_ids) for prompt in self.prompts),
        }
        budgets = {name: getattr(config, name) or length for name, length in longest.items()}
        return replace(config, **budgets)

    @cached_property
    def memory(self) -> MemoryEstimate:
        return estimate(self.model, self.budgeted, rank=getattr(self.adapter, "r", 0))


def doctor(recipe: str | Path, flags: Sequence[str] = (), *, device_memory: float = 80.0) -> bool:
    """Print a line per check; returns whether everything is in order.

    Args:
        device_memory: GiB of each device that the run is meant for.

    Raises ValueError for a recipe that cannot be parsed.
    """
    # transformers refuses options of a GPU where there is none.
    cpu = () if torch.cuda.is_available() else ("--use_cpu", "true")
    patient = WeightlessPatient(*load_recipe(recipe, [*flags, *cpu]))

    def memory(patient: WeightlessPatient) -> Iterator[Finding]:
        row, tokens = packed_tokens(patient.budgeted)
        fits = patient.memory.peak < device_memory * 2**30
        yield Finding(
            f"about {patient.memory} on each device, for passes of {tokens:,} tokens ({row:,} for a prompt with its "
            f"completions) and {patient.config.generation_batch_size} completions decoded together",
            ""
            if fits
            else f"this is more than the {device_memory:g} GiB of --device_memory: lower generation_batch_size, "
            "max_completion_length or num_generations, set gradient_checkpointing, or train an adapter (use_peft)",
        )

    return run_checks(
        patient,
        {
            "options": check_options,
            "model": _model,
            "memory": memory,
            "data": _data,
            "templates": _templates,
            "not checked": _not_checked,
        },
    )


def _model(patient: WeightlessPatient) -> Iterator[Finding]:
    parameters = list(patient.model.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    window = patient.model.config.get_text_config().max_position_embeddings
    try:
        config = patient.budgeted
    except (ValueError, OSError):  # the check of the memory says so
        config = patient.config
    prompt = max(config.max_prompt_length or 0, config.max_teacher_prompt_length or 0)
    total = prompt + config.max_completion_length
    yield Finding(
        f"{patient.run.model_name_or_path}: {sum(p.numel() for p in parameters):,} parameters, {trainable:,} trained; "
        f"prompts and completions of at most {total} tokens, its window is {window}",
        "lower a budget: positions beyond the window were never trained" if total > window else "",
    )


def _data(patient: WeightlessPatient) -> Iterator[Finding]:
    functions = resolve_rewards(patient.run.rewards(), patient.config)
    required = set().union(*(rewards.required_columns(function) for function in functions))
    missing = sorted(name for name in required if any(name not in row for row in patient.rows))
    yield Finding(
        f"{patient.run.dataset_name}: {len(patient.rows)} rows looked at, columns {', '.join(sorted(patient.rows[0]))}",
        f"the rewards also read {', '.join(missing)}" if missing else "",
    )
    if missing or not benchmarks.is_named(patient.run.dataset_name):
        return
    benchmark = benchmarks.find(patient.run.dataset_name)
    golds = [benchmark.gold(row) for row in patient.rows]
    columns = {name: [row[name] for row in patient.rows] for name in patient.rows[0]}
    for function in functions:
        if isinstance(function, GradedReward) and None not in golds:
            grades = function.grades(golds, **columns)
            wrong = [grade for grade in grades if grade.outcome not in ("correct", "scored")]
            yield Finding(
                f"reward {function.name}: {len(grades) - len(wrong)} of {len(grades)} references grade correct",
                f"{wrong[0].outcome}: {wrong[0].reason}" if wrong else "",
            )


def _templates(patient: WeightlessPatient) -> Iterator[Finding]:
    reads_context = patient.config.reads_context
    if reads_context and patient.config.context_rule.arm != "none":
        check_contexts(patient.rows)
    if reads_context:
        yield describe_contexts(patient.config, patient.rows)
    prompt = next((prompt for prompt in patient.prompts if (prompt.context or "").strip()), patient.prompts[0])
    student, teacher = (str(patient.tokenizer.decode(list(ids))) for ids in (prompt.student_ids, prompt.teacher_ids))
    yield Finding(f"the student's prompt ends in {student[-160:]!r}")
    context = (prompt.context or "").strip()
    if reads_context:
        yield Finding(
            f"the teacher's prompt ends in {teacher[-320:]!r}",
            f"it lacks the row's context {context[:60]!r}: does teacher_prompt_template use privileged_context?"
            if context not in teacher
            else "",
        )


def _not_checked(patient: WeightlessPatient) -> Iterator[Finding]:
    words = ["stop tokens", "a training step"]
    if not patient.has_own_tokenizer:
        words.append(f"the tokenizer of {patient.run.model_name_or_path} and so the prompts' lengths")
    if benchmarks.is_named(patient.run.dataset_name):
        words.append(f"the rows of {patient.run.dataset_name} (example rows of its schema were)")
    yield Finding(f"{', '.join(words)}: `pbsd doctor` without --no_weights does, where the run will be")
