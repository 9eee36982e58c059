"""Final-answer mathematics: read the completion's last answer and compare it with the reference by math-verify.

Importing this module imports math-verify and sympy (the extra `pbsd[math]`); nothing else in the package does.
"""

from __future__ import annotations

import logging
import re
from typing import Any

try:
    import math_verify
except ImportError as missing:
    raise ImportError("the math reward needs math-verify: pip install pbsd[math]") from missing

import sympy
from latex2sympy2_extended import NormalizationConfig
from sympy.logic.boolalg import BooleanAtom

from pbsd.rewards import math_compare, math_text
from pbsd.rewards.grade import Grade, correct, error, unparsed, wrong
from pbsd.rewards.text import final_text

# math-verify warns once per process that its own alarm is off; here that is meant, the pool holds the clock.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# Units are `math_text`'s: math-verify's list of them has `a b c d h l o s t`, and takes `a + c` for `a +`.
_EXTRACTION = (
    math_verify.LatexExtractionConfig(
        normalization_config=NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="all")
    ),
    math_verify.ExprExtractionConfig(),
)

_NO_NUMBER = (sympy.zoo, sympy.nan)

_OURS = re.compile(r"\\(?:text|mathrm|pm|mp)")
"""What `_parse_answer` reads and math-verify's own reading of a formula in a sentence does not: units, both signs."""

_EQUALS = re.compile(r"(?<![<>!=])=(?!=)")

_PERCENT = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
"""The factor that math-verify's parser gives a percentage."""


def grade(completion: str, answer: str) -> Grade:
    """Is the completion's final answer mathematically equal to `answer`?

    The completion's answer is, in this order: its last `\\boxed{}` (boxes joined by a comma or `and` make a set), its
    last `<answer>` tag, a last line `#### 42`, a letter where `answer` is one of a choice (stated, or the last line),
    else what math-verify finds ("the final answer is", the last formula or number), and of a number in plain text the
    whole expression and unit that it stands in, as in `1 1/2`, `3:2`, `x^2 + 1` and `5 km`. Two numbers joined by `or`
    at the end are both; a list, a bracket or LaTeX after "answer is" is taken whole. Only the text after a `</think>`
    counts. `answer` is a bare answer (LaTeX or plain), or a worked solution with one of these marks. No time limit
    here: run it in a `GraderPool`.

    Decimals are exact: 0.33 is not 1/3. A percentage equals its fraction and, above 1, its bare number (50%: 0.5 or
    50). A unit may be left out; two different common units differ. `\\pm` is both values. Where `answer` is a set of
    several values, all of them are needed and no other.

    Returns `correct`, `wrong`, `unparsed` (no readable answer in the completion) or `error` (no readable reference, or
    the comparison itself failed).
    """
    gold_text, gold = _read_gold(answer)
    if not _is_readable(gold) and not math_compare.is_word(gold_text):
        return error(f"the reference answer {answer!r:.200} cannot be read as mathematics; correct that row's answer")
    text = final_text(completion)
    if text is None:
        return unparsed("the completion ends inside <think>")
    found_text, found = _read_completion(
        text, choice=math_text.is_choice(gold_text), word=math_compare.is_word(gold_text)
    )
    if listed := math_text.as_list(gold_text, found_text):
        gold = _parse_answer(listed)
    elif listed := math_text.as_list(found_text, gold_text):
        found = _parse_answer(listed)
    if conflict := math_compare.conflict(gold_text, found_text):
        return wrong(conflict)
    equal = math_compare.same_notation(gold_text, found_text)
    if equal is None and not _is_readable(found):
        return unparsed("no answer found" if not found else f"cannot read {found_text!r:.200}")
    try:
        equal = _equal(gold, found) if equal is None else equal
    except Exception as failure:
        return error(f"comparing failed: {type(failure).__name__}: {failure}")
    return correct() if equal else wrong(f"read {found_text!r:.200}, expected {answer!r:.200}")


def reference(answer: str) -> str | None:
    """The bare answer in a data set's `answer`, such as `18` in GSM8K's worked solution; None when nothing is readable.

    A row's own reference must grade correct against itself: `grade(f"\\\\boxed{{{reference(answer)}}}", answer)`.
    """
    text, parsed = _read_gold(answer)
    return text if _is_readable(parsed) or math_compare.is_word(text) else None


def _read_gold(answer: Any) -> tuple[str, list[Any]]:
    # Data sets also hold the answer as a number.
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        return "", []
    text = math_text.normalized(answer)
    marked = math_text.marked_answer(text)
    bare = math_text.unwrapped(text if marked is None else marked)
    return bare, _parse_answer(bare)


def _read_completion(text: str, *, choice: bool, word: bool) -> tuple[str, list[Any]]:
    """The text of the completion's answer, and what math-verify makes of it."""
    text = math_text.normalized(text)
    answer = math_text.marked_answer(text)
    if answer is None:
        answer = math_text.stated_answer(text, choice=choice, word=word)
    if answer is None:
        text = text.replace("`", " ")
        found = _parse(text)
        read = str(found[-1]).strip(" .") if found else ""
        if (answer := math_text.whole_answer(text, read)) is None:
            if not _OURS.search(read):
                return read, found
            answer = read
    answer = math_text.unwrapped(answer)
    if choice:
        answer = math_text.named_choice(answer) or answer
    else:
        answer = math_text.unwrapped(math_text.without_choice(answer))
    return answer, _parse_answer(answer)


