"""samples.jsonl -> what the pair explorer shows: compact records with flags, and where each text stands."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pbsd.diagnostics.text import leaks
from pbsd.pairs import SATURATED_MARGIN
from pbsd.report.files import Record, number, text
from pbsd.report.runs import Run

LONGEST_SHARE = 0.05
MAX_BYTES = 60_000_000
"""Of all samples of a page: one of 10,000 pairs of 200 tokens a side loads in a second or two."""
FLAGS = {
    "flipped": ("Reward flipped", "turned round because of its rewards, or rewarded more for y⁻ than for y⁺"),
    "leaking": ("Leaking", "a completion cites the context that only the teacher sees"),
    "saturated": ("Saturated", f"|margin| above {SATURATED_MARGIN:g}: almost no gradient left"),
    "longest": ("Longest", f"the {LONGEST_SHARE:.0%} with the longest completion"),
}


@dataclass(frozen=True, slots=True)
class Explorer:
    """One run's block of the explorer. `records` may be a share of the run's `total`, evenly spaced over it; `more` is
    the option that takes a larger one."""

    total: int
    records: list[Record]
    texts: list[list[tuple[str | None, str]]]
    has_token_ratios: bool
    more: str = "--max_pairs"

    @property
    def noun(self) -> str:
        """What the records are; `records` where some are pairs and some samples that are in none."""
        found = {len(record["sides"]) for record in self.records}
        return "records" if len(found) == 2 else "pairs" if found == {2} else "samples"

    @property
    def size(self) -> int:
        """In bytes, but for names and numbers."""
        strings = [text for block in self.texts for _, text in block]
        strings += [
            value
            for record in self.records
            for side in record["sides"]
            for value in side.values()
            if isinstance(value, str)
        ]
        return sum(len(text.encode("utf-8", "surrogatepass")) for text in strings)

    @property
    def lines(self) -> Iterator[Any]:
        """What the page holds, a value a line: what filters and orders need of every record, then texts, then records.
        The page parses the first line at once, each of the others when it is shown."""
        yield {
            "noun": self.noun,
            "total": self.total,
            "more": self.more,
            "has_token_ratios": self.has_token_ratios,
            "texts": len(self.texts),
            "flags": [record["flags"] for record in self.records],
            "margins": [record.get("margin") for record in self.records],
            "longest": [max(side["tokens"] for side in record["sides"]) for record in self.records],
        }
        yield from self.texts
        yield from self.records


def explorer(run: Run, max_pairs: int, max_bytes: int = MAX_BYTES) -> Explorer | None:
    """At most `max_pairs` of the run's pairs (or samples, for methods without pairs), and as many as fit `max_bytes`;
    None where there are none.

    A side may have `token_texts` and `token_log_ratios` of one length: its tokens as text, and
    log pi(token) - log T(token) of each; they colour the text.

    Raises ValueError: file, line and field of what is missing or of another kind.
    """
    if not run.samples:
        return None
    found = _thinned(run, min(max_pairs, len(run.samples)))
    while found.size > max_bytes and len(found.records) > 1:
        fitting = int(len(found.records) * max_bytes / found.size)
        found = replace(_thinned(run, max(1, fitting)), more="--max_megabytes")
    if found.size > max(max_bytes, MAX_BYTES):
        raise ValueError(
            f"{run.samples[0][0]}: this record alone takes {found.size / 1e6:,.1f} MB of the page, more than "
            f"{max(max_bytes, MAX_BYTES) / 1e6:,.1f}: remove it, or raise --max_megabytes"
        )
    return found


def _thinned(run: Run, number_kept: int) -> Explorer:
    total = len(run.samples)
    kept = [run.samples[place * total // number_kept] for place in range(number_kept)]
    texts, phrases = _Texts(), run.config.get("leakage_phrases") or ()
    records = [_record(record, where, texts, phrases) for where, record in kept]
    count = math.ceil(LONGEST_SHARE * len(records))
    for record in sorted(records, key=lambda record: -max(side["tokens"] for side in record["sides"]))[:count]:
        record["flags"].append("longest")
    sides = [side for record in records for side in record["sides"]]
    return Explorer(
        total=total,
        records=records,
        texts=texts.blocks,
        has_token_ratios=any("ratios" in side for side in sides),
    )


class _Texts:
    """Prompts and contexts, each kept once."""

    def __init__(self) -> None:
        self.blocks: list[list[tuple[str | None, str]]] = []
        self._place: dict[str, int] = {}

    def place(self, value: Any) -> int | None:
        if value is None:
            return None
        key = json.dumps(value)
        if key not in self._place:
            self._place[key] = len(self.blocks)
            self.blocks.append(_blocks(value))
        return self._place[key]


def _blocks(value: Any) -> list[tuple[str | None, str]]:
    """A text, or chat messages as (role, content)."""
    if isinstance(value, list) and all(isinstance(message, dict) for message in value):
        return [(str(message.get("role", "")), _plain(message.get("content", ""))) for message in value]
    return [(None, _plain(value))]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def _record(record: Record, where: str, texts: _Texts, phrases: Sequence[str]) -> Record:
    names = [name for name in ("chosen", "rejected") if name in record]
    if len(names) == 1:
        raise ValueError(f"{where}: has {names[0]} without its other side")
    sides = [_side(record[name], f"{where}, {name}", name) for name in names] or [_side(record, where, "sample")]
    shown: Record = {
        "step": int(record["step"]),
        "row": record.get("row"),
        "prompt": texts.place(record.get("prompt")),
        "context": texts.place(record.get("privileged_context")),
        "teacher_prompt": texts.place(record.get("teacher_prompt")),
        "sides": sides,
    }
    for key in ("margin", "label", "loss", "advantage"):
        if key in record:
            shown[key] = number(record, key, where)
    shown["flags"] = _flags(record, shown, phrases)
    return shown


def _side(record: Any, where: str, name: str) -> Record:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be a JSON object")
    side: Record = {
        "name": name,
        "text": text(record, "text", where),
        "role": record.get("role"),
        "finished": record.get("finished"),
        "tokens": number(record, "tokens", where),
        "reward": number(record, "reward", where),
    }
    if "log_ratio" in record:
        side["log_ratio"] = number(record, "log_ratio", where)
    if record.get("token_texts") and record.get("token_log_ratios"):
        pieces, ratios = record["token_texts"], record["token_log_ratios"]
        if not isinstance(pieces, list) or not isinstance(ratios, list) or len(pieces) != len(ratios):
            raise ValueError(f"{where}: token_texts and token_log_ratios must be lists of one length")
        side |= _packed(side["text"], [str(piece) for piece in pieces])
        values = (number({"token_log_ratios": ratio}, "token_log_ratios", where) for ratio in ratios)
        side["ratios"] = ",".join(str(round(1000 * value)) if math.isfinite(value) else "" for value in values)
    return side


def _packed(text: str, pieces: Sequence[str]) -> Record:
    """Tokens as their `lengths` (in UTF-16 units, as browsers count) and what of them does not stand in the text: the
    stop token, or all after the first character that several tokens make up."""
    whole = "".join(pieces)
    common = len(text) if whole.startswith(text) else _common(text, whole)
    lengths = (
        len(piece) if piece.isascii() else len(piece.encode("utf-16-le", "surrogatepass")) // 2 for piece in pieces
    )
    return {"lengths": ",".join(map(str, lengths)), "rest": whole[common:]}


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _flags(record: Record, shown: Record, phrases: Sequence[str]) -> list[str]:
    sides: Sequence[Record] = shown["sides"]
    against = len(sides) == 2 and sides[1]["reward"] > sides[0]["reward"]
    flags = {
        "flipped": bool(record.get("swapped")) or against,
        "leaking": any(leaks(side["text"], phrases) for side in sides),
        "saturated": abs(shown.get("margin", 0.0)) > SATURATED_MARGIN,
    }
    return [name for name, raised in flags.items() if raised]
