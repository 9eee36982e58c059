"""Tables from the hub or from files here, as they are, and the check that they have the columns that are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from pbsd.reading import parse_object

KINDS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Endings of files that are read, and their format."""

_BATCH = 1000

_LISTS = (datasets.List, datasets.LargeList, datasets.Sequence)


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
    if path.is_file() and path.suffix not in KINDS:
        raise ValueError(f"{name}: expected a file of type {', '.join(KINDS)}")
    try:
        if file := _file(name, split):
            _check_text(file)
            return datasets.load_dataset(KINDS[file.suffix], data_files={split: str(file)}, split=split)
        return datasets.load_dataset(name, config, split=split, revision=None if path.exists() else revision)
    except datasets.exceptions.DatasetGenerationError as error:
        if file := _file(name, split):
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


def _file(name: str, split: str) -> Path | None:
    """The file here that holds the split, if any: the name itself, or in a folder the one named after the split."""
    path = Path(name)
    files = [path] if path.is_file() else [path / f"{split}{suffix}" for suffix in KINDS]
    return next(filter(Path.is_file, files), None)


def load_rows(name: str, *, split: str, size: int | None = None, config: str | None = None) -> list[dict[str, Any]]:
    """The first `size` rows of a table (None: all), as they were written: see `load_table` and `written_rows`.

    Raises ValueError where there is no such table, or it has fewer rows.
    """
    table = load_table(name, split=split, config=config)
    if size is not None:
        if size > len(table):
            raise ValueError(
                f"dataset {name!r}, split {split!r} has {len(table)} rows, fewer than the {size} asked for"
            )
        table = table.select(range(size))
    file = _file(name, split)
    # The reader of JSON keeps objects with different keys as they are, since it has a type for them.
    is_exact = file is not None and KINDS[file.suffix] == "json" and hasattr(datasets, "Json")
    return list(table) if is_exact else written_rows(table)


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


def written_rows(table: datasets.Dataset) -> list[dict[str, Any]]:
    """The table's rows as they were written: without the nulls that a table puts where a nested object of another row
    has a key.

    A column of `datasets.Json` keeps objects as they are, nulls too. In any other nested column a key whose value is
    null cannot be told from one that was not written, and is left out.
    """
    nested = {name: feature for name, feature in table.features.items() if _has_struct(feature)}
    return [
        {name: _without_nulls(value, nested[name]) if name in nested else value for name, value in row.items()}
        for row in table
    ]


def _has_struct(feature: Any) -> bool:
    inner = _items(feature)
    return isinstance(feature, Mapping) or (inner is not None and _has_struct(inner))


def _items(feature: Any) -> Any:
    """The feature of a list's items; None where it is no list."""
    if isinstance(feature, list):
        return feature[0]
    return feature.feature if isinstance(feature, _LISTS) else None


def _without_nulls(value: Any, feature: Any) -> Any:
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {key: _without_nulls(member, feature[key]) for key, member in value.items() if member is not None}
    inner = _items(feature)
    if inner is not None and isinstance(value, list):
        return [_without_nulls(member, inner) for member in value]
    return value


def table_rows(table: datasets.Dataset, columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows with these columns only, as `written_rows`, in batches: a table may have millions of rows and wide
    columns."""
    table = table.select_columns([name for name in dict.fromkeys(columns) if name in table.column_names])
    for start in range(0, len(table), _BATCH):
        yield from written_rows(table.select(range(start, min(start + _BATCH, len(table)))))
