"""What a request may be, at most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.errors import Advice, InputError, Said

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of a queue.

    Args:
        max_bytes: of a request's body.
        max_batch: of the first axis of any input.
        max_queue: requests that wait for one server; more are refused.
        allow_nan: whether inputs may hold NaN. Infinity always may: additive masks hold it.
        max_json_bytes: of a body's JSON; tensors that come as bytes don't count. While JSON is
            parsed, a server does nothing else.
        max_name_bytes: of each name that a client chooses: of its request, context, inputs and
            outputs.
        body_seconds: from a request's head to the end of its body.
    """

    max_bytes: int = 64 << 20
    max_batch: int = 1024
    max_queue: int = 256
    allow_nan: bool = False
    max_json_bytes: int = 8 << 20
    max_name_bytes: int = 1024
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_batch", "max_queue", "max_json_bytes", "max_name_bytes"):
            if getattr(self, name) < 1:
                raise InputError("a limit must be positive", where=name, got=getattr(self, name))
        for name in ("body_seconds",):
            if not getattr(self, name) > 0:
                raise InputError("a limit must be positive", where=name, got=getattr(self, name))

    def check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Raise :class:`InputError` for inputs beyond the limits."""
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                raise InputError("an input is not an array", where=name, got=type(array).__name__)
            if array.ndim and array.shape[0] > self.max_batch:
                raise InputError(
                    "the batch is too large",
                    where=name,
                    got=array.shape[0],
                    expected=f"at most {self.max_batch}",
                )
            if (
                not self.allow_nan
                and array.dtype.kind == "f"
                and array.size
                and np.isnan(np.min(array))
            ):
                raise InputError(
                    "an input holds NaN",
                    where=name,
                    do=Advice(
                        "Send numbers, or start the server with {}",
                        Said("--allow-nan", "Limits(allow_nan=True)"),
                    ),
                )
