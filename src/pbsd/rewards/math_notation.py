"""What a parser of mathematics misreads or drops, compared as text: units, ratios, times of day, congruences, words."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

UNITS = {
    word: names.split()[0]
    for names in (
        "mm millimeter millimetre", "cm centimeter centimetre", "dm decimeter decimetre", "m meter metre",
        "km kilometer kilometre", "in inch inches", "ft foot feet", "yd yard", "mi mile", "mg milligram", "g gram gm",
        "kg kilogram kilo", "oz ounce", "lb pound", "ml milliliter millilitre", "cl centiliter centilitre",
        "l liter litre", "gal gallon", "qt quart", "ms millisecond", "s sec second", "min minute", "h hr hour",
        "day", "week wk", "month", "year yr", "decade", "century", "cent", "dollar usd", "rupee inr rs", "eur euro",
        "gbp", "yen jpy", "yuan cny rmb", "won krw", "ruble rub rouble", "peso", "degree deg", "radian rad",
        "hectare ha", "acre", "ton", "tonne", "hz hertz", "khz kilohertz", "newton", "joule", "kj kilojoule",
        "kwh", "watt", "kw kilowatt", "volt", "ohm", "ampere amp", "pascal", "kpa kilopascal", "kelvin", "mole mol",
        "calorie cal", "kcal kilocalorie", "mb megabyte", "gb gigabyte", "byte", "nm nanometer nanometre",
        "um micrometer micrometre micron", "ns nanosecond", "mhz megahertz", "ghz gigahertz", "kb kilobyte",
        "tb terabyte", "ly lightyear", "nauticalmile",
    )
    for word in names.split()
}  # fmt: skip
NO_UNIT = (
    "and|or|if|for|where|when|mod|is|are|was|to|than|squared|cubed|factorial|more|less|times|plus|minus|over|not|except|"
    "but|half|remainder|choose|divided|then|since|because|with|without"
)
"""Words behind a number that change what is said of it."""

_LETTER_UNITS = {
    "N": "newton", "J": "joule", "W": "watt", "V": "volt", "Pa": "pascal", "K": "kelvin", "A": "ampere", "T": "tesla",
    "F": "farad", "C": "coulomb", "H": "henry", "kN": "kilonewton", "kJ": "kj", "MW": "megawatt", "mW": "milliwatt",
    "kV": "kilovolt", "mV": "millivolt", "mA": "milliampere", "MJ": "megajoule", "eV": "electronvolt",
    "MPa": "megapascal",
}  # fmt: skip
"""Units set as text that differ in the size of their letters."""

PRODUCTS = (
    "mg",
    "ms",
    "ha",
    "rs",
    "mi",
    "ml",
    "nm",
    "um",
    "ns",
    "kb",
    "tb",
    "ly",
)  # right behind a number more likely letters
GLUED_UNITS = "(?:(?i:{})s?|[A-Za-z]{{5,}})(?![A-Za-z])".format(
    "|".join(sorted((word for word in UNITS if len(word) > 1 and word not in PRODUCTS), key=len, reverse=True))
)
"""A unit right behind a number: one that is known, or a word of at least five letters, which is no product."""

CURRENCIES = {"$": "dollar", "€": "eur", "£": "gbp", "¥": "yen", "₹": "rupee", "₩": "won", "₽": "ruble", "¢": "cent"}
CURRENCY_SIGN = r"[$\u00a2-\u00a5\u058f\u060b\u09f2\u09f3\u0af1\u0bf9\u0e3f\u17db\u20a0-\u20c0\ufdfc]"
_POWERS_IN_WORDS = (
    (re.compile(r"\bsq(?:uare\b|\b\.?)\s*([A-Za-z]+)", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\bcu(?:bic\b|\b\.?)\s*([A-Za-z]+)", re.IGNORECASE), r"\1^3"),
    (re.compile(r"\b([A-Za-z]+)\s+squared\b", re.IGNORECASE), r"\1^2"),
    (re.compile(r"\b([A-Za-z]+)\s+cubed\b", re.IGNORECASE), r"\1^3"),
    (re.compile(r"\b(light|nautical)[- ](?=years?\b|miles?\b)", re.IGNORECASE), r"\1"),
)
_ENDS_IN_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?[\s.$]*\Z")
TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{([^{}]*)\}")
POWER = r"(?:\s*\^\s*\{?\s*([23])\s*\}?)?"
UNIT = re.compile(
    rf"(?<=[\d}}])\s*(?<![A-Za-z])([A-Za-z]+)\.?{POWER}(?:[\s}}]*(?:/|\bper\b)[\s}}]*([A-Za-z]+)\.?{POWER})?[\s$.]*\Z"
)
DEGREES_OF = re.compile(r"(\\circ\s*\}?)\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])\b\s*\}?\s*\Z")
_LETTER_UNIT = re.compile(r"\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?:\\,)?\s*([A-Za-z]{1,3})\s*\}[\s.$]*\Z")
_AMOUNT = r"[-+]?\s*\d[\d,.]*"
_MONEY = re.compile(rf"\\?({CURRENCY_SIGN})\s*{_AMOUNT}|{_AMOUNT}\s*\\?({CURRENCY_SIGN})")
_QUANTITY = re.compile(
    r"\s*([-+]?\d[\d,]*(?:\.\d+)?)(?:\\[ ,;:!]|\s)*(?:\\(?:text|mathrm)\s*\{)?\s*([A-Za-z]+)\s*\.?\s*\}?"
    r"\s*(?:and\b|,)?"
)
_RATIO = re.compile(r"\d{1,30}(?:\.\d{1,30})?(?:\s*:\s*\d{1,30}(?:\.\d{1,30})?)+")
_CONGRUENCE = re.compile(
    r"(?:[A-Za-z]\s*\\equiv\s*)?(-?\d{1,50})\s*(?:\\[ ,;:!]\s*)*"
    r"(?:\\pmod\s*\{?\s*(\d{1,50})\s*\}?|\(?\s*(?:\\bmod|\\(?:text|mathrm)\s*\{\s*mod\s*\}|mod)\s*(\d{1,50})\s*\)?)"
)
_MODULUS = re.compile(r"\\?[pb]?mod(?![a-z])\s*\{?\s*(\d{1,50})")
_NUMERAL = re.compile(r"([0-9A-Fa-f]+)_\{?(\d{1,2})\}?")
_TIME = re.compile(
    r"(\d{1,2})(?::([0-5]\d)(?::([0-5]\d))?(?![\d:])|(?=[^\d:]{0,20}[ap]\.?\s?m\b))"
    r"(?:\\[ ,;:!]|\s)*(?:\\(?:text|mathrm|mbox)\s*\{)?\s*"
    r"(?:([ap])\.?\s?m\b\.?|(?:hours|hrs?|h|o'clock)\b\.?)?[\s}]*",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\\(?:textbf|mathbf)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9 ,.'\u2019-]*")
_NO_WORDS = {"pi", "sqrt", "infinity", "inf", "infty", "and", "or", "exp", "log", "sin", "cos", "tan"}
_WORD = re.compile(r"(?:\\(?:text|textbf|mathrm)\s*\{)?\s*([A-Za-z]{3,}|(?i:no|on|in|up))\s*\.?\}?")


def is_word(answer: str) -> bool:
    """Is the answer a word, such as `north` or `no`, which may be unreadable as mathematics?"""
    return _word(answer) is not None


def same_notation(gold: str, found: str) -> bool | None:
    """Are two times of day, ratios of three parts or more, congruences, quantities in several units, numerals with a
    base or words the same? None for anything else.

    A parser would make quotients, integers and products of letters of them.
    """
    gold, found = gold.strip(), found.strip()
    for reader in (_time, _long_ratio, _congruence, _quantities, _numeral, _word):
        wanted, given = reader(gold), reader(found)
        if wanted is not None and given is not None:
            return wanted == given
        if reader is _long_ratio and (wanted is not None or given is not None):
            return _ratio(gold) == _ratio(found)
        if reader in (_congruence, _quantities) and wanted is not None:
            return False
        if reader is _numeral and (numeral := _numeral(found)) is not None:
            return gold == _decimal(numeral)
    hour = _time(gold)
    is_full = hour is not None and hour.rest[0] == 0 and ":" in gold
    return False if is_full else None  # as a ratio, a full hour would divide by zero


def is_notation(answer: str) -> bool:
    """Is the whole answer one of those that `same_notation` compares?"""
    readers = (_time, _long_ratio, _congruence, _quantities, _numeral, _word)
    return any(reader(answer.strip()) is not None for reader in readers)


def words(answer: str) -> str | None:
    """An answer in words, in small letters: set as text, or of two words and more, or of one that is no product of
    letters (five letters at least). None for anything else, and for more than eight words."""
    text = TEXT.fullmatch(answer) or _BOLD.fullmatch(answer)
    plain = TEXT.sub(r"\1", _BOLD.sub(r"\1", answer)).strip(" .$")
    parts = plain.replace(",", " ").split()
    if not _WORDS.fullmatch(plain) or not parts or parts[0].lower() in _NO_WORDS or ("," in plain and not text):
        return None
    if any(re.search(r"[A-Za-z]", part) and len(part) == 1 and part not in ("a", "A", "I") for part in parts):
        return None
    if not any(re.fullmatch(r"[A-Za-z'.-]{3,}|no|on|up|in", part, re.IGNORECASE) for part in parts):
        return None
    if len(parts) > 8 or (len(parts) == 1 and not text and len(plain) < 5):
        return None
    return " ".join(plain.lower().split())


def conflict(gold: str, found: str) -> str | None:
    """What makes two answers different that the parser drops: units, halves of the day, the braces of a set.

    Only where both answers have it; a unit, for one, may be left out.
    """
    readers: dict[str, Callable[[str], Any]] = {
        "unit": common_unit, "bracket": _bracket,
        "scale of temperature": _scale_of_temperature, "modulus": _modulus,
    }  # fmt: skip
    for name, reader in readers.items():
        wanted, given = reader(gold.strip()), reader(found.strip())
        if wanted is not None and given is not None and wanted != given:
            return f"{name} {given}, expected {wanted}"
    return None


def common_unit(answer: str) -> str | None:
    """The common unit at the answer's end, such as `cm^2` or `km/h`; None for any other."""
    if money := _MONEY.fullmatch(answer.strip()):
        return CURRENCIES.get(money[1] or money[2])
    if DEGREES_OF.search(answer):
        return None  # of a temperature, whose scale is compared
    if (letter := _LETTER_UNIT.search(answer)) and letter[1] in _LETTER_UNITS:
        return _LETTER_UNITS[letter[1]]
    # A unit in words follows a digit or a brace; one in \text{} may follow anything.
    if _ENDS_IN_DEGREES.search(answer):
        return "degree"
    text = TEXT.sub(r"}\1 ", answer).replace("mph", "mi/h")
    for words_of_power, unit in _POWERS_IN_WORDS:
        text = words_of_power.sub(unit, text)
    match = UNIT.search(text)
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


