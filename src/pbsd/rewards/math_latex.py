"""Mathematics as people and models write it, rewritten as the LaTeX that the parser knows."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

from pbsd.rewards.math_notation import TEXT

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_INVISIBLE = (
    0xAD, 0x61C, 0x180E, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070),
)  # fmt: skip
_STYLED_LETTERS = range(0x1D400, 0x1D7CE)  # bold, italic ... as Unicode has them for mathematics
_COMMANDS = {
    "\u00d7": r"\times", "\u00f7": r"\div", "\u00b1": r"\pm", "\u2213": r"\mp", "\u2264": r"\le", "\u2265": r"\ge",
    "\u2260": r"\ne", "\u2248": r"\approx", "\u222a": r"\cup", "\u2229": r"\cap", "\u2208": r"\in",
    "\u2205": r"\emptyset", "\u2216": r"\setminus", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}", "\u2102": r"\mathbb{C}", "π": r"\pi", "√": r"\sqrt",
    "∠": r"\angle", "⟨": "(", "⟩": ")", "∧": r"\land", "\u2228": r"\lor", "≡": r"\equiv", "→": r"\to",
}  # fmt: skip
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
        **{char: f"{command} " for char, command in _COMMANDS.items()},
        **{char: rf"\{unicodedata.name(char).split()[-1].lower()} " for char in "αβγδεζηθικλμνξρστυφχψωΓΔΘΞΣΦΨΩ"
           if unicodedata.name(char).startswith("GREEK SMALL")},
        **{char: rf"\{unicodedata.name(char).split()[-1].capitalize()} " for char in "ΓΔΘΞΣΦΨΩ"},
        "λ": r"\lambda ", "Λ": r"\Lambda ",
    }
)  # fmt: skip

_VARIANTS = (
    (r"\varnothing", r"\emptyset"), (r"\log_e", r"\ln"), (r"\log_{e}", r"\ln"), (r"\langle", "("), (r"\rangle", ")"),
    (r"\lbrace", r"\{"), (r"\rbrace", r"\}"), (r"\leqslant", r"\le"), (r"\geqslant", r"\ge"), (r"\leq", r"\le"),
    (r"\geq", r"\ge"), (r"\neq", r"\ne"), (r"\lt", "<"), (r"\gt", ">"), (r"\degree", r"^\circ"), (r"\colon", ":"),
    (r"\vert", "|"), (r"\lvert", "|"), (r"\rvert", "|"), (r"\dots", r"\ldots"), (r"\cdots", r"\ldots"),
    (r"\lg", r"\log"),
    (r"\euro", "€"), (r"\pounds", "£"), (r"\textdollar", r"\$"), (r"\texteuro", "€"), (r"\textsterling", "£"),
    (r"\textdegree", r"^\circ "), (r"\backslash", r"\setminus"), (r"\smallsetminus", r"\setminus"), (r"\ast", "*"),
    (r"\dbinom", r"\binom"), (r"\tbinom", r"\binom"), (r"\thinspace", r"\,"), (r"\textpercent", r"\%"),
    (r"\lbrack", "["), (r"\rbrack", "]"), (r"\imath", "i"), (r"\mid", r"\mid"),
)  # fmt: skip
_VARIANT = re.compile(
    "|".join(re.escape(name) for name, _ in sorted(_VARIANTS, key=lambda pair: -len(pair[0]))).join(
        ("(", ")(?![A-Za-z])")
    )
)
_KNOWN = dict(_VARIANTS)
_TEXT_MACRO = re.compile(
    r"\\(?:(?:textnormal|textit|textrm|textsf|texttt|textup|textmd|hbox|unit|si|operatorname\*)(?=\s*\{)"
    r"|textbf(?=\s*\{[^{}()]*\d[^{}()]* [A-Za-z]))"  # a quantity, and neither a vector's name nor a choice
)
_ROMAN = re.compile(r"\{\s*\\(?:rm|tt|sf|it)\b\s*([^{}]*)\}")
_QUANTITY = re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ARGUMENT = r"\{[^{}]*\}|\d|[a-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|omega|pi)(?![a-zA-Z])"
_GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
_SIZES = re.compile(r"\\(?:m?left|m?right|[bB]igg?[lrm]?|middle)(?![A-Za-z])\s*")
_GROUPED = re.compile(
    r"(?<![\d.])(\d{1,3})((?:\s*(?:,\\!|\{\s*,\s*\}|,\{\}|\\,|\\ |\\;|\\:|\\!|,\\,|~)\s*\d{3})+)(?!\d)"
)
_GROUPED_BY_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")

_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|(?:q?quad|hfill|displaystyle|textstyle|limits|nolimits)(?![A-Za-z]))|\\hspace\s*\{[^{}]*\}|~"
)
_ARRAY = re.compile(
    r"(?:\\left)?[\[(]\s*\\begin\s*\{(?:array|matrix|smallmatrix)\}(?:\s*\{[lcr|\s]+\})?((?:(?!\\begin).)*?)"
    r"\\end\s*\{(?:array|matrix|smallmatrix)\}\s*(?:\\right)?[\])]",
    re.DOTALL,
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z({\[])")
_PRIMES = re.compile(r"(?<![A-Za-z\\])([A-Za-z])('{1,4})(?![A-Za-z])")
_SIGNS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_NUMBERS_IN_WORDS = re.compile(r"[-+\d.,\s]+(?:\b(?:and|or)\b[-+\d.,\s]+)+")
_SCALES = {
    "percent": r"\%", "per cent": r"\%", "percentage": r"\%", "pct": r"\%", "percentage points": r"\%",
    "dozen": r"\times 12", "hundred": r"\times 10^2", "thousand": r"\times 10^3", "lakh": r"\times 10^5",
    "million": r"\times 10^6", "crore": r"\times 10^7", "billion": r"\times 10^9", "trillion": r"\times 10^{12}",
}  # fmt: skip
_SCALED = re.compile(
    r"(?<=[\d})])\s*(?:\\[ ,;:!]\s*|~)*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?(?<![A-Za-z])"
    rf"({'|'.join(sorted(_SCALES, key=len, reverse=True))}|\\%|%)(?![A-Za-z])\.?\s*(?:(?<!\\)\}}(?!\}}))?"
)
_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\Z")
_MIXED = re.compile(r"(?<![\d.^_}\w\\])(\d{1,30})\s*\\[dtc]?frac\s*\{\s*(\d{1,30})\s*\}\s*\{\s*(\d{1,30})\s*\}")
_MIXED_IN_TEXT = re.compile(r"(?<![\d.^/\w])(\d{1,30})\s+(\d{1,30})\s*/\s*(\d{1,30})(?![\d/])")
_DELIMITED = re.compile(r"\\\((.*)\\\)|\\\[(.*)\\\]|\$\$(.*)\$\$|\$(.*)\$", re.DOTALL)
_ROUGHLY = re.compile(
    r"\A(?:(?:is|equals|about|approximately|approx\.?|exactly|roughly|around|nearly|only|just|a total of|in total)\s+)+"
    r"(?=[-+$\d\\.(])",
    re.IGNORECASE,
)

_CODE_FUNCTIONS = (
    "sqrt", "cbrt", "exp", "log", "ln", "sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "arcsin",
    "arccos", "arctan", "sinh", "cosh", "tanh", "abs", "Abs", "factorial", "Rational", "max", "min", "gcd", "lcm",
    "floor", "ceil", "ceiling", "pow",
)  # fmt: skip
_CODE_CALL = re.compile(
    rf"(?<![\\A-Za-z])(?:(?:np|numpy|math|sympy|sp)\.)?"
    rf"({'|'.join(sorted(_CODE_FUNCTIONS, key=len, reverse=True))})\s*\("
)
_CODE_NAMES = re.compile(r"(?<![\\A-Za-z{])(?:(?:np|numpy|math|sympy|sp)\.)?(pi|infinity|inf|oo)(?![A-Za-z}(])")
_BARE_FUNCTION = re.compile(r"(?<![\\A-Za-z{])(sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*[\d\\x({^_]|\s+[A-Za-z]\b)")
_POWER_OF_GROUP = re.compile(r"\^\s*\(")
_DEGREES = r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])\s*)"
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_ANGLE = re.compile(
    rf"(\d+(?:\.\d+)?|(?<![\\A-Za-z])[A-Za-z]|\\(?:alpha|beta|gamma|theta|phi|pi)(?![A-Za-z])\s*)\s*{_DEGREES}"
)
_ANGLE_OF_GROUP = re.compile(rf"\(([^()]*)\)\s*{_DEGREES}|(\\[dtc]?frac\s*{_GROUP}\s*{_GROUP})\s*{_DEGREES}")


def normalized(text: str) -> str:
    """The same mathematics in fewer notations: symbols, text macros, repeating decimals, left-out braces, 0x1F."""
    if not text.isascii():
        text = re.sub(r"(?![0-9])\d", lambda digit: str(int(digit[0])), text)  # of other scripts and styles
        text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
        text = re.sub(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", text).translate(_SYMBOLS)
        text = re.sub(r"(^|[\s({\[,=])[\u2013\u2014]\s*(?=[\d.\\A-Za-z])", r"\1-", text)  # a dash that is a sign
    text = re.sub(r"\b0[xX][0-9a-fA-F]{1,200}\b|\b0[bB][01]{1,200}\b", lambda code: str(int(code[0], 0)), text)
    if "\\" not in text:
        return text
    if r"\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)  # escaped once more than it should be
    text = _TEXT_MACRO.sub(r"\\text", text)
    text = _QUANTITY.sub(r"\1\\text{ \2}", _ROMAN.sub(r"\\text{\1}", text))
    text = re.sub(r"\\num\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![\d.])(\d{0,50})\.(\d{0,50})\\(?:overline|bar|dot)\s*(?:\{(\d{1,50})\}|(\d))", _repeating, text)
    # Braces that TeX lets one leave out.
    text = re.sub(r"\\mathbb\s*([A-Z])(?![A-Za-z])", r"\\mathbb{\1}", text)
    text = re.sub(rf"(\\[dtc]?frac)\s*({_ARGUMENT})\s*({_ARGUMENT})", _braced_fraction, text)
    text = re.sub(r"\\sqrt\s*(\\[dtc]?frac\{[^{}]*\}\{[^{}]*\})", r"\\sqrt{\1}", text)
    text = _VARIANT.sub(lambda match: _KNOWN[match[1]], text)
    return re.sub(r"\\(?:underline|(?:text)?color\s*\{[^{}]{1,40}\})\s*\{([^{}]*)\}", r"\1", text)


def _braced_fraction(match: re.Match[str]) -> str:
    numerator, denominator = (argument.strip("{}") for argument in match.group(2, 3))
    return f"{match[1]}{{{numerator}}}{{{denominator}}}"


def _repeating(match: re.Match[str]) -> str:
    """0.1\\overline{6} -> 15/90: the digits with one block, less those without it, over as many nines."""
    block = match[3] or match[4]
    fixed = match[1] + match[2]
    numerator = int(fixed + block) - int(fixed or "0")
    return rf"\frac{{{numerator}}}{{{(10 ** len(block) - 1) * 10 ** len(match[2])}}}"


def unwrapped(answer: str) -> str:
    """The answer without what stands around it (Markdown, dollars, `\\text{}`, "about"), with scales, percentages and
    exponents as LaTeX has them."""
    previous = None
    for _ in range(20):
        if answer == previous:
            break
        previous = answer
        # Bounded, since a run that ends elsewhere would be tried from each of its places.
        answer = re.sub(r"\A(?:\\[ ,;:!]\s*)+|(?:\\[,;:!]?\s*){1,20}\Z", "", answer.replace("~", " ").strip())
        if emphasized := re.fullmatch(r"(\*\*|\*|__|`+)(.+)\1", answer, re.DOTALL):
            answer = emphasized[2].strip()
        delimited = _DELIMITED.fullmatch(answer.rstrip(" .") if answer.startswith(("$", "\\(", "\\[")) else answer)
        if delimited:
            inner = next(part for part in delimited.groups() if part is not None)
            if not re.search(r"\$|\\[()\[\]]", inner):
                answer = inner.strip()
        answer = _ROUGHLY.sub("", re.sub(r"\\displaystyle\s*", "", answer))
    answer = re.sub(r"\A\$([^$]+)\$(\s*[A-Za-z][A-Za-z .]*)\Z", r"\1\2", answer)
    answer = re.sub(r"\A\\text\s*\{[^{}]*(?:\bis:?|:)\s*\}\s*(?=[-\d\\$(])", "", answer)
    answer = re.sub(r"\\[dt]?frac\s*\{\s*\\text\{(\w+)\}\s*\}\s*\{\s*\\text\{(\w+)\}\s*\}", r"\\text{ \1/\2}", answer)
    if text := TEXT.fullmatch(answer):
        words = _ROUGHLY.sub("", re.sub(r"\A[A-Za-z ]*\bis:?\s", "", text[1]).strip())
        answer = words if re.match(r"[-+$.]*\d", words) or _NUMBERS_IN_WORDS.fullmatch(words) else answer
    answer = re.sub(r"\\(?:mathbf|boldsymbol|bm|mathrm|textbf)\s*\{(-?[\d.,]+)\}", r"\1", answer)
    answer = _GROUPED.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), answer)
    answer = _SCALED.sub(_scale, answer)
    answer = re.sub(r"(?<=\d)\s*x\s*(?=10\s*(?:\^|\*\*))", r"\\times ", answer)
    answer = re.sub(r"(?<![\w.\\])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,6})(?![\w.])", _scientific, answer)
    return _PRIMES.sub(lambda match: f"{match[1]}_{{{len(match[2])}}}", answer)  # a parser drops them


def _scale(match: re.Match[str]) -> str:
    is_in_text = _IN_TEXT.search(match.string[: match.start(1)]) is not None
    closes = match[0].rstrip().endswith("}")
    scale = _SCALES.get(match[1], r"\%")
    return scale + ("}" if closes and not is_in_text else "")


def _scientific(match: re.Match[str]) -> str:
    return rf"{match[1]}\times 10^{{{int(match[2])}}}"


def both_signs(answer: str) -> str:
    """Every member with `\\pm` or `\\mp` as its values: `1 \\pm \\sqrt 2` is `1 + \\sqrt 2, 1 - \\sqrt 2`. Where both
    stand in one member they go together; several `\\pm` are independent."""
    if not _SIGNS.search(answer):
        return answer
    answers: list[str] = []
    for member in members(answer):
        signs = _SIGNS.findall(member)
        choices: Iterable[Sequence[str]] = itertools.product("+-", repeat=len(signs))
        if "mp" in signs:
            choices = (["+-"[sign == "mp"] for sign in signs], ["-+"[sign == "mp"] for sign in signs])
        elif len(signs) > 3:
            choices = ()  # no answer: left to the parser, which refuses it
        answers += dict.fromkeys(_with_signs(member, choice) for choice in choices) or [member]
    return ", ".join(answers)


def _with_signs(member: str, signs: Sequence[str]) -> str:
    drawn = iter(signs)

    def sign(match: re.Match[str]) -> str:
        chosen = next(drawn)
        is_unary = re.search(r"[\w})]\s*\Z", member[: match.start()]) is None
        return "" if is_unary and chosen == "+" else chosen

    return _SIGNS.sub(sign, member)


def members(answer: str, separator: str = ",") -> list[str]:
    """What separators part that are in no bracket."""
    parts, start = [], 0
    for position, char, depth in by_depth(answer):
        if char == separator and depth == 0 and answer[position - 1 : position] != "\\":  # no thin space
            parts.append(answer[start:position])
            start = position + 1
    return [*parts, answer[start:]]


def by_depth(answer: str) -> Iterable[tuple[int, str, int]]:
    """Position, character and number of open brackets before it; an interval may end in another kind of bracket."""
    depth = 0
    for position, char in enumerate(answer):
        if char in ")]}":
            depth -= 1
        yield position, char, depth
        if char in "([{":
            depth += 1


def depth_at(answer: str, place: int) -> int:
    """How many brackets are open there."""
    return next(depth for position, _, depth in by_depth(answer) if position == place)


def without_sizes(answer: str) -> str:
    """Without `\\left`, `\\big` and their like."""
    return _SIZES.sub("", answer.replace(r"\left.", "").replace(r"\right.", ""))


def without_spacing(answer: str) -> str:
    """With plain blanks for LaTeX's, and matrices in the brackets that the parser knows."""
    answer = _ARRAY.sub(r"\\begin{bmatrix}\1\\end{bmatrix}", answer)
    return _SPACING.sub(" ", answer).strip()


