"""Where the final answer stands in a text: marks, statements, letters of a choice, the last formula or number."""

from __future__ import annotations

import re

from pbsd.rewards.math_latex import _SCALES, closing, normalized, unwrapped
from pbsd.rewards.math_notation import (
    CURRENCY_SIGN,
    DEGREES_OF,
    GLUED_UNITS,
    NO_UNIT,
    POWER,
    PRODUCTS,
    UNIT,
    UNITS,
    common_unit,
)

__all__ = ["marked_answer", "normalized", "plain_number", "unwrapped"]

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BARE_BOX = re.compile(r"\\(boxed|fbox)\s*(-?\d+(?:\.\d+)?)(?![\w^\\{])")
_NAME = (
    r"(?:(?<![A-Za-z\\])[A-Za-z]|\\[A-Za-z]+|\\(?:text|mathrm)\s*\{[^{}]*\})(?:\s*_\s*(?:\{[^{}]*\}|\w))?'*"
    r"(?:\([A-Za-z]\))?\s*(?:=|\\in(?![A-Za-z])|&=)\s*"
)
_BOX_SEPARATOR = re.compile(
    r"(?:[\s$,;.&~]|\\[,;:!()\[\] ]|\\\\|\\hspace\s*\{[^{}]*\}"
    r"|\\(?:q?quad|hfill|newline|land|lor|wedge|vee|displaystyle)(?![A-Za-z])"
    r"|\\(?:begin|end)\s*\{(?:aligned|align\*?|gathered|gather\*?|array|split)\}(?:\{[lcr]+\})?"
    r"|\\(?:text|mathrm|mbox)\s*\{\s*,?\s*(?:and|or|,)?\s*\}|\band\b|\bor\b|&|\*\*)*"
)
_BOX_SIGN = re.compile(r"(\S|\A)([^\S\n]*|\s*)[-\u2212](\s*)\Z")
_UNSIGNED = re.compile(r"[\d.,]+|[A-Za-z]|\\[dtc]?frac\{[^{}]*\}\{[^{}]*\}|\\sqrt\{[^{}]*\}")
_BOX_NAME = re.compile(rf"({_NAME})(?:&\s*|\\[,;:! ]|\s)*\Z")
_FINAL = re.compile(
    r"\b(?i:final\s+answer)\s*\**\s*(?:(?i:is)|:)\s*\**\s*:?\s*"
    r"|(?:\A|\n)[ \t>*_#]*(?i:answer)\s*:\s*\**[ \t]*(?=\S[^\n]*\s*\Z)"
    r"|\b(?i:answer\s+is)\s*:?\s*\**\s*(?=[^\n]{1,80}\Z)"
)
_END = re.compile(r"\s*(?:\\?%|[A-Za-z]+(?:\^\d)?)?[\s.*]*\Z")
_HASHES = re.compile(r"(?m)^[ \t]*####(?!#)[ \t]*(.*)$")
_PLAIN_LINE = re.compile(rf"{CURRENCY_SIGN}?\s*[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?\s*%?\.?")

