"""Dataclasses to JSON: plain data by the class's form (`json_form`), and text without NaN.

`json_reader` is the way back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossfuse.core.json_form import VERSION, Form, attributes_of, form_of

__all__ = ["JsonData", "encode", "json_text"]

_SCALARS: tuple[type, ...] = (bool, int, float, str)


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


def encode(value: Any) -> Any:
    """Plain data of a dataclass, or of mappings and sequences of them.

    Raises:
        TypeError: something that has no JSON.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _encode_dataclass(value)
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value if value is None or isinstance(value, _SCALARS) else _plain(value)


def _encode_dataclass(value: Any) -> Any:
    kind = type(value)
    form = form_of(kind)
    if form.whole is not None:
        return encode(getattr(value, form.whole))
    if form.array:
        return [encode(getattr(value, name)) for name in attributes_of(kind)]
    data: dict[str, Any] = {} if form.version is None else {VERSION: form.version}
    for name in attributes_of(kind):
        item = getattr(value, name)
        if name in form.sparse and item == _default_of(kind, name):
            continue
        data[form.key(name)] = _encode_attribute(item, name, form)
    return data


def _default_of(kind: type, name: str) -> Any:
    found = next(f for f in dataclasses.fields(kind) if f.name == name)
    made = found.default_factory
    return found.default if made is dataclasses.MISSING else made()


def _encode_attribute(item: Any, name: str, form: Form) -> Any:
    if name in form.gaps:
        return item if math.isfinite(item) else None
    plain = encode(item)
    if name in form.keyed:
        for entry in plain.values():
            del entry[form.keyed[name]]
    return plain


class JsonData:
    """Gives a dataclass `to_json`."""

    def to_json(self) -> Any:
        """Plain data, for JSON."""
        return encode(self)
