"""Mathematics as text, before it is parsed: where the final answer stands, and the LaTeX that a parser knows."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from pbsd.rewards.math_compare import DEGREES_OF, POWER, TEXT, UNIT, UNITS, common_unit

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(boxed|fbox)\s*(-?\d+(?:\.\d+)?)(?![\w^\\{])")
_BOX_SEPARATOR = re.compile(r"(?:[\s$,;]|\\[,;()\[\]]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b|[A-Za-z](?:_\d)?\s*=)*")

_CHOICE = re.compile(r"\(?([A-J])\)?")
_STATED_CHOICE = re.compile(r"\b(?i:answer|option|choice)(?:\s+is)?\s*:?[\s*($]*([A-J])\b(?!\s+[a-z])")
_RIGHT_CHOICE = re.compile(r"\(([A-J])\)\**\s+is\s+(?:the\s+)?(?:correct|right)\b")
_STATED_WORD = re.compile(r"\b(?i:answer)\s*(?:is|:)[\s*\"\u201c]*([A-Za-z]{2,})[\s*\"\u201d]*(?=[.!]|\Z|\n)")
_LONE_CHOICE = re.compile(r"\**\(?([A-J])[).]*\**\.?")
_NAMED_CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?(?:\(([A-J])\)|([A-J])\s*[).:](?!\w))")
_NUMBER = r"-?\d[\d,]{0,30}(?:\.\d{1,30})?(?:/\d{1,30})?"
_TWO_NUMBERS = re.compile(rf"(?<![\w.])({_NUMBER})\s+or\s+(?:[A-Za-z]\s*=\s*)?({_NUMBER})\W*\Z")

# Mathematics in the open, of which a parser would take a number: "The answer is (1, 2).", "the ratio is 3:2".
_STATED = re.compile(
    r"\b(?i:answers?(?:\s+(?:is|are))?|(?:solutions?(?:\s+set)?|roots|set|interval)(?:\s+(?:is|are)|(?=:)))\s*:?[\s*]*"
    r"(?:(?i:the )?(?i:interval|set|point|pair) )?(\S[^\n$]*)"
)
_STATED_MATHEMATICS = re.compile(r"(?:[(\[{]|\\[{(\[]).*[)\]}]|[^\\]*\\[a-z].*")
_TWO_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

# Plain text as a calculator would take it: "3 1/2", "2*sqrt(3)", "x^2 + 1", "3:2". What is written on either side of an
# operator belongs to it; a blank is no product. Possessive, because a model's text may be long and made of digits.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d++)?+|\.\d++"
_LETTER = r"(?![aAI] [A-Za-z])[A-Za-z](?![A-Za-z'])"  # no article, no pronoun
_GROUP = rf"\((?:[\d .,+*/^=-]|pi|sqrt|{_LETTER})++\)|(?<=\^)\{{[\w+*/-]++\}}"
_FACTOR = rf"(?:(?:{_DIGITS})(?:[eE][-+]?\d++)?+|pi|sqrt(?=\()|{_LETTER}|{_GROUP})++(?:%|!(?= ?[-+*/^=)]))?+"
_OPERATOR = r"(?!\s[-+]\S)[ \t]*+(?:\*\*|[-+*/^=\u00d7\u00f7]|(?<=\d):(?=\d)|x(?=[ \t]*10\^))[ \t]*+"
_TERMS = rf"[-+]?(?:\d++[ ]\d++/\d++|{_FACTOR})(?:{_OPERATOR}[-+]?{_FACTOR})*+"
_EXPRESSION = re.compile(rf"(?<![\w.,)\\^_/'-]){_TERMS}")
_LETTERS_AND_MORE = re.compile(r"(?=.*[A-Za-z]).*[\d+*/^=-]")
_NUMBER_AND_LETTER = re.compile(rf"({_DIGITS})([mgshl])")
_LIST = re.compile(rf"(?:{_TERMS})(?:(?:, (?:and|or) |,[ ]?| and | or )(?:{_TERMS}))++(?=[ .*]*\Z|[.;] |, [a-z]{{2}})")

# A number that may carry a currency sign and a unit in words ("$1,234.50", "42 eggs."), which LaTeX would multiply out.
# One letter is a unit only if it is known as one: "7 x" is a product.
_UNIT_WORD = r"(?:[A-Za-z]{2,}|[mgshl])(?:\s*\^\s*\{?[23]\}?)?"
_NUMBER_WITH_UNIT = re.compile(
    r"[$€£¥]?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/[1-9]\d*)?)\.?"
    rf"(?:\s+{_UNIT_WORD}(?:[ /]{_UNIT_WORD})*\.?)?"
)
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(?:(?:\\[ ,;!]|\{,\}| )\d{3})+(?:\.\d+)?")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_INVISIBLE = (
    0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070),
)  # fmt: skip
_STYLED_LETTERS = range(0x1D400, 0x1D7CE)  # bold, italic ... as Unicode has them for mathematics
_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys(map(chr, _INVISIBLE)),
        "\u2212": "-",
        "\u2215": "/",
        "\u2044": "/",
        **dict.fromkeys("·⋅", r"\cdot "),
        **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in _STYLED_LETTERS},
        "°": r"^\circ ",
        "∞": r"\infty ",
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms of ASCII
        **{char: f" {unicodedata.normalize('NFKC', char)}".replace("\u2044", "/") for char in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"},
    }
)

_VARIANTS = (
    (r"\varnothing", r"\emptyset"), (r"\log_e", r"\ln"), (r"\log_{e}", r"\ln"), (r"\langle", "("), (r"\rangle", ")"),
    (r"\lbrace", r"\{"), (r"\rbrace", r"\}"),
)  # fmt: skip
_ARGUMENT = r"\{[^{}]*\}|\d|[a-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|omega|pi)(?![a-zA-Z])"
_DEGREES = r"\s*(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*"
_FUNCTION_OF_DEGREES = re.compile(rf"\\(sin|cos|tan|cot|sec|csc)\s*(?:\({_DEGREES}\)|\{{{_DEGREES}\}}|{_DEGREES})")

_END_OF_MEMBER = r"(?=[\s.$]*(?:\Z|[,;)\]]|\\?\}|\\text\s*\{\s*(?:and|or)\b))"
_UNIT_IN_BRACES = re.compile(
    r"(?<=[\d})i])((?:\s*\^\s*\{?\s*\\circ\s*\}?)?)(?:\\[ ,;:!]|\s)*"
    rf"\\(text|mathrm|textrm|mbox)\s*\{{([^{{}}]*)\}}{POWER}{_END_OF_MEMBER}"
)
_NO_UNIT = re.compile(r"\s*(?:and|or|if|for|where|when|mod|is)\b|[^A-Za-z\u03a9\u00b5]*\Z")
_PRIMES = re.compile(r"(?<![A-Za-z\\])([A-Za-z])('{1,4})(?![A-Za-z])")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_NUMBERS_IN_WORDS = re.compile(r"[-+\d.,\s]+(?:\b(?:and|or)\b[-+\d.,\s]+)+")
_PACKED_LIST = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+")
_SPACED_LIST = re.compile(r"\d,\s+[-+]?\d")
_UNIT_AFTER = re.compile(rf"\$?[ ]?((?!in\s[a-z])[A-Za-z]+{POWER}(?:[ ]?(?:/|per )[A-Za-z]+{POWER})?)")
_SCALES = {"percent": r"\%", "thousand": r"\times 10^3", "million": r"\times 10^6", "billion": r"\times 10^9"}
_SCALED = re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{\s*)?\b({'|'.join(_SCALES)})\b\s*\}}?")
_MIXED_PERCENTAGE = re.compile(r"\A([-+]?)(\d{1,30})\s*\\[dtc]?frac\{(\d{1,30})\}\{(\d{1,30})\}\s*\\?%\Z")


def normalized(text: str) -> str:
    """The same mathematics in the LaTeX that the parser knows: symbols, repeating decimals, degrees, 0x1F."""
    text = re.sub(r"(?![0-9])\d", lambda digit: str(int(digit[0])), text)  # of other scripts and styles
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text).translate(_SYMBOLS)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"(^|[\s({\[,=])[\u2013\u2014]\s*(?=[\d.\\A-Za-z])", r"\1-", text)  # a dash that is a sign
    text = re.sub(r"(?<![\d.])(\d{0,50})\.(\d{0,50})\\(?:overline|bar)\s*(?:\{(\d{1,50})\}|(\d))", _repeating, text)
    # Braces that TeX lets one leave out.
    text = re.sub(r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}", text)
    text = re.sub(rf"(\\[dtc]?frac)\s*({_ARGUMENT})\s*({_ARGUMENT})", _braced_fraction, text)
    text = re.sub(r"\\sqrt\s*(\\[dtc]?frac\{[^{}]*\}\{[^{}]*\})", r"\\sqrt{\1}", text)
    text = _FUNCTION_OF_DEGREES.sub(_in_radians, text)
    text = re.sub(r"\b0[xX][0-9a-fA-F]{1,200}\b|\b0[bB][01]{1,200}\b", lambda code: str(int(code[0], 0)), text)
    for variant, known in _VARIANTS:
        text = text.replace(variant, known)
    return re.sub(r"\\(?:underline|(?:text)?color\s*\{[^{}]{1,40}\})\s*\{([^{}]*)\}", r"\1", text)


def _braced_fraction(match: re.Match[str]) -> str:
    numerator, denominator = (argument.strip("{}") for argument in match.group(2, 3))
    return f"{match[1]}{{{numerator}}}{{{denominator}}}"


def _in_radians(match: re.Match[str]) -> str:
    return rf"\{match[1]}\left(\frac{{{match[2] or match[3] or match[4]}\pi}}{{180}}\right)"


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} -> 15/90: the digits with one block, less those without it, over as many nines."""
    block = match[3] or match[4]
    fixed = match[1] + match[2]
    numerator = int(fixed + block) - int(fixed or "0")
    return rf"\frac{{{numerator}}}{{{(10 ** len(block) - 1) * 10 ** len(match[2])}}}"


