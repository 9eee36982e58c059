"""What a page is made of, and how numbers and foreign text are written on it."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pbsd.intervals import Interval

Plot = dict[str, Any]
"""plotly.js `data` and `layout`. A trace's `meta` names its colour, which the page takes from its theme."""

ESCAPED = (
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x061C, 0x061C), (0x115F, 0x1160),
    (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200B), (0x200E, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F),
    (0x2800, 0x2800), (0x3164, 0x3164), (0xD800, 0xDFFF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip
"""Code points shown by name: controls, lone surrogates, the blank U+2800, and what Unicode calls default-ignorable
(DerivedCoreProperties.txt: fillers, marks that reorder, variation selectors, tags), for text can hide in it. Of those
the joiners U+200C and U+200D stay: scripts and emoji need them."""
MISSING, MINUS = "\u2013", "\u2212"
_ESCAPED = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in ESCAPED) + "]")


def visible(value: object) -> str:
    """The value as text with invisible and reordering characters written out: ⟨U+202E⟩."""
    return _ESCAPED.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(value))


def label(value: object) -> str:
    """The same for a chart: plotly.js reads a little HTML in its texts."""
    return html.escape(visible(value), quote=False)


def short(value: object, limit: int = 36) -> str:
    """`label`, the middle of a long one left out: charts have no room, tables say it all."""
    text, half = visible(value), limit // 2
    return html.escape(text if len(text) <= limit else f"{text[:half]}…{text[1 - half :]}", quote=False)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts, the first of which is the row's header."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One state of a chart: a plot and the tables with its numbers."""

    name: str
    plot: Plot
    tables: Sequence[Table]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure; with several choices a picker named `pick` stands above it, with several groups of choices one named
    `pick_group` too. Every group has the same names, in the same order."""

    id: str
    title: str
    caption: str
    choices: Sequence[Choice]
    pick: str = ""
    pick_group: str = ""

    @property
    def pickers(self) -> list[tuple[str, list[str]]]:
        """Pickers and what they offer; choices are in the order of the first one's options, then the second one's."""
        groups, names = ([*dict.fromkeys(getattr(c, key) for c in self.choices)] for key in ("group", "name"))
        return [(pick, found) for pick, found in ((self.pick_group, groups), (self.pick, names)) if len(found) > 1]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. `tiles` are large figures: what, value, detail. `lacking` says why there is nothing, where
    there is nothing."""

    id: str
    title: str
    tiles: Sequence[tuple[str, str, str]] = field(default_factory=tuple)
    charts: Sequence[Chart] = field(default_factory=tuple)
    tables: Sequence[Table] = field(default_factory=tuple)
    lacking: str = ""


def percent(value: float, *, signed: bool = False) -> str:
    """A share in percent with one decimal; a dash where it is undefined."""
    return MISSING if math.isnan(value) else format(100 * value, "+.1f" if signed else ".1f").replace("-", MINUS)


def interval(value: Interval, *, signed: bool = False) -> str:
    """`46.8 [43.0, 50.6]`, in percent."""
    estimate = percent(value.estimate, signed=signed)
    if math.isnan(value.low):
        return estimate
    return f"{estimate} [{percent(value.low, signed=signed)}, {percent(value.high, signed=signed)}]"


def figure(value: float) -> str:
    """A number of any size in at most four significant digits, whole numbers in full."""
    if math.isnan(value):
        return MISSING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", MINUS)
    return f"{value:,.4g}".replace("-", MINUS)
