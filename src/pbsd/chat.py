"""Chats under a tokenizer's chat template: rendered so that nothing vanishes, where a turn ends, and how one is read.

Chat templates drop without a word what they do not know: tools, system messages, content in a form they do not read.
So the shape of every chat is rendered once with probe words in place of its texts, and what does not come out is an
error.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema

Message = Mapping[str, Any]
Messages = Sequence[Message]

TOOLS_FIX = (
    "use a tokenizer whose chat template reads `tools`; or set tools_template, which writes them into the system "
    "message; or set tools_template='' where they are for the rewards alone"
)

logger = logging.getLogger(__name__)


class ChatError(ValueError):
    """A chat that the template does not render whole, with the reason."""


class ChatTemplate:
    """A tokenizer's chat template with its keyword arguments.

    Raises ValueError for keyword arguments that `apply_chat_template` takes itself; warns of those that the template
    does not read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        self._forms: dict[str, tuple[_Form, bool]] = {}
        self._unread: set[str] = set()
        self._check_kwargs(self.kwargs)

    def render(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        documents: Sequence[Mapping[str, Any]] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as text, up to where the assistant goes on: after the generation prompt, or after the last message's
        content where that is the assistant's.

        Args:
            messages: `{role, content, ...}`; content is text or text parts.
            tools: JSON schemas, see `tool_schemas`.
            documents: `{title, text, ...}` for templates that take them.
            kwargs: the row's own, which win over the template's.

        Raises ChatError where the template refuses the chat or leaves out some of it.
        """
        if not self.tokenizer.chat_template:
            raise ChatError(
                "the prompt is a chat but the tokenizer has no chat template: set tokenizer.chat_template, use an "
                "instruction-tuned model, or give `prompt` as plain text"
            )
        self._check_kwargs(kwargs or {})
        chat = _Chat(
            tuple(map(_with_text, messages)), tuple(tools), tuple(documents), {**self.kwargs, **(kwargs or {})}
        )
        key = chat.shape
        if key not in self._forms:
            self._forms[key] = self._form(chat)
        form, writes_tools = self._forms[key]
        if tools and not writes_tools:
            check_described(tools, "\n".join(str(message.get("content") or "") for message in chat.messages))
        text = self._apply(chat, form)
        if lost := [name for tool in tools if (name := tool["function"]["name"]) not in text and writes_tools]:
            raise ChatError(f"the chat template leaves out the tool {lost[0]!r}: {TOOLS_FIX}")
        return text

    @property
    def renders_tools(self) -> bool:
        """Whether the template writes a user's tools."""
        try:
            self.render([{"role": "user", "content": "probe"}], tools=[_probe_tool("probename", "probeargument", "x")])
        except ChatError:
            return False
        return True

    def turn_end(self) -> tuple[int, ...]:
        """The tokens that the template writes after the text of an assistant's turn, up to the special ones that end
        it; empty where it writes none."""
        question, answer = {"role": "user", "content": "probe"}, {"role": "assistant", "content": "probeanswer"}
        return self._end([question, answer], {"role": "user", "content": "again"}, ["probeanswer"], special=False)

    def stop_ids(self) -> set[int]:
        """The tokens that end an assistant's turn, of text and of tool calls."""
        return {end[-1] for end in (self.turn_end(), self._calls_end()) if end}

    def _calls_end(self) -> tuple[int, ...]:
        def call(number: int) -> dict[str, Any]:
            function = {"name": "probename", "arguments": {"probe": f"end{number}"}}
            return {"type": "function", "id": f"probe000{number}", "function": function}

        result = {"role": "tool", "name": "probename", "tool_call_id": "probe0001", "content": "again"}
        for numbers in ((1, 2), (1,)):  # some templates take one call a turn
            turn = {"role": "assistant", "tool_calls": [call(number) for number in numbers]}
            messages: Messages = [{"role": "user", "content": "probe"}, turn]
            if end := self._end(messages, result, [f"end{number}" for number in numbers], special=True):
                return end
        return ()

    def _end(
        self, messages: Messages, next_message: Message, words: Sequence[str], *, special: bool
    ) -> tuple[int, ...]:
        """The ids after the last of `words`, to the added tokens that end the turn: those at its end where nothing
        follows, or without any, the first of the next message. What stands between the words ends no turn. `special`:
        tokens that are no special ones end none, since those close a call."""
        if not self.tokenizer.chat_template:
            return ()
        added = self.tokenizer.added_tokens_decoder.items()
        marks = {id for id, token in added if token.special or not (special or token.content.isspace())}
        for more, form in itertools.product(([], [next_message]), _FORMS):
            try:
                text = self._apply(_Chat((*messages, *more), (), (), self.kwargs), form, open_ended=False)
            except ChatError:
                continue
            if not all(word in text for word in words):
                continue
            start, end = text.index(words[0]) + len(words[0]), text.index(words[-1]) + len(words[-1])
            ids = self.tokenizer.encode(text[end:], add_special_tokens=False)
            inside = set(self.tokenizer.encode(text[start:end], add_special_tokens=False))
            ends = [place for place, id in enumerate(ids) if id in marks - inside]
            if ends:
                last = ends[0]
                while not more and last + 1 < len(ids) and ids[last + 1] in marks:
                    last += 1
                return tuple(ids[: last + 1])
        return ()

    def _form(self, chat: _Chat) -> tuple[_Form, bool]:
        """The form of messages in which the template renders all of the chat's shape, and whether its tools too."""
        probe, words = chat.probe()
        failures: list[tuple[int, str]] = []
        for form in _FORMS:
            try:
                text = self._apply(probe, form)
            except ChatError as error:
                failures.append((len(words) + 1, str(error)))
                continue
            missing = {what: None for word, what in words.items() if word not in text}
            writes_tools = _TOOLS not in missing
            missing.pop(_TOOLS, None)  # they may stand in the messages' own text
            if not missing:
                return form, writes_tools
            fix = "use a chat template that renders them, or change the rows"
            failures.append((len(missing), f"the chat template leaves out {', '.join(missing)}: {fix}"))
        raise ChatError(min(failures)[1])

    def _apply(self, chat: _Chat, form: _Form, *, open_ended: bool = True) -> str:
        continued = open_ended and chat.is_continued
        try:
            text = self.tokenizer.apply_chat_template(
                [form.message(message) for message in chat.messages],
                # Some templates write about tools wherever they are given a list, be it empty.
                tools=[dict(tool) for tool in chat.tools] or None,
                documents=[dict(document) for document in chat.documents] or None,
                tokenize=False,
                add_generation_prompt=open_ended and not continued,
                continue_final_message=continued,
                **chat.kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ChatError(f"the chat template refuses the prompt: {error}") from error
        assert isinstance(text, str)
        return text

    def _check_kwargs(self, kwargs: Mapping[str, Any]) -> None:
        signature = inspect.signature(self.tokenizer.apply_chat_template).parameters.values()
        taken = {parameter.name for parameter in signature if parameter.kind is not parameter.VAR_KEYWORD}
        if reserved := sorted(taken & kwargs.keys()):
            raise ChatError(
                f"chat_template_kwargs may not set {', '.join(reserved)}: they are for the template's own variables. "
                "Tools and documents are columns of the rows; another template is set on the tokenizer"
            )
        for name in sorted(kwargs.keys() - self._unread):
            if not re.search(rf"\b{re.escape(name)}\b", str(self.tokenizer.chat_template)):
                self._unread.add(name)
                logger.warning("the chat template does not read chat_template_kwargs[%r]: it changes nothing", name)


_TOOLS = "the tools"


@dataclass(frozen=True, slots=True)
class _Form:
    """How a template wants messages: contents as text or as text parts, arguments of calls as objects or JSON text, and
    a content that is null or missing left out or as an empty text."""

    parts: bool
    json_arguments: bool
    empty_content: bool

    def message(self, message: Message) -> dict[str, Any]:
        changed = dict(message)
        if self.empty_content and message.get("content") is None:
            changed["content"] = ""
        if self.parts and isinstance(message.get("content"), str):
            changed["content"] = [{"type": "text", "text": message["content"]}]
        if message.get("tool_calls"):
            changed["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return changed

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        arguments = function.get("arguments")
        if self.json_arguments and isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not self.json_arguments and isinstance(arguments, str):
            with suppress(ValueError):  # what is no JSON stays what it is
                arguments = json.loads(arguments)
        changed = {**function, "arguments": arguments}
        return {**call, "function": changed} if "function" in call else changed


_FORMS = [_Form(*choices) for choices in itertools.product((False, True), repeat=3)]


@dataclass(frozen=True, slots=True)
class _Chat:
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    documents: tuple[Mapping[str, Any], ...]
    kwargs: Mapping[str, Any]

    @property
    def is_continued(self) -> bool:
        return self.messages[-1]["role"] == "assistant"

    @property
    def shape(self) -> str:
        """What decides whether and how the template renders the chat, whatever its texts."""
        messages = [
            [message["role"], bool(message.get("content")), len(message.get("tool_calls") or ()), sorted(message)]
            for message in self.messages
        ]
        documents = [sorted(document) for document in self.documents]
        return repr((messages, bool(self.tools), documents, sorted(map(repr, self.kwargs.items()))))

    def probe(self) -> tuple[_Chat, dict[str, str]]:
        """The chat with a word of its own in place of each text, and what each word stands for.

        Earlier thoughts and words beside tool calls are left out by many templates on purpose and have no word.
        """
        words: dict[str, str] = {}

        def word(what: str) -> str:
            made = f"probe{len(words)}word"
            words[made] = what
            return made

        names: dict[str, str] = {}
        messages = []
        for place, message in enumerate(self.messages):
            changed = dict(message)
            calls = message.get("tool_calls") or ()
            what = "the system message" if message["role"] == "system" else f"the {message['role']}'s message {place}"
            if message.get("content") and not calls:
                changed["content"] = word(what)
            if calls:
                changed["tool_calls"] = [_probe_call(call, word(f"{what}'s tool call"), names) for call in calls]
            if message.get("name") in names:
                changed["name"] = names[message["name"]]
            messages.append(changed)
        tools = [_probe_tool(word(_TOOLS), word(_TOOLS), word(_TOOLS))] if self.tools else []
        documents = [
            # Numbers and addresses of documents may be left out, their text may not.
            {name: word("the documents") if name == _text_of(document) else f"probe{name}" for name in document}
            for document in self.documents
        ]
        return _Chat(tuple(messages), tuple(tools), tuple(documents), self.kwargs), words


def _text_of(document: Mapping[str, Any]) -> str:
    """The key of a document's text."""
    known = [name for name in ("text", "contents", "content", "snippet") if name in document]
    return known[0] if known else max(document, key=lambda name: len(str(document[name])))


def _probe_call(call: Mapping[str, Any], word: str, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function", call)
    names[str(function.get("name"))] = word
    changed = {**function, "name": word}
    return {**call, "function": changed} if "function" in call else changed


def _probe_tool(name: str, argument: str, description: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {argument: {"type": "string", "description": "x"}}, "required": []}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def check_described(tools: Sequence[Mapping[str, Any]], text: str) -> None:
    """Raises ChatError unless a prompt's own text describes every tool: its name and arguments as words, and its
    description."""
    spaced = " ".join(text.split())
    for tool in tools:
        function = tool["function"]
        arguments = (function.get("parameters") or {}).get("properties") or {}
        description = " ".join(str(function.get("description") or "").split())
        missing = [
            repr(name)
            for name in (function["name"], *arguments)
            if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        ]
        if description not in spaced and json.dumps(description)[1:-1] not in spaced:
            missing.append("its description")
        if missing:
            raise ChatError(
                f"the tool {function['name']!r} is not described in the prompt ({', '.join(missing)}), and the chat "
                f"template does not write tools: {TOOLS_FIX}"
            )


def document_list(documents: Any) -> list[Mapping[str, Any]]:
    """A row's `documents`: `{title, text, ...}` objects, or their JSON. Raises ChatError for anything else."""
    if isinstance(documents, str) and documents.strip():
        try:
            documents = json.loads(documents)
        except ValueError as error:
            raise ChatError(f"`documents` is text that is not JSON ({error}): {documents[:80]!r}") from error
    if not documents:
        return []
    if not isinstance(documents, list) or not all(isinstance(document, Mapping) and document for document in documents):
        raise ChatError("`documents` must be a list of objects with a title and a text")
    return documents


def tool_schemas(tools: Any) -> list[dict[str, Any]]:
    """A row's `tools` as chat templates read them: `{"type": "function", "function": {name, description, parameters}}`.

    Takes what TRL takes: such schemas, or Python functions with type hints and a docstring; and the schemas' JSON, one
    alone, and bare `{name, parameters}` objects.

    Raises ChatError for anything else.
    """
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise ChatError(f"`tools` is text that is not JSON ({error}): {tools[:80]!r}") from error
    if tools is None:
        return []
    if isinstance(tools, Mapping) or callable(tools):
        tools = [tools]
    if not isinstance(tools, list | tuple):
        raise ChatError(f"`tools` must be a list of JSON schemas or functions, got {type(tools).__name__}")
    return [_tool_schema(tool) for tool in tools]


def _tool_schema(tool: Any) -> dict[str, Any]:
    if callable(tool):
        try:
            return get_json_schema(tool)
        except Exception as error:  # of several types: no docstring, no type hints, a type without a schema
            raise ChatError(
                f"`tools`: the function {getattr(tool, '__name__', tool)!r} has no schema: {error}"
            ) from error
    schema = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
        raise ChatError(f"`tools` holds {str(tool)[:80]!r}: each tool is a JSON schema with a name, or a function")
    return {"type": "function", **(tool if "function" in tool else {}), "function": dict(schema)}


def _with_text(message: Message) -> Message:
    """The message with text parts joined. Raises ChatError for parts that are no text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return {**message, "content": parts_text(content)}


def parts_text(parts: Sequence[Any]) -> str:
    """The text of a content in parts. Raises ChatError for images and other parts that are no text."""
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ChatError(
                f"a message holds a part of type {kind!r}: only text is supported; leave out rows with images, audio "
                "or video, or describe them in text"
            )
    return "".join(part["text"] for part in parts)
