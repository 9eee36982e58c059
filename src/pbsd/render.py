"""A dataset row -> the token ids both roles continue. The only caller of `encode` for prompts.

Ids are made here once; sampling and scoring use these very ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from pbsd.chat import ChatError, ChatTemplate, check_described, document_list, parts_text, tool_schemas
from pbsd.records import Ids, Prompt
from pbsd.rewards.text import final_text, message_text, opened_thought
from pbsd.templates import TemplateError, compile_template, template_variables

_OWN: Any = object()
_IMAGE_COLUMNS = ("image", "images")


class RowError(ValueError):
    """A row that cannot be used: says which row, what is wrong and the fix."""


class OverlongError(RowError):
    """A prompt that does not fit its budget. It is never cut."""


@dataclass(frozen=True)
class Renderer:
    """Renders rows `{prompt, privileged_context?, ...}`; prompts are text or chat messages.

    The student continues the prompt as it is. The teacher continues the prompt with the template in its place: for text
    the whole of it, for chats the content of the last user message. A row whose privileged context is null has one
    prompt for both. A chat that ends with the assistant's turn is continued there. Of a chat's row the columns `tools`
    (JSON schemas, their JSON, or functions), `documents` and `chat_template_kwargs` go to the chat template, as in TRL.

    Args:
        teacher_prompt_template: Jinja; sees `prompt` (text), `privileged_context` (text) and every other column.
        tools_template: Jinja; sees `tools` (the schemas) and every column; what it gives is put before the system
            message, or before a plain text. None: the chat template writes the tools, unless the prompt's own text
            names them and their arguments. Empty: they are for the rewards alone.
        student_thinking_prefix, teacher_thinking_prefix: text after the generation prompt, part of the prompt's ids.
        max_prompt_length, max_teacher_prompt_length: budgets in tokens.
        positions: of the model; a text that has more tokens for certain is refused before it is tokenised.
        max_reference_length: render the row's own completion too, of at most so many tokens; None: it is not read.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_prompt_template: str
    student_thinking_prefix: str = ""
    teacher_thinking_prefix: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools_template: str | None = None
    max_prompt_length: int | None = None
    max_teacher_prompt_length: int | None = None
    positions: int | None = None
    max_reference_length: int | None = None

    def __post_init__(self) -> None:
        compile_template(self.teacher_prompt_template)
        compile_template(self.tools_template or "", "tools_template")

    @cached_property
    def chat(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, self.chat_template_kwargs)

    def check_teacher_prompt(self, row: Mapping[str, Any], index: int) -> None:
        """Raises RowError unless the teacher's template writes both the problem and something that the student is not
        shown, as probe words in their place show."""
        words = {"prompt": "probeproblem", "privileged_context": "probecontext"}
        text = _filled(self.teacher_prompt_template, "teacher_prompt_template", {**row, **words}, index).lower()
        if words["prompt"] not in text:
            raise RowError(
                "teacher_prompt_template leaves out the problem, so the teacher would not know what is asked: write "
                "{{ prompt }} in it"
            )
        own = template_columns(self.teacher_prompt_template)
        if words["privileged_context"] not in text and not own:
            raise RowError(
                "teacher_prompt_template leaves out the privileged context, so the teacher knows no more than the "
                "student: write {{ privileged_context }} or another column in it"
            )

    @property
    def tools_source(self) -> str:
        """Where the prompts have their rows' tools from, in words."""
        if self.tools_template is not None:
            return "tools_template writes them" if self.tools_template else "for the rewards alone, not in the prompts"
        if self.tokenizer.chat_template and self.chat.renders_tools:
            return "the chat template writes them"
        return "in the prompts' own text: the chat template does not write them"

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()), default=1)

    def __call__(self, row: Mapping[str, Any], index: int, *, context: Any = _OWN) -> Prompt:
        """The row's prompts; `context` is what the teacher is shown in place of the row's own privileged context.

        Raises RowError for a row that breaks the data contract, OverlongError for one over a budget.
        """
        prompt = row.get("prompt")
        problem = _last_user_text(prompt, index)
        if images := [name for name in _IMAGE_COLUMNS if row.get(name) not in (None, [])]:
            raise RowError(f"row {index}: `{images[0]}`: images are not supported yet: leave such rows out")
        shown = context_text(row.get("privileged_context") if context is _OWN else context, index)
        student, student_turn = self._text(prompt, row, self.student_thinking_prefix, index)
        teacher_prompt = self._teacher_prompt(row, problem, shown, index)
        teacher, teacher_turn = self._text(teacher_prompt, row, self.teacher_thinking_prefix, index)
        chat = not isinstance(prompt, str)
        return Prompt(
            row=index,
            prompt=prompt,
            columns={key: _as_data(key, value) for key, value in row.items() if key != "prompt"},
            student_ids=self._encode(student, chat, "max_prompt_length", index),
            teacher_ids=self._encode(teacher, chat, "max_teacher_prompt_length", index),
            reference_ids=() if self.max_reference_length is None else self._reference_ids(row, index),
            context=shown,
            student_turn=student_turn,
            teacher_turn=teacher_turn,
        )

    def reprompt(self, prompt: Prompt, template: str, **values: Any) -> Ids:
        """A teacher's prompt made while training: the template, which sees `prompt` and `values`, filled in.

        Raises OverlongError for one over the teacher's budget, RowError where the template cannot be filled.
        """
        problem = _last_user_text(prompt.prompt, prompt.row)
        filled = _filled(template, "reprompt_template", {**values, "prompt": problem}, prompt.row)
        messages = _with_last_user_text(prompt.prompt, filled)
        text, _ = self._text(messages, prompt.columns, self.teacher_thinking_prefix, prompt.row)
        return self._encode(text, not isinstance(prompt.prompt, str), "max_teacher_prompt_length", prompt.row)

    def _reference_ids(self, row: Mapping[str, Any], index: int) -> Ids:
        """The row's completion as the student would have sampled it: its text, then what ends the turn."""
        assert self.max_reference_length is not None
        column = "completion" if row.get("completion") else "privileged_context"
        text = context_text(row.get(column), index, column)
        if text is None:
            raise RowError(
                f"row {index}: nothing to learn: both `completion` and `privileged_context` are empty: fill one, or "
                "leave the row out"
            )
        end = () if isinstance(row["prompt"], str) else self.chat.turn_end()
        if not end:
            if self.tokenizer.eos_token_id is None:
                raise RowError("the tokenizer has no eos_token to end the rows' completions with: set it")
            end = (self.tokenizer.eos_token_id,)
        ids = (*self.tokenizer.encode(text, add_special_tokens=False), *end)
        if len(ids) > self.max_reference_length:
            raise OverlongError(
                f"row {index}: `{column}` has {len(ids)} tokens with the stop token, max_completion_length is "
                f"{self.max_reference_length}: raise it, shorten the row, or set overlong='drop' to leave such rows out"
            )
        return ids

    def _teacher_prompt(self, row: Mapping[str, Any], problem: str, context: str | None, index: int) -> Any:
        if context is None:
            return row["prompt"]
        values = {**row, "prompt": problem, "privileged_context": context}
        filled = _filled(self.teacher_prompt_template, "teacher_prompt_template", values, index)
        return _with_last_user_text(row["prompt"], filled)

    def _text(self, prompt: Any, row: Mapping[str, Any], prefix: str, index: int) -> tuple[str, str]:
        """The prompt as text, and what of it a grader must read with the completion: the assistant's turn that it
        continues, or the mark of a thought that it opens."""
        try:
            tools = [] if self.tools_template == "" else tool_schemas(row.get("tools"))
            if tools and self.tools_template is not None:
                values = {**row, "tools": tools}
                prompt = _with_tools(prompt, _filled(self.tools_template, "tools_template", values, index))
                tools = []
            if isinstance(prompt, str):
                for name in ("documents", "chat_template_kwargs"):
                    if row.get(name) and name not in template_variables(self.teacher_prompt_template):
                        raise ChatError(f"the prompt is plain text, `{name}` are for chats: leave them out")
                check_described(tools, prompt)
                return prompt + prefix, _opened(prompt, prefix)
            text = self.chat.render(
                prompt,
                tools=tools,
                documents=document_list(row.get("documents")),
                kwargs=_row_kwargs(row.get("chat_template_kwargs")),
            )
        except ChatError as error:
            raise RowError(f"row {index}: {error}") from error
        if prompt[-1]["role"] != "assistant":
            return text + prefix, _opened(text, prefix)
        if prefix:
            raise RowError(
                f"row {index}: `prompt` ends with the assistant's turn, and the thinking prefix {prefix!r} starts one: "
                "leave the prefix out, or end the prompt with the user's message"
            )
        return text, _content_text(prompt[-1], index)

    def _encode(self, text: str, chat: bool, budget_name: str, index: int) -> Ids:
        budget = getattr(self, budget_name)
        fix = "shorten the row, or set overlong='drop' to leave such rows out"
        # The tokens that a text has at least, before the tokenizer reads it: one may have megabytes.
        least = len(text) // self._longest_token
        limits = {budget_name: budget, "the number of the model's positions": self.positions}
        for name, limit in limits.items():
            if limit is not None and least > limit:
                raise OverlongError(
                    f"row {index}: the prompt has at least {least} tokens ({len(text)} characters), {name} is {limit}: "
                    + fix
                )
        ids = self._ids(text, chat)
        if not chat and ids[-1:] == (self.tokenizer.eos_token_id,):
            raise RowError(
                f"row {index}: the prompt ends with {self.tokenizer.eos_token!r}, the end of a text, so nothing is "
                "left to continue: take it out"
            )
        if not ids:
            raise RowError(f"row {index}: the prompt has no tokens: give it some text")
        if budget is not None and len(ids) > budget:
            raise OverlongError(
                f"row {index}: the prompt has {len(ids)} tokens, {budget_name} is {budget}: raise it, {fix}"
            )
        return ids

    def _ids(self, text: str, chat: bool) -> Ids:
        own = self.tokenizer.encode(text, add_special_tokens=False)
        if chat:  # a chat template writes its own special tokens; adding them again would double the BOS
            return tuple(own)
        # What a tokenizer puts behind a text would end the text that is to be continued.
        ids = self.tokenizer.encode(text)
        start = next((place for place in range(len(ids) - len(own) + 1) if ids[place : place + len(own)] == own), None)
        if start is not None:
            return tuple(ids[: start + len(own)])
        return tuple(ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids)


