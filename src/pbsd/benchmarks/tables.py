"""Tables from the hub or from files here, as they are, and the check that they have the columns that are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets

from pbsd.reading import parse_object

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Endings of files that are read, and their format."""

_BATCH = 1000


def load_table(name: str, *, split: str, config: str | None = None, revision: str | None = None) -> datasets.Dataset:
    """A table of the hub, of a file, or of a folder with one file per split or laid out as on the hub.

    Args:
        name: a file, a folder or a hub id.
        split: the split's name; a file stands for every split.
        config: the hub dataset's configuration.
        revision: the hub's branch, tag or commit; None is its main branch. Files here have none.

    Raises ValueError when there is no such table or it cannot be read.
    """
    path = Path(name)
    files = [path] if path.is_file() else [path / f"{split}{suffix}" for suffix in KINDS]
    if path.is_file() and path.suffix not in KINDS:
        raise ValueError(f"{name}: expected a file of type {', '.join(KINDS)}")
    try:
        for file in filter(Path.is_file, files):
            _check_text(file)
            return datasets.load_dataset(KINDS[file.suffix], data_files={split: str(file)}, split=split)
        return datasets.load_dataset(name, config, split=split, revision=None if path.exists() else revision)
    except datasets.exceptions.DatasetGenerationError as error:
        for file in filter(Path.is_file, files):
            _check_lines(file)
        raise ValueError(f"dataset {name!r}, split {split!r} cannot be read: {error.__cause__ or error}") from error
    except StopIteration as error:
        raise ValueError(f"dataset {name!r}, split {split!r} cannot be read: the file holds no rows") from error
    except ValueError as error:  # such as a split that is not there
        raise ValueError(f"dataset {name!r}, split {split!r} cannot be read: {error}") from error
    except RuntimeError as error:  # a dataset script, which datasets no longer runs
        raise ValueError(
            f"dataset {name!r}, split {split!r} cannot be read: {error}. Save its rows as JSON lines or Parquet, and "
            "name that file or folder"
        ) from error
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"dataset {name!r} is neither a file or folder here nor found on the hub ({error}): check the name, or "
            "give a local JSON-lines file"
        ) from error


def _check_text(file: Path) -> None:
    """Raises ValueError with the line of a text file that is not UTF-8: datasets would read other characters."""
    if KINDS[file.suffix] != "json":
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise ValueError(
                    f"{file}, line {number:,}: byte {byte:#04x} is not UTF-8: save the file as UTF-8, or fix the line"
                ) from error


def _check_lines(file: Path) -> None:
    """Raises ValueError with the first line of a JSON-lines file that is no object."""
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    parse_object(line, f"{file}, line {number:,}", "fix or remove the line")


def check_columns(present: Iterable[str], required: Iterable[str], where: str) -> None:
    """Raises ValueError, naming what is there and what is missing, unless every required column is present."""
    present = set(present)
    if missing := sorted(set(required) - present):
        raise ValueError(
            f"{where}: column {', '.join(map(repr, missing))} is missing; the table has "
            f"{', '.join(sorted(present)) or 'none'}. It is not in the schema that this adapter reads: rename the "
            "columns, or pin the revision that has them"
        )


def table_rows(table: datasets.Dataset, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows with these columns only, read in batches: a table may have millions of rows and wide columns."""
    wanted = [name for name in columns if name in table.column_names]
    for batch in table.select_columns(wanted).iter(_BATCH):
        for values in zip(*(batch[name] for name in wanted), strict=True):
            yield dict(zip(wanted, values, strict=True))
