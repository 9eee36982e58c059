"""Checked values of a study file. Errors name the place and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class StudyError(ValueError):
    """A study file that cannot be used."""


def check_keys(values: Any, where: str, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    known = (*required, *optional)
    if not isinstance(values, Mapping):
        raise StudyError(f"{where}: expected the keys {', '.join(known)}, got {values!r}")
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
            raise StudyError(f"{where}: unknown key {key!r}; {hint}")
    if missing := [key for key in required if key not in values]:
        raise StudyError(f"{where}: missing {', '.join(missing)}")


def mapping(values: Any, where: str, least: int = 0) -> dict[str, Any]:
    values = {} if values is None else values
    if not isinstance(values, Mapping) or len(values) < least or not all(isinstance(key, str) for key in values):
        raise StudyError(f"{where}: expected `name: value` lines, got {values!r}")
    return dict(values)


def items(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise StudyError(f"{where}: expected a list with at least one item, got {values!r}")
    return values


def names(values: Any, where: str, known: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one_of(value, where, known) for value in items(values, where)))


def one_of(value: Any, where: str, known: Sequence[str]) -> Any:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
        raise StudyError(f"{where}: unknown {value!r}; {hint}")
    return value


def seeds(values: Any, where: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(whole(value, where, least=0) for value in items(values, where)))


def counts(values: Any, where: str, keys: Sequence[str]) -> dict[str, int]:
    check_keys(values, where, required=keys)
    return {key: whole(values[key], f"{where}.{key}") for key in keys}


def whole(value: Any, where: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise StudyError(f"{where}: expected a whole number of at least {least}, got {value!r}")
    return value
