"""Letters and names in LaTeX, so that the parser takes each for one symbol: `E_{1}`, `\\gamma`, `m_{\\max}`, `f(3)`.

latex2sympy reads `\\gamma` as Euler's constant or the Gamma function, `E` and `d` as parts of other tokens, and drops
what a subscript means; it takes `\\variable{...}` for one symbol of any name.
"""

from __future__ import annotations

import re
from typing import Any

import sympy

from pbsd.rewards.math_latex import closing

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|varrho|sigma|"
    "varsigma|tau|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega|ell|hbar"
)
_ACCENTS = (
    "bar|overline|vec|overrightarrow|hat|widehat|tilde|widetilde|dot|ddot|mathbf|mathcal|mathfrak|mathscr|mathsf|"
    "boldsymbol|bm|text|mathrm|mathit|textbf|mbox|operatorname|mathbb|overset|underset"
)
_PLAIN = ("mathrm", "mathit", "text", "textbf", "mbox", "operatorname", "mathsf")
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "exp", "ln", "log",
    "max", "min", "gcd", "lcm", "det", "arcsec", "arccsc", "arccot",
}  # fmt: skip
_OPERATOR_NAMES = {"lcm": "lcm", "gcd": "gcd", "sech": None, "csch": None, "sgn": None}
_TOKEN = re.compile(
    rf"\\({_GREEK})(?![A-Za-z])|\\({_ACCENTS})\s*\{{|(\\[A-Za-z]+)|([A-Za-z])|([^\\A-Za-z]+)|(.)", re.DOTALL
)
_FUNCTION_LETTERS = re.compile(r"[fghFGHPQp]|\\(?:phi|psi|varphi)")
_DIFFERENTIAL = re.compile(r"\\int|\\(?:d|t)?frac\s*\{\s*(?:d|\\partial)(?![A-Za-z]{2})|\\partial")
_LABEL_COMMANDS = (
    "gcd|lim|limsup|liminf|to|infty|max|min|sup|inf|mid|triangle|angle|left|right|cap|cup|circ|star|prime|det|dim|deg|ker|arg|"
    "Re|Im|odot|square|perp|parallel|le|ge|ne|in|frac|cdot|times|sqrt|pi|sin|cos|tan|log|ln|exp|lfloor|rfloor"
)
_NAME_COMMAND = re.compile(rf"{_GREEK}|{_ACCENTS}|{_LABEL_COMMANDS}")
_NAME_BASE = rf"(?:\\(?:{_GREEK})(?![A-Za-z])|\\(?:{_ACCENTS})\s*\{{[^{{}}=<>]*\}}|[A-Za-z])"
_SCRIPT = r"(?:\s*[_^]\s*(?:\{[^{}=<>]*(?:\{[^{}=<>]*\}[^{}=<>]*)*\}|\\[A-Za-z]+|[A-Za-z0-9*]))"
_NAME = re.compile(
    rf"\s*(?:{_NAME_BASE}(?:\s*_\s*(?:\{{[^{{}}=<>]*(?:\{{[^{{}}]*\}}[^{{}}=<>]*)*\}}|\\[A-Za-z]+|[A-Za-z0-9]))?'*"
    rf"|\\angle\s*[A-Z]{{1,3}}|[A-Z]{{2,4}}|\|[A-Z]{{2}}\||\[[A-Z]{{3,6}}\]|[A-Za-z]{{3,}}(?:\s+[A-Za-z]{{2,}})*)\s*"
)
_APPLICATION = re.compile(rf"\s*({_NAME_BASE}{_SCRIPT}{{0,2}}'*)\s*(?:\\left)?\s*\(", re.DOTALL)


def is_name(text: str) -> bool:
    """Is the text one name: a letter with or without a subscript, an angle, a segment, words?"""
    if is_function(text):
        return True
    return text.strip() not in ("e", "i", r"\pi") and _NAME.fullmatch(text) is not None and _is_known(text, "'^_*|[]")


def is_function(text: str) -> bool:
    """Is the text a function of something, such as `f(x)` or `P(X > 3)`, and no product such as `x(x + 1)`?"""
    match = _APPLICATION.match(text)
    if match is None or not _is_known(text, "'^_*|[]()<>=+/!:-"):
        return False
    text = text.rstrip()
    end = closing(text, match.end())
    if end != len(text) - 1:
        return False
    base = match[1].strip()
    return (
        bool(_FUNCTION_LETTERS.match(base))
        or base.startswith("\\")
        or re.fullmatch(r"[\w\\,]+", text[match.end() : end]) is not None
    )


def is_label(text: str) -> bool:
    """May the text name a value though it is no expression, as `\\lim_{n \\to \\infty} a_n`, `\\mathbb{E}[X]` do?"""
    without_marks = text.replace(r"^\circ", "").replace("^*", "").replace(r"^{\circ}", "")
    return re.search("[A-Za-z]", text) is not None and _is_known(without_marks, "'_|[]():-")