def by_commas_grouped(answer: str) -> str:
    """Numbers without the commas that group their thousands. Only outside brackets, whose commas part members."""
    depths = [depth for _, _, depth in by_depth(answer)]

    def joined(number: re.Match[str]) -> str:
        return number[0].replace(",", "") if depths[number.start()] == 0 else number[0]

    return _GROUPED_BY_COMMAS.sub(joined, answer)


def expression(answer: str) -> str:
    """An expression in the LaTeX that the parser knows: Python's notation, sizes and blanks, mixed numbers, degrees."""
    answer = without_sizes(answer)
    answer = _code(answer)
    answer = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", answer)
    answer = re.sub(r"\\sqrt\s*(\d|[A-Za-z])", r"\\sqrt{\1}", answer)
    answer = re.sub(r"\^\s*([-+]\s*\d+|[-+]\s*[A-Za-z]\b)", r"^{\1}", answer)
    answer = re.sub(r"\\log_\s*(\d)\s*(?=[\d(\\{])", r"\\log_{\1} ", answer)
    answer = _MIXED.sub(_mixed, _MIXED_IN_TEXT.sub(_mixed, answer))
    answer = _GROUPED_BY_COMMAS.sub(lambda number: number[0].replace(",", ""), answer)
    return _in_radians(answer) if r"\circ" in answer else answer