def marked_answer(text: str) -> str | None:
    """The text in the last `\\boxed{}`, else the last `<answer>` tag, else after a final `####`; None without a mark.

    Empty when the box or the tag is cut off.
    """
    if "\\boxed" in text or "\\fbox" in text:
        return _boxed_answer(_BARE_BOX.sub(r"\\\1{\2}", text))
    if "<answer>" in text:
        return text.rpartition("<answer>")[2].rpartition("</answer>")[0]
    last_line = text.rstrip().rpartition("\n")[2]
    return last_line[4:] if re.match(r"####(?!#)", last_line) else None


def _boxed_answer(text: str) -> str:
    """The last box's content, before it those of the boxes that only a comma, `and`, `or` or `x =` parts from it."""
    answers: list[str] = []
    previous_end = 0
    for opening in _BOX.finditer(text):
        if opening.start() < previous_end:
            continue  # a box in a box
        end = _closing_brace(text, opening.end())
        if end is None:
            return ""
        if not _BOX_SEPARATOR.fullmatch(text[previous_end : opening.start()]):
            answers = []
        answers.append(text[opening.end() : end].strip())
        previous_end = end + 1
    return ", ".join(dict.fromkeys(answers))


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace opened just before `start` closes."""
    depth = 1
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return position
    return None


def is_choice(answer: str) -> bool:
    """Is the reference one letter from A to J, such as `B` or `(B)`?"""
    return _CHOICE.fullmatch(answer.strip()) is not None


def without_choice(answer: str) -> str:
    """The answer without a letter before it, as in `\\textbf{(C) }12`."""
    return re.sub(r"\A\\(?:text|textbf|mathrm)\s*\{\s*\(?[A-J]\)\s*\}\s*(?=\S)", "", answer)


def named_choice(answer: str) -> str | None:
    """The letter that a marked answer names before the choice's own text, as in `(B) 5` and `B: 5`."""
    match = _NAMED_CHOICE.match(answer.strip())
    return (match[1] or match[2]) if match else None