def _is_known(text: str, signs: str) -> bool:
    """Is the text made of letters, digits, braces, these signs and commands that may stand in a name?"""
    commands = re.findall(r"\\([A-Za-z]+)", text)
    return re.fullmatch(rf"[\w\s\\{{}}.,{re.escape(signs)}]*", text) is not None and all(
        _NAME_COMMAND.fullmatch(command) for command in commands
    )


def argument(name: str) -> tuple[str, str] | None:
    """The function and the one letter that it is given, of a name such as `f(x)`."""
    match = re.fullmatch(r"([A-Za-z\\_'0-9]+)\(([A-Za-z])\)", name)
    return (match[1], match[2]) if match else None


def encoded(latex: str) -> str:
    """The LaTeX with every letter, its subscript included, as one symbol, but for those that stand for numbers."""
    is_integral = _DIFFERENTIAL.search(latex) is not None
    parts, position = [], 0
    while position < len(latex):
        match = _TOKEN.match(latex, position)
        assert match is not None
        greek, accent, command, letter, other = match.group(1, 2, 3, 4, 5)
        position = match.end()
        if accent:
            end = closing(latex, position)
            if end is None:
                return latex
            content, position = latex[match.end() : end], end + 1
            content = re.sub(r"\s+", " ", content).strip()
            if accent == "mathbb" or (accent == "operatorname" and _OPERATOR_NAMES.get(content)):
                parts.append(rf"\{accent}{{{content}}}" if accent == "mathbb" else rf"\{content}")
                continue
            if accent in _PLAIN and content in _FUNCTIONS:
                parts.append(rf"\{content} ")
                continue
            if accent in _PLAIN and re.fullmatch(r"[A-Za-z]", content):
                letter, base = content, content
            else:
                base = content if accent in _PLAIN else f"{accent}({content})"
        elif greek:
            base = greek
        elif letter:
            base = letter
        else:
            parts.append(command or other or match[0])
            continue
        subscript, position = _subscript(latex, position)
        call = None if is_integral else _application(latex, position, base)
        if call is None and not subscript and ((letter and letter not in "dEI") or (letter == "d" and is_integral)):
            parts.append(f" {letter}" if parts and re.search(r"\\[A-Za-z]+\Z", parts[-1]) else letter)
            continue
        name = f"{base}_{subscript}" if subscript else base
        if call is not None and greek == "Gamma":
            parts.append(r"\Gamma")
            continue
        if call is not None:
            if not _is_known(latex[position:call], "'^_*|[](),+/!-"):
                raise ValueError(f"{latex[position:call]!r} in a function")
            name, position = f"{name}({latex[position:call].strip().lstrip('(').strip()})", call + 1
        parts.append(symbol(name))
    return "".join(parts)


def _application(latex: str, position: int, letter: str) -> int | None:
    """Where the argument ends that a function is given here: `f`, Gamma, zeta; of another letter if it is a number, as
    in `I(0)`, which is not 0."""
    if not (opening := re.match(r"\s*\(", latex[position:])):
        return None
    end = closing(latex, position + opening.end())
    is_number = end is not None and re.fullmatch(r"-?\d+", latex[position + opening.end() : end].strip()) is not None
    return end if letter in ("f", "Gamma", "zeta") or (letter not in ("e", "i") and is_number) else None


def _subscript(latex: str, position: int) -> tuple[str, int]:
    match = re.compile(r"\s*_\s*").match(latex, position)
    if match is None:
        return "", position
    start = match.end()
    if latex[start : start + 1] == "{":
        end = closing(latex, start + 1)
        if end is None:
            return "", position
        content, after = latex[start + 1 : end], end + 1
    else:
        token = re.compile(r"\\[A-Za-z]+|\d+|.", re.DOTALL).match(latex, start)
        if token is None:
            return "", position
        content, after = token[0], token.end()
    if not _is_known(content, "'^_*|[]()<>=+/!:-"):
        raise ValueError(f"{content!r} in a subscript")
    return re.sub(r"\\(?:text|mathrm|mathbf|mathit)(?![A-Za-z])|[\s{}\\]", "", content) or "_", after


def symbol(name: str) -> str:
    """LaTeX of one symbol with any name."""
    return rf"\variable{{v{name.encode().hex()}}}"


def decoded(expression: Any) -> Any:
    """The expression with the names that `encoded` hid, `i` as the imaginary unit, functions that are not known as
    symbols, and odd roots of negative numbers as the real ones."""
    names: dict[Any, Any] = {}
    for item in expression.free_symbols:
        if item.name == "i":
            names[item] = sympy.I
        elif re.fullmatch(r"v(?:[0-9a-f]{2})+", item.name):
            names[item] = sympy.Symbol(bytes.fromhex(item.name[1:]).decode(), real=True)
    for call in expression.atoms(sympy.core.function.AppliedUndef):
        names[call] = sympy.Symbol(str(call), real=True)
    for power in expression.atoms(sympy.Pow):
        base, exponent = power.args
        if base.is_Rational and base < 0 and exponent.is_Rational and exponent.q % 2 and not exponent.is_Integer:
            names[power] = (-1) ** exponent.p * sympy.Pow(-base, exponent)  # the real root
    return expression.xreplace(names) if names else expression
