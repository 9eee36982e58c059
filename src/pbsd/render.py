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
from transformers import PreTrainedTokenizerBase

from pbsd.records import Ids, Prompt


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
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_prompt_template: str
    student_thinking_prefix: str = ""
    teacher_thinking_prefix: str = ""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_prompt_length: int | None = None
    max_teacher_prompt_length: int | None = None

    def __post_init__(self) -> None:
        compile_template(self.teacher_prompt_template)

    def __call__(self, row: Mapping[str, Any], index: int) -> Prompt:
        """Raises RowError for a row that breaks the data contract, OverlongError for one over a budget."""
        prompt = row.get("prompt")
        problem = _last_user_text(prompt, index)
        student_text = self._text(prompt, self.student_thinking_prefix, index)
        teacher_prompt = self._teacher_prompt(row, problem, index)
        teacher_text = self._text(teacher_prompt, self.teacher_thinking_prefix, index)
        chat = not isinstance(prompt, str)
        return Prompt(
            row=index,
            prompt=prompt,
            columns={key: value for key, value in row.items() if key != "prompt"},
            student_ids=self._encode(student_text, chat, "max_prompt_length", index),
            teacher_ids=self._encode(teacher_text, chat, "max_teacher_prompt_length", index),
        )

    def _teacher_prompt(self, row: Mapping[str, Any], problem: str, index: int) -> Any:
        context = _context_text(row.get("privileged_context"), index)
        if context is None:
            return row["prompt"]
        try:
            text = compile_template(self.teacher_prompt_template).render(
                {**row, "prompt": problem, "privileged_context": context}
            )
        except jinja2.UndefinedError as error:
            raise RowError(
                f"row {index}: teacher_prompt_template: {error}; columns are {', '.join(sorted(row))}"
            ) from error
        if isinstance(row["prompt"], str):
            return text
        last = _last_user_index(row["prompt"])
        return [
            {**message, "content": text} if place == last else message for place, message in enumerate(row["prompt"])
        ]

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


@cache
def compile_template(source: str) -> jinja2.Template:
    """Raises ValueError, with the line, when the template is not Jinja."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"teacher_prompt_template, line {error.lineno}: {error.message}") from error


def _last_user_index(messages: list[dict[str, Any]]) -> int:
    return max(place for place, message in enumerate(messages) if message["role"] == "user")


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


def _context_text(context: Any, index: int) -> str | None:
    """Privileged context as text: messages are joined by line breaks; null and empty mean that there is none."""
    if context is None or context == "" or context == []:
        return None
    if isinstance(context, str):
        return context
    if isinstance(context, list) and all(isinstance(message, dict) for message in context):
        return "\n".join(_content_text(message, index) for message in context)
    raise RowError(
        f"row {index}: `privileged_context` must be a string, a list of messages or null, got {_shown(context)}"
    )


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return f"{type(value).__name__} {text[:60]}"
