"""Formats of JSON behind a marker: whole call objects, or a function's name and the JSON of its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from pbsd.rewards.tool_syntax import python, xml
from pbsd.rewards.tool_syntax.calls import Call, decode, decode_object, json_calls

Reader = Callable[[str, re.Match[str]], tuple[list[Call], int]]
"""Of a text and the match of a format's beginning in it: the calls that stand there, and where they end.

No calls and a place to go on where it is none after all. Raises ValueError where they are begun and cannot be read.
"""

_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"\s*(?:[;,]\s*)?(?=[{\[])")
_JSON_BEGINS = re.compile(r"\s*\[?\s*\{")
_NAME = r"[^\s<>()\[\]{}\"'`|｜]{1,200}"

_PYTHON_TAG = re.compile(r"<\|python_tag\|>\s*")

_MISTRAL = re.compile(rf"\s*\[TOOL_CALLS\]\s*({_NAME})\s*(?:\[CALL_ID\]\s*[\w\-]{{0,200}}\s*)?(?:\[ARGS\]\s*)?(?=\{{)")

DEEPSEEK_BEGINS = (
    r"<｜tool[▁_]call(?:s[▁_]begin|[▁_]begin)｜>|<｜tool[▁_]sep｜>|(?m:^)function[\w.\-]{1,200}\s?\n```json\n"
)
_DEEPSEEK_OPENS = re.compile(r"<｜tool[▁_]calls[▁_]begin｜>\s*")
_DEEPSEEK_CALL = re.compile(rf"\s*<｜tool[▁_]call[▁_]begin｜>\s*({_NAME})\s*<｜tool[▁_]sep｜>\s*")
_DEEPSEEK_NAMED = re.compile(rf"({_NAME})\s*```(?:json)?\s*")
_DEEPSEEK_ENDS = re.compile(r"\s*(?:```)?\s*(?:<｜tool[▁_]call[▁_]end｜>)?")
_DEEPSEEK_CLOSES = re.compile(r"\s*<｜tool[▁_]calls[▁_]end｜>")
_DEEPSEEK_BARE = re.compile(r"\s*function([\w.\-]{1,200})\s?\n```json\n\s*")

KIMI_BEGINS = r"<\|tool_calls_section_begin\|>|<\|tool_call_begin\|>"
_KIMI_OPENS = re.compile(r"<\|tool_calls_section_begin\|>\s*")
_KIMI_CALL = re.compile(
    rf"\s*<\|tool_call_begin\|>\s*(?:functions\.)?({_NAME}?)(?::\d{{1,9}})?\s*<\|tool_call_argument_begin\|>\s*"
)
_KIMI_ENDS = re.compile(r"\s*(?:<\|tool_call_end\|>)?")
_KIMI_CLOSES = re.compile(r"\s*<\|tool_calls_section_end\|>")

FUNCTIONARY_BEGINS = r"(?<![^\n])>>>(?=[\w.\-]{1,200}(?:\n|\Z))"
_FUNCTIONARY = re.compile(r">>>([\w.\-]{1,200})\n\s*")

_QWEN_AGENT = re.compile(rf"✿FUNCTION✿:\s*({_NAME})\s*✿ARGS✿:\s*")

_APERTUS_ENDS = re.compile(r"\s*<\|tools_suffix\|>")

_BARE_NAME = re.compile(r"\s*(functions\.)?([A-Za-z_][\w.\-]{0,199})(:\d{1,9})?(\s*)(?=\{)")

HARMONY_BEGINS = r"<\|channel\|>\s*(?:analysis|commentary|final)|\bto=functions(?:\.|\Z)"
_HARMONY_HEADER = re.compile(
    r"<\|channel\|>\s*(analysis|commentary|final)([^<]{0,300})"
    r"(?:<\|constrain\|>[^<]{0,20})?<\|message\|>"
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]{1,200})")
_HARMONY_CALL = re.compile(
    r"to=functions\.([\w.\-]{1,200}?)\s?(?:<\|channel\|>)?\s?(?:(?:commentary|analysis)\b)?\s?"
    r"(?:<\|constrain\|>)?\s?(?:json\b)?\s?(?:<\|message\|>)?\s{0,9}(?=\{)"
)
_HARMONY_ENDS = re.compile(r"<\|end\|>|<\|start\|>|(?=<\|channel\|>)")
_CALL_ENDS = re.compile(r"\s*<\|call\|>")


def tagged_json(
    begins: str, ends: str, *, required: bool = True, several: bool = True, open_list: bool = False
) -> Reader:
    """The reader of call objects, or lists of them, between two markers. The JSON decides where they end: a marker in
    one of its strings is text. `required`: must they be closed? `several`: may more than one value stand there?
    `open_list`: does the end of the text close a list too?"""
    opening, closing = re.compile(begins), re.compile(rf"\s*(?:{ends})")

    def read(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
        opened = opening.match(text, start.start())
        assert opened is not None
        begun = _skip(text, opened.end())
        calls, end = _json_values(text, begun, several=several)
        closed = closing.match(text, end)
        ended = open_list and text[begun] == "[" and _skip(text, end) == len(text)
        if closed is None and required and not ended:
            raise ValueError("no closing marker follows")
        return calls, closed.end() if closed else end

    return read


def _json_values(text: str, start: int, *, several: bool = True) -> tuple[list[Call], int]:
    """Call objects one after another, with blanks, a comma or Llama's semicolon between them."""
    value, end = decode(text, start)
    calls = json_calls(value)
    while several and (between := _BETWEEN.match(text, end)):
        value, end = decode(text, between.end())
        calls += json_calls(value)
    return calls, end


