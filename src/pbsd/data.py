"""Datasets: names and files -> rows, and rows -> prompts that were checked before training starts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import Dataset

from pbsd.lab import worlds
from pbsd.records import Prompt
from pbsd.render import OverlongError, Renderer, RowError

_LAB_PREFIX = "lab/"
_KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}

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
        cls, rows: Iterable[Mapping[str, Any]], renderer: Renderer, *, required: Iterable[str] = (), drop_overlong: bool
    ) -> PromptDataset:
        """Render every row.

        Args:
            required: columns that must be there besides `prompt` (what the reward functions read).
            drop_overlong: leave out and count rows over a prompt budget; otherwise they are an error.

        Raises:
            ValueError: a streamed or empty dataset, a missing column, a row that breaks the data contract.
        """
        if isinstance(rows, datasets.IterableDataset | datasets.IterableDatasetDict):
            raise ValueError("streamed datasets are not supported: the rows are checked before training; load it whole")
        if isinstance(rows, datasets.DatasetDict | Mapping):
            raise ValueError(f"expected one split, got all of {', '.join(map(str, rows))}: pass dataset['train'] or so")
        prompts, dropped = [], 0
        columns = {"prompt", *required}
        for index, row in enumerate(rows):
            if missing := sorted(columns - row.keys()):
                raise RowError(
                    f"row {index}: column {', '.join(map(repr, missing))} is missing; the row has "
                    f"{', '.join(sorted(row))}. `prompt` is the problem, `privileged_context` what only the teacher "
                    "sees, and reward functions read the rest by name: rename or add it"
                )
            try:
                prompts.append(renderer(row, index))
            except OverlongError:
                if not drop_overlong:
                    raise
                dropped += 1
        if not prompts:
            raise ValueError(f"the dataset has no usable row ({dropped} were over a prompt budget)")
        if dropped:
            logger.warning("%d of %d rows were dropped: over a prompt budget", dropped, dropped + len(prompts))
        return cls(prompts, dropped)


def load_rows(
    name: str, *, split: str, size: int | None = None, config: str | None = None, seed: int = 0
) -> Sequence[Mapping[str, Any]]:
    """Rows of a named dataset.

    Args:
        name: `lab/arithmetic` (a generated task) or `lab/arithmetic-noisy` (a task in a world of `lab.worlds`), a
            JSON-lines or Parquet file, a folder with one file per split, or a hub id.
        split: the split's name.
        size: how many rows: generated for the lab, the first ones otherwise; None is all (2,000 for the lab).
        config: the hub dataset's configuration.

    Raises:
        ValueError: the dataset, split or so many rows do not exist.
    """
    if name.startswith(_LAB_PREFIX) and not Path(name).exists():
        return worlds.dataset_rows(name.removeprefix(_LAB_PREFIX), split, 2000 if size is None else size, seed)
    rows = _load(name, split, config)
    if size is not None:
        if size > len(rows):
            raise ValueError(f"dataset {name!r}, split {split!r} has {len(rows)} rows, fewer than the {size} asked for")
        rows = rows.select(range(size))
    return rows


def _load(name: str, split: str, config: str | None) -> datasets.Dataset:
    path = Path(name)
    files = [path] if path.is_file() else [path / f"{split}{suffix}" for suffix in _KINDS]
    try:
        for file in filter(Path.is_file, files):
            if file.suffix not in _KINDS:
                raise ValueError(f"{name}: expected a file of type {', '.join(_KINDS)}")
            return datasets.load_dataset(_KINDS[file.suffix], data_files={split: str(file)}, split=split)
        return datasets.load_dataset(name, config, split=split)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"dataset {name!r}, split {split!r} cannot be read: {error.__cause__ or error}") from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"dataset {name!r} is neither a file or folder here nor found on the hub ({error}): check the name, or "
            "give a local JSON-lines file"
        ) from error
