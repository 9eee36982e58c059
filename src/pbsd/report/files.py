"""Reading what a run wrote, also while it still writes: what cannot be shown is reported, never skipped silently."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pbsd.compare.files import unpacked
from pbsd.reading import is_begun, parse_object, parse_yaml

Record = dict[str, Any]
MAX_TEXT = 1_000_000
"""Characters of one text that a page shows: several times the longest completion of today's models."""

Notes = list[str]
"""What the reader of the page must know of the files: sentences, each naming its file."""


def read_text(path: Path, notes: Notes) -> str:
    """The file as text; `.gz` is unpacked. Bytes that are not UTF-8 become U+FFFD, with a note.

    Raises ValueError for a damaged archive.
    """
    raw = unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8", errors="replace")
        notes.append(f"{path.name}: bytes that are not UTF-8 (first at byte {error.start:,}) are shown as U+FFFD.")
        return text


def read_json(path: Path, notes: Notes) -> Record | None:
    """The object in the file; None where there is no file. Raises ValueError where it is not a JSON object."""
    if not path.is_file():
        return None
    return _bounded(parse_object(read_text(path, notes), str(path)), path.name, notes)


def read_yaml(path: Path, notes: Notes) -> Record:
    """The mapping in the file; empty where there is no file. Raises ValueError where it is not YAML or no mapping."""
    if not path.is_file():
        return {}
    content = parse_yaml(read_text(path, notes), str(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a mapping of options, is a {type(content).__name__}")
    return _bounded({str(key): value for key, value in content.items()}, path.name, notes)


def read_lines(path: Path, notes: Notes) -> list[tuple[str, Record]]:
    """Each line's place ("FILE, line N") and object; empty where there is no file.

    A last line without a line break that begins an object and does not end it was cut off (the run still writes, or
    was killed): it is left out, with a note.

    Raises:
        ValueError: any other line that is not a JSON object.
    """
    if not path.is_file():
        return []
    lines = read_text(path, notes).split("\n")  # other line separators may stand in the text
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        try:
            record = parse_object(line, where)
            if len(line) > MAX_TEXT:
                record = _bounded(record, f"{path.name}, line {number:,}", notes)
            records.append((where, record))
        except ValueError:
            if number < len(lines) or not is_begun(line):
                raise
            notes.append(f"{path.name}: the last line ({number:,}) is cut off and left out; the run may still write.")
    return records


def _bounded(record: Record, where: str, notes: Notes) -> Record:
    """The record with texts of at most `MAX_TEXT` characters; a note says where some were longer."""
    longest = 0

    def cut(value: Any) -> Any:
        nonlocal longest
        if isinstance(value, str) and len(value) > MAX_TEXT:
            longest = max(longest, len(value))
            return value[:MAX_TEXT] + "\u2026"
        if isinstance(value, list):
            return [cut(item) for item in value]
        if isinstance(value, dict):
            found = {cut(key): cut(item) for key, item in value.items()}
            if len(str(value.get("text", ""))) > MAX_TEXT:  # its tokens would hold what was cut
                found = {key: item for key, item in found.items() if key not in ("token_texts", "token_log_ratios")}
            return found
        return value

    bounded: Record = cut(record)
    if longest:
        notes.append(
            f"{where}: a text of {longest:,} characters; the page shows the first {MAX_TEXT:,} of each that is longer."
        )
    return bounded


def number(record: Record, key: str, where: str) -> float:
    """A field that must be a number. A null is NaN: JSON has none of its own.

    Raises ValueError where it is missing, something else, or too large.
    """
    value = record.get(key, "missing")
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {key} must be a number, is {value!r:.60}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{where}: {key} is too large a number: {str(value)[:20]}...") from error


def integer(record: Record, key: str, where: str) -> int:
    """A field that must be a whole number. Raises ValueError where it is missing or something else."""
    value = number(record, key, where)
    if not value.is_integer():
        raise ValueError(f"{where}: {key} must be a whole number, is {record[key]!r:.60}")
    return int(value)


def text(record: Record, key: str, where: str) -> str:
    """A field that must be text. Raises ValueError where it is missing or something else."""
    value = record.get(key, 0)
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} must be text, is {value!r:.60}")
    return value