def _parse_answer(answer: str) -> list[Any]:
    """Read a text that is an answer and nothing else."""
    if not answer:
        return []
    number = math_text.plain_number(answer)
    if number is None:
        answer = math_text.both_signs(math_text.without_units(answer))
    parsed = _parse(number or f"\\boxed{{{answer}}}")
    if parsed and isinstance(parsed[0], BooleanAtom) and _EQUALS.search(answer):
        return _parse_answer(_EQUALS.split(answer)[-1].strip())  # a computation: its result counts
    return parsed


def _parse(text: str) -> list[Any]:
    """math-verify gives [expression, its text]; only [text] when it found an answer that it cannot read."""
    found = math_verify.parse(text, _EXTRACTION, parsing_timeout=None, raise_on_error=False)
    return [item if isinstance(item, str) else _exact(item) for item in found]


def _exact(expression: Any) -> Any:
    """Every decimal as the fraction that it writes: binary floats would be compared after rounding."""
    floats = [number for number in expression.atoms(sympy.Float) if number.is_finite]
    if not floats:
        return expression
    if isinstance(expression, sympy.FiniteSet):
        members = getattr(expression, "_unsorted_args", expression.args)  # math-verify compares them with tuples
        return expression.func(*(_exact(member) for member in members))
    return expression.xreplace({number: sympy.Rational(str(number)) for number in floats})


def _is_readable(parsed: list[Any]) -> bool:
    return any(not isinstance(item, str) for item in parsed)


def _equal(gold: list[Any], found: list[Any]) -> bool:
    wanted, given = gold[0], found[0]
    if given in _NO_NUMBER and wanted not in _NO_NUMBER:  # a reference that is none makes math-verify raise
        return False
    unequal = [isinstance(item, sympy.Ne) for item in (wanted, given)]
    if any(unequal):  # math-verify knows the other relations
        return all(unequal) and _verify([sympy.Eq(*wanted.args)], [sympy.Eq(*given.args)])
    in_percent = [_percentage(wanted), _percentage(given)]
    if in_percent.count(None) == 1:
        bare, percent = (wanted, in_percent[1]) if in_percent[0] is None else (given, in_percent[0])
        # The sign may be left out as a unit may; but a bare number of at most 1 is the fraction itself.
        return _verify([bare], [percent / 100]) or ((percent - 1).is_positive is True and _verify([bare], [percent]))
    wanted, given = _as_point(wanted, given), _as_point(given, wanted)
    wanted, given = _as_union(wanted, given), _as_union(given, wanted)
    if _differ_as_numbers(wanted, given):
        return False
    # The string that math-verify puts beside each expression also counts: the same LaTeX is the same answer.
    return _verify([wanted, *gold[1:]], [given, *found[1:]]) or _verify(
        [_with_imaginary_unit(wanted)], [_with_imaginary_unit(given)]
    )


def _verify(gold: list[Any], found: list[Any]) -> bool:
    equal: bool = math_verify.verify(
        gold, found, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True
    )
    return equal


def _percentage(expression: Any) -> Any:
    """x where the expression is x percent, else None."""
    if isinstance(expression, sympy.Mul) and len(expression.args) == 2 and expression.args[1] == _PERCENT:
        return expression.args[0]
    return None


def _as_point(expression: Any, other: Any) -> Any:
    """`x = 2, y = 1` as the point (2, 1), by the names' order, where the other answer is a point (an open interval)."""
    named = isinstance(expression, sympy.FiniteSet) and len(expression.args) > 1
    if not named or not all(isinstance(item, sympy.Eq) and item.lhs.is_Symbol for item in expression.args):
        return expression
    if not isinstance(other, sympy.Tuple | sympy.Interval):
        return expression
    return sympy.Tuple(*(item.rhs for item in sorted(expression.args, key=lambda item: item.lhs.name)))


def _as_union(expression: Any, other: Any) -> Any:
    """`x < 2 or x > 3` as the union of its intervals, where the other answer is a union."""
    if not isinstance(other, sympy.Union) or not isinstance(expression, sympy.FiniteSet):
        return expression
    conditions = expression.args
    if not all(isinstance(item, sympy.core.relational.Relational | sympy.And) for item in conditions):
        return expression
    if len(expression.free_symbols) != 1:
        return expression
    return sympy.Union(*(item.as_set() for item in conditions))


def _differ_as_numbers(wanted: Any, given: Any) -> bool:
    """Do two constants differ in their first digits? Simplifying their difference can take for ever (log 6 - 10^8)."""
    if not all(isinstance(item, sympy.Expr) and item.is_number for item in (wanted, given)):
        return False
    a, b = (item.evalf(30) for item in (wanted, given))
    difference = abs(a - b)
    if not (difference.is_Float and difference.is_finite):
        return False
    return bool(difference > sympy.Float("1e-20") * max(1, abs(a), abs(b)))


def _with_imaginary_unit(expression: Any) -> Any:
    if not isinstance(expression, sympy.Expr):
        return expression
    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})
