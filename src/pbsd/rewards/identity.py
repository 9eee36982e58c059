"""Which reward function this is, as JSON that is equal in every process: no memory addresses, no order of sets."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any

import torch

from pbsd.rewards.functions import GradedReward
from pbsd.rewards.limited import LimitedReward


def reward_identity(function: Any) -> Any:
    """What a later session must find to go on with this reward.

    Of a built-in its name and options; of a function where it is found, and of a lambda, an inner function or a
    decorated one also its code, its defaults and what it encloses; of a partial and a method their parts; of another
    object its class and its state (`__getstate__`, so a class says itself what of its state does not count).
    """
    return _identity(function, ())


def plain_function(function: Any) -> Any:
    """What is called in the end: without the time limit, and of partials and methods the function."""
    while True:
        if isinstance(function, LimitedReward):
            function = function.__wrapped__
        elif isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        else:
            return function


def code_hash(function: Any) -> str | None:
    """SHA-256 of the source file of a reward's function or class, or of its code where there is no file; None where
    there is neither."""
    function = plain_function(function)
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function)
    function = inspect.unwrap(function)
    try:
        return _sha256(inspect.getsource(inspect.getmodule(function)))  # type: ignore[arg-type]
    except (OSError, TypeError):
        code = getattr(function, "__code__", None)
        return None if code is None else _sha256(json.dumps(_code(code)))


def _identity(function: Any, above: tuple[int, ...]) -> Any:
    if isinstance(function, LimitedReward):
        return _identity(function.__wrapped__, above)
    if isinstance(function, GradedReward):
        return [function.name, function.grader, function.columns, function.optional, function.options]
    if id(function) in above:  # a function that encloses itself
        return _place(function)
    above = (*above, id(function))
    if isinstance(function, functools.partial):
        return {
            "partial": _identity(function.func, above),
            "args": [_value(value, above) for value in function.args],
            "keywords": _value(function.keywords, above),
        }
    if inspect.ismethod(function):
        return {"method": _identity(function.__func__, above), "of": _object(function.__self__, above)}
    if inspect.isfunction(function):
        return _of_function(function, above)
    if inspect.isbuiltin(function) or inspect.isclass(function):
        return _place(function)
    return _object(function, above)


def _object(value: Any, above: tuple[int, ...]) -> Any:
    if inspect.isclass(value):
        return _place(value)
    try:
        state = value.__getstate__()
    except Exception:  # whatever a class raises that cannot be copied
        state = getattr(value, "__dict__", None)
    return {"object": _place(type(value)), "state": _value(state, above)}


def _of_function(function: Any, above: tuple[int, ...]) -> Any:
    if not function.__closure__ and "<" not in function.__qualname__:  # <locals>, <lambda>
        return _place(function)
    return {
        "function": _place(function),
        "code": _sha256(json.dumps(_code(function.__code__))),
        "defaults": _value([function.__defaults__, function.__kwdefaults__], above),
        "encloses": {
            name: _cell(cell, above)
            for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        },
    }


def _cell(cell: Any, above: tuple[int, ...]) -> Any:
    try:
        return _value(cell.cell_contents, above)
    except ValueError:  # not set yet
        return None


def _value(value: Any, above: tuple[int, ...]) -> Any:
    """As JSON where it can be; of other objects the type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(data).hexdigest()]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, type):
        return _place(value)
    if isinstance(value, ModuleType):
        return value.__name__
    if id(value) in above:
        return _place(type(value))
    inner = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): _value(item, inner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, inner) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_value(item, inner) for item in value), key=json.dumps)
    if callable(value):
        return _identity(value, above)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return {"object": _place(type(value)), "state": _value(fields, inner)}
    return _text_of(value)


def _text_of(value: Any) -> Any:
    """Of an object that is neither JSON nor callable: a pattern's or an array's content, else the type alone."""
    place = _place(type(value))
    if (pattern := getattr(value, "pattern", None)) is not None and isinstance(pattern, str):
        return {"object": place, "pattern": pattern, "flags": int(getattr(value, "flags", 0))}
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return [place, str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    return place


def _code(code: CodeType) -> Any:
    constants = [_constant(constant) for constant in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames), list(code.co_freevars)]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, tuple):
        return [_constant(item) for item in value]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _place(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)
    return f"{getattr(value, '__module__', None)}:{name}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
