"""Strict JSON of what the program computed: NumPy's numbers are numbers, and no NaN can enter."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["json_text"]


def json_text(data: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON text of plain data that may hold NumPy's scalars.

    Raises:
        ValueError: NaN or infinity.
        TypeError: something that has no JSON.
    """
    return json.dumps(data, indent=indent, sort_keys=sort_keys, allow_nan=False, default=_plain)


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON")