def stated_answer(text: str, *, choice: bool, word: bool) -> str | None:
    """An answer without a mark that a number parser would miss: a letter that is stated or stands alone, a word where
    the reference is one, two numbers joined by `or`, or after `answer is` a list or mathematics without dollars, such
    as `(1, 2)` or `2\\sqrt{3}`."""
    if choice:
        lone = _LONE_CHOICE.fullmatch(text.strip().rpartition("\n")[2].strip())
        stated = [lone[1]] if lone else _STATED_CHOICE.findall(text) or _RIGHT_CHOICE.findall(text)
        return stated[-1] if stated else None
    if either := _TWO_NUMBERS.search(text):
        return f"{either[1]}, {either[2]}"
    if word and (words := _STATED_WORD.findall(text)):
        return str(words[-1])
    if not (stated := _STATED.findall(text)):
        return None
    if several := _LIST.match(stated[-1]):
        return several[0]
    answer = stated[-1].rstrip(" .*")
    if _STATED_MATHEMATICS.fullmatch(answer) and not _TWO_LETTERS.search(answer):
        return answer
    return None


def whole_answer(text: str, found: str) -> str | None:
    """The expression in the text that a number parser took `found` from, and the unit after it: `1.5e3`, `3:2`, `5 km`.

    What follows `answer is` where it has letters, which the parser would skip; else the first with `found` in it after
    the last `answer`; else the last. `found` is empty where the parser met nothing. None without such an expression.
    """
    stated = list(_STATED.finditer(text))
    match = _EXPRESSION.match(text, stated[-1].start(1)) if stated else None
    if match and (not found or _LETTERS_AND_MORE.match(match[0])):
        return _with_unit(text, match)
    if not found:
        return None
    number = re.compile(rf"(?<![\d.]){re.escape(found)}(?!\d|\.\d)")
    holding = [match for match in _EXPRESSION.finditer(text) if number.search(match[0].replace(",", ""))]
    if not holding:
        return None
    answers = [match.end() for match in re.finditer(r"(?i)answer", text)]
    after = [match for match in holding if answers and match.start() >= answers[-1]]
    return _with_unit(text, after[0] if after else holding[-1])


