"""A dataset row -> the token ids both roles continue. The only caller of the chat template and of `encode`.

Ids are made here once; sampling and scoring use these very ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jinja2
import jinja2.meta
from transformers import PreTrainedTokenizerBase

from pbsd.records import Ids, Prompt

_OWN: Any = object()


class RowError(ValueError):
    """A row that cannot be used: says which row, what is wrong and the mend."""


class OverlongError(RowError):
    """A prompt that does not fit its budget. It is never cut."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders rows `{prompt, privileged_context?, ...}`; prompts are text or chat messages.

    The student continues the prompt as it is. The teacher continues the prompt with the template in its place: for text
    the whole of it, for chats the content of the last user message. A row whose privileged context is null has one
    prompt for both.

    Args:
        teacher_prompt_template: Jinja; sees `prompt` (text), `privileged_context` (text) and every other column.
        student_thinking_prefix, teacher_thinking_prefix: text after the generation prompt, part of the prompt's ids.
        max_reference_length: render the row's own completion too, of at most so many tokens; None: it is not read.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_prompt_template: str
    student_thinking_prefix: str = ""
    teacher_thinking_prefix: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_prompt_length: int | None = None
    max_teacher_prompt_length: int | None = None
    max_reference_length: int | None = None

    def __post_init__(self) -> None:
        compile_template(self.teacher_prompt_template)

    def __call__(self, row: Mapping[str, Any], index: int, *, context: Any = _OWN) -> Prompt:
        """The row's prompts; `context` is what the teacher is shown in place of the row's own privileged context.

        Raises RowError for a row that breaks the data contract, OverlongError for one over a budget.
        """
        prompt = row.get("prompt")
        problem = _last_user_text(prompt, index)
        student_text = self._text(prompt, self.student_thinking_prefix, index)
        shown = context_text(row.get("privileged_context") if context is _OWN else context, index)
        teacher_prompt = self._teacher_prompt(row, problem, shown, index)
        teacher_text = self._text(teacher_prompt, self.teacher_thinking_prefix, index)
        chat = not isinstance(prompt, str)
        return Prompt(
            row=index,
            prompt=prompt,
            columns={key: value for key, value in row.items() if key != "prompt"},
            student_ids=self._encode(student_text, chat, "max_prompt_length", index),
            teacher_ids=self._encode(teacher_text, chat, "max_teacher_prompt_length", index),
            reference_ids=() if self.max_reference_length is None else self._reference_ids(row, index),
            context=shown,
        )

    def reprompt(self, prompt: Prompt, template: str, **values: Any) -> Ids:
        """A teacher's prompt made while training: the template, which sees `prompt` and `values`, filled in.

        Raises OverlongError for one over the teacher's budget, RowError where the template cannot be filled.
        """
        problem = _last_user_text(prompt.prompt, prompt.row)
        filled = self._filled(template, {**values, "prompt": problem}, prompt.row)
        text = self._text(_with_last_user_text(prompt.prompt, filled), self.teacher_thinking_prefix, prompt.row)
        return self._encode(text, not isinstance(prompt.prompt, str), "max_teacher_prompt_length", prompt.row)

    def _reference_ids(self, row: Mapping[str, Any], index: int) -> Ids:
        """The row's completion as the student would have sampled it: its text, then the stop token."""
        assert self.max_reference_length is not None
        column = "completion" if row.get("completion") else "privileged_context"
        text = context_text(row.get(column), index, column)
        if text is None:
            raise RowError(
                f"row {index}: nothing to learn: both `completion` and `privileged_context` are empty: fill one, or "
                "leave the row out"
            )
        if self.tokenizer.eos_token_id is None:
            raise RowError("the tokenizer has no eos_token to end the rows' completions with: set it")
        ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
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
        return _with_last_user_text(row["prompt"], self._filled(self.teacher_prompt_template, values, index))

    def _filled(self, template: str, values: Mapping[str, Any], index: int) -> str:
        try:
            return compile_template(template).render(values)
        except jinja2.UndefinedError as error:
            raise RowError(
                f"row {index}: the teacher's prompt template: {error}; columns are {', '.join(sorted(values))}"
            ) from error

    def _text(self, prompt: Any, prefix: str, index: int) -> str:
        if isinstance(prompt, str):
            return prompt + prefix
        if not self.tokenizer.chat_template:
            raise RowError(
                f"row {index}: the prompt is a chat but the tokenizer has no chat template: set "
                "tokenizer.chat_template, use an instruction-tuned model, or give `prompt` as plain text"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except jinja2.TemplateError as error:
            raise RowError(f"row {index}: the chat template refuses the prompt: {error}") from error
        assert isinstance(text, str)
        return text + prefix

    def _encode(self, text: str, chat: bool, budget_name: str, index: int) -> Ids:
        # A chat template writes its own special tokens; adding them again would double the BOS.
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=not chat))
        if not ids:
            raise RowError(f"row {index}: the prompt has no tokens: give it some text")
        budget = getattr(self, budget_name)
        if budget is not None and len(ids) > budget:
            raise OverlongError(
                f"row {index}: the prompt has {len(ids)} tokens, {budget_name} is {budget}: raise it, shorten the row, "
                "or set overlong='drop' to leave such rows out"
            )
        return ids


def template_columns(source: str) -> set[str]:
    """The columns that a template reads besides `prompt` and `privileged_context`."""
    names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(source))
    return names - {"prompt", "privileged_context"}


@cache
def compile_template(source: str, name: str = "teacher_prompt_template") -> jinja2.Template:
    """Raises ValueError, with the line, when the template is not Jinja."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{name}, line {error.lineno}: {error.message}") from error


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
    if not users or prompt[-1]["role"] == "assistant":
        raise RowError(f"row {index}: `prompt` must hold a user message and may not end with the assistant's turn")
    text = _content_text(users[-1], index)
    if not text.strip():
        raise RowError(f"row {index}: the last user message of `prompt` is empty: give it text or remove the row")
    return text


def _content_text(message: Mapping[str, Any], index: int) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if part.get("type") == "text")
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
        return "\n".join(_content_text(message, index) for message in context)
    raise RowError(f"row {index}: `{column}` must be a string, a list of messages or null, got {_shown(context)}")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return f"{type(value).__name__} {text[:60]}"
