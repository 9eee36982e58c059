"""Finds the calls in a text: by the markers of each format, and in JSON and Python without any."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from pbsd.rewards.tool_syntax import python, unmarked
from pbsd.rewards.tool_syntax.calls import Call, NoCall, load_json, plain
from pbsd.rewards.tool_syntax.formats import ACTION, CODE_TAG, FENCE, JSON, MARKED, NAMED, PYTHON, UNKNOWN, Format
from pbsd.rewards.tool_syntax.known import known_calls
from pbsd.rewards.tool_syntax.marked import named_objects

SYNTAXES = ("auto", *(form.name for form in NAMED))

_FORMATS = {form.name: form for form in (*MARKED, ACTION, JSON, PYTHON, FENCE, CODE_TAG)}
_UNMARKED = (JSON.name, PYTHON.name, FENCE.name, CODE_TAG.name)
"""One format to the eye: JSON or Python, bare or fenced. Of the others a text holds calls in one only."""

_TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "<|return|>", "<|user|>",
    "<|observation|>", "<|eot|>", "<|eom|>", "<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>", "<|assistant_end|>",
    "[|endofturn|]", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<|tool_response>",
    "<start_function_response>",
)  # fmt: skip
"""What a template writes after a turn, where the text was decoded with its special tokens."""


def _begins(forms: Sequence[Format]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{form.name}>{form.begins})" for form in forms))


# No format begins otherwise: nearly all places of a text are passed over by that alone.
_ANY = re.compile(
    rf"(?=[<\[{{\]`>✿]|Action:|to=|tool_code|func|call:)(?:{_begins(tuple(_FORMATS.values())).pattern}|(?P<unknown>{UNKNOWN.pattern}))"
)
_ANY_MARKED = _begins((*MARKED, ACTION))
_BEGINS = {name: _begins([form]) for name, form in _FORMATS.items()}
_CLOSES = re.compile(r"/|end|END|^<\w+\|>$")


def read_calls(text: str, syntax: str, names: Collection[str] = ()) -> list[Call]:
    """The calls written in `text`, in order; values without a type stay `Untyped`. See `parse_calls`.

    `names`: the functions that are known, by which JSON `{"f": {...}}`, or f with its arguments on the next line, is a
    call and no data, and calls in other forms are found with the syntax `auto` (see `known.known_calls`).
    """
    text = _without_turn_end(text)
    try:
        return _auto(text, names) if syntax == "auto" else _named(text, syntax, names)
    except RecursionError:
        raise ValueError("the calls are nested too deeply") from None


def parse_calls(text: str, syntax: str) -> list[Call]:
    """The calls written in `text`, in order.

    `syntax` is a format's name, one of `SYNTAXES` (`formats.NAMED` says what each looks like and who writes it):

    - with markers of its own, such as `hermes` or `mistral`: every place that begins with one is read; any text may
      stand around them. `action` likewise, from its first line on;
    - `json`: the whole text, or code fences, are call objects or lists of them (see `calls.json_calls`);
    - `python`: likewise `f(a=1)`, `[f(a=1), m.g(b="x")]`, or one call a line; values are literals, all named;
    - `auto`: JSON or Python where the text is wholly that; `f{...}` where it is wholly that (calls whose special tokens
      were left out when it was decoded); else what the first marker in it says; else code fences, call objects and
      lists `[f(a=1)]` in any text. A Python call without brackets in a text is a mention.

    A closing marker that is a special token may be missing, since it often ends the turn; a tag may not, but for
    `</tool_call>` behind a list that ends the text (Granite 3). A marker in a
    string of JSON is text.

    Raises NoCall when no call is made or tried, and ValueError, naming the format and what was expected, when one is
    and cannot be read: JSON that is broken or cut off, a marker of an unknown format, two formats in one text. With a
    named syntax, NoCall when no call is in that format.
    """
    return [plain(call) for call in read_calls(text, syntax)]


def looks_like_call(text: str, names: Collection[str] = ()) -> bool:
    """Is a call made or tried, whether or not it can be read? Prose that mentions one, data and programs are none."""
    try:
        return bool(read_calls(text, "auto", names))
    except NoCall:
        return False
    except ValueError:
        return True


def _auto(text: str, names: Collection[str]) -> list[Call]:
    body = unmarked.unfenced(text)
    # What the text wholly is comes first, since a marker in one of its strings is text.
    if body[:1] in ("{", "[") and _is_json(body):
        return _read(JSON, lambda: unmarked.json_body(body, names))
    if python.BEGINS.match(body.lstrip("[ \n")):
        with contextlib.suppress(ValueError):
            return python.python_calls(body)
    calls = _read(_FORMATS["mistral"], lambda: named_objects(text, names)) or _scan(text, _ANY)
    if calls := calls or _known(text, names):
        return calls
    try:
        return _read(PYTHON, lambda: unmarked.python_body(body))
    except NoCall:
        raise NoCall(f"no call was found in any known format: {', '.join(SYNTAXES[1:])}") from None


def _named(text: str, syntax: str, names: Collection[str]) -> list[Call]:
    form, reason = _FORMATS[syntax], ""
    body = unmarked.unfenced(text)
    if form not in (JSON, PYTHON):
        calls = _scan(text, _BEGINS[syntax])
    else:
        try:
            return unmarked.json_body(body, names) if form is JSON else python.python_calls(body)
        except ValueError as failure:
            fences = Format(FENCE.name, "", "", form.looks, unmarked.fence(json=form is JSON, code=form is PYTHON))
            calls = _scan(text, _BEGINS[FENCE.name], {FENCE.name: fences})
            reason = f" ({failure})"
    if not calls:
        raise NoCall(f"no call in the format {syntax!r} was found{reason}; expected {form.looks}")
    return calls


def _scan(text: str, begins: re.Pattern[str], forms: Mapping[str, Format] = _FORMATS) -> list[Call]:
    """The calls at all places where a format begins. Raises ValueError where one cannot be read, or they are mixed."""
    calls: list[Call] = []
    found = ""
    position = 0
    while begun := begins.search(text, position):
        name = str(begun.lastgroup)
        if name == "unknown":
            if not calls or not _CLOSES.search(begun[0]):
                raise ValueError(
                    f"{begun[0]!r} marks a call in a format that is not known; known are {', '.join(SYNTAXES[1:])}"
                )
            position = begun.end()
            continue
        form = forms[name]
        try:
            read, end = form.read(text, begun)
        except ValueError as failure:
            raise ValueError(_unread(form, failure)) from None
        if read:
            family = "json or python" if name in _UNMARKED else name
            if found and found != family:
                raise ValueError(f"calls are written in two formats, {found} and {family}")
            found = family
            calls += read
        elif name == FENCE.name and (marked := _ANY_MARKED.search(text, begun.end(), end)):
            end = marked.start()
        position = max(end, begun.start() + 1)
    return calls


def _read(form: Format, read: Callable[[], list[Call]]) -> list[Call]:
    try:
        return read()
    except NoCall:
        raise
    except ValueError as failure:
        raise ValueError(_unread(form, failure)) from None


def _known(text: str, names: Collection[str]) -> list[Call]:
    try:
        return known_calls(text, names)
    except ValueError as failure:
        raise ValueError(
            f"a call of a known function cannot be read ({failure}); the formats that are read are "
            f"{', '.join(SYNTAXES[1:])}"
        ) from None


def _unread(form: Format, failure: ValueError) -> str:
    return f"a call in the format {form.name!r} cannot be read ({failure}); expected {form.looks}"


def _is_json(text: str) -> bool:
    try:
        load_json(text)
    except ValueError:
        return False
    return True


def _without_turn_end(text: str) -> str:
    end = len(text.rstrip())
    while token := next((token for token in _TURN_ENDS if text.endswith(token, 0, end)), None):
        end -= len(token)
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end]
