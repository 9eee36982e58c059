"""Jinja templates from recipes, data files and command lines: sandboxed, and bounded in loops and sizes.

A recipe is data that people pass around, so its templates may format text and nothing else. They run in Jinja's
immutable sandbox, see plain JSON values only, and stop with an error before they take long or fill the memory.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

MAX_ITERATIONS = 100_000
"""Steps of all loops and calls of one rendering together."""
MAX_CHARACTERS = 10_000_000
"""Of any value in a template: characters of text, and members of lists with those of their members."""
MAX_WORK = 200_000_000
"""Characters and members that all filters, methods and operators of one rendering read and make together; and what one
of them could make at most, which is the product of what it is given: replacing and indenting multiply sizes."""
_MAX_BITS = 4096
"""Of a computed integer."""
_MAX_SIZE = 100_000
"""Of a number that says how long a text is to be, such as a width."""

_SIZING = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice")
"""Methods and filters whose numbers are sizes."""
_SLOW = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters that are left out: they take long for a long text, or give another result at each call."""
_WIDTH = re.compile(r"%[^A-Za-z%]*\d{6}|\{[^{}]*:[^{}]*\d{6}")
_GIVEN_WIDTH = re.compile(r"%[^A-Za-z%]*\*|\{[^{}]*\{")


