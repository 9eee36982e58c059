"""Are two expressions equal? Numbers exactly; expressions with letters by their values at many points.

Decimals have been read as fractions, so nothing here has a tolerance: a difference is worked out with as many digits as
it takes, up to a bound that grows with the numbers in the expressions, and only what vanishes to that many digits is 0.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import sympy

_SPARE_DIGITS = 120
"""Digits beyond the largest number that a difference must vanish to: two roots of small degree cannot be nearer."""

_MOST_DIGITS = 20_000
_STEPWISE = (
    sympy.Abs, sympy.floor, sympy.ceiling, sympy.Max, sympy.Min, sympy.sign, sympy.Mod, sympy.Piecewise,
)  # fmt: skip
_TO_WORK_OUT = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
_UNDEFINED = (sympy.zoo, sympy.nan)


class Undecided(Exception):
    """Two expressions have no values that could be compared."""


def is_defined(expression: Any) -> bool:
    """Has the expression a value? `1/0`, `\\infty - \\infty` and `x/0` have none; plus and minus infinity have."""
    if expression in (sympy.oo, -sympy.oo):
        return True
    if expression.has(*_UNDEFINED, sympy.oo, -sympy.oo) and not expression.has(*_TO_WORK_OUT):
        return False
    if isinstance(expression, sympy.MatrixBase):
        return all(is_defined(entry) for entry in expression)
    if not isinstance(expression, sympy.Expr) or expression.has(*_TO_WORK_OUT):
        return True
    parts = [part for part in sympy.preorder_traversal(expression) if part.is_Pow or isinstance(part, sympy.Function)]
    if any(_is_undefined(part) for part in parts):
        return False
    if not any(part.free_symbols for part in parts):
        return all(_is_finite(part) for part in parts)
    values = (_value(expression, point) for point in _points(expression, expression))
    return any(value is None or value.is_finite for value in values)


def _is_undefined(part: Any) -> bool:
    """Is it a quotient by 0, `0^0`, or a function where it has no value, such as `\\ln 0` and `\\tan 90^\\circ`?"""
    if part.is_Pow:
        base, exponent = part.args
        if (exponent.is_Integer and exponent > 0) or (base.is_Rational and base != 0):
            return False
        if not base.is_number:
            return bool(base.is_Add and sympy.Add(*base.args) == 0)
        positive = exponent.is_positive if exponent.is_number else False
        return not positive and is_zero(base)
    if part.free_symbols or not all(_is_short(argument) for argument in part.args):
        return False
    return bool(part.func(*(argument.doit() for argument in part.args)).has(*_UNDEFINED, sympy.oo, -sympy.oo))


def _is_finite(part: Any) -> bool:
    value = _value(part, {})
    return value is None or bool(value.is_finite)


def _is_short(number: Any) -> bool:
    """Can a number be written out, because its powers are small?"""
    return all(
        (power.exp.is_Rational and abs(power.exp) < 1000) or power.base is sympy.E for power in number.atoms(sympy.Pow)
    ) and not number.has(sympy.factorial)


def equal(first: Any, second: Any) -> bool:
    """Are two expressions or matrices equal wherever both are real? Raises `Undecided` where they have no values."""
    matrices = [isinstance(item, sympy.MatrixBase | sympy.MatrixExpr) for item in (first, second)]
    if any(matrices):
        return all(matrices) and _equal_matrices(first.doit(), second.doit())
    if first == second:
        return True
    if first in (sympy.oo, -sympy.oo) or second in (sympy.oo, -sympy.oo):
        return False
    if first.is_Rational and second.is_Rational:
        return False
    first, second = (item.doit() if item.has(*_TO_WORK_OUT) else item for item in (first, second))
    difference = first - second
    if difference == 0:
        return True
    if not difference.free_symbols:
        return is_zero(difference)
    return _is_zero_everywhere(difference, first, second)


def _equal_matrices(first: Any, second: Any) -> bool:
    if not all(isinstance(item, sympy.MatrixBase) for item in (first, second)):
        return bool(first == second)
    return first.shape == second.shape and all(equal(a, b) for a, b in zip(first, second, strict=True))


def is_zero(number: Any) -> bool:
    """Is a number without letters 0? Raises `Undecided` where it has no value."""
    if _is_rational(number):
        return bool(number.doit() == 0)
    rough = _value(number, {})
    if rough is not None and rough.is_finite and abs(rough) < 1e-50 and _is_short(number):
        number = number.doit()  # what cancels within a power has digits, but not its own
        if number.is_Rational:
            return bool(number == 0)
        rough = _value(number, {})
    if rough is None:
        return _simplified_to_zero(number)
    if not rough.is_finite:
        raise Undecided(f"{number!s:.100} has no value")
    if _is_significant(rough):
        return False
    return not _is_significant(number.evalf(15, maxn=_digits(number)))


def is_constant_ratio(first: Any, second: Any) -> bool:
    """Is one expression a multiple, not by 0, of the other?"""
    if first.free_symbols != second.free_symbols:
        return False
    ratio, seen = None, 0
    for point in _points(first, second):
        a, b = _value(first, point), _value(second, point)
        if (
            a is None
            or b is None
            or not (a.is_finite and b.is_finite)
            or not (_is_significant(a) and _is_significant(b))
        ):
            continue
        seen += 1
        exact = [item.xreplace(point) for item in (first, second)]
        if ratio is None:
            ratio = exact
        elif not is_zero(exact[0] * ratio[1] - exact[1] * ratio[0]):
            return False
    return seen > 2


def approximation(number: Any) -> tuple[Any, Any] | None:
    """Real and imaginary part to 30 digits, to put numbers in order; None for what has no value."""
    if number.is_Rational:
        return sympy.Float(number, 30), sympy.S.Zero
    value = None if number.free_symbols else number.evalf(30)
    if value is None or not value.is_number or not value.is_finite:
        return None
    real, imaginary = value.as_real_imag()
    return (real, imaginary) if all(part.is_Float or part.is_Rational for part in (real, imaginary)) else None


def _is_zero_everywhere(difference: Any, first: Any, second: Any) -> bool:
    """At points with positive letters, then with others. A point at which the two are not real counts only where no
    other is left: `\\ln x^2` is `2 \\ln x` where both are defined."""
    complex_values: list[bool] = []
    seen = 0
    for point in _points(first, second):
        value = _value(difference, point)
        if value is None or not value.is_finite:
            continue
        same = not _is_significant(value) and is_zero(difference.xreplace(point))
        if _is_real(first, point) and _is_real(second, point):
            if not same:
                return False
            seen += 1
        else:
            complex_values.append(same)
    if seen:
        return seen > 1 or (bool(complex_values) and all(complex_values))
    if not complex_values:
        if first.xreplace({}) == second.xreplace({}):
            return True
        return _simplified_to_zero(difference)
    return all(complex_values)


def _simplified_to_zero(expression: Any) -> bool:
    return bool(sympy.simplify(expression) == 0)


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """The number to 15 digits that are right, 0 where they cancel; None where sympy cannot say."""
    try:
        value = expression.evalf(15, subs=point or None, maxn=100)
    except (ValueError, ZeroDivisionError, ArithmeticError, AttributeError, TypeError):
        return None
    if value in _UNDEFINED:
        return value
    return value if value.is_number and not value.has(sympy.Function, *_TO_WORK_OUT) else None


def _is_significant(value: Any) -> bool:
    """Has a value digits of its own? One that cancelled has almost no bits of precision left."""
    return any((part.is_Float and part != 0 and part._prec > 20) or (part.is_Rational and part != 0)
               for part in value.as_real_imag())  # fmt: skip


def _is_real(expression: Any, point: dict[Any, Any]) -> bool:
    """Are all even roots and logarithms in the expression real at the point? True of expressions with i."""
    if expression.has(sympy.I):
        return True
    for part in sympy.preorder_traversal(expression):
        inner = None
        if part.is_Pow and part.free_symbols and not part.exp.is_integer:
            inner = part.base
        elif isinstance(part, sympy.log):
            inner = part.args[0]
        if inner is None or not inner.free_symbols:
            continue
        value = _value(inner, point)
        if value is None or not value.is_real or value < 0:
            return False
    return True


def _points(first: Any, second: Any) -> Iterator[dict[Any, Any]]:
    """Fractions for the letters: the same on every call. Where an expression bends (absolute values, roots), also on
    either side of each number in it."""
    letters = sorted(first.free_symbols | second.free_symbols, key=str)
    if not letters:
        yield {}
        return
    draw = random.Random(0)

    def fraction(least: int, most: int) -> Any:
        return sympy.Rational(draw.randrange(least * 97, most * 97), 97)

    for least, most, signs in (
        (1, 4, (1,)),
        (0, 2, (1,)),
        (3, 30, (1,)),
        (1, 5, (1, -1)),
        (0, 9, (-1, 1)),
        (0, 3, (-1,)),
    ):
        yield {letter: draw.choice(signs) * (fraction(least, most) + sympy.Rational(1, 101)) for letter in letters}
    if not (first.has(*_STEPWISE) or second.has(*_STEPWISE) or _has_root(first) or _has_root(second)):
        return
    for number in _numbers_in(first, second):
        for near in (sympy.Rational(-3, 7), sympy.Rational(4, 9)):
            yield {letter: number + near * (position + 1) for position, letter in enumerate(letters)}
    yield {letter: fraction(900, 1100) for letter in letters}
    yield {letter: -fraction(900, 1100) for letter in letters}


def _has_root(expression: Any) -> bool:
    return any(not part.exp.is_Integer and part.base.free_symbols for part in expression.atoms(sympy.Pow))


def _numbers_in(*expressions: Any) -> list[Any]:
    numbers = {sign * number for item in expressions for number in item.atoms(sympy.Rational) for sign in (1, -1)}
    return sorted(number for number in numbers if abs(number) < 10**6)[:24]


def _is_rational(number: Any) -> bool:
    """Is the number made of fractions by `+ - * /` and whole powers that can be written out?"""
    if number.is_Rational:
        return True
    if number.is_Pow:
        exponent = number.exp
        return (
            exponent.is_Integer and _is_rational(number.base) and abs(int(exponent)) * _size(number.base) < _MOST_DIGITS
        )
    if isinstance(number, sympy.factorial):
        return number.args[0].is_Integer and number.args[0] < 5000
    return (number.is_Add or number.is_Mul) and all(map(_is_rational, number.args))


@lru_cache(maxsize=256)
def _digits(number: Any) -> int:
    """How many digits decide whether the number is 0: more than its largest part has, in either direction."""
    parts = (part for part in sympy.preorder_traversal(number) if isinstance(part, sympy.Expr) and part.is_number)
    return min(_MOST_DIGITS, _SPARE_DIGITS + 3 * int(max((_size(part) for part in parts), default=0)))


def _size(number: Any) -> float:
    """Decimal digits of a number, before or after its point."""
    if number.is_Rational:
        return max(
            len(str(number.p)) if abs(number.p) < 10**300 else number.p.bit_length() / 3, number.q.bit_length() / 3
        )
    value = number.evalf(5)
    real, imaginary = value.as_real_imag()
    sizes = [abs(float(sympy.log(abs(part), 10).evalf(5))) for part in (real, imaginary) if part.is_Float and part != 0]
    return max((size for size in sizes if math.isfinite(size)), default=0.0)
