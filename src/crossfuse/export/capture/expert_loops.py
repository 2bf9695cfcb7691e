"""Loops over the experts that some token was routed to, as loops over all experts while a module is
traced.

A mixture of experts that is written out counts the tokens of each expert, lists the experts that
have some (``nonzero``), and goes through that list. How long it is depends on values, so no tracer
can follow. What an expert adds for no tokens is nothing: so the loop may as well go through all of
them, in order.

Rules:

1. Where the ``nonzero`` of a vector of fixed length is gone through, every index of the vector
comes, as numbers that index as the row of the matrix did.
2. So it is with its ``tolist``, and with the vector that it is flattened to.
3. Code for an expert without tokens, which skips it, is left out: where what is asked for tokens is
the row of an expert, ``nonzero`` and ``where`` are taken to have found some.

It must not fire on lists of any other kind: a matrix of indices, a list as long as the text.
That a loop does nothing for an index that ``nonzero`` left out is not proven here; parity tells,
where most experts have no tokens at a single row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["MOST_EXPERTS", "all_experts"]

MOST_EXPERTS = 1024
"""The longest vector whose indices are all gone through."""

_NONZERO = (torch.nonzero, Tensor.nonzero, torch.where)
_FLAT = (
    *(torch.squeeze, Tensor.squeeze, torch.flatten, Tensor.flatten),
    *(Tensor.view, torch.reshape, Tensor.reshape),
)


class _Index(int):
    """An index where a tensor with one number was."""

    def item(self) -> int:
        """The number."""
        return int(self)


class _Row(list[_Index]):
    """A row of a ``nonzero``: an index for one axis, as a vector with one number is."""

    def item(self) -> int:
        """The number."""
        return int(self[0])

    def tolist(self) -> list[int]:
        """The numbers."""
        return [int(self[0])]


class _AllIndices(TorchFunctionMode):
    """Remembers what ``nonzero`` listed, and among how many.

    Attributes:
        listed: identity of a list of indices → the list, kept alive, and how many could be on it.
        lengths: of the lists that were gone through.
        rows: identity → the rows of matrices of such a length, kept alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listed: dict[int, tuple[Tensor, int]] = {}
        self.lengths: set[int] = set()
        self.rows: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = self.listed.get(id(args[0])) if args else None
        if known is not None and func in (Tensor.unbind, torch.unbind):
            self.lengths.add(known[1])
            indices = [_Index(i) for i in range(known[1])]
            return [_Row([i]) for i in indices] if known[0].ndim == 2 else indices
        result = func(*args, **(kwargs or {}))
        if func in _NONZERO and len(args) == 1:
            self._found(args[0], result)
        elif known is not None and func in _FLAT and result.ndim == 1:
            self.listed[id(result)] = (result, known[1])
        elif self.lengths and self._is_row(func, args):
            self.rows[id(result)] = result
        return result

    def _is_row(self, func: Any, args: Any) -> bool:
        """A matrix is indexed by an expert, or a row of it is flattened."""
        if func is not Tensor.__getitem__:
            return func in _FLAT and id(args[0]) in self.rows
        return isinstance(args[1], int | _Row) and args[0].shape[0] in self.lengths

    def _found(self, values: Tensor, result: Any) -> None:
        first = result if isinstance(result, Tensor) else result[0]
        if id(values) in self.rows and isinstance(first.shape[0], torch.SymInt):
            torch._check(first.shape[0] >= 1)
        size = values.shape[0] if values.ndim == 1 else None
        if first is result and isinstance(size, int) and size <= MOST_EXPERTS:
            self.listed[id(result)] = (result, size)


@contextmanager
def all_experts() -> Iterator[None]:
    """Go through all indices where those that are not zero would be, for a while."""
    with _AllIndices():
        yield
