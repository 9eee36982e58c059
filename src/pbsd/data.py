"""Datasets: names and files -> rows, and rows -> prompts that were checked before training starts."""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset

from pbsd import benchmarks
from pbsd.benchmarks import tables
from pbsd.config.base import ContextRule
from pbsd.lab import worlds
from pbsd.records import Prompt
from pbsd.render import OverlongError, Renderer, RowError, context_text, template_columns
from pbsd.rewards.functions import check_columns

_LAB_PREFIX = "lab/"
_WHOLE = ContextRule()

logger = logging.getLogger(__name__)


class PromptDataset(Dataset):
    """Rows rendered for both roles, each once; `dropped` counts the rows that were over a prompt budget."""

    def __init__(self, prompts: Sequence[Prompt], dropped: int = 0) -> None:
        self.prompts = list(prompts)
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]

    def fingerprint(self) -> str:
        """SHA-256 over the rows' numbers, token ids and columns: what a run was trained or measured on."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(repr((prompt.row, prompt.student_ids, prompt.teacher_ids)).encode())
            digest.update(repr(sorted(prompt.columns.items())).encode())
        return digest.hexdigest()

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        renderer: Renderer,
        *,
        required: Iterable[str] = (),
        drop_overlong: bool,
        context: ContextRule = _WHOLE,
        seed: int = 0,
        needs_context: bool = False,
    ) -> PromptDataset:
        """Render every row.

        Args:
            required: columns that must be there besides `prompt` (what the reward functions read).
            drop_overlong: leave out and count rows over a prompt budget; otherwise they are an error.
            context, seed: see `shown_contexts`. Budgets are those of the prompts as shown.
            needs_context: the teacher is to see more than the student: an error where no row lets it.

        Raises:
            ValueError: a streamed or empty dataset, a missing column, a row that breaks the data contract, contexts
                that cannot be shuffled.
        """
        if isinstance(rows, datasets.IterableDataset | datasets.IterableDatasetDict):
            raise ValueError("streamed datasets are not supported: the rows are checked before training; load it whole")
        if isinstance(rows, datasets.DatasetDict | Mapping):
            raise ValueError(f"expected one split, got all of {', '.join(map(str, rows))}: pass dataset['train'] or so")
        prompts, dropped = [], 0
        columns = {"prompt", *required}
        rows = as_written(rows)
        if needs_context and context.arm != "none":
            _warn_of_missing_contexts(check_contexts(rows), len(rows))
        partly = context.arm == "shuffled" or context.dose < 1
        if partly and (own := template_columns(renderer.teacher_prompt_template)):
            logger.warning(
                "context='shuffled' and context_dose change privileged_context only: the teacher still reads its row's "
                "own %s",
                ", ".join(sorted(own)),
            )
        shown_to_teacher = shown_contexts(rows, context, seed)
        if needs_context and (first := next((i for i, own in enumerate(shown_to_teacher) if own), None)) is not None:
            renderer.check_teacher_prompt(rows[first], first)
        for index, (row, shown) in enumerate(zip(rows, shown_to_teacher, strict=True)):
            check_columns(row)
            if missing := sorted(columns - row.keys()):
                raise RowError(
                    f"row {index}: column {', '.join(map(repr, missing))} is missing; the row has "
                    f"{', '.join(sorted(row))}. `prompt` is the problem, `privileged_context` what only the teacher "
                    "sees, and reward functions read the rest by name: rename or add it"
                )
            try:
                prompt = renderer(row, index, context=shown)
            except OverlongError:
                if not drop_overlong:
                    raise
                dropped += 1
                continue
            if needs_context and prompt.context is not None and prompt.student_ids == prompt.teacher_ids:
                raise RowError(
                    f"row {index}: the row has a privileged context, and the teacher's prompt is the student's all the "
                    "same: teacher_prompt_template must write {{ privileged_context }} or another column"
                )
            prompts.append(prompt)
        if not prompts:
            raise ValueError(f"the dataset has no usable row ({dropped} were over a prompt budget)")
        if dropped:
            logger.warning("%d of %d rows were dropped: over a prompt budget", dropped, dropped + len(prompts))
        return cls(prompts, dropped)


def as_written(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows as their author wrote them: without a table's nulls, and with `privileged_context` where TRL's SDFT
    script reads `golden_response`."""
    return [_with_context(row) for row in (tables.written_rows(rows) if isinstance(rows, datasets.Dataset) else rows)]


