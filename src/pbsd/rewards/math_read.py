"""The text of an answer as a value: read whole, or not at all.

An answer is taken apart here at its commas, relations, unions and brackets; only single expressions go to
latex2sympy's parser. So nothing is skipped to find a number, and a long list costs no more than its members.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

from pbsd.rewards import math_latex, math_notation, math_numbers, math_symbols


class Unreadable(ValueError):
    """The answer, or a part of it, is not mathematics that the grader knows."""


@dataclass(frozen=True)
class Scalar:
    """A number, an expression with letters or a matrix."""

    expression: Any


@dataclass(frozen=True)
class Percent:
    """So many percent."""

    expression: Any


@dataclass(frozen=True)
class Words:
    """An answer in words, such as `no solution`."""

    words: str


@dataclass(frozen=True)
class Items:
    """Several values. `brackets`: "" for a list, "{}" for a set, "()", "[]", "(]" or "[)" for a point or an interval.
    `joined`: what stands between the members of a list: ",", "and", "or", and "land" and "lor" of the signs."""

    members: tuple[Value, ...]
    brackets: str = ""
    joined: str = ","


@dataclass(frozen=True)
class Known:
    """A set with a name of its own, such as the reals, or the empty set."""

    members: Any


@dataclass(frozen=True)
class Combined:
    """Sets joined by one of `\\cup`, `\\cap`, `\\setminus`."""

    sign: str
    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Equation:
    """`left = right`. `name` is the left side as text where it names what the right side gives, as in `x = 5`,
    `f(x) = x^2`, `x \\in (0, 1)`; `left` is None where that name is no expression. `between`: the
    sides between them.
    `exact`: not joined by `\\approx`."""

    name: str | None
    left: Value | None
    right: Value
    between: tuple[Value, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Inequality:
    """`1 < x \\le 3`: one more side than signs. A sign is one of `<`, `<=`, `>`, `>=`, `!=`."""

    sides: tuple[Value, ...]
    signs: tuple[str, ...]


Value = Scalar | Percent | Words | Items | Known | Combined | Equation | Inequality

_KNOWN_SETS = {
    r"\mathbb{R}": sympy.S.Reals, r"\mathbb{Z}": sympy.S.Integers, r"\mathbb{N}": sympy.S.Naturals,
    r"\mathbb{Q}": sympy.S.Rationals, r"\mathbb{C}": sympy.S.Complexes, r"\emptyset": sympy.S.EmptySet,
    r"\{\}": sympy.S.EmptySet, r"\mathbf{R}": sympy.S.Reals, r"\mathbf{Z}": sympy.S.Integers,
}  # fmt: skip

_NUMBER = re.compile(r"([-+]?)\s*(\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)")
_FRACTION = re.compile(r"([-+]?)\s*(?:\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_AND_OR = re.compile(
    r"\s*(?:,\s*)?(?:\\text\s*\{\s*(?:,\s*)?(and|or)\s*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])|\\(land|lor)(?![A-Za-z]))\s*"
)
_RELATION = re.compile(
    r"\\(?:not\s*)?(?:le|ge|ne|in|approx|simeq|coloneqq)(?![A-Za-z])|:=|<=|>=|!=|==|=<|(?<!\\)[<>=]|\\not\s*="
)
_SIGNS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "=<": "<=", "==": "=", ":=": "=", "\\coloneqq": "=", "\\not=": "!="}
_SET_SIGN = re.compile(r"\\(cup|cap|setminus)(?![A-Za-z])|(?<![A-Za-z])(U)(?=\s*[\[(])|(?<=\})\s*(-)\s*(?=\\\{)")
_PERCENT = re.compile(r"\A(.+?)\s*(?:\\?%)\s*\Z", re.DOTALL)
_BUILDER = re.compile(r"\s*(?:\\mid(?![A-Za-z])|\||:|\\text\s*\{\s*such that\s*\})\s*")
_NOT_READ = re.compile(
    r"\\(?:ldots|equiv|pmod|bmod|to|Rightarrow|implies|iff|sim|propto|perp|parallel|begin\s*\{(?:cases|align|array))|\.\.\.|…|\?|@|#|;.*;|(?<=[\d)}\]])'"
)
_DIVISOR = re.compile(r"(?:gcd|lcm)(?![A-Za-z])(?!\s*\}?\s*(?:\\left)?\s*\(\s*\d+(?:\s*,\s*\d+)+\s*(?:\\right)?\s*\))")
_LONG_NUMBER = re.compile(r"\d(?:,?\d){4000}")
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}\s+[A-Za-z]{3,}(?!\()")
_JUXTAPOSED = re.compile(r"(?<![\w^_])\d+(?:\.\d+)?\s+\d")


def read(answer: str) -> Value:
    """The value that an answer writes. Raises `Unreadable` where any part of it cannot be read or has no value."""
    if _LONG_NUMBER.search(answer):
        raise Unreadable("a number of more than 4,000 digits")
    try:
        return _read(math_latex.without_spacing(answer), 0)
    except RecursionError as failure:
        raise Unreadable("nested too deep") from failure


def _read(answer: str, depth: int) -> Value:
    if depth > 40:
        raise Unreadable("nested too deep")
    answer = answer.strip(" \n\t$")
    if answer.endswith(("..", "…")):
        raise Unreadable("dots at the end of an answer")
    answer = math_latex.both_signs(answer.removesuffix(".").rstrip())
    if not answer:
        raise Unreadable("nothing to read")
    if number := _plain_number(answer):
        return number
    if words := math_notation.words(answer):
        return Words(words)
    for reader in (_list, _relation, _combined, _bracketed, _percent):
        if (value := reader(answer, depth + 1)) is not None:
            return value
    return Scalar(_expression(answer))


def _plain_number(answer: str) -> Scalar | None:
    if match := _NUMBER.fullmatch(answer):
        number = sympy.Rational(match[2].replace(",", "").removesuffix(".") or "0")
    elif match := _FRACTION.fullmatch(answer):
        above, below = (int(part) for part in (match.group(2, 3) if match[2] else match.group(4, 5)))
        if below == 0:
            raise Unreadable("a division by zero")
        number = sympy.Rational(above, below)
    else:
        return None
    return Scalar(-number if match[1] == "-" else number)


def _list(answer: str, depth: int) -> Value | None:
    if len(rows := math_latex.members(answer, ";")) > 1:
        return Items(tuple(_as_row(_read(row, depth)) for row in rows if row.strip()))
    parts, words = _split(answer, _AND_OR)
    joined = next((word for word in ("lor", "or", "land", "and") if word in words), ",")
    if solutions := _rows(parts, words, depth):
        return Items(solutions, joined=joined)
    if not _is_one_number(answer):
        parts = [piece for part in parts for piece in math_latex.members(part)]
    if len(parts) < 2:
        return None
    if not parts[-1].strip() and len(parts) > 2:
        parts.pop()
    return Items(tuple(_read(part, depth) for part in parts), joined=joined)


def _rows(parts: list[str], words: list[str], depth: int) -> tuple[Value, ...] | None:
    """The solutions of `x = 1 and y = 2, or x = 2 and y = 1` as points, and `x > 1 and x < 3 or x > 5` by its parts."""
    if not {"or", "lor"} & set(words):
        return None
    groups = [[parts[0]]]
    for word, part in zip(words, parts[1:], strict=True):
        if word in ("or", "lor"):
            groups.append([part])
        else:
            groups[-1].append(part)
    is_mixed = bool({"and", "land"} & set(words))
    if not is_mixed and not all(len(_RELATION.findall(part)) > 1 and "," in part for part in parts):
        return None
    values = [_read(" and ".join(group) if len(group) > 1 else group[0].strip(" ,"), depth) for group in groups]
    if any(isinstance(value, Items) and all(isinstance(m, Equation) for m in value.members) for value in values):
        return tuple(map(_as_row, values))
    return tuple(values) if is_mixed else None


def _as_row(row: Value) -> Value:
    """One of several solutions that semicolons part, such as `p = 5, q = 2; p = 7, q = 2`, as a point."""
    if not isinstance(row, Items) or row.brackets:
        return row
    named = [member for member in row.members if isinstance(member, Equation) and member.name is not None]
    if len(named) < len(row.members):
        return Items(row.members, "()")
    return Items(tuple(member.right for member in sorted(named, key=lambda item: item.name or "")), "()")


def _is_one_number(answer: str) -> bool:
    """Do all commas group thousands, as in `1,234 x`?"""
    return "," not in math_latex.by_commas_grouped(answer)


def _split(answer: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts of the answer between matches that are in no bracket, and those matches' groups."""
    depths = [depth for _, _, depth in math_latex.by_depth(answer)]
    parts, signs, start = [], [], 0
    for match in pattern.finditer(answer):
        if depths[match.start()] == 0:
            parts.append(answer[start : match.start()])
            signs.append(next((group for group in match.groups() if group), match[0].strip()))
            start = match.end()
    return [*parts, answer[start:]], signs


