"""Are two answers, read as values, the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from pbsd.rewards import math_numbers, math_symbols
from pbsd.rewards.math_numbers import Undecided
from pbsd.rewards.math_read import Combined, Equation, Inequality, Items, Known, Percent, Scalar, Value, Words

_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}


def equal(gold: Value, found: Value) -> bool:
    """Is `found` the answer that `gold` writes?

    Numbers and expressions by their value, sets and lists without order, points and intervals with their brackets,
    equations by what they say. A name may be left out (`x = 5`: `5`), and so may the left side of a computation
    (`4 \\cdot 6 = 24`: `24`). Raises `Undecided` where two expressions cannot be compared.
    """
    if isinstance(found, Equation) and not _holds(found) and (not isinstance(gold, Equation) or _holds(gold)):
        return False
    if isinstance(gold, Equation) and isinstance(found, Equation):
        return _equal_equations(gold, found)
    if isinstance(gold, Inequality) and isinstance(found, Inequality):
        return _equal_inequalities(gold, found)
    if isinstance(gold, Equation):
        given = _given(gold, is_gold=True)
        return given is not None and equal(given, found)
    if isinstance(found, Equation):
        given = _given(found, is_gold=False)
        return given is not None and equal(gold, given)
    if isinstance(gold, Words) or isinstance(found, Words):
        return _equal_words(gold, found)
    if isinstance(gold, Percent) or isinstance(found, Percent):
        return _equal_percent(gold, found)
    if isinstance(gold, Scalar) and isinstance(found, Scalar):
        return math_numbers.equal(gold.expression, found.expression)
    if isinstance(gold, Items) and isinstance(found, Items) and (same := _equal_items(gold, found)) is not None:
        return same
    for one, other in ((gold, found), (found, gold)):
        if isinstance(one, Items) and len(one.members) == 1 and isinstance(other, Scalar):
            return equal(one.members[0], other) if one is gold else equal(other, one.members[0])
    return _equal_sets(gold, found)


def _equal_words(gold: Value, found: Value) -> bool:
    if isinstance(gold, Words) and isinstance(found, Words):
        return gold.words == found.words
    reals = Known(sympy.S.Reals)
    if (isinstance(found, Words) and gold == reals) or (isinstance(gold, Words) and found == reals):
        words = found.words if isinstance(found, Words) else gold.words  # type: ignore[union-attr]
        return words in ("all real numbers", "all reals", "the real numbers")
    return False


def _equal_percent(gold: Value, found: Value) -> bool:
    if isinstance(gold, Percent) and isinstance(found, Percent):
        return math_numbers.equal(gold.expression, found.expression)
    percent, bare = (gold, found) if isinstance(gold, Percent) else (found, gold)
    if not isinstance(bare, Scalar) or not isinstance(percent, Percent):
        return False
    if math_numbers.equal(bare.expression, percent.expression / 100):
        return True
    # The sign may be left out as a unit may; but a bare number of at most 1 is the fraction itself.
    return bool((percent.expression - 1).is_positive) and math_numbers.equal(bare.expression, percent.expression)


def _given(equation: Equation, *, is_gold: bool) -> Value | None:
    """The value that an equation gives: what it names, or the result of a computation; None of any other equation. A
    completion's left side may also be an expression of several letters, as in `2a + b = 7`, unless the right is 0."""
    if equation.name is not None:
        return equation.right
    left, right = equation.left, equation.right
    if isinstance(left, Scalar) and isinstance(right, Scalar) and not left.expression.free_symbols:
        return None if right.expression.free_symbols else right
    if is_gold or not isinstance(left, Scalar) or len(left.expression.free_symbols) < 2:
        return None
    return None if isinstance(right, Scalar) and right.expression == 0 else right


