"""What a benchmark is: where its rows lie, how one becomes a row of ours, and which reward judges it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from pbsd.benchmarks.tables import check_columns, load_table, table_rows

RawRow = dict[str, Any]
"""A row as its source has it."""

Row = dict[str, Any]
"""`id`, `prompt` (chat messages), `privileged_context` (text or None) and the columns that the reward reads."""


class UnusableRow(ValueError):
    """A row that cannot be made a problem: it is left out and counted, and this says why."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows of a benchmark are wanted.

    Attributes:
        split: None is the benchmark's own choice for evaluation.
        size: the first so many; None is all (of a generated task: its default number).
        local: a file or folder in the hub's schema, read instead of the hub.
        config: the hub dataset's configuration, where it is not the adapter's; JSON options of a generated task.
        revision: the hub's revision, where it is not the adapter's.
        seed: of a generated task.
    """

    split: str | None = None
    size: int | None = None
    local: str | None = None
    config: str | None = None
    revision: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """A benchmark's rows, where they came from, and how many were left out and why."""

    rows: Sequence[Row]
    source: str
    left_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named data set with its grader.

    Attributes:
        splits: the names that `Query.split` may have; the first is the one that is evaluated.
        reward: what `pbsd.rewards.resolve` makes the reward function of.
        read: query, its split chosen -> rows.
        example: split -> a few rows that were written for this library, where the source cannot be reached.
        answer_key: the text of a completion -> what it votes for in maj@k; None: it holds no answer.
        gold: a row -> a completion that must grade correct; None: the row has no written answer.
        tools_template: what writes the rows' `tools` where the chat template does not; None: the rows have none.
    """

    name: str
    splits: tuple[str, ...]
    reward: str | Mapping[str, Any]
    read: Callable[[Query], Rows]
    example: Callable[[str], Rows]
    answer_key: Callable[[str], str | None]
    gold: Callable[[Row], str | None]
    tools_template: str | None = None


@dataclass(frozen=True, slots=True)
class Once:
    """Where the same problem must not be kept twice. Of equal problems with equal answers the first stays; with
    different answers none does, for at most one of them can be right.

    Attributes:
        problem: a raw row -> its problem.
        equal: pairs of answers that are written differently -> whether each pair is the same answer.
    """

    problem: Callable[[RawRow], str]
    equal: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]


@dataclass(frozen=True, slots=True)
class Table:
    """How a table of the hub becomes rows.

    Attributes:
        hub_id, config, revision: where it lies.
        columns: split -> the columns that are read and must be there.
        convert: a raw row and its number -> our row; may raise UnusableRow.
        optional: columns that are read where they are there.
        once: how to tell that a problem is there twice; None: every row is kept.
    """

    hub_id: str
    columns: Mapping[str, Sequence[str]]
    convert: Callable[[RawRow, int], Row]
    optional: Sequence[str] = ()
    config: str | None = None
    revision: str | None = None
    once: Once | None = None

    def load(self, query: Query) -> tuple[datasets.Dataset, str]:
        """The rows as they are, and where they came from. Raises ValueError when they cannot be had."""
        assert query.split is not None
        revision = query.revision or self.revision
        raw = load_table(
            query.local or self.hub_id,
            split=query.split,
            config=query.config or (None if query.local else self.config),
            revision=revision,
        )
        return raw, query.local or f"{self.hub_id}{f'@{revision}' if revision else ''}"

    def fits(self, raw: datasets.Dataset, split: str) -> bool:
        return set(self.columns[split]) <= set(raw.column_names)

    def convert_all(self, raw_rows: Iterable[RawRow], source: str) -> Rows:
        """Raises ValueError when no row is usable, or a column holds another kind of thing."""
        kept: dict[str, Row] = {}
        left_out: Counter[str] = Counter()
        rivals: dict[str, dict[str, str]] = {}
        for index, raw in enumerate(raw_rows):
            try:
                row = self.convert(raw, index)
                key = str(index) if self.once is None else " ".join(self.once.problem(raw).split())
            except UnusableRow as reason:
                left_out[str(reason)] += 1
                continue
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{source}, row {index}: its columns hold other things than this adapter reads ({error}): "
                    f"{raw!r:.200}"
                ) from error
            first = kept.setdefault(key, row)
            if first is row:
                continue
            left_out["rows with a problem that was there before"] += 1
            if (answer := _unspaced(row["answer"])) != _unspaced(first["answer"]):
                rivals.setdefault(key, {})[answer] = row["answer"]
        conflicting = self._conflicting(kept, rivals)
        for key in conflicting:
            del kept[key]
        if conflicting:
            left_out["problems with conflicting answers"] = len(conflicting)
        if not kept:
            raise ValueError(f"{source}: no usable row; left out: {dict(left_out) or 'nothing, the table is empty'}")
        return Rows(list(kept.values()), source, dict(left_out))

    def _conflicting(self, kept: Mapping[str, Row], rivals: Mapping[str, Mapping[str, str]]) -> set[str]:
        """The problems of which an answer that is written otherwise (`rivals`) is another answer."""
        if self.once is None or not rivals:
            return set()
        found = [(key, answer) for key, answers in rivals.items() for answer in answers.values()]
        equal = self.once.equal([(kept[key]["answer"], answer) for key, answer in found])
        return {key for (key, _), same in zip(found, equal, strict=True) if not same}


def reader(*tables: Table) -> Callable[[Query], Rows]:
    """What reads a benchmark that is published in several layouts: the first of them lies on the hub, and of those that
    have the query's split the first whose columns are there is read.

    It raises ValueError for a table or columns that are missing, or when no row is usable.
    """

    def read(query: Query) -> Rows:
        assert query.split is not None
        of_split = [table for table in tables if query.split in table.columns]
        raw, source = of_split[0].load(query)
        table = next((table for table in of_split if table.fits(raw, query.split)), of_split[0])
        required = table.columns[query.split]
        check_columns(raw.column_names, required, f"{source}, split {query.split!r}")
        return table.convert_all(table_rows(raw, [*required, *table.optional]), source)

    return read


def splits(tables: Sequence[Table]) -> tuple[str, ...]:
    """In the order in which they are first named."""
    return tuple(dict.fromkeys(split for table in tables for split in table.columns))


def _unspaced(answer: str) -> str:
    return "".join(answer.split())
