"""What a parser of mathematics misreads or drops, compared as text: units, ratios, times of day, congruences, words."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

UNITS = {
    word: names.split()[0]
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre",
        "in inch inches", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram", "kg kilogram", "oz ounce",
        "lb pound", "ml milliliter millilitre", "l liter litre", "s sec second", "min minute", "h hr hour", "day",
        "week", "month", "year", "cent", "dollar", "degree", "radian",
    )
    for word in names.split()
}  # fmt: skip
TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")
POWER = r"(?:\s*\^\s*\{?\s*([23])\s*\}?)?"
UNIT = re.compile(
    rf"(?<=[\d}}])\s*\b([A-Za-z]+)\.?{POWER}(?:[\s}}]*(?:/|\bper\b)[\s}}]*([A-Za-z]+)\.?{POWER})?[\s$.]*\Z"
)
DEGREES_OF = re.compile(r"(\\circ\s*\}?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])\b\s*\}?\s*\Z")
_QUANTITY = re.compile(
    r"\s*([-+]?\d[\d,]*(?:\.\d+)?)(?:\\[ ,;:!]|\s)*(?:\\(?:text|mathrm)\s*\{)?\s*([A-Za-z]+)\s*\.?\s*\}?"
    r"\s*(?:and\b|,)?"
)
_RATIO = re.compile(r"\d{1,30}(?:\.\d{1,30})?(?:\s*:\s*\d{1,30}(?:\.\d{1,30})?)+")
_CONGRUENCE = re.compile(
    r"(?:[A-Za-z]\s*\\equiv\s*)?(-?\d{1,50})\s*(?:\\[ ,;:!]\s*)*"
    r"(?:\\pmod\s*\{?\s*(\d{1,50})\s*\}?|\(?\s*(?:\\bmod|\\(?:text|mathrm)\s*\{\s*mod\s*\}|mod)\s*(\d{1,50})\s*\)?)"
)
_MODULUS = re.compile(r"\\?[pb]?mod(?![a-z])\s*\{?\s*(\d+)")
_NUMERAL = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?!\d)")
_HALF_OF_DAY = re.compile(r"\b([ap])\.?\s?m\b", re.IGNORECASE)
_WORD = re.compile(r"(?:\\(?:text|textbf|mathrm)\s*\{)?\s*([A-Za-z]{3,}|(?i:no|on|in|up))\s*\.?\}?")


def is_word(answer: str) -> bool:
    """Is the answer a word, such as `north` or `no`, which may be unreadable as mathematics?"""
    return _word(answer) is not None


def same_notation(gold: str, found: str) -> bool | None:
    """Are two ratios of three parts or more, congruences, quantities in several units, times of day, numerals with a
    base, words or equal texts the same? None for anything else.

    A parser would make quotients, integers and products of letters of them.
    """
    ratios = [_ratio(answer.strip()) for answer in (gold, found)]
    if any(ratio is not None and len(ratio) > 2 for ratio in ratios):
        return ratios[0] == ratios[1]
    for reader in (_congruence, _quantities, _time, _numeral, _word):
        wanted, given = reader(gold.strip()), reader(found.strip())
        if wanted is not None and given is not None:
            return wanted == given
    if (hour := _time(gold.strip())) and hour[1] == 0:
        return False  # a full hour, read as a ratio, would divide by zero
    return True if _without_markup(gold) == _without_markup(found) else None


def conflict(gold: str, found: str) -> str | None:
    """What makes two answers different that the parser drops: units, halves of the day, the braces of a set.

    Only where both answers have it; a unit, for one, may be left out.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "unit": common_unit, "half of the day": _half_of_day, "bracket": _bracket,
        "scale of temperature": _scale_of_temperature, "modulus": _modulus,
    }  # fmt: skip
    for name, reader in readers.items():
        wanted, given = reader(gold.strip()), reader(found.strip())
        if wanted is not None and given is not None and wanted != given:
            return f"{name} {given}, expected {wanted}"
    return None