def _at(text: str, start: int) -> re.Match[str]:
    """A match that begins at `start`: the blanks there, if any."""
    blank = _SPACE.match(text, start)
    assert blank is not None
    return blank


def _skip(text: str, start: int) -> int:
    return _at(text, start).end()


def llama(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<|python_tag|>` with call objects, Python calls, or a built-in tool's `brave_search.call(query="...")`."""
    opened = _PYTHON_TAG.match(text, start.start())
    assert opened is not None
    if _JSON_BEGINS.match(text, opened.end()):
        return _json_values(text, opened.end())
    closing = text.find("<|", opened.end())
    end = closing if closing >= 0 else len(text)
    calls = python.python_calls(text[opened.end() : end].strip(), json_names=True)
    return [Call(call.name.removesuffix(".call"), call.arguments) for call in calls], end


def tagged_python(begins: str, ends: str, *, required: bool) -> Reader:
    """The reader of Python calls, `[f(a=1)]` or one a line, between two markers; JSON call objects too."""
    opening, closing, json_ = re.compile(begins), re.compile(ends), tagged_json(begins, ends, required=required)

    def read(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
        opened = opening.match(text, start.start())
        assert opened is not None
        if _JSON_BEGINS.match(text, opened.end()):
            return json_(text, start)
        closed = closing.search(text, opened.end())
        if closed is None and required:
            raise ValueError("it is not closed")
        body = text[opened.end() : closed.start() if closed else len(text)]
        return python.python_calls(body.strip(), json_names=True), closed.end() if closed else len(text)

    return read


def mistral(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`[TOOL_CALLS]` with a list of call objects, or for each call its name, perhaps its id, and its arguments."""
    opened = start.start() + len("[TOOL_CALLS]")
    begin = _skip(text, opened)
    if text[begin : begin + 1] in ("[", "{") and not text.startswith(("[ARGS]", "[CALL_ID]"), begin):
        return _json_values(text, begin)
    named = _MISTRAL.match(text, start.start())
    if named is None:
        raise ValueError("no function's name with an object of arguments after it")
    arguments, end = decode_object(text, named.end())
    return [Call(named[1], arguments)], end


def deepseek(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """V3's and R1's `function<｜tool▁sep｜>f` with a fence of JSON, V3.1's `f<｜tool▁sep｜>{...}`, Step 3's invokes."""
    if text.startswith("function", start.start()):  # where its special tokens were left out when it was decoded
        return _deepseek_bare(text, start.start())
    section = _DEEPSEEK_OPENS.match(text, start.start())
    end = section.end() if section else start.start()
    calls: list[Call] = []
    while opening := _DEEPSEEK_CALL.match(text, end):
        end = opening.end()
        if text.startswith("<steptml:", end):
            invoked, end = xml.invoke_calls(text, _at(text, end))
            calls += invoked
        else:
            name = opening[1]
            if named := _DEEPSEEK_NAMED.match(text, end):
                name, end = named[1], named.end()
            arguments, end = decode_object(text, end)
            calls.append(Call(name, arguments))
        closing = _DEEPSEEK_ENDS.match(text, end)
        assert closing is not None
        end = closing.end()
    if not calls:
        raise ValueError("no <｜tool▁call▁begin｜> with a name and <｜tool▁sep｜> after it")
    closing = _DEEPSEEK_CLOSES.match(text, end)
    return calls, closing.end() if closing else end


def _deepseek_bare(text: str, end: int) -> tuple[list[Call], int]:
    calls: list[Call] = []
    while opening := _DEEPSEEK_BARE.match(text, end):
        arguments, end = decode_object(text, opening.end())
        calls.append(Call(opening[1], arguments))
        closing = _DEEPSEEK_ENDS.match(text, end)
        assert closing is not None
        end = closing.end()
    return calls, end


def kimi(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>`, in a section or not."""
    section = _KIMI_OPENS.match(text, start.start())
    end = section.end() if section else start.start()
    calls: list[Call] = []
    while opening := _KIMI_CALL.match(text, end):
        arguments, end = decode_object(text, opening.end())
        calls.append(Call(opening[1], arguments))
        closing = _KIMI_ENDS.match(text, end)
        assert closing is not None
        end = closing.end()
    if not calls:
        raise ValueError("no <|tool_call_begin|> with a name and <|tool_call_argument_begin|> after it")
    closing = _KIMI_CLOSES.match(text, end)
    return calls, closing.end() if closing else end


def harmony(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """gpt-oss: a message to a function, in whatever order its template or the model writes the header.

    What the analysis channel says is thought; the final channel is text like any other.
    """
    header = _HARMONY_HEADER.match(text, start.start())
    if header is None:
        return _harmony_call(text, start)
    recipient = _RECIPIENT.search(header[2])
    if recipient and recipient[1] not in ("all", "user", "assistant"):
        return _harmony_arguments(text, recipient[1], header.end())
    if header[1] != "analysis":
        return [], header.end()
    closing = _HARMONY_ENDS.search(text, header.end())
    if closing is None:
        raise ValueError("the text ends inside the analysis channel")
    return [], closing.end()


def _harmony_call(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """The recipient before the channel, or a header whose special tokens were left out when it was decoded."""
    found = _RECIPIENT.search(text, start.start(), start.start() + 300)
    call = _HARMONY_CALL.match(text, found.start()) if found else None
    if call is None:
        raise ValueError("no object of arguments after the channel and the function's name")
    before = text[max(0, call.start() - 20) : call.start()]
    name = call[1] if "commentary" in before else call[1].removesuffix("commentary")
    return _harmony_arguments(text, name, call.end())


def _harmony_arguments(text: str, name: str, start: int) -> tuple[list[Call], int]:
    arguments, end = decode_object(text, _skip(text, start))
    closing = _CALL_ENDS.match(text, end)
    return [Call(name, arguments)], closing.end() if closing else end


def functionary(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`>>>f` and on the next line its arguments; `>>>all` opens an answer to the user."""
    opening = _FUNCTIONARY.match(text, start.start())
    if opening is None:
        raise ValueError("the text ends after the function's name")
    if opening[1] == "all":
        return [], opening.end()
    arguments, end = decode_object(text, opening.end())
    return [Call(opening[1], arguments)], end


def apertus(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`<|tools_prefix|>` with a list of objects, each of which holds a name and its arguments."""
    value, end = decode(text, _skip(text, start.end()))
    calls: list[Call] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict) and len(item) == 1 and all(isinstance(given, dict) for given in item.values()):
            calls += [Call(name, arguments) for name, arguments in item.items()]
        else:
            calls += json_calls(item)
    closing = _APERTUS_ENDS.match(text, end)
    return calls, closing.end() if closing else end


def qwen_agent(text: str, start: re.Match[str]) -> tuple[list[Call], int]:
    """`✿FUNCTION✿: f` and on the next line `✿ARGS✿: {...}`."""
    opening = _QWEN_AGENT.match(text, start.start())
    if opening is None:
        raise ValueError("no function's name with ✿ARGS✿ after it")
    arguments, end = decode_object(text, opening.end())
    return [Call(opening[1], arguments)], end


def named_objects(text: str, names: Collection[str]) -> list[Call]:
    """The calls of a text that is wholly `f{...}`, as Mistral's, Kimi's and DeepSeek's calls are without their markers.

    Also with the object on the next line, as GLM-4 and Functionary have it, where the name is one of `names` or cannot
    be a heading. None where it is something else. Raises ValueError where such a call cannot be read.
    """
    calls: list[Call] = []
    end = 0
    while opening := _BARE_NAME.match(text, end):
        functions, name, number, gap = opening.groups()
        if gap and not (functions or number or name in names or re.search(r"[_.]|[a-z][A-Z]", name)):
            return []
        try:
            arguments, end = decode_object(text, opening.end())
        except ValueError:
            if name in names or re.compile(r'\{\s*"').match(text, opening.end()):
                raise
            return []
        calls.append(Call(name, arguments))
    return [] if text[end:].strip() else calls