def _mixed(match: re.Match[str]) -> str:
    """`2\\frac{1}{2}` as the sum that it is, unless the fraction is improper: then it is left to the parser."""
    whole, numerator, denominator = map(int, match.groups())
    if not 0 < numerator < denominator:
        return match[0]
    return rf"\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


def _in_radians(answer: str) -> str:
    """Degrees as radians within a sine or its like; elsewhere they are a unit."""
    if not _TRIGONOMETRIC.search(answer):
        return re.sub(_DEGREES, " ", answer)
    answer = _ANGLE.sub(r"(\\frac{\1\\pi}{180})", answer)
    return _ANGLE_OF_GROUP.sub(lambda match: rf"(({match[1] or match[2]})\cdot\frac{{\pi}}{{180}})", answer)


def _code(answer: str) -> str:
    """Python's and SymPy's notation: `5**(1/3)`, `sqrt(7)`, `exp(9)`, `2*x`, `pi`, `Rational(1, 2)`."""
    answer = _CODE_NAMES.sub(lambda match: r"\pi " if match[1] == "pi" else r"\infty ", answer.replace("**", "^"))
    while match := _POWER_OF_GROUP.search(answer):
        end = closing(answer, match.end())
        if end is None:
            return answer
        answer = f"{answer[: match.start()]}^{{{answer[match.end() : end]}}}{answer[end + 1 :]}"
    while match := _CODE_CALL.search(answer):
        end = closing(answer, match.end())
        if end is None:
            return answer
        answer = answer[: match.start()] + _call(match[1], answer[match.end() : end]) + answer[end + 1 :]
    answer = _BARE_FUNCTION.sub(r"\\\1", answer)
    return re.sub(r"(?<=[\w)}\]!])\s*\*\s*(?=[\w({\\])", r"\\cdot ", answer)


def _call(name: str, argument: str) -> str:
    if name in ("sqrt", "cbrt"):
        return rf"\sqrt{'[3]' if name == 'cbrt' else ''}{{{argument}}}"
    if name in ("Rational", "pow"):
        first, _, second = argument.partition(",")
        return rf"\frac{{{first}}}{{{second or 1}}}" if name == "Rational" else f"({first})^{{{second}}}"
    if name in ("abs", "Abs"):
        return rf"\lvert {argument} \rvert"
    if name in ("floor", "ceil", "ceiling"):
        side = "floor" if name == "floor" else "ceil"
        return rf"\l{side} {argument} \r{side}"
    if name == "factorial":
        return f"({argument})!"
    if name in ("asin", "acos", "atan"):
        name = f"arc{name[1:]}"
    return rf"\{name}({argument})"


def closing(text: str, start: int) -> int | None:
    """Where the bracket opened just before `start` closes."""
    for position, char, depth in by_depth(text[start:]):
        if char in ")]}" and depth < 0:
            return start + position
    return None