def _relation(answer: str, depth: int) -> Value | None:
    sides, signs = _split(answer, _RELATION)
    if not signs:
        return None
    signs = [_SIGNS.get(sign.replace(" ", ""), sign) for sign in signs]
    if signs[0] in (r"\approx", r"\simeq") and not sides[0].strip():
        return _read(sides[1], depth) if len(signs) == 1 else None
    if not all(side.strip() for side in sides):
        if not sides[0].strip() and signs[0] == "=" and len(sides) == 2:
            return _read(sides[1], depth)
        raise Unreadable("a relation without one of its sides")
    kinds = set(signs)
    if kinds == {r"\in"} and len(sides) == 2:
        if not all(map(math_symbols.is_label, math_latex.members(sides[0]))):
            raise Unreadable(f"{sides[0]!r:.100} is no name")
        return Equation(_name(sides[0]), None, _read(sides[1], depth))
    if kinds <= {"=", r"\approx", r"\simeq"}:
        return _equation(sides, signs, depth)
    if kinds <= {"<", "<=", ">", ">=", "!="}:
        return Inequality(tuple(_read(side, depth) for side in sides), tuple(signs))
    raise Unreadable("relations of several kinds")


def _equation(sides: list[str], signs: list[str], depth: int) -> Value:
    approximate = next((index for index, sign in enumerate(signs) if sign != "="), None)
    if approximate is not None and approximate > 0:  # x = \sqrt 2 \approx 1.41
        sides = sides[: approximate + 1]
    if math_symbols.is_name(sides[-1]) and not math_symbols.is_name(sides[0]):  # 5 = x
        sides = [sides[-1], *sides[:-1]]
    between = tuple(_read(side, depth) for side in sides[1:-1])
    right = _read(sides[-1], depth)
    if math_symbols.is_function(sides[0]):
        return Equation(_name(sides[0]), None, right, between)
    try:
        left: Value | None = _read(sides[0], depth)
    except Unreadable:
        if not math_symbols.is_label(sides[0]):
            raise
        left = None
    is_name = left is None or math_symbols.is_name(sides[0]) or _has_only_letters(left)
    return Equation(_name(sides[0]) if is_name else None, left, right, between, approximate is None)


