"""Public data sets and generated tasks by name, as rows of this library's data contract, each with its grader.

    from pbsd import benchmarks
    rows = benchmarks.load("gsm8k", benchmarks.Query(split="test", size=100)).rows

A name is one of `names()`, or `reasoning-gym:TASK`. `NAME@PATH` reads files here that have the hub's schema.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pbsd.benchmarks.adapter import Benchmark, Query, Row, Rows
from pbsd.benchmarks.bfcl import BFCL
from pbsd.benchmarks.mathematics import MATHEMATICS
from pbsd.benchmarks.procedural import PREFIX, benchmark
from pbsd.benchmarks.toolalpaca import TOOLALPACA

__all__ = ["Benchmark", "Query", "Row", "Rows", "find", "is_named", "load", "names"]

logger = logging.getLogger(__name__)

_BENCHMARKS: Mapping[str, Benchmark] = {**MATHEMATICS, **BFCL, **TOOLALPACA}


def names() -> tuple[str, ...]:
    """The names there are, besides `reasoning-gym:TASK`."""
    return tuple(_BENCHMARKS)


def is_named(name: str) -> bool:
    """Whether a data set's name is one of ours. A file or folder of that name comes first."""
    base = name.partition("@")[0]
    return not Path(name).exists() and (base in _BENCHMARKS or base.startswith((PREFIX, "bfcl:")))


def find(name: str) -> Benchmark:
    """The benchmark of that name, a `@PATH` aside. Raises ValueError for an unknown one."""
    name = name.partition("@")[0]
    if name.startswith(PREFIX):
        return benchmark(name.removeprefix(PREFIX))
    if name not in _BENCHMARKS:
        close = difflib.get_close_matches(name, _BENCHMARKS, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise ValueError(f"no benchmark is called {name!r}; {hint} {', '.join(_BENCHMARKS)} and {PREFIX}TASK")
    return _BENCHMARKS[name]


def load(name: str, query: Query) -> Rows:
    """The rows of a benchmark; those left out are counted and said in the log.

    Raises ValueError when there is no such benchmark or split, it cannot be read, lacks a column, or has too few rows.
    """
    base, _, local = name.partition("@")
    found = find(name)
    query = replace(query, split=query.split or found.splits[0], local=local or query.local)
    if query.split not in found.splits:
        raise ValueError(f"{base} has no split {query.split!r}; it has {', '.join(found.splits)}")
    rows = found.read(query)
    if rows.left_out:
        logger.warning(
            "%s: %d rows are used; left out: %s",
            base,
            len(rows.rows),
            ", ".join(f"{count} {reason}" for reason, count in rows.left_out.items()),
        )
    if query.size is None:
        return rows
    if query.size < 1:
        raise ValueError(f"{base}: {query.size} rows were asked for; give at least 1, or leave the number out for all")
    if query.size > len(rows.rows):
        raise ValueError(
            f"{base}, split {query.split!r} has {len(rows.rows)} rows, fewer than the {query.size} asked for"
        )
    return replace(rows, rows=rows.rows[: query.size])
