"""Requests merged along their batch: which of them may be, and whether the model lets them.

Samples of a batch are independent in most models, but not in all (a contrastive matrix of logits,
statistics over a batch). The shapes rule many out, and `holds` tries on real inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.dimensions import symbols_in
from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import CrossfuseError

__all__ = ["Merging", "agree"]

Arrays = Mapping[str, NDArray[Any]]
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4
_LOUD = 1000


class Merging:
    """How queries are stacked and their answers taken apart.

    With ``contexts`` contexts in each request, query ``i·G … (i+1)·G-1`` asks context ``i``; merged
    requests keep that order.

    Args:
        inputs: what varies from query to query.
        outputs: of the model.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        firsts = {spec.shape[0] if spec.shape else None for spec in outputs}
        first = firsts.pop() if len(firsts) == 1 else None
        self.batched = tuple(s.name for s in inputs if s.shape and s.shape[0] == first)
        leads = isinstance(first, str) and not any(
            first in _dims_of(spec.shape[1:]) for spec in (*inputs, *outputs)
        )
        self.dim: str | None = str(first) if leads and self.batched else None

    def rows(self, inputs: Arrays) -> int:
        """Queries in a request; 1 where they can't be counted."""
        if self.dim is None or not all(
            inputs[name].ndim for name in self.batched if name in inputs
        ):
            return 1
        return max((inputs[name].shape[0] for name in self.batched if name in inputs), default=1)

    def signature(self, inputs: Arrays) -> object:
        """Equal for requests that may be merged; what has no batch must be the same in all."""
        described: list[tuple[object, ...]] = []
        for name in sorted(inputs):
            array = inputs[name]
            if name in self.batched:
                described.append((name, array.dtype.str, array.shape[1:]))
            else:
                described.append((name, array.dtype.str, array.shape, array.tobytes()))
        return tuple(described)

    def merge(self, requests: Sequence[Arrays], contexts: int) -> dict[str, NDArray[Any]]:
        """One request for all."""
        merged = dict(requests[0])
        for name in self.batched:
            parts = [_per_context(request[name], contexts) for request in requests]
            whole = np.concatenate(parts, axis=1)
            merged[name] = whole.reshape(-1, *whole.shape[2:])
        return merged

    def take_apart(
        self, outputs: Arrays, rows: Sequence[int], contexts: int
    ) -> list[dict[str, NDArray[Any]]]:
        """Each request's own answer; ``rows`` are their queries.

        Raises:
            ValueError: an output has other rows than the requests together.
        """
        for name, array in outputs.items():
            if array.shape[:1] != (sum(rows),):
                raise ValueError(f"output {name!r} has shape {array.shape} for {sum(rows)} rows")
        ends = np.cumsum([count // contexts for count in rows])
        parts: list[dict[str, NDArray[Any]]] = [{} for _ in rows]
        for name, array in outputs.items():
            whole = _per_context(array, contexts)
            for part, end, count in zip(parts, ends, rows, strict=True):
                own = whole[:, end - count // contexts : end]
                part[name] = np.ascontiguousarray(own.reshape(-1, *own.shape[2:]))
        return parts

    def holds(self, run: Callable[[Arrays], Arrays], inputs: Arrays) -> bool:
        """Whether merged requests get the answers that they get alone.

        Tried on these inputs, on the same in another order, and beside a neighbour whose numbers
        are a thousand times as large: what a stranger sends must not show in another's answer. Not
        where the model takes no such batch.
        """
        if self.dim is None:
            return False
        other = {
            name: np.flip(array, axis=-1).copy() if name in self.batched else array
            for name, array in inputs.items()
        }
        loud = {
            name: _louder(array) if name in self.batched else array for name, array in other.items()
        }
        rows = self.rows(inputs)
        try:
            alone, others = run(inputs), run(other)
            first, second = self.take_apart(run(self.merge([inputs, other], 1)), [rows, rows], 1)
            beside, _ = self.take_apart(run(self.merge([inputs, loud], 1)), [rows, rows], 1)
        except (CrossfuseError, ValueError):
            return False
        return agree(first, alone) and agree(second, others) and agree(beside, alone)


def _louder(array: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return array * array.dtype.type(_LOUD) if array.dtype.kind == "f" else array


def agree(got: Arrays, expected: Arrays) -> bool:
    """The same up to rounding: integers equal, floats within a thousandth of the output's scale."""
    for name, array in expected.items():
        if array.shape != got[name].shape:
            return False
        if array.dtype.kind != "f":
            if not np.array_equal(array, got[name]):
                return False
            continue
        scale = float(np.max(np.abs(array), initial=0.0))
        if not np.allclose(got[name], array, rtol=0, atol=_ABSOLUTE + _RELATIVE * scale):
            return False
    return True


def _per_context(array: NDArray[Any], contexts: int) -> NDArray[Any]:
    return (
        array.reshape(contexts, -1, *array.shape[1:])
        if array.size
        else array.reshape(contexts, 0, *array.shape[1:])
    )


def _dims_of(shape: Sequence[int | str]) -> set[str]:
    """Names of the dimensions in a shape, in expressions too."""
    return {name for size in shape for name in symbols_in(size)}
