"""JSON as its standard has it: no NaN and no infinity."""

import math
from typing import Any


def strict(value: Any) -> Any:
    """The value with null in place of numbers that JSON lacks, and lists in place of tuples."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
