"""No secret in a file: what may be written of options, command lines and messages.

Options are written by an allow-list (`public_options`). In what is written, values under the name of a secret,
passwords and keys in URLs, values of secret environment variables, and strings that have the form of a known kind of
token are taken out, and the home folder is written `~` (`public`, `scrub`). In a text for the model or a pattern,
which its name tells (`teacher_prompt_template`), `token=...` stays.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

REMOVED = "***"

_SECRET_WORDS = frozenset(
    ("secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "apikey", "authorization",
     "cookie", "cookies", "pat")
)  # fmt: skip
_KEYS = frozenset(("api", "access", "secret", "private", "account", "signing", "encryption", "subscription"))
"""Words before `key`: a `key` alone names things, not secrets."""
_TEXT_TOKENS = frozenset(
    ("eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "image", "video", "audio", "special",
     "think", "decoder", "bad", "forced", "boi", "eoi", "model")
)  # fmt: skip
"""Words before `token` that say it is one of a text."""
_OF_TEXTS = frozenset(
    ("template", "templates", "pattern", "patterns", "phrase", "phrases", "regex", "regexes", "regexp", "prefix")
)
"""Last words of names whose values are texts for the model or patterns: there `token=...` is no assignment."""
_SHORTEST = 8
"""Shorter values of environment variables stand in too many texts to be taken out."""

_IN_TEXT = (
    (re.compile(r"(?<=://)[^/?#\s@\"']+@"), f"{REMOVED}@"),
    (
        re.compile(
            r"([?&;][^=&\s#]*(?:token|secret|password|passwd|signature|credential|api_?key|\bsig\b)[^=&\s#]*=)[^&\s#\"']+",
            re.IGNORECASE,
        ),
        rf"\g<1>{REMOVED}",
    ),
    (re.compile(r"\b(bearer|authorization:\s*\w+)\s+[\w.~+/=-]{12,}", re.IGNORECASE), rf"\g<1> {REMOVED}"),
    (
        re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\bgh[pousr]_\w{16,}|\bgithub_pat_\w{16,}|\bsk-[\w-]{16,}"),
        REMOVED,
    ),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|\bglpat-[\w-]{16,}"), REMOVED),
)
"""Passwords and keys in URLs and headers, and the tokens of some services."""
_NOTHING = re.compile(r"|true|false|none|null|<[A-Z_]+>|\*\*\*", re.IGNORECASE)
_NUMBER = re.compile(r"[-+.\deE]+")
_ASSIGNED = re.compile(r"\b([A-Za-z_][A-Za-z0-9_]*)=([^\s&\"']+)")
_CUT = re.compile(r"\w=\*\*\*|://\*\*\*@")
_HOME_AT_START = re.compile(r"(?:^|(?<=@))~(?=/|$)")


def is_secret(name: str) -> bool:
    """Whether an option, key or environment variable of this name holds a secret: `hub_token`, `OPENAI_API_KEY`."""
    words = _words(name)
    if not _SECRET_WORDS.isdisjoint(words):
        return True
    pairs = list(zip(["", *words], words, strict=False))
    if any(word in ("key", "keys") and before in _KEYS for before, word in pairs):
        return True
    return bool(words) and words[-1] == "token" and pairs[-1][0] not in _TEXT_TOKENS


def _is_text(name: str) -> bool:
    return bool(words := _words(name)) and words[-1] in _OF_TEXTS


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower())


def public(value: Any) -> Any:
    """The value as it may be written: without the entries of mappings, and the values of `--flags` in lists, whose name
    is that of a secret, and with `scrub`bed texts. JSON in a text is treated as what it stands for."""
    return _public(value, _known())


def scrub(text: str) -> str:
    """A message or a traceback as it may be written."""
    known = _known()
    home = _home()
    return _scrubbed(text.replace(home + os.sep, f"~{os.sep}") if home else text, known)


class PublicFormatter(logging.Formatter):
    """Of a log file."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def public_options(options: Mapping[str, Any], written: Container[str]) -> dict[str, Any]:
    """The options that are on the allow-list, as they may be written."""
    known = _known()
    return {
        name: _public(value, known, _is_text(name))
        for name, value in options.items()
        if name in written and not _holds(name, value)
    }