def _holds(equation: Equation) -> bool:
    """Are the sides that are numbers equal? `4 = 5` is no way to write 5. A decimal may be rounded: `1/3 = 0.33`."""
    if not equation.exact or (equation.name is None and not isinstance(equation.left, Scalar)):
        return True
    sides = [*equation.between, equation.right]
    if equation.name is None and equation.left is not None:
        sides.insert(0, equation.left)
    numbers = [number for side in sides if (number := _number(side)) is not None]
    return all(_is_or_rounds_to(number, numbers[-1]) for number in numbers[:-1])


def _is_or_rounds_to(number: Any, decimal: Any) -> bool:
    if math_numbers.equal(number, decimal):
        return True
    places = next((n for n in range(1, 20) if decimal.is_Rational and 10**n % decimal.q == 0), 0)
    if decimal.is_Integer or not places or not number.is_extended_real:
        return False
    return bool(abs(number - decimal) <= sympy.Rational(1, 2 * 10**places))


def _equal_equations(gold: Equation, found: Equation) -> bool:
    if gold.name is not None and found.name is not None:
        right = _with_argument_of(gold.name, found)
        if right is not None and equal(gold.right, right):
            return True
    if gold.left is None or found.left is None:
        return False
    if not (_is_scalar(gold) and _is_scalar(found)):
        return equal(gold.left, found.left) and equal(gold.right, found.right)
    (left, right), (other_left, other_right) = _sides(gold), _sides(found)
    first, second = left - right, other_left - other_right
    if not first.free_symbols or not second.free_symbols:
        return math_numbers.equal(left, other_left) and math_numbers.equal(right, other_right)
    return _same_solutions(first, second)


def _with_argument_of(name: str, found: Equation) -> Value | None:
    """The right side of `f(t) = t^2` with the argument of `f(x)`; None where the names differ by more."""
    assert found.name is not None
    if name == found.name or (len(name) == len(found.name) == 1 and name.lower() == found.name.lower()):
        return found.right
    wanted, given = math_symbols.argument(name), math_symbols.argument(found.name)
    if wanted is None or given is None or wanted[0] != given[0] or not isinstance(found.right, Scalar):
        return None
    expression = found.right.expression
    own, other = sympy.Symbol(wanted[1], real=True), sympy.Symbol(given[1], real=True)
    return None if own in expression.free_symbols else Scalar(expression.xreplace({other: own}))


def _is_scalar(equation: Equation) -> bool:
    return all(
        isinstance(side, Scalar) and isinstance(side.expression, sympy.Expr) and side.expression.is_finite is not False
        for side in (equation.left, equation.right)
    )


def _sides(equation: Equation) -> tuple[Any, Any]:
    assert isinstance(equation.left, Scalar) and isinstance(equation.right, Scalar)
    return equation.left.expression, equation.right.expression


def _same_solutions(first: Any, second: Any) -> bool:
    """Have `first = 0` and `second = 0` the same solutions? Where one is a multiple of the other, or, of polynomials,
    where they have the same factors, whatever their powers."""
    if first.free_symbols != second.free_symbols:
        return False
    if math_numbers.is_constant_ratio(first, second):
        return True
    letters = sorted(first.free_symbols, key=str)
    factors = []
    for side in (first, second):
        numerator = sympy.cancel(sympy.together(side)).as_numer_denom()[0]
        if not numerator.is_polynomial(*letters):
            return False
        polynomial = sympy.Poly(numerator, *letters)
        if not polynomial.domain.is_Exact or polynomial.is_zero:
            return False
        factors.append(polynomial.sqf_part().as_expr())
    return math_numbers.is_constant_ratio(*factors)