def _with_unit(text: str, match: re.Match[str]) -> str:
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", match[0])
    if tight := _NUMBER_AND_LETTER.fullmatch(answer):
        return rf"{tight[1]}\text{{ {tight[2]}}}"
    # A dollar on both sides is LaTeX's.
    money = text[: match.start()].endswith("$") and not text.startswith("$", match.end())
    unit = _UNIT_AFTER.match(text, match.end())
    if unit and (unit[1] in _SCALES or (not money and common_unit(f"1 {unit[1]}"))):
        answer = rf"{answer}\text{{ {unit[1]}}}"
    return rf"\${answer}" if money else answer


def plain_number(answer: str) -> str | None:
    """The number that is the whole answer, without separators, sign of currency and unit; None for anything else."""
    if grouped := _GROUPED_NUMBER.fullmatch(answer):
        return re.sub(r"[^-\d.]", "", grouped[0])
    number = _NUMBER_WITH_UNIT.fullmatch(answer)
    return number[1].lstrip("+") if number else None


def as_list(answer: str, other: str) -> str | None:
    """`153,370,371` as a list where the other answer is one, `153, 370, 371`; else None: its commas group thousands."""
    is_list = _PACKED_LIST.fullmatch(answer) and _SPACED_LIST.search(other)
    return answer.replace(",", ", ") if is_list else None