def template_columns(source: str) -> set[str]:
    """The columns that a template reads besides `prompt` and `privileged_context`."""
    return template_variables(source) - {"prompt", "privileged_context"}


def _as_data(column: str, value: Any) -> Any:
    """A column for graders and reward functions: functions among the tools as their schemas, all else as it is."""
    is_code = column == "tools" and (callable(value) or (isinstance(value, list) and any(map(callable, value))))
    return tool_schemas(value) if is_code else value


def _filled(template: str, name: str, values: Mapping[str, Any], index: int) -> str:
    try:
        return compile_template(template, name).render(values)
    except TemplateError as error:
        raise RowError(f"row {index}: {error}") from error


def _opened(text: str, prefix: str) -> str:
    """The prefix where it holds an open thought, else the mark of a thought that the text ends with."""
    return (prefix if final_text(prefix) is None else "") if prefix.strip() else opened_thought(text)


def _row_kwargs(kwargs: Any) -> Mapping[str, Any]:
    if isinstance(kwargs, str):
        try:
            kwargs = json.loads(kwargs)
        except ValueError as error:
            raise ChatError(f"`chat_template_kwargs` is text that is not JSON ({error})") from error
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ChatError(f"`chat_template_kwargs` must be an object, got {_shown(kwargs)}")
    return kwargs or {}