def _equal_inequalities(gold: Inequality, found: Inequality) -> bool:
    if len(gold.sides) == len(found.sides):
        for signs, sides in (
            (found.signs, found.sides),
            (tuple(_TURNED[s] for s in found.signs[::-1]), found.sides[::-1]),
        ):
            if signs == gold.signs and all(equal(a, b) for a, b in zip(gold.sides, sides, strict=True)):
                return True
    letters = [_letters(item) for item in (gold, found)]
    if letters[0] != letters[1]:
        return False
    if len(letters[0]) == 1:
        sets = [_set_of(item) for item in (gold, found)]
        if None not in sets:
            return _same_set(*sets)
    if len(gold.signs) != 1 or len(found.signs) != 1:
        return False
    (sign, first), (other, second) = (_from_zero(item) for item in (gold, found))
    if not math_numbers.is_constant_ratio(first, second):
        return False
    if sign == other == "!=":
        return True
    point = {letter: sympy.Rational(7 * place + 3, 5) for place, letter in enumerate(sorted(letters[0], key=str))}
    same_direction = (first.xreplace(point) / second.xreplace(point)).is_positive
    return other == (sign if same_direction else _TURNED[sign])


def _from_zero(item: Inequality) -> tuple[str, Any]:
    """The sign and the left side of `left - right < 0`."""
    left, right = item.sides
    if not (isinstance(left, Scalar) and isinstance(right, Scalar)):
        raise Undecided("an inequality of what are no numbers")
    return item.signs[0], left.expression - right.expression


def _letters(item: Inequality) -> set[Any]:
    return {letter for side in item.sides if isinstance(side, Scalar) for letter in side.expression.free_symbols}


def _equal_items(gold: Items, found: Items) -> bool | None:
    """None where the two may still be the same set."""
    kinds = {gold.brackets, found.brackets}
    if kinds <= {"", "{}"}:
        if all(isinstance(member, Inequality) for member in gold.members + found.members):
            return (not _joined_otherwise(gold, found) and _matched(gold, found)) or None
        if _joined_otherwise(gold, found):
            return False
        for named, bare in ((gold, found), (found, gold)):
            if _has_different_letters(named) and not _has_equations(bare) and kinds == {""}:
                return any(_in_order(items, bare) for items in (named.members, sorted(named.members, key=_name_of)))
        return _matched(gold, found)
    wanted, given = _as_point(gold, found), _as_point(found, gold)
    if len(wanted.members) != len(given.members):
        return None
    brackets = {wanted.brackets, given.brackets} - {""}
    if len(brackets) == 1 or (len(wanted.members) > 2 and brackets <= {"()", "[]"}):
        if brackets != {"()"} and "" in (wanted.brackets, given.brackets) and len(wanted.members) == 2:
            return False  # a list of two is no closed interval
        if "{}" in brackets:
            return None
        return all(equal(a, b) for a, b in zip(wanted.members, given.members, strict=True))
    return None if "{}" not in brackets else False


def _joined_otherwise(gold: Items, found: Items) -> bool:
    """Is one joined by "and", the other by "or", where that says something else? Of a list of values it does not:
    `1 and 2`, `x = 1 or x = 2`."""
    words = {gold.joined, found.joined}
    if {word.removeprefix("l") for word in words} != {"and", "or"}:
        return False
    return bool(
        words & {"land", "lor"}
        or any(isinstance(member, Inequality) for member in gold.members)
        or _has_different_letters(gold)
    )


def _has_different_letters(items: Items) -> bool:
    """Are all members values of different letters, as `x = 2, y = 3`, and not `x_1 = 2, x_2 = 3`?"""
    letters = [name.partition("_")[0] for name in _names(items)]
    return len(letters) > 1 and len(set(letters)) == len(letters)


def _has_equations(items: Items) -> bool:
    return any(isinstance(member, Equation) for member in items.members)


def _name_of(member: Value) -> str:
    return (isinstance(member, Equation) and member.name) or ""


def _in_order(named: Sequence[Value], bare: Items) -> bool:
    """Are the values of `x = 2, y = 3` the bare ones, one by one?"""
    values = [member.right if isinstance(member, Equation) else member for member in named]
    return len(values) == len(bare.members) and all(map(equal, values, bare.members))


def _names(items: Items) -> list[str]:
    """The names of `x = 2, y = 1`, all different; none where a member has no name."""
    names = [item.name for item in items.members if isinstance(item, Equation) and item.name is not None]
    return names if len(names) == len(items.members) and len(set(names)) == len(names) else []