class _Spent:
    """What a rendering has used up."""

    def __init__(self) -> None:
        self.steps = self.work = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_ITERATIONS:
            raise SecurityError(f"its loops and calls run more than {MAX_ITERATIONS:,} times")

    def add(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise SecurityError(f"it reads or makes more than {MAX_WORK:,} characters")


_spent: ContextVar[_Spent] = ContextVar("spent")


class TemplateError(ValueError):
    """A template that cannot be compiled or filled, with the reason."""


class Template:
    """A compiled template. Its variables are strict: one that is not given is an error."""

    def __init__(self, source: str, name: str) -> None:
        """Raises TemplateError, with the line, where `source` is not Jinja."""
        self.name = name
        try:
            tree = _ENVIRONMENT.parse(source)
            self._variables = jinja2.meta.find_undeclared_variables(tree)
            tree = _Bounded().visit(tree)
            self._template = jinja2.Template.from_code(
                _ENVIRONMENT, _ENVIRONMENT.compile(tree), {**_ENVIRONMENT.globals}
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{name}, line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise TemplateError(f"{name}: nested too deeply") from error

    def render(self, values: Mapping[str, Any]) -> str:
        """Raises TemplateError: an unknown variable, forbidden code, a bound, or anything that fails in it."""
        token = _spent.set(_Spent())
        seen = {name: plain(values[name]) for name in self._variables & values.keys()}
        try:
            parts, size = [], 0
            for part in self._template.generate(seen):
                size += len(part)
                if size > MAX_CHARACTERS:
                    raise SecurityError(f"the text has more than {MAX_CHARACTERS:,} characters")
                parts.append(part)
            return "".join(parts)
        except jinja2.UndefinedError as error:
            raise TemplateError(f"{self.name}: {error}; columns are {', '.join(sorted(values))}") from error
        except RecursionError as error:
            raise TemplateError(
                f"{self.name}: it calls itself without end, or its values are nested too deeply"
            ) from error
        except Exception as error:  # a filter can fail in any way: it is the template's failure all the same
            raise TemplateError(f"{self.name}: {error or type(error).__name__}") from error
        finally:
            _spent.reset(token)


@cache
def compile_template(source: str, name: str = "teacher_prompt_template") -> Template:
    """Raises TemplateError, with the line, where `source` is not Jinja."""
    return Template(source, name)


def template_variables(source: str) -> set[str]:
    """The names that a template reads and does not set itself."""
    return jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(source))


def plain(value: Any) -> Any:
    """The value out of JSON types alone: what a template sees of an object can run no code. Others become text."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of NumPy
        return plain(value.item())
    return getattr(value, "__name__", "") if callable(value) else str(value)


class _Bounded(NodeTransformer):
    """Counts what every loop goes through, and sizes what `~` makes."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(node, "_sized")


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _now() -> _Spent:
    """Of the rendering; while a template is compiled, of nothing."""
    return _spent.get(_Spent())


def _counted(values: Any) -> Iterator[Any]:
    for value in values:
        _now().step()
        yield value


def _sized(value: Any) -> Any:
    """The value, after checking that it is not too large, with every member counted as often as it is reached."""
    _now().add(_size(value, {}))
    return value


def _written(value: Any) -> Any:
    """A value that is written: sized, and without undefined ones among its members, which would be written as that."""
    _sized(value)
    if isinstance(value, Mapping | list | tuple):
        for member in _members(value):
            if isinstance(member, jinja2.Undefined):
                str(member)  # raises, with the name
            _written(member)
    return value


def _members(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)


def _size(value: Any, known: dict[int, int]) -> int:
    if isinstance(value, str | bytes):
        size = len(value)
    elif isinstance(value, Mapping | list | tuple | set):
        if id(value) not in known:
            members = _members(value)
            known[id(value)] = len(members) + sum(_size(member, known) for member in members)
        size = known[id(value)]
    else:
        size = len(value) if isinstance(value, range) else 1
    if size > MAX_CHARACTERS:
        raise SecurityError(f"a value has more than {MAX_CHARACTERS:,} characters or members")
    return size


def _check_work(name: str, subject: Any, arguments: Sequence[Any]) -> None:
    """Before a filter or method runs: what it reads, and what it could make."""
    is_format = name in ("format", "format_map", "%") and isinstance(subject, str)
    if is_format and _WIDTH.search(subject):
        raise SecurityError("a format has a width of more than five digits")
    are_sizes = name in _SIZING or (is_format and _GIVEN_WIDTH.search(subject) is not None)
    work = max(1, _size(subject, {}))
    for argument in arguments:
        if not isinstance(argument, int):
            work *= max(1, _size(argument, {}))
        elif are_sizes:
            if abs(argument) > _MAX_SIZE:
                raise SecurityError(f"{name!r} is given the size {argument}, more than {_MAX_SIZE:,}")
            work *= max(1, abs(argument))
    if work > MAX_WORK:
        raise SecurityError(f"{name!r} is given values that could make more than {MAX_WORK:,} characters")
    _now().add(_size([subject, *arguments], {}))


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    given = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        subject = args[given] if len(args) > given else ""
        _check_work(name, subject, [*args[given + 1 :], *kwargs.values()])
        return _sized(function(*args, **kwargs))

    return bounded


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%", "//", "/", "-"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "**" and numbers and abs(right) * max(1, math.log2(abs(left) + 1)) > _MAX_BITS:
            raise SecurityError("a power that is too large")
        if operator == "*" and not numbers:
            times = next((side for side in (left, right) if isinstance(side, int)), 1)
            if max(_size(left, {}), _size(right, {})) * times > MAX_CHARACTERS:
                raise SecurityError(f"a text or list is repeated to more than {MAX_CHARACTERS:,} characters or members")
        if operator == "%" and isinstance(left, str):
            _check_work("%", left, right if isinstance(right, tuple) else [right])
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > _MAX_BITS:
            raise SecurityError(f"an integer of more than {_MAX_BITS} bits")
        return _sized(result)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _now().step()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        name = str(getattr(method, "__name__", ""))
        _check_work(name, getattr(method, "__self__", None), [*args, *kwargs.values()])
        return _sized(super().call(__context, __obj, *args, **kwargs))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As chat templates have it, without HTML escapes."""
    if indent is not None and not 0 <= indent <= 8:
        raise SecurityError(f"tojson is given the indent {indent}, more than 8")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _make_environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_written
    )
    environment.filters["tojson"] = _tojson
    environment.filters = {
        name: _bounded(name, function) for name, function in environment.filters.items() if name not in _SLOW
    }
    environment.filters |= {"_counted": _counted, "_sized": _sized}
    environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
    return environment


_ENVIRONMENT = _make_environment()