def _decimal(numeral: tuple[str, str]) -> str | None:
    """The number that the digits write in that base, in base ten; None of what writes none."""
    try:
        return str(int(numeral[0], int(numeral[1])))
    except ValueError:
        return None


def _time(answer: str) -> _Time | None:
    match = _TIME.fullmatch(answer.strip("$ ."))
    if match is None or int(match[1]) > (12 if match[4] else 24):
        return None
    return _Time(int(match[1]), (int(match[2] or 0), int(match[3] or 0)), match[4].lower() if match[4] else None)


@dataclass(frozen=True)
class _Time:
    """A time of day. Times are equal on the 24-hour clock; where one says no half of the day, and its hour does not
    either, it may be left out, as a unit may."""

    hour: int
    rest: tuple[int, int]
    half: str | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Time) or self.rest != other.rest:
            return False
        if self._on_24_hours() == other._on_24_hours():
            return True
        halves = [self.half, other.half]
        return halves.count(None) == 1 and self.hour == other.hour

    def __hash__(self) -> int:
        return hash(self.rest)

    def _on_24_hours(self) -> int:
        return self.hour % 12 + 12 * (self.half == "p") if self.half else self.hour % 24


def _ratio(answer: str) -> tuple[Fraction, ...] | None:
    """The parts of `2:4:6` over the first, so that it equals `1:2:3`."""
    if not _RATIO.fullmatch(answer.strip("$ ")):
        return None
    parts = [Fraction(part.strip()) for part in answer.strip("$ ").split(":")]
    scale = next((part for part in parts if part), Fraction(1))
    return tuple(part / scale for part in parts)


def _long_ratio(answer: str) -> tuple[Fraction, ...] | None:
    ratio = _ratio(answer)
    return ratio if ratio is not None and len(ratio) > 2 else None


def _congruence(answer: str) -> tuple[int, int] | None:
    """The residue and the modulus."""
    match = _CONGRUENCE.fullmatch(answer.strip("$ ."))
    modulus = int(match[2] or match[3]) if match else 0
    return (int(match[1]) % modulus, modulus) if match and modulus else None


def residue(answer: str) -> str | None:
    """The residue of a congruence, whose modulus may be left out as a unit may."""
    match = _CONGRUENCE.fullmatch(answer.strip("$ ."))
    return match[1] if match else None


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