def _as_point(items: Items, other: Items) -> Items:
    """`x = 2, y = 1` as the point (2, 1), by the names' order, where the other answer is a point."""
    if items.brackets or not _names(items) or other.brackets != "()":
        return items
    members = sorted(items.members, key=lambda item: item.name or "")  # type: ignore[union-attr]
    return Items(tuple(item.right for item in members if isinstance(item, Equation)), "()")


def _matched(gold: Items, found: Items) -> bool:
    """Is every member of one a member of the other? Numbers are put in order first, so that long sets are quick; of
    fractions, and points of fractions, the sets are compared."""
    exact = [{_exact(member) for member in items.members} for items in (gold, found)]
    if None not in exact[0] | exact[1]:
        return exact[0] == exact[1]
    keys = [[_key(member) for member in items.members] for items in (gold, found)]
    if all(key is not None for side in keys for key in side):
        ordered = [
            _distinct([member for _, member in sorted(zip(side, items.members, strict=True), key=lambda pair: pair[0])])
            for side, items in zip(keys, (gold, found), strict=True)
        ]
        return len(ordered[0]) == len(ordered[1]) and all(equal(a, b) for a, b in zip(*ordered, strict=True))
    return all(any(_same_member(wanted, given) for given in found.members) for wanted in gold.members) and all(
        any(_same_member(wanted, given) for wanted in gold.members) for given in found.members
    )


def _same_member(wanted: Value, given: Value) -> bool:
    """A set in a set is no number: `{{1}, {2}}` is not `{1, 2}`."""
    one_is_a_set = any(isinstance(item, Items) and item.brackets == "{}" for item in (wanted, given))
    return not (one_is_a_set and isinstance(wanted, Scalar) != isinstance(given, Scalar)) and equal(wanted, given)


def _distinct(members: list[Value]) -> list[Value]:
    return [member for place, member in enumerate(members) if place == 0 or not equal(members[place - 1], member)]


def _exact(value: Value, *, intervals: bool = False) -> Any:
    """A fraction, or a point of fractions (or an interval), as what equals only itself; else None."""
    if isinstance(value, Items) and (value.brackets == "()" or (intervals and value.brackets)):
        parts = tuple(_exact(member, intervals=intervals) for member in value.members)
        return None if None in parts else (value.brackets, *parts)
    return value.expression if isinstance(value, Scalar) and value.expression.is_Rational else None


def _key(value: Value) -> Any:
    """By which a number is put in order; None of anything else."""
    if isinstance(value, Scalar) and isinstance(value.expression, sympy.Expr) and not value.expression.free_symbols:
        return math_numbers.approximation(value.expression)
    return None


def _equal_sets(gold: Value, found: Value) -> bool:
    if isinstance(gold, Combined) and isinstance(found, Combined) and gold.sign == found.sign != "setminus":
        parts = [{_exact(part, intervals=True) for part in value.parts} for value in (gold, found)]
        if parts[0] == parts[1] and None not in parts[0]:
            return True
    sets = [_set_of(value) for value in (gold, found)]
    if None not in sets:
        return _same_set(*sets)
    if isinstance(gold, Combined) and isinstance(found, Combined) and gold.sign == found.sign:
        if gold.sign == "setminus":
            return len(gold.parts) == len(found.parts) and all(map(equal, gold.parts, found.parts))
        return _matched(Items(gold.parts), Items(found.parts))
    return False


def _set_of(value: Value) -> Any:
    """The set of real numbers that a value describes; None of what describes none."""
    match value:
        case Known(members):
            return members
        case Equation(_, None, right):
            return _set_of(right)
        case Combined(sign, parts):
            return _combined_set(sign, parts)
        case Items(members, "{}"):
            return _finite(members)
        case Items(members, "", joined):
            if all(isinstance(member, Inequality | Items) for member in members):
                return _combined_set("cap" if joined in ("and", "land") else "cup", members)
            return None
        case Items((left, right), brackets):
            ends = [_number(end) for end in (left, right)]
            if None in ends or not (ends[0] - ends[1]).is_extended_negative:
                return None
            return sympy.Interval(*ends, brackets[0] == "(", brackets[1] == ")")
        case Inequality():
            return _solutions(value)
    return None