def _with_context(row: Mapping[str, Any]) -> Mapping[str, Any]:
    if "privileged_context" in row or row.get("golden_response") is None:
        return row
    response = row["golden_response"]
    if isinstance(response, list) and all(isinstance(text, str) for text in response):
        response = "\n".join(response)
    return {**row, "privileged_context": response}


def count_without_context(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many rows have no privileged context, or only white space. Raises RowError for one that is no context."""
    contexts = (context_text(row.get("privileged_context"), index) for index, row in enumerate(rows))
    return sum(not (context or "").strip() for context in contexts)


def check_contexts(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many rows have no privileged context. Raises ValueError where none has one."""
    without = count_without_context(rows)
    if rows and without == len(rows):
        found = ", ".join(sorted({name for row in rows for name in row}))
        raise ValueError(
            f"no row has a `privileged_context`, so the teacher would be the student: the rows have {found}. Rename "
            "the column that only the teacher may see (a solution, a demonstration), or set context='none' to train "
            "without any"
        )
    return without


def _warn_of_missing_contexts(without: int, rows: int) -> None:
    if without:
        logger.warning(
            "%d of %d rows (%.0f%%) have no privileged_context: the teacher is the student there",
            without,
            rows,
            100 * without / rows,
        )


def shown_contexts(rows: Sequence[Mapping[str, Any]], rule: ContextRule, seed: int) -> list[Any]:
    """The privileged context that the teacher is shown of each row: whole, or as text the first `dose` of its
    characters, rounded up.

    `paired`: the row's own. `none`: None. `shuffled`: another row's, each used once, by a seeded permutation that gives
    no row a context equal to its own as text; rows without context stay without, and theirs is given to nobody.

    The permutation puts the rows in random order, those of equal context side by side, and moves every context on by
    the size of the largest such group. So it is drawn from all derangements, though not uniformly.

    Raises:
        ValueError: `shuffled` where no row has a context, or more than half of those that do share one.
    """
    own = [row.get("privileged_context") for row in rows]
    if rule.arm == "none":
        return [None] * len(own)
    if rule.dose < 1:
        texts = [context_text(context, index) or "" for index, context in enumerate(own)]
        # 0.07 of 100 are 7, and not the 8 above 7.000000000000001.
        own = [text[: math.ceil(round(rule.dose * len(text), 9))] or None for text in texts]
    return own if rule.arm == "paired" else _exchanged(own, seed)


def _exchanged(own: Sequence[Any], seed: int) -> list[Any]:
    """`shuffled`: see `shown_contexts`."""
    shown: list[Any] = [None] * len(own)
    texts = [context_text(context, index) for index, context in enumerate(own)]
    holders = [index for index, text in enumerate(texts) if text is not None]
    random.Random(f"context-{seed}").shuffle(holders)
    groups: dict[str | None, list[int]] = {}
    for index in holders:
        groups.setdefault(texts[index], []).append(index)
    largest = max(map(len, groups.values()), default=0)
    if not holders or 2 * largest > len(holders):
        reason = f"{largest} of the {len(holders)} that do share one, more than half" if holders else "no row does"
        raise ValueError(
            f"context='shuffled' gives each row that has a privileged_context a different one, but {reason}: choose "
            "context='none', or rows whose contexts differ"
        )
    order = [index for group in groups.values() for index in group]
    for index, donor in zip(order, order[largest:] + order[:largest], strict=True):
        shown[index] = own[donor]
    return shown


def load_rows(
    name: str, *, split: str, size: int | None = None, config: str | None = None, seed: int = 0
) -> Sequence[Mapping[str, Any]]:
    """Rows of a named dataset.

    Args:
        name: `lab/arithmetic` (a generated task) or `lab/arithmetic-noisy` (a task in a world of `lab.worlds`), a
            JSON-lines or Parquet file, a folder with one file per split, a name of `benchmarks` (`gsm8k`, files here
            in its schema as `gsm8k@PATH`, `reasoning-gym:chain_sum`), or a hub id.
        split: the split's name.
        size: how many rows: generated for the lab, the first ones otherwise; None is all (2,000 for the lab).
        config: the hub dataset's configuration; JSON options of a task of reasoning-gym.

    Raises:
        ValueError: the dataset, split or so many rows do not exist.
    """
    if name.startswith(_LAB_PREFIX) and not Path(name).exists():
        return worlds.dataset_rows(name.removeprefix(_LAB_PREFIX), split, 2000 if size is None else size, seed)
    if benchmarks.is_named(name):
        return benchmarks.load(name, benchmarks.Query(split=split, size=size, config=config, seed=seed)).rows
    return tables.load_rows(name, split=split, size=size, config=config)
