"""Tool calls as models write them, read by the markers of their format. Nothing is evaluated.

`formats.py` holds the table of formats; `marked.py`, `xml.py`, `gemma.py`, `python.py` and `unmarked.py` the readers of
each family; `calls.py` what they share; `known.py` finds calls in other forms by the names of known
functions; `scan.py` finds the calls in a text.
"""

from pbsd.rewards.tool_syntax.calls import Call, NoCall, Untyped, json_calls, load_json, readings
from pbsd.rewards.tool_syntax.formats import NAMED
from pbsd.rewards.tool_syntax.scan import SYNTAXES, looks_like_call, parse_calls, read_calls

__all__ = [
    "NAMED", "SYNTAXES", "Call", "NoCall", "Untyped", "json_calls", "load_json", "looks_like_call", "parse_calls",
    "read_calls", "readings",
]  # fmt: skip