def secrets_in(value: Any, where: str = "", is_text: bool = False) -> Iterator[str]:
    """The places in nested mappings and lists that `public` would change, the home folder aside."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            place = f"{where}.{key}" if where else str(key)
            if _holds(str(key), item):
                yield place
            else:
                yield from secrets_in(item, place, _is_text(str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from secrets_in(item, f"{where}[{index}]", is_text)
    elif isinstance(value, str):
        content = _from_json(value)
        if content is not None:
            yield from secrets_in(content, where, is_text)
        elif _scrubbed(value, _known(), is_text) != value:
            yield where


def cuts_in(value: Any, where: str = "", is_text: bool = False) -> Iterator[str]:
    """The places where something was cut by `public`. A text for the model may have `***` of its own."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from cuts_in(item, f"{where}.{key}" if where else str(key), _is_text(str(key)))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from cuts_in(item, f"{where}[{index}]", is_text)
    elif isinstance(value, str) and REMOVED in value:
        content = _from_json(value)
        if content is not None:
            yield from cuts_in(content, where, is_text)
        elif not is_text or _CUT.search(value):
            yield where


def with_home(value: Any) -> Any:
    """What `public` wrote as `~`, a folder of this machine again."""
    if isinstance(value, Mapping):
        return {key: with_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_home(item) for item in value]
    return _HOME_AT_START.sub(lambda _: _home() or "~", value) if isinstance(value, str) else value


def _public(value: Any, known: Sequence[str], is_text: bool = False) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _public(item, known, _is_text(str(key))) for key, item in value.items() if not _holds(str(key), item)
        }
    if isinstance(value, list | tuple):
        return list(_public_words(value, known, is_text))
    return _in_text(_short_home(value), known, is_text) if isinstance(value, str) else value


def _public_words(words: Sequence[Any], known: Sequence[str], is_text: bool) -> Iterator[Any]:
    """A list's items; of a command line's flags `--hub_token VALUE` and `--hub_token=VALUE` without the value."""
    flag = ""
    for word in words:
        if isinstance(word, str) and word.startswith("--"):
            flag, joint, value = word.partition("=")
            cleaned = REMOVED if _holds(flag, value) else _public(value, known, is_text or _is_text(flag))
            yield flag + joint + cleaned
        else:
            yield REMOVED if _holds(flag, word) else _public(word, known, is_text or _is_text(flag))


def _holds(name: str, value: Any) -> bool:
    """Whether this is a secret's name with something to hide under it. A number under a name that ends in `token`, such
    as `max_token`, counts tokens."""
    if not is_secret(name) or value is None or isinstance(value, bool) or _NOTHING.fullmatch(str(value)):
        return False
    return not (_words(name)[-1] == "token" and _NUMBER.fullmatch(str(value)))


def _in_text(text: str, known: Sequence[str], is_text: bool) -> str:
    content = _from_json(text)
    if content is None:
        return _scrubbed(text, known, is_text)
    cleaned = _public(content, known, is_text)
    return text if cleaned == content else json.dumps(cleaned, ensure_ascii=False)


def _from_json(text: str) -> Any:
    """The object or list that the text is, as options on a command line are; None for other texts."""
    if not text.startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _scrubbed(text: str, known: Sequence[str], is_text: bool = False) -> str:
    for value in known:
        text = text.replace(value, REMOVED)
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    if is_text:
        return text
    return _ASSIGNED.sub(lambda found: f"{found[1]}={REMOVED}" if _holds(found[1], found[2]) else found[0], text)


def _known() -> list[str]:
    """Values of this process's secret environment variables, and the hub's token that the home folder keeps."""
    found = {value for name, value in os.environ.items() if is_secret(name)}
    try:
        from huggingface_hub import get_token

        found.add(get_token() or "")
    except (ImportError, OSError, ValueError):
        pass
    return sorted((value for value in found if len(value) >= _SHORTEST), key=len, reverse=True)


def _home() -> str:
    home = os.path.expanduser("~").rstrip(os.sep)
    return home if os.path.isabs(home) else ""


def _short_home(text: str) -> str:
    """A path of the home folder from `~`; behind an `@` too, as in `gsm8k@PATH`."""
    home = _home()
    if not home:
        return text
    return re.sub(rf"(?:^|(?<=@)){re.escape(home)}(?={re.escape(os.sep)}|$)", "~", text)