def _has_only_letters(value: Value) -> bool:
    """Is it made of letters alone, as `a + b` and `\\frac{m}{n}` are?"""
    if isinstance(value, Items):
        return all(map(_has_only_letters, value.members))
    if not isinstance(value, Scalar) or not isinstance(value.expression, sympy.Expr):
        return isinstance(value, Words)
    numbers = value.expression.atoms(sympy.Number, sympy.NumberSymbol)
    return bool(value.expression.free_symbols) and numbers <= {sympy.S.NegativeOne, sympy.S.One}


def _name(text: str) -> str:
    return re.sub(r"\\(?:text|mathrm|mathbf|mathit|displaystyle)|[\s{}$]|\\(?:left|right|[,;:! ])", "", text).replace(
        "\\", ""
    )


def _combined(answer: str, depth: int) -> Value | None:
    parts, signs = _split(answer, _SET_SIGN)
    if not signs:
        return None
    names = {r"U": "cup", "-": "setminus"}
    signs = [names.get(sign, sign) for sign in signs]
    if len(set(signs)) > 1:
        last = len(signs) - 1  # from left to right, as brackets are missing
        left = answer[: _last_split(answer)]
        return Combined(signs[last], (_read(left, depth), _read(parts[-1], depth)))
    return Combined(signs[0], tuple(_read(part, depth) for part in parts))


def _last_split(answer: str) -> int:
    depths = [depth for _, _, depth in math_latex.by_depth(answer)]
    return [match.start() for match in _SET_SIGN.finditer(answer) if depths[match.start()] == 0][-1]


def _bracketed(answer: str, depth: int) -> Value | None:
    bare = re.sub(r"\s+", "", answer)
    if bare in _KNOWN_SETS:
        return Known(_KNOWN_SETS[bare])
    answer = math_latex.without_sizes(answer)
    is_set = answer.startswith(r"\{")
    opening = answer[:2] if is_set else answer[:1]
    if opening not in (r"\{", "(", "[", "{") or math_latex.closing(answer, len(opening)) != len(answer) - 1:
        return None
    inner = answer[len(opening) : -1]
    if is_set:
        if not inner.endswith("\\"):
            raise Unreadable("a bracket that is not closed")
        inner = inner[:-1].strip()
        if built := _built(inner, depth):
            return built
    if not inner.strip():
        return Known(sympy.S.EmptySet) if is_set else None
    kind = "{}" if is_set else f"{opening}{answer[-1]}"
    if opening == "{":
        return _read(inner, depth) if answer[-1] == "}" else None
    if kind not in ("{}", "()", "[]", "(]", "[)"):
        return None
    parts = [piece for part in math_latex.members(inner) for piece in math_latex.members(part, ";")]
    if len(parts) == 1 and kind == "()":
        return _read(inner, depth)
    if len(parts) == 1 and kind != "{}":
        return None
    content = _read(inner, depth) if is_set else None
    if isinstance(content, Items) and not content.brackets:
        return Items(content.members, "{}")
    return Items(tuple(_read(part, depth) for part in parts), kind)


