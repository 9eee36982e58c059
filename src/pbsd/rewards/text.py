"""Completions as text: chat messages to a string, and the part after the model's thinking."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any


def completion_text(completion: Any, position: int) -> str:
    """The text of one completion: a string, or chat messages, of which the assistant's contents are joined by newlines.

    A content may be a string, None (a message that holds only tool calls) or a list of parts, of which the `text` parts
    count. A message's `tool_calls` follow its content as Hermes tags, as Qwen's template writes them. `position` is the
    completion's place in the batch, for the message.

    Raises ValueError when the completion is neither a string nor chat messages, or its tool calls are no objects.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list) or not all(isinstance(m, Mapping) and "role" in m for m in completion):
        raise ValueError(
            f"completion {position} is {completion!r:.200}; give a string or a list of messages "
            '[{"role": "assistant", "content": "..."}]'
        )
    return "\n".join(message_text(m, position) for m in completion if m["role"] == "assistant")


def message_text(message: Mapping[str, Any], position: int) -> str:
    """A message as text: see `completion_text`."""
    content = _content_text(message.get("content"), position)
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise ValueError(f"completion {position} has the tool calls {calls!r:.200}; give a list of objects")
    tags = [f"<tool_call>\n{json.dumps(call.get('function', call))}\n</tool_call>" for call in calls]
    return "\n".join([content, *tags]) if content else "\n".join(tags)


def _content_text(content: Any, position: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    raise ValueError(f"completion {position} has a message content {content!r:.200}; give a string or a list of parts")


_MESSAGE_END = "<|end|>"
"""Of gpt-oss: it ends other messages than thoughts too."""

THOUGHTS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("◁think▷", "◁/think▷"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    ("<|channel|>analysis<|message|>", _MESSAGE_END),
    ("<|channel>thought", "<channel|>"),
)
"""What opens and closes a thought in the texts of models: Qwen, DeepSeek and most others; Mistral; Seed; Command;
OpenThoughts; Apertus; Kimi; gpt-oss; Gemma."""


def final_text(completion: str) -> str | None:
    """What the completion says after its last thought (see `THOUGHTS`); all of it when it never thinks aloud.

    None when a thought was opened and never closed: the model was cut off before it answered.
    """
    last = completion
    for opening, closing in THOUGHTS:
        if closing == _MESSAGE_END:
            closed, end, rest = last.rpartition(closing)  # behind it each search would go to the text's end
            last = re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", "", closed + end, flags=re.DOTALL) + rest
        elif closing in last:
            last = last.rpartition(closing)[2]
    last = last.rpartition("<|channel|>final<|message|>")[2]
    return None if any(opening in last for opening, _ in THOUGHTS) else last


def opened_thought(turn: str) -> str:
    """The mark that opens a thought where the text of a prompt, or of what it holds of the assistant's turn, ends with
    one: the completion then closes what it did not open, and a grader must be told, or the draft of a thought that was
    cut off would pass for an answer."""
    return next((opening for opening, _ in THOUGHTS if turn.rstrip().endswith(opening)), "")