_CHOICE = re.compile(r"\(?([A-J])\)?")
_LETTER = re.compile(
    r"(?<![A-Za-z0-9'\u2019\\_^{(])(?:\(([A-J])\)|\[([A-J])\]|([A-J]))(?![A-Za-z0-9'\u2019_^(]|-[A-Za-z])(?=(.?))"
)
_NO_LETTER = re.compile(r"\s[a-z]{2,}")
_DENIED = re.compile(
    r"(?:\b(?:not|cannot|isn't|wasn't|can't|won't|never|neither|nor|no|rules?\s+out|ruled\s+out|eliminat\w+|exclud\w+|reject\w*|"
    r"discard\w*|than|unlike|instead\s+of)|n't|n\u2019t)\b(?:\s+(?:be|is|the|an?|answer|option|choice|options|choices|either|both|also|it))*"
    r"(?:\s*[\s(*]*[A-J][)*]*\s*(?:,|or|nor|and|/)?)*\s*[\s(*]*\Z",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[)*\]]*\s*(?:is|are|was|can|could|would|does|seems)?\s*(?:not|n't|n\u2019t|cannot|can't|isn't|isn\u2019t|doesn't|incorrect|wrong|false|ruled\s+out|eliminated)\b",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"(?:\b(?:answer|option|choice)(?:\s+(?:is|must\s+be|should\s+be|would\s+be|here\s+is))?\s*:?"
    r"|\b(?:it's|it\s+is|it\u2019s|it\s+must\s+be|must\s+be|therefore|thus|hence|so|choose|chose|pick|select|go\s+with|going\s+with|think)"
    r"(?:\s+(?:the|that|it\s+is|it's|correct|right|answer|option|choice|is))*\s*:?)[\s*($\"\u201c\[]*\Z",
    re.IGNORECASE,
)
_RETRACTS = re.compile(
    r"\b(?:however|actually|wait|on\s+reflection|on\s+second\s+thoughts?|correction|scratch\s+that|i\s+was\s+wrong)\b",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(r"[)*\]]*\s+(?:is|must\s+be)\s+(?:the\s+)?(?:correct|right|answer|best)\b", re.IGNORECASE)
_STRONG = re.compile(r"\b(?:answer|option|choice)\b[^.\n]*\Z", re.IGNORECASE)
_LEADING_CHOICE = re.compile(r"\A[\s*_>\"\u201c$\[-]*?\(?([A-J])\s*[).:](?=\s|\Z)")
_HEDGE = re.compile(r"[)*]*\s*(?:or|and|/|,)\s*\(?[A-J]\)?(?![A-Za-z])")
_STATED_WORD = re.compile(r"\b(?i:answer)\s*(?:is|:)[\s*\"\u201c]*([A-Za-z]{2,})[\s*\"\u201d]*(?=[.!]|\Z|\n)")
_LONE_CHOICE = re.compile(r"\**\(?([A-J])[).]*\**\.?")
_NAMED_CHOICE = re.compile(r"(?:\\(?:text|textbf|mathrm|mathbf)\s*\{\s*)?(?:\(([A-J])\)|([A-J])\s*[).:](?!\w))")
_NUMBER = r"-?\d[\d,]{0,30}(?:\.\d{1,30})?(?:/\d{1,30})?"
_TWO_NUMBERS = re.compile(rf"(?<![\w.])({_NUMBER})\s+or\s+(?:[A-Za-z]\s*=\s*)?({_NUMBER})\W*\Z")

# Mathematics in the open, of which a parser would take a number: "The answer is (1, 2).", "the ratio is 3:2".
_STATED = re.compile(
    r"\b(?i:answers?(?:\s+(?:is|are))?|(?:solutions?(?:\s+set)?|roots|set|interval)(?:\s+(?:is|are)|(?=:)))\s*:?[\s*]*"
    r"(?:(?i:the )?(?i:interval|set|point|pair) )?([^\s$][^\n$]*)"
)
_STATED_MATHEMATICS = re.compile(r"(?:[(\[{]|\\[{(\[]).*[)\]}]|[^\\]*\\[a-z].*")
_TWO_LETTERS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")

# Plain text as a calculator would take it: "3 1/2", "2*sqrt(3)", "x^2 + 1", "3:2". What is written on either side of an
# operator belongs to it; a blank is no product. Possessive, because a model's text may be long and made of digits.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+|\.\d++"
_LETTER_OF_TERM = r"(?![aAI] [A-Za-z])[A-Za-z](?![A-Za-z'])"  # no article, no pronoun
_FUNCTION = r"(?:sqrt|cbrt|exp|log|ln|sin|cos|tan)(?=\()"
_INNER = rf"(?:[\d .,+*/^=-]|pi|{_FUNCTION}|{_LETTER_OF_TERM})"
_GROUP = rf"\((?:{_INNER}|\((?:{_INNER}|\({_INNER}*+\))*+\))++\)|(?<=\^)\{{[\w+*/-]++\}}"
_FACTOR = rf"(?:(?:{_DIGITS})(?:[eE][-+]?\d++)?+|pi|{_FUNCTION}|{_LETTER_OF_TERM}|{_GROUP})++(?:%|!(?= ?[-+*/^=)]))?+"
_OPERATOR = r"(?!\s[-+]\S)[ \t]*+(?:\*\*|[-+*/^=\u00d7\u00f7]|(?<=\d):(?=\d)|x(?=[ \t]*10\^))[ \t]*+"
_TERMS = rf"[-+]?(?:\d++[ ]\d++/\d++|{_FACTOR})(?:{_OPERATOR}[-+]?{_FACTOR})*+"
_EXPRESSION = re.compile(rf"(?<![\w.,)\\^_/'-]){_TERMS}")
_LETTERS_AND_MORE = re.compile(r"(?=.*[A-Za-z]).*[\d+*/^=-]")
_NUMBER_AND_UNIT = re.compile(rf"({_DIGITS})([A-Za-z]+)(\^\{{?[23]\}}?)?")
_LIST = re.compile(rf"(?:{_TERMS})(?:(?:, (?:and|or) |,[ ]?| and | or )(?:{_TERMS}))++(?=[ .*]*\Z|[.;] |, [a-z]{{2}})")

_FORMULA = re.compile(
    r"(?<!\\)\$\$(?:[^$]|\$(?!\$))+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|(?<![\\\d])\$(?!\s*\d[\d,.]*\s+[A-Za-z][a-z]+)(?:\\\$|[^\n$])+?(?<!\\)\$"
    r"|-?\\[dtc]?frac\{[^{}]*\}\{[^{}]*\}",
    re.DOTALL,
)
_PLAIN = re.compile(
    rf"(?:(?<=\s)|(?<=[=*(|>])|\A)[*]{{0,2}}{CURRENCY_SIGN}?\s?(-?(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|-?\.\d+)"
)
_TAG = re.compile(r"<[^<>\n]{0,40}>")
_NOT_BEFORE = re.compile(
    r"(?:\b(?:not|never|cannot|neither|nor|no\s+longer)|n['\u2019]t)\b"
    r"(?:\s+(?:be|is|equals?|to|the|just|simply|exactly|number|value|answer|either|a|an))*[\s*$(=:]*\Z",
    re.IGNORECASE,
)
_BOUND_BEFORE = re.compile(
    r"(?:\b(?:at\s+(?:least|most)|(?:more|less|fewer|greater|larger|smaller|bigger|higher|lower)\s+than"
    r"(?:\s+or\s+equal\s+to)?|above|below|over|under|exceeds|exceeding)|(?<![-=])[<>]|!|\\(?:le|ge|ne)(?![A-Za-z]))[\s*$(=]*\Z",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(
    r"\s*(?:<(?!/|\||[A-Za-z][\w ]*>)|>|!=|\\(?:le|ge|ne)(?![A-Za-z])|or\s+(?:more|less|fewer|greater|above)\b)",
    re.IGNORECASE,
)
_INSTEAD = re.compile(r"\b(?:but|rather|instead|is)\b|\bit['\u2019]s\b", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"\s*\**\s*(?:is|:)[\s*:]*(?:unknown|undetermined|unclear|uncertain|none\b|cannot\s+be|can(?:'|\u2019)t\s+be|impossible\s+to"
    r"|not\s+(?:known|determined|given|enough))",
    re.IGNORECASE,
)
_PART_BEFORE = re.compile(r"\b(?:of|and|by|from|to|times|plus|minus|per|with|divided)\s+\Z")
_DOTS = re.compile(r"\.\.|\s*(?:\u2026|\\ldots)")
_PERCENT_AFTER = re.compile(r"\s*(\\?%|per ?cent\b|pct\b)")
_NAME_ALONE = re.compile(r"(?:\$|\\\()\s*(?:[A-Za-z](?:_\w)?|[A-Z]{2,8})\s*(?:\$|\\\))")
_FORMULA_SEPARATOR = re.compile(r"\s*(?:,\s*(?:and|or)?|and|or)\s*")
_RESULT = re.compile(r"=\s*\**\s*$")

# A number that may carry a currency sign and a unit in words ("$1,234.50", "42 eggs."), which LaTeX would multiply out.
# One letter is a unit only if it is known as one: "7 x" is a product.
_UNIT_WORD = rf"(?!(?:{NO_UNIT})\b)(?:[A-Za-z]{{2,}}|[mgshl]){POWER}"
_NUMBER_WITH_UNIT = re.compile(
    rf"(?:(?:US|A|C|HK)?\\?{CURRENCY_SIGN}|Rs\.?|USD|EUR|GBP|INR)?\s*([-+]?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+|/[1-9]\d*)?|[-+]?\.\d+)\.?"
    rf"(?:(?:\s+|(?={GLUED_UNITS})){_UNIT_WORD}(?:[ /]{_UNIT_WORD})*\.?|\s*\\?{CURRENCY_SIGN})?",
)
_GROUPED_NUMBER = re.compile(r"[-+]?\d{1,3}(?:(?:\\[ ,;!]|\{,\}| )\d{3})+(?:\.\d+)?")

_END_OF_MEMBER = r"(?=[\s.$]*(?:\Z|[,;)\]]|\\?\}|\\text\s*\{\s*(?:and|or)\b))"
_UNIT_IN_BRACES = re.compile(
    r"(?<=[\d})i!])((?:\s*\^\s*\{?\s*\\circ\s*\}?)?)(?:\\[ ,;:!]|\s)*"
    rf"\\(text|mathrm|textrm|textbf|mbox|mathsf|operatorname)\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}{POWER}{_END_OF_MEMBER}"
)
_NO_UNIT = re.compile(rf"\s*(?:{NO_UNIT})\b|[^A-Za-z\u03a9\u00b5]*\Z")
_CURRENCY = re.compile(
    rf"\\?{CURRENCY_SIGN}(?=\s*[-+]?[\d.\\(])|(?<=[\d}})])\s*\\?{CURRENCY_SIGN}(?=[\s.]*(?:\Z|[,;)\]]|\\\}}))"
)
_CURRENCY_IN_TEXT = re.compile(
    rf"\\(?:text|mathrm)\s*\{{\s*(?:(?:US|A|C)?\\?{CURRENCY_SIGN}|(?i:Rs\.?|USD|EUR|GBP|INR))\s*\}}"
    r"(?=\s*(?:\\[ ,;:!]\s*)*[-+]?[\d.])"
)
_GLUED = re.compile(rf"(?<=\d)(?={GLUED_UNITS}(?:\s*\^\s*\{{?[23]\}}?)?[\s.]*(?:\Z|[,;/)\]]|\\\}}|and\b))")
_MORE_LIKELY_LETTERS = re.compile(rf"\d(?:{'|'.join(PRODUCTS)})[\s.$]*\Z")
_SQUARE_METRES = re.compile(r"([-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))(?:\\[ ,;:!]|\s)*m\s*\^\s*\{?\s*[23]\s*\}?[\s.]*")
_PACKED_LIST = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+")
_SPACED_LIST = re.compile(r"\d,\s+[-+]?\d")
_TIME_OF_DAY = re.compile(
    r"\d{1,2}:[0-5]\d(?::[0-5]\d)?(?!\d)(?:\s*[ap]\.?\s?m\b\.?)?|\d{1,2}\s*[ap]\.?\s?m\b\.?", re.IGNORECASE
)
_UNIT_AFTER = re.compile(rf"\$?[ ]?((?!in\s[a-z])[A-Za-z]+{POWER}(?:[ ]?(?:/|per )[A-Za-z]+{POWER})?)")


def marked_answer(text: str) -> str | None:
    """The text of the last mark: a `\\boxed{}`, an `<answer>` tag, a line `#### 42`, or what follows "the final answer
    is" and, at the end of the text, "answer:"; None without a mark.

    Empty when the box or the tag is cut off. A line `#### ...` counts where it is the last, or a bare number.
    """
    marks = [mark for mark in (_boxed(text), _tagged(text), _hashed(text)) if mark is not None]
    last = max(marks, key=lambda mark: mark[0], default=None)
    if (stated := _finally_stated(text, last[0] if last else None)) is not None:
        return stated
    return last[1] if last else None


def _boxed(text: str) -> tuple[int, str] | None:
    """Where the last box ends, and its content; before it those of the boxes that only blanks, commas, `and`, `or` or a
    name part from it. The names count where every box has one."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    text = _BARE_BOX.sub(r"\\\1{\2}", text)
    answers: list[tuple[str, str]] = []
    previous_end = 0
    for opening in _BOX.finditer(text):
        if opening.start() < previous_end:
            continue  # a box in a box
        end = closing(text, opening.end()) if "{" in opening[0] else None
        if end is None:
            return len(text), ""
        between, sign = _sign_before(text[previous_end : opening.start()])
        name = _BOX_NAME.search(between)
        before = between[: name.start()] if name else between
        if not _BOX_SEPARATOR.fullmatch(before):
            answers = []
        content = text[opening.end() : end].strip()
        if sign:
            content = f"-{content}" if _UNSIGNED.fullmatch(content) else f"-({content})"
        answers.append((name[1] if name else "", content))
        previous_end = end + 1
    if not answers:
        return len(text), ""
    named = len(answers) > 1 and all(name for name, _ in answers)
    contents = [f"{name.replace('&', '')}{answer}" if named else answer for name, answer in answers]
    return previous_end, ", ".join(dict.fromkeys(contents))


def _sign_before(between: str) -> tuple[str, bool]:
    """The text before a box without a minus that belongs to the box, and whether there is one: `x = -\\boxed{5}`; no
    dash, bullet or difference."""
    match = _BOX_SIGN.search(between)
    if match is None:
        return between, False
    previous, blanks, gap = match.groups()
    is_difference = previous.isdigit() or (previous.isalpha() and not blanks) or previous in tuple(")]}\\-")
    if is_difference or (previous == ":" and not blanks) or (gap and (not previous or previous not in "=$([{,&")):
        return between, False
    return between[: match.end(1)] + blanks, True


def _tagged(text: str) -> tuple[int, str] | None:
    before, tag, after = text.rpartition("<answer>")
    if not tag:
        return None
    content, closing_tag, _ = after.rpartition("</answer>")
    end = len(before) + len(tag) + len(content)
    if not closing_tag:
        return len(text), ""
    inner = _boxed(content)
    return end + 1, inner[1] if inner else content


def _hashed(text: str) -> tuple[int, str] | None:
    last_line = text.rstrip().rpartition("\n")[2].strip()
    for line in reversed(list(_HASHES.finditer(text)) if "####" in text else []):
        content = line[1].strip()
        if line[0].strip() == last_line or _PLAIN_LINE.fullmatch(content):
            inner = _boxed(content)
            return line.end(), inner[1] if inner else content
    return None


def _finally_stated(text: str, after: int | None) -> str | None:
    """What a statement gives that stands after the last mark: a formula or a number right behind "final answer is"."""
    if after is None:
        return None
    for statement in reversed(list(_FINAL.finditer(text, after))):
        rest = text[statement.end() :]
        found = next((match for kind in (_FORMULA, _LIST, _EXPRESSION, _PLAIN) if (match := kind.match(rest))), None)
        if found and _DOTS.match(rest, found.end()) and "." in found[0]:
            return f"{found[0]}..."
        if found is None or not (statement[0].lower().startswith("final") or _END.match(rest, found.end())):
            continue
        if found.re is _FORMULA:
            return _formula_with_unit(rest, found)
        return _with_unit(rest, found) if found.re is _EXPRESSION else found[0].strip(" *")
    return None


def is_choice(answer: str) -> bool:
    """Is the reference one letter from A to J, such as `B` or `(B)`?"""
    return _CHOICE.fullmatch(answer.strip()) is not None


def bare_choice(answer: str) -> str | None:
    """The letter of a choice that is set as text, as in `\\text{(B)}`."""
    match = re.fullmatch(r"\\(?:text|textbf|mathrm|mathbf)\s*\{\s*(\(?[A-J]\)?)\s*\}", answer.strip())
    return match[1] if match else None


def without_choice(answer: str) -> str:
    """The answer without a letter before it, as in `\\textbf{(C) }12`."""
    return re.sub(r"\A\\(?:text|textbf|mathrm)\s*\{\s*\(?[A-J]\)\s*\}\s*(?=\S)", "", answer)


def named_choice(answer: str) -> str | None:
    """The letter that a marked answer names before the choice's own text, as in `(B) 5` and `B: 5`."""
    match = _NAMED_CHOICE.match(answer.strip())
    return (match[1] or match[2]) if match else None


def stated_choice(text: str) -> str | None:
    """The letter that a text without a mark chooses: one that stands alone in the last line, is said to be the answer,
    begins the text, or is concluded; of several the last of the strongest kind. Letters that are denied do not count,
    and two letters joined by `or` are no choice."""
    text = re.sub(r"\$|\\[()\[\]]", " ", re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text))
    lines = text.strip().splitlines() or [""]
    last = unwrapped(lines[-1])
    if lone := _LONE_CHOICE.fullmatch(bare_choice(last) or last):
        return lone[1]
    found: dict[int, str | None] = {}
    for match in _LETTER.finditer(text):
        before, after = text[max(0, match.start() - 80) : match.start()], text[match.end() : match.end() + 60]
        letter = match[1] or match[2] or match[3]
        if match[3] and letter in "AI" and _NO_LETTER.match(after) and not _IS_RIGHT.match(after):
            continue  # an article, a pronoun
        if _DENIED.search(before) or _DENIED_AFTER.match(after):
            continue
        concluded = _CONCLUDES.search(before)
        strength = 0
        if _IS_RIGHT.match(after) or (concluded and _STRONG.search(concluded[0])):
            strength = 3
        elif concluded:
            strength = 3 if _RETRACTS.search(before) else 1
        if strength:
            found[strength] = None if _HEDGE.match(after) else letter
    if 3 not in found and (leading := _LEADING_CHOICE.match(text)):
        return leading[1]
    return found[max(found)] if found else None


def stated_answer(text: str, *, word: bool) -> str | None:
    """An answer without a mark that a number parser would miss: a word where the reference is one, two numbers joined
    by `or`, or after `answer is` a list or mathematics without dollars, such as `(1, 2)` or `2\\sqrt{3}`."""
    if (either := _TWO_NUMBERS.search(text)) and not _is_denied(text, either.start(), either.end()):
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


def last_answer(text: str) -> str | None:
    """The formula or the number that a text without a mark ends in: near the last `answer` if there is one, else the
    last. Of a number in plain text the whole expression that it stands in and the unit after it: `1.5e3`, `5 km`."""
    whole = text.strip(" \n*")
    if time := _TIME_OF_DAY.fullmatch(whole):
        return time[0]
    if not whole.endswith("..") and (number := plain_number(whole.rstrip("."))):
        return number
    formulas = _formulas(text)
    places = [place for group in formulas for place in range(group[0].start(), group[-1].end())]
    inside = set(places)
    numbers = [[number] for number in _PLAIN.finditer(text) if number.start(1) not in inside]
    found = sorted((*formulas, *numbers), key=lambda group: group[-1].end())
    anchors = [match.end() for match in re.finditer(r"(?i)answer", text)]
    near = [group for group in found if anchors and 0 <= group[0].start() - anchors[-1] <= 60]
    near = [group for group in near if not _NAME_ALONE.fullmatch(group[0][0])] or near  # "the largest $n$ is 34"
    results = [group for group in near if _RESULT.search(text, anchors[-1], group[0].start())]
    if anchors and _NO_ANSWER.match(text, anchors[-1]):
        return None
    group = results[-1] if results else near[0] if near else found[-1] if found else None
    if group is not None and _is_denied(text, group[0].start(), group[-1].end()):
        group = _instead(text, near, group)
        if group is None:
            return None
    if group is not None and group[0].re is _FORMULA:
        return ", ".join(_formula_with_unit(text, formula) for formula in group)
    chosen = group[0] if group is not None else None
    if chosen and "." in chosen[1] and _DOTS.match(text, chosen.end()):
        return f"{chosen[1]}..."
    return whole_answer(text, chosen[1].replace(",", "") if chosen else "") or (chosen[1] if chosen else None)


def _is_denied(text: str, start: int, end: int) -> bool:
    """Does the text say that it is not what stands there, or more or less than it?"""
    before = _TAG.sub(" ", text[max(0, start - 80) : start])
    return bool(_NOT_BEFORE.search(before) or _BOUND_BEFORE.search(before) or _BOUND_AFTER.match(text, end))


def _instead(text: str, near: list[list[re.Match[str]]], denied: list[re.Match[str]]) -> list[re.Match[str]] | None:
    """Of `not 6 but 5`, what it is."""
    end = denied[-1].end()
    for group in near:
        start = group[0].start()
        if start >= end and _INSTEAD.search(text, end, start) and not _is_denied(text, start, group[-1].end()):
            return group
    return None


def _formulas(text: str) -> list[list[re.Match[str]]]:
    """The formulas in the text, those together that only a comma, `and` or `or` parts."""
    groups: list[list[re.Match[str]]] = []
    for formula in _FORMULA.finditer(text):
        if groups and _FORMULA_SEPARATOR.fullmatch(text[groups[-1][-1].end() : formula.start()]):
            groups[-1].append(formula)
        else:
            groups.append([formula])
    return groups


def _formula_with_unit(text: str, formula: re.Match[str]) -> str:
    answer = unwrapped(formula[0])
    if _PERCENT_AFTER.match(text, formula.end()):
        return rf"{answer}\%"
    unit = _UNIT_AFTER.match(text, formula.end())
    return rf"{answer}\text{{ {unit[1]}}}" if unit and common_unit(f"1 {unit[1]}") else answer


def whole_answer(text: str, found: str) -> str | None:
    """The expression in the text that a number `found` stands in, and the unit after it: `1.5e3`, `3:2`, `5 km`.

    What follows `answer is` where it has letters; else the first with `found` in it after the last `answer`; else the
    last. `found` is empty where there is no number. None without such an expression.
    """
    stated = list(_STATED.finditer(text))
    match = _EXPRESSION.match(text, stated[-1].start(1)) if stated else None
    if match and (not found or _LETTERS_AND_MORE.match(match[0])):
        return _with_unit(text, match)
    if not found:
        return None
    number = re.compile(rf"(?<![\d.]){re.escape(found.lstrip('-'))}(?!\d|\.\d)")
    holding = [match for match in _EXPRESSION.finditer(text) if number.search(match[0].replace(",", ""))]
    if not holding:
        return None
    answers = [match.end() for match in re.finditer(r"(?i)answer", text)]
    after = [match for match in holding if answers and match.start() >= answers[-1]]
    return _with_unit(text, after[0] if after else holding[-1])


def _with_unit(text: str, match: re.Match[str]) -> str:
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", match[0])
    if "=" in answer and _PART_BEFORE.search(text[: match.start()]):
        answer = answer.rpartition("=")[2].strip()  # `40% of 50 = 20`: the left side is not whole
    if time := _TIME_OF_DAY.match(text, match.start()):
        return time[0]
    if (tight := _NUMBER_AND_UNIT.fullmatch(answer)) and (len(tight[2]) > 1 or tight[2] in UNITS):
        return rf"{tight[1]}\text{{ {tight[2]}}}{tight[3] or ''}"
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


def is_square_metres(answer: str) -> bool:
    """Is the answer a number before `m^2` or `m^3`, which is also algebra?"""
    return _SQUARE_METRES.fullmatch(answer) is not None


def without_units(answer: str) -> str:
    """The answer, or each member of a list, without the unit after it and the currency: what stands in `\\text{}`, or
    is known."""

    def bare(match: re.Match[str]) -> str:
        circle, command, unit = match[1], match[2], match[3].strip()
        if _NO_UNIT.match(unit) or (command in ("mathsf", "operatorname") and common_unit(f"1 {unit}") is None):
            return match[0]
        if len(unit) == 1 and unit not in UNITS and not (circle or (command != "mathrm" and unit.isupper())):
            return match[0]  # \mathrm{i}, \mathrm{e}
        return circle

    if metres := _SQUARE_METRES.fullmatch(answer):
        return metres[1]
    answer = _CURRENCY.sub("", _CURRENCY_IN_TEXT.sub("", answer))
    answer = _GLUED.sub(" ", answer)
    answer = _UNIT_IN_BRACES.sub(bare, answer)
    answer = DEGREES_OF.sub(r"\1", answer)
    match = UNIT.search(answer)
    if match and len(match[1]) > 1 and common_unit(answer) and not _MORE_LIKELY_LETTERS.search(answer):
        answer = answer[: match.start()]
    return answer