def _built(inner: str, depth: int) -> Value | None:
    """`\\{x \\mid 1 < x < 3\\}`, `\\{x \\in \\mathbb{R} : x > 2\\}`: the set that the condition describes."""
    before, sign, condition = inner, None, ""
    for match in _BUILDER.finditer(inner):
        if math_latex.depth_at(inner, match.start()) == 0:
            before, sign, condition = inner[: match.start()], match[0], inner[match.end() :]
            break
    if sign is None:
        return None
    name, among, domain = before.partition(r"\in")
    if among and domain.strip() not in (r"\mathbb{R}", r"\mathbf{R}"):
        raise Unreadable("a set by its condition, of other than real numbers")
    if not math_symbols.is_name(name):
        if sign.strip() in ("|", ":"):
            return None  # an absolute value, a ratio
        raise Unreadable("a set by its condition")
    value = _read(condition, depth)
    relations = value.members if isinstance(value, Items) and not value.brackets else (value,)
    if not all(isinstance(relation, Inequality) for relation in relations):
        raise Unreadable("a set by a condition that is no inequality")
    return Equation(_name(name), None, value)


def _percent(answer: str, depth: int) -> Value | None:
    match = _PERCENT.fullmatch(answer)
    if not match:
        return None
    value = _read(match[1], depth)
    if not isinstance(value, Scalar):
        raise Unreadable("percent of what is no number")
    return Percent(value.expression)


class _Parser(_Latex2Sympy):
    """latex2sympy's parser with exact decimals. Its mixed numbers are read by `math_latex`: it takes 2(3) for 5."""

    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        factor = self.convert_postfix(arr[i])
        if i == len(arr) - 1 or not isinstance(factor, sympy.Expr | sympy.MatrixBase):
            return super().convert_postfix_list(arr, i)
        rest = self.convert_postfix_list(arr, i + 1)
        if getattr(factor, "is_Matrix", False) or getattr(rest, "is_Matrix", False):
            return self.mat_mul_flat(factor, rest)
        return self.mul_flat(factor, rest)


def _worked_out(parsed: Any) -> Any:
    """With `\\gcd(12, 18)`, and whole powers of matrices, as their values."""
    if not isinstance(parsed, sympy.MatrixBase) and parsed.has(sympy.UnevaluatedExpr):
        parsed = parsed.replace(sympy.UnevaluatedExpr, lambda inner: inner)
    if isinstance(parsed, sympy.Pow) and isinstance(parsed.base, sympy.MatrixBase):
        if not parsed.exp.is_Integer or abs(parsed.exp) > 100:
            raise Unreadable("a power of a matrix that is no whole number")
        if not parsed.base.is_square or (parsed.exp < 0 and parsed.base.det() == 0):
            raise Unreadable("a power of a matrix that has none")
        return parsed.base**parsed.exp
    return parsed


@lru_cache(maxsize=512)
def _expression(answer: str) -> Any:
    """One expression, by latex2sympy's parser. It refuses what it cannot read to the end."""
    if found := _NOT_READ.search(answer):
        raise Unreadable(f"{found[0]!r} in an expression")
    if found := _PROSE.search(answer):
        raise Unreadable(f"words in an expression, {found[0]!r}")
    if _DIVISOR.search(answer):
        raise Unreadable("a common divisor or multiple of what are no whole numbers")
    latex = math_latex.expression(answer)
    if found := _JUXTAPOSED.search(latex):
        raise Unreadable(f"two numbers side by side, {found[0]!r}")
    if len(latex) > 2000:
        raise Unreadable("an expression of more than 2,000 characters")
    try:
        latex = math_symbols.encoded(latex)
        parsed = _Parser(is_real=True, config=ConversionConfig(lowercase_symbols=False)).parse(latex)
    except RecursionError:
        raise
    except Exception as failure:
        raise Unreadable(f"{answer!r:.100} is no expression") from failure
    if not isinstance(parsed, sympy.Expr | sympy.MatrixBase | sympy.MatrixExpr):
        raise Unreadable(f"{answer!r:.100} is no expression")
    parsed = _worked_out(math_symbols.decoded(parsed))
    if not math_numbers.is_defined(parsed):
        raise Unreadable(f"{answer!r:.100} has no value")
    return parsed