def without_units(answer: str) -> str:
    """The answer, or each member of a list, without the unit after it: what stands in `\\text{}`, or is known."""

    def bare(match: re.Match[str]) -> str:
        circle, command, unit = match[1], match[2], match[3].strip()
        if _NO_UNIT.match(unit):
            return match[0]
        if len(unit) == 1 and unit not in UNITS and not (circle or (command != "mathrm" and unit.isupper())):
            return match[0]  # \mathrm{i}, \mathrm{e}
        return circle

    answer = _UNIT_IN_BRACES.sub(bare, answer)
    answer = DEGREES_OF.sub(r"\1", answer)
    match = UNIT.search(answer)
    if match and len(match[1]) > 1 and common_unit(answer):
        answer = answer[: match.start()]
    return answer


def both_signs(answer: str) -> str:
    """Every member with `\\pm` or `\\mp` as its values: `1 \\pm \\sqrt 2` is `1 + \\sqrt 2, 1 - \\sqrt 2`. Where both
    stand in one member they go together; several `\\pm` are independent."""
    if not _SIGNS.search(answer):
        return answer
    members: list[str] = []
    for member in _members(answer):
        signs = _SIGNS.findall(member)
        choices: Iterable[Sequence[str]] = itertools.product("+-", repeat=len(signs))
        if "mp" in signs:
            choices = (["+-"[sign == "mp"] for sign in signs], ["-+"[sign == "mp"] for sign in signs])
        elif len(signs) > 3:
            choices = ()  # no answer: left to the parser, which refuses it
        members += dict.fromkeys(_with_signs(member, choice) for choice in choices) or [member]
    return ", ".join(members)


def _with_signs(member: str, signs: Sequence[str]) -> str:
    drawn = iter(signs)

    def sign(match: re.Match[str]) -> str:
        chosen = next(drawn)
        is_unary = re.search(r"[\w})]\s*\Z", member[: match.start()]) is None
        return "" if is_unary and chosen == "+" else chosen

    return _SIGNS.sub(sign, member)


def _members(answer: str) -> list[str]:
    """What commas part that are in no bracket."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(answer):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(answer[start:position])
            start = position + 1
    return [*parts, answer[start:]]


def unwrapped(answer: str) -> str:
    """The answer without Markdown around it, and with scales, mixed numbers, powers and exponents as LaTeX has them."""
    # Bounded, since a run that ends elsewhere would be tried from each of its places.
    answer = re.sub(r"\A(?:\\[ ,;:!]\s*)+|(?:\\[,;:!]?\s*){1,20}\Z", "", answer.replace("~", " ").strip())
    if emphasized := re.fullmatch(r"(\*\*|\*|__|`)(.+)\1", answer, re.DOTALL):
        answer = emphasized[2].strip()
    answer = re.sub(r"\A\\text\s*\{[^{}]*(?:\bis:?|:)\s*\}\s*(?=[-\d\\$(])", "", answer)
    answer = re.sub(r"\\[dt]?frac\s*\{\s*\\text\{(\w+)\}\s*\}\s*\{\s*\\text\{(\w+)\}\s*\}", r"\\text{ \1/\2}", answer)
    if text := TEXT.fullmatch(answer):
        words = re.sub(r"\A[A-Za-z ]*\bis:?\s", "", text[1]).strip()
        answer = words if plain_number(words) or _NUMBERS_IN_WORDS.fullmatch(words) else answer
    answer = _SCALED.sub(lambda match: _SCALES[match[1]], answer)
    answer = re.sub(r"\A([-+]?\s*\d+)\s+(\d+)\s*/\s*(\d+)(?=\Z|\\text)", r"\1\\frac{\2}{\3}", answer)
    answer = _MIXED_PERCENTAGE.sub(_improper, answer)
    answer = re.sub(r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times ", answer)
    answer = re.sub(r"\A([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d+)\Z", r"\1\\times 10^{\2}", answer)
    answer = re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi", answer)
    answer = _PRIMES.sub(lambda match: f"{match[1]}_{{{len(match[2])}}}", answer)  # a parser drops them
    return re.sub(r"\*\*\s*(-?\w+)", r"^{\1}", answer)


def _improper(match: re.Match[str]) -> str:
    whole, numerator, denominator = (int(digits) for digits in match.group(2, 3, 4))
    return rf"{match[1]}\frac{{{whole * denominator + numerator}}}{{{denominator}}}\%"
