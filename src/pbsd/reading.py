"""Reading files that people or an interrupted program wrote: what is wrong with one is said in a sentence that names
the file and the place in it."""

from __future__ import annotations

import json
import pickle
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

_MOST_VALUES = 100_000
"""In a YAML file, aliases counted as often as they stand for something."""
_DEEPEST = 100

DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, UnicodeError,
    json.JSONDecodeError, pickle.UnpicklingError, struct.error, zlib.error,
)  # fmt: skip
"""What reading a damaged file can raise, beside ValueErrors that say what is wrong."""


@contextmanager
def reading(path: Path | str, fix: str) -> Iterator[None]:
    """Inside the block, what a damaged file raises is a ValueError that names it and how to fix it."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{path}: damaged, or not what pbsd writes there ({describe(error)}): {fix}") from error


def describe(error: BaseException) -> str:
    """An error in one line: its type, unless that says nothing, and its message."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run the file's code
        return "not a whole file of torch"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def read_text(path: Path) -> str:
    """The file's text. Raises ValueError with the line where it is not UTF-8."""
    return decode(path.read_bytes(), str(path))


def decode(raw: bytes, where: str) -> str:
    """UTF-8 bytes as text; a byte order mark at the beginning is left out. Raises ValueError with the line."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}, line {line:,}: byte {raw[error.start]:#04x} is not UTF-8 (byte {error.start:,} of the file): "
            "save the file as UTF-8, or fix the line"
        ) from error


def parse_json(text: str, where: str, fix: str = "fix or remove it") -> Any:
    """Raises ValueError where the text is not JSON, is nested too deep, or holds zero bytes in place of JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "zero bytes, as a machine that went down leaves them" if "\0" in text else describe(error)
        raise ValueError(f"{where}: not JSON ({reason}): {fix}") from error


def parse_object(text: str, where: str, fix: str = "fix or remove it") -> dict[str, Any]:
    """Raises ValueError where the text is not a JSON object."""
    content = parse_json(text, where, fix)
    if not isinstance(content, dict):
        raise ValueError(f"{where}: must be a JSON object, is {text.strip()[:40]!r}: {fix}")
    return content


def read_object(path: Path, fix: str = "fix or remove it") -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError where it holds none."""
    return parse_object(read_text(path), str(path), fix)


def read_lines(path: Path, fix: str = "fix or remove the line") -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; none where there is no file.

    A last line without a line break that begins as an object was being written when its program ended: it is left out.

    Raises ValueError, naming the line, for any other line that is not an object.
    """
    if not path.is_file():
        return []
    lines = read_text_cut(path).split("\n")  # other line separators may stand in the text
    if is_cut_off(lines[-1]):
        lines.pop()
    return [parse_object(line, f"{path}, line {place:,}", fix) for place, line in enumerate(lines, 1) if line.strip()]


def read_text_cut(path: Path) -> str:
    """The text of a file whose last line may end in the middle of a character. Raises ValueError as `read_text`."""
    raw = path.read_bytes()
    whole = raw.rfind(b"\n") + 1
    return decode(raw[:whole], str(path)) + raw[whole:].decode("utf-8", errors="replace")


def is_begun(line: str) -> bool:
    """Whether a last line without a line break is an object or the beginning of one, rather than damage."""
    return line.startswith("{") and "\0" not in line


def is_cut_off(line: str) -> bool:
    """Whether a last line without a line break is the beginning of an object, and not all of one."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return is_begun(line)
    return False


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; see `parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML document.

    Raises ValueError where it is not YAML, is nested too deep, has aliases that stand for more than 100,000 values, or
    gives a key twice.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _check_size(root, where)
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deep: at most {_DEEPEST} levels can be read") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        # Of a value's own type, such as a date.
        raise ValueError(f"{where}: not valid YAML: {describe(error)}") from error


def _check_size(root: yaml.Node, where: str) -> None:
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int) -> int:
        place = f"{where}, line {node.start_mark.line + 1}"
        if depth > _DEEPEST:
            raise ValueError(f"{place}: nested more than {_DEEPEST} levels deep, or inside itself by an alias")
        if id(node) in sizes:
            return sizes[id(node)]
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        total = 1 + sum(size(child, depth + 1) for child in children)
        if total > _MOST_VALUES:
            raise ValueError(
                f"{place}: its aliases stand for more than {_MOST_VALUES:,} values: write out what is meant"
            )
        sizes[id(node)] = total
        return total

    size(root, 0)


def _check_keys(mapping: yaml.MappingNode, where: str) -> None:
    """Raises ValueError where a key is given twice: YAML's loader would keep the last value without a word."""
    marks: dict[tuple[str, str], yaml.Mark] = {}
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        if (first := marks.setdefault((key.tag, key.value), key.start_mark)) is not key.start_mark:
            raise ValueError(
                f"{where}, line {key.start_mark.line + 1}: the key {key.value!r} is given already in line "
                f"{first.line + 1}: leave one of the two out"
            )