def _with_tools(prompt: Any, text: str) -> Any:
    """The prompt with a text about its tools in front: of the system message, of which one is made, or of the text."""
    if isinstance(prompt, str):
        return f"{text}\n\n{prompt}"
    first = prompt[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *prompt]
    content = first["content"]
    content = parts_text(content) if isinstance(content, list) else content
    return [{**first, "content": f"{text}\n\n{content}"}, *prompt[1:]]


def _with_last_user_text(prompt: Any, text: str) -> Any:
    """The prompt with the text in its place; in a chat, in that of the last user message's content."""
    if isinstance(prompt, str):
        return text
    last = max(place for place, message in enumerate(prompt) if message["role"] == "user")
    return [{**message, "content": text} if place == last else message for place, message in enumerate(prompt)]


def _last_user_text(prompt: Any, index: int) -> str:
    """The problem as text, after checking that the prompt is text or messages with a user turn at the end."""
    if isinstance(prompt, str):
        if not prompt.strip():
            raise RowError(f"row {index}: `prompt` is empty: give it text or remove the row")
        return prompt
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) and "role" in turn for turn in prompt):
        raise RowError(
            f"row {index}: `prompt` must be a string or a list of messages {{role, content}}, got {_shown(prompt)}"
        )
    users = [turn for turn in prompt if turn["role"] == "user"]
    if not users:
        raise RowError(f"row {index}: `prompt` must hold a user message")
    text = _content_text(users[-1], index)
    if not text.strip():
        raise RowError(f"row {index}: the last user message of `prompt` is empty: give it text or remove the row")
    return text


def _content_text(message: Mapping[str, Any], index: int) -> str:
    content = message.get("content")
    if isinstance(content, list):
        try:
            content = parts_text(content)
        except ChatError as error:
            raise RowError(f"row {index}: {error}") from error
    if not isinstance(content, str):
        raise RowError(f"row {index}: a message's `content` must be text, got {_shown(content)}")
    return content


def context_text(context: Any, index: int, column: str = "privileged_context") -> str | None:
    """Privileged context (or another column) as text: messages are joined by line breaks; null and empty are None."""
    if context is None or context == "" or context == []:
        return None
    if isinstance(context, str):
        return context
    if isinstance(context, list) and all(isinstance(message, dict) for message in context):
        return "\n".join(_context_message_text(message, index) for message in context)
    raise RowError(f"row {index}: `{column}` must be a string, a list of messages or null, got {_shown(context)}")


def _context_message_text(message: Mapping[str, Any], index: int) -> str:
    """A message of a context as text, its tool calls as Hermes tags behind its content."""
    if not message.get("tool_calls"):
        return _content_text(message, index)
    content = message.get("content")
    return message_text({**message, "content": _content_text(message, index) if content else ""}, index)


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return f"{type(value).__name__} {text[:60]}"
