"""What a worker process and its parent say to each other over the worker's standard input and output.

Every message is `HEADER` (the body's length and the request's number, which its reply repeats) and a body. Requests are
pickled tuples (kind, name, content, seconds):

- ("load", name, (sys.path, function), seconds): `function` is None where `name` is "module:function" to import, else
  the pickled function;
- ("grade", name, kwargs, seconds): one call of a grader;
- ("reward", name, (title, arguments, size, first), seconds): one call of a reward function, see `call.py`.

Replies are JSON lists, so that a worker, which runs code that a model may have written, cannot make its parent run
anything:

- ["ready", settings] (see `call.module_settings`) or ["failed", why], to "load";
- ["unread", why]: the request's arguments cannot be unpickled;
- ["grade", outcome, score, reason];
- ["values", values, metrics, extra], ["refused", message] (the function broke its contract) or
  ["raised", what, traceback].
"""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER = struct.Struct(">QQ")

MAX_REPLY = 16 * 2**20
"""Bytes of a reply that the parent reads."""


def decode_reply(body: bytes) -> list[Any]:
    """The reply. Raises ValueError when it is not a list that begins with a kind."""
    try:
        reply = json.loads(body)
    except RecursionError as failure:
        raise ValueError("it is nested too deeply") from failure
    if not isinstance(reply, list) or not reply or not isinstance(reply[0], str):
        raise ValueError(f"it is {reply!r:.60}, not a list that begins with a kind")
    return reply