def _combined_set(sign: str, parts: tuple[Value, ...]) -> Any:
    if len(parts) > 50:
        raise Undecided("a union of more than 50 sets")  # sympy takes minutes
    sets = [_set_of(part) for part in parts]
    if None in sets or len({letter for part in parts if isinstance(part, Inequality) for letter in _letters(part)}) > 1:
        return None
    if sign == "setminus":
        return sets[0] - sympy.Union(*sets[1:])
    return (sympy.Union if sign == "cup" else sympy.Intersection)(*sets)


def _finite(members: tuple[Value, ...]) -> Any:
    numbers = [_number(member) for member in members]
    return None if None in numbers else sympy.FiniteSet(*numbers)


def _number(value: Value) -> Any:
    if not isinstance(value, Scalar) or not isinstance(value.expression, sympy.Expr) or value.expression.free_symbols:
        return None
    return value.expression.doit()


def _solutions(item: Inequality) -> Any:
    """The real numbers that satisfy an inequality with one letter."""
    letters = _letters(item)
    if len(letters) != 1 or not all(isinstance(side, Scalar) for side in item.sides):
        return None
    letter = letters.pop()
    found = sympy.S.Reals
    for place, sign in enumerate(item.signs):
        left, right = (item.sides[place + step].expression for step in (0, 1))  # type: ignore[union-attr]
        part = _half_line(left, sign, right, letter)
        if part is None:
            return None
        found = sympy.Intersection(found, part)
    return found


def _half_line(left: Any, sign: str, right: Any, letter: Any) -> Any:
    if right == letter and letter not in left.free_symbols:
        left, sign, right = right, _TURNED[sign], left
    if left == letter and letter not in right.free_symbols:
        end = right.doit()
        if sign == "!=":
            return sympy.S.Reals - sympy.FiniteSet(end)
        is_open = sign in "<>"
        return (
            sympy.Interval(-sympy.oo, end, True, is_open)
            if "<" in sign
            else sympy.Interval(end, sympy.oo, is_open, True)
        )
    difference = sympy.expand(left - right)
    slope = difference.coeff(letter, 1)
    rest = difference - slope * letter
    if slope.is_nonzero and not slope.free_symbols and letter not in rest.free_symbols and slope.is_real:
        return _half_line(letter, sign if slope.is_positive else _TURNED[sign], -rest / slope, letter)
    try:
        relation = {"<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge, "!=": sympy.Ne}[sign](left, right)
        return relation.as_set()
    except (NotImplementedError, TypeError, ValueError, AttributeError):
        return None


def _same_set(first: Any, second: Any) -> bool:
    if first == second:
        return True
    pieces, others = _pieces(first), _pieces(second)
    if pieces is None or others is None or len(pieces) != len(others):
        return False
    return all(
        a[2:] == b[2:] and math_numbers.equal(a[0], b[0]) and math_numbers.equal(a[1], b[1])
        for a, b in zip(pieces, others, strict=True)
    )


def _pieces(item: Any) -> list[tuple[Any, Any, bool, bool]] | None:
    """The intervals and points that a set of real numbers is made of, from left to right; None of another set."""
    parts = item.args if isinstance(item, sympy.Union) else (item,)
    pieces = []
    for part in parts:
        if isinstance(part, sympy.FiniteSet):
            pieces += [(number, number, False, False) for number in part.args]
        elif isinstance(part, sympy.Interval):
            pieces.append((part.start, part.end, bool(part.left_open), bool(part.right_open)))
        else:
            return None
    if not all(end.is_number and end.is_extended_real for piece in pieces for end in piece[:2]):
        return None
    return sorted(pieces, key=lambda piece: (piece[0].evalf(30), piece[1].evalf(30)))
