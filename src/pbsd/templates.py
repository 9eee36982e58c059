"""Jinja templates from recipes, data files and command lines: sandboxed, and bounded in loops and sizes.

A recipe is data that people pass around, so its templates may format text and nothing else. They run in Jinja's
immutable sandbox, see plain JSON values only, and stop with an error before they take long or fill the memory.
"""

from __future__ import annotations

import json
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
"""Of all loops of one rendering together."""
MAX_CHARACTERS = 10_000_000
"""Of any value in a template: characters of text, and members of lists with those of their members."""
_MAX_NUMBER = 10**30
"""Of what is computed; a row may hold larger ones."""
_MAX_ARGUMENT = 100_000
"""Largest number that a filter or method may be given: widths, repetitions, lengths of ranges."""
_MAX_WORK = 2 * 10**8
"""Of the sizes of what a filter or method is given, multiplied: no one of them makes more characters than that."""

_LONG_WIDTH = re.compile(r"\d{6,}")
_iterations: ContextVar[list[int]] = ContextVar("iterations")


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
        token = _iterations.set([0])
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
            _iterations.reset(token)


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


def _counted(values: Any) -> Iterator[Any]:
    spent = _iterations.get()
    for value in values:
        spent[0] += 1
        if spent[0] > MAX_ITERATIONS:
            raise SecurityError(f"its loops run more than {MAX_ITERATIONS:,} times")
        yield value


def _sized(value: Any) -> Any:
    """The value, after checking that it is not too large, with every member counted as often as it is reached."""
    _size(value, {})
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    if isinstance(value, str | bytes):
        size = len(value)
    elif isinstance(value, Mapping | list | tuple | set):
        if id(value) not in known:
            members = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
            known[id(value)] = len(members) + sum(_size(member, known) for member in members)
        size = known[id(value)]
    else:
        size = 1
    if size > MAX_CHARACTERS:
        raise SecurityError(f"a value has more than {MAX_CHARACTERS:,} characters or members")
    return size


def _check_work(subject: Any, arguments: Sequence[Any], *, is_format: bool = False) -> None:
    """Before a filter or method runs: replacing, indenting and the like multiply sizes, a format's width is a size."""
    if is_format and _LONG_WIDTH.search(str(subject)):
        raise SecurityError("a format has a width of more than five digits")
    work = max(1, _size(subject, {}))
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > _MAX_ARGUMENT:
            raise SecurityError(f"a filter or method is given {argument}, more than {_MAX_ARGUMENT:,}")
        work *= max(1, abs(argument) if isinstance(argument, int) else _size(argument, {}))
    if work > _MAX_WORK:
        raise SecurityError(f"a filter or method is given values that could make more than {_MAX_WORK:,} characters")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    given = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        subject = args[given] if len(args) > given else ""
        _check_work(subject, [*args[given + 1 :], *kwargs.values()], is_format=name == "format")
        return _sized(function(*args, **kwargs))

    return bounded


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%", "//", "/", "-"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "**" and numbers and (abs(left) > 1000 or abs(right) > 10):
            raise SecurityError("a power of more than 1000 ** 10")
        if operator == "*" and not numbers:
            times = next((side for side in (left, right) if isinstance(side, int)), 1)
            if max(_size(left, {}), _size(right, {})) * times > MAX_CHARACTERS:
                raise SecurityError(f"a text or list is repeated to more than {MAX_CHARACTERS:,} characters or members")
        if operator == "%" and isinstance(left, str):
            _check_work(left, [right], is_format=True)
        result = super().call_binop(context, operator, left, right)
        if numbers and abs(result) > _MAX_NUMBER:
            raise SecurityError(f"a number is larger than {_MAX_NUMBER:.0e}")
        return _sized(result)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        subject = getattr(method, "__self__", None)
        is_format = isinstance(subject, str) and str(getattr(method, "__name__", "")).startswith("format")
        _check_work(subject, [*args, *kwargs.values()], is_format=is_format)
        result = super().call(__context, __obj, *args, **kwargs)
        return result if isinstance(result, range) else _sized(result)


def _tojson(value: Any, indent: int | None = None, **options: Any) -> str:
    """As chat templates have it, without HTML escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _make_environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_sized
    )
    environment.filters["tojson"] = _tojson
    environment.filters = {name: _bounded(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"_counted": _counted, "_sized": _sized}
    environment.globals = {name: environment.globals[name] for name in ("range", "dict", "namespace")}
    return environment


_ENVIRONMENT = _make_environment()