def _without_markup(answer: str) -> str:
    return " ".join(re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", answer).strip("$. ").split())


def common_unit(answer: str) -> str | None:
    """The common unit at the answer's end, such as `cm^2` or `km/h`; None for any other."""
    if re.match(r"\\?\$\s*\d[\d,.]*\Z", answer):
        return "dollar"
    # A unit in words follows a digit or a brace; one in \text{} may follow anything.
    match = UNIT.search(TEXT.sub(r"}\1 ", answer).replace("mph", "mi/h"))
    if match is None:
        return None
    parts = [(word.lower(), power) for word, power in (match.group(1, 2), match.group(3, 4)) if word]
    names = [UNITS.get(word) or UNITS.get(word.removesuffix("s")) for word, _ in parts]
    if None in names:
        return None
    return "/".join(f"{name}^{power}" if power else f"{name}" for name, (_, power) in zip(names, parts, strict=True))


def _numeral(answer: str) -> tuple[str, str] | None:
    match = _NUMERAL.fullmatch(answer.strip("$ "))
    return (match[1].lstrip("0").upper(), match[2]) if match else None


def _time(answer: str) -> tuple[int, int] | None:
    match = _TIME.match(answer.strip("$ "))
    return (int(match[1]), int(match[2])) if match else None


def _ratio(answer: str) -> tuple[Fraction, ...] | None:
    """The parts of `2:4:6` over the first, so that it equals `1:2:3`."""
    if not _RATIO.fullmatch(answer.strip("$ ")):
        return None
    parts = [Fraction(part.strip()) for part in answer.strip("$ ").split(":")]
    scale = next((part for part in parts if part), Fraction(1))
    return tuple(part / scale for part in parts)


def _congruence(answer: str) -> tuple[int, int] | None:
    """The residue and the modulus."""
    match = _CONGRUENCE.fullmatch(answer.strip("$ ."))
    modulus = int(match[2] or match[3]) if match else 0
    return (int(match[1]) % modulus, modulus) if match and modulus else None


def _modulus(answer: str) -> int | None:
    match = _MODULUS.search(answer)
    return int(match[1]) if match else None


def _quantities(answer: str) -> tuple[tuple[str, str], ...] | None:
    """The numbers and units of a quantity in several known units, as in `2 hours 30 minutes`."""
    found, end = [], 0
    while match := _QUANTITY.match(answer, end):
        unit = UNITS.get(match[2].lower()) or UNITS.get(match[2].lower().removesuffix("s"))
        if unit is None:
            return None
        found.append((match[1].replace(",", ""), unit))
        end = match.end()
    several = len({unit for _, unit in found}) > 1
    return tuple(found) if several and not answer[end:].strip(" .$") else None


def _scale_of_temperature(answer: str) -> str | None:
    match = DEGREES_OF.search(answer)
    return match[2] if match else None


def _half_of_day(answer: str) -> str | None:
    match = _HALF_OF_DAY.search(answer)
    return match[1].lower() if match else None


def _word(answer: str) -> str | None:
    """A word, which the parser may take for a product of letters, equal to that of any anagram."""
    match = _WORD.fullmatch(answer)
    return match[1].lower() if match else None


def _bracket(answer: str) -> str | None:
    """`{}` of a set, or `()` of a point or interval, when one pair holds the whole answer and several members."""
    answer = re.sub(r"\\left|\\right|[\s$]", "", answer)
    if answer.startswith(r"\{") and answer.endswith(r"\}"):
        kind, inner = "{}", answer[2:-2]
    elif answer[:1] in ("(", "[") and answer[-1:] in (")", "]"):
        kind, inner = "()", answer[1:-1]
    else:
        return None
    depth, commas = 0, 0
    for char in inner:
        depth += (char in "([{") - (char in ")]}")
        if depth < 0:
            return None
        commas += char == "," and depth == 0
    return kind if commas else None
