"""The tool-use score of SDFT's and SDPO's public code on ToolAlpaca, flaws included, for numbers beside theirs.

Followed: `eval_tooluse.py` (`extract_actions`, `extract_action_inputs`, `evaluate_correctness`) of SDFT's
idanshen/Self-Distillation, and `verl/utils/reward_score/feedback/tooluse.py` (`compute_score`) of SDPO's lasgroup/SDPO.
Neither original could be read; public copies of both could (Pointer0111/Self-Distillation, proesn/Self-Distillation;
yuki-younai/SDPO-Unify, and forks that mend single flaws), and where the copies agree, so does this.

What it does: the words after every `Action:` are compared with the golden ones as a multiset; the JSON objects after
every `Action Input:` are merged into one, in order, and compared with the merged golden ones by Python's `==`. Flaws:

- Names and inputs are never paired: inputs swapped between two calls pass, and so does an input without its action.
- Merging loses a key that two calls share: only its last value counts, so an earlier wrong one passes.
- An object ends at its first `}`: a nested object, or a `}` in a string, cannot be read, and what cannot be read is
  dropped in silence; where the golden input is empty, an unreadable one passes.
- A name ends at its first character that is no letter, digit or `_`, so `get-weather` and `a.b` never pass; with no
  name on the line the next line's first word is taken, such as the `Action` of `Action Input:`.
- The text is searched whole: drafts in `<think>`, quotes of the prompt and invented later turns all count.
- `true` equals 1, a repeated key takes its last value, and no schema is looked at.
- A golden input that is not JSON counts as empty, and an empty golden list is matched by any text without actions.

The two differ in one point: where the golden input is an object and not its JSON, SDPO reads it (as here) and SDFT
takes it for empty. Of our own: an unreadable golden list is an `error`, where SDPO's code gives 0 or raises, and a
completion without any action is told apart as `unparsed`, at the same score of 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pbsd.rewards.grade import Grade, correct, unparsed, wrong

_NAME = re.compile(r"Action:\s*(\w+)")
_INPUT = re.compile(r"Action Input:\s*(\{.*?\})", re.DOTALL)


def grade(completion: str, expected: Sequence[Any]) -> Grade:
    """`correct` (1), `wrong` (0), or `unparsed` (0: no `Action:` although one is expected).

    `expected`: the golden calls, `{"Action": ..., "Action_Input": "<json>"}` or `{"name": ..., "arguments": ...}`.

    Raises ValueError when `expected` holds anything else.
    """
    golden = [_golden_call(item) for item in expected]
    names = _NAME.findall(completion)
    inputs = _merged([_loads(block) for block in _INPUT.findall(completion)])
    golden_names = [name for name, _ in golden]
    golden_inputs = _merged([arguments for _, arguments in golden])
    if golden_names and not names:
        return unparsed("no `Action:` followed by a name")
    if Counter(names) != Counter(golden_names):
        return wrong(f"actions {names!r:.200}, expected {golden_names!r:.200}")
    if inputs != golden_inputs:
        return wrong(f"merged action inputs {inputs!r:.200}, expected {golden_inputs!r:.200}")
    return correct()


def _golden_call(item: Any) -> tuple[str, dict[str, Any]]:
    keys = ("Action", "Action_Input") if isinstance(item, dict) and "Action" in item else ("name", "arguments")
    if not isinstance(item, dict) or not isinstance(item.get(keys[0]), str):
        raise ValueError(
            f"expected call {item!r:.200} has no single answer; the scorer 'paper_parity' needs "
            '{"Action": ..., "Action_Input": ...} or {"name": ..., "arguments": ...}'
        )
    arguments = item.get(keys[1])
    arguments = _loads(arguments) if isinstance(arguments, str) else arguments or {}
    if not isinstance(arguments, dict):
        raise ValueError(f"the input of the expected call {item!r:.200} is not an object")
    return item[keys[0]], arguments


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


def _merged(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for arguments in inputs for key, value in arguments.items()}
