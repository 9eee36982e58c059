"""Sampled ids -> what is read of them: the text for graders, and the message for conversational reward functions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

_NAMED = tuple(f"{name}_token_id" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
_TEXTS = ("content", "reasoning_content", "thinking", "reasoning")


def marked_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, finished: bool) -> str:
    """The completion as text with the marks that models write around thoughts and calls, special tokens or not.

    Left out are the stop token that ended it (`finished`), unless it is text, and the tokens that every tokenizer has a
    name for: those of beginning, end, padding and the like.
    """
    named = {getattr(tokenizer, name) for name in _NAMED}
    ended = finished and ids[-1] in tokenizer.added_tokens_decoder
    return str(tokenizer.decode([id for id in ids[: len(ids) - ended] if id not in named]))


def plain_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The completion as text without special tokens: what TRL hands to reward functions."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def message(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, prompt_ids: Sequence[int], tools: Sequence[Any] = ()
) -> dict[str, Any]:
    """The completion as an assistant's message, as TRL hands it to conversational reward functions.

    Where the tokenizer has a `response_template` it is parsed by that: `content`, and where there are any
    `reasoning_content` and `tool_calls`. Elsewhere, and where the template cannot read it, `content` is the plain text.

    Args:
        prompt_ids: what the completion continues: the prompt may have begun the message.
        tools: their JSON schemas, which give the arguments of calls their types.
    """
    parsed = _parsed(tokenizer, list(ids), list(prompt_ids), list(tools))
    if parsed is None:
        return {"role": "assistant", "content": plain_text(tokenizer, ids)}
    return {"role": "assistant", **parsed, "content": parsed.get("content") or ""}


def _parsed(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], prompt_ids: list[int], tools: list[Any]
) -> Mapping[str, Any] | None:
    if getattr(tokenizer, "response_template", None) is None:
        return None
    typed: dict[str, Any] = {}
    if "tools" in inspect.signature(tokenizer.parse_response).parameters:  # since transformers 5.15
        typed["tools"] = tools or None
    try:
        parsed = tokenizer.parse_response(ids, prefix=prompt_ids, **typed)
    except (ValueError, TypeError, KeyError, AttributeError):  # such as a call whose arguments are no JSON
        return None
    if not isinstance(parsed, Mapping) or not _is_message(parsed):
        return None
    return parsed


def _is_message(parsed: Mapping[str, Any]) -> bool:
    """Whether anything was read, and every call has a name."""
    calls = parsed.get("tool_calls") or []
    return bool(calls or any(parsed.get(name) for name in _TEXTS)) and all(
        isinstance(call, Mapping) and isinstance(call.get("function", call).get("name"), str) for call in calls
    )
