"""Sizes that are rounded up to blocks, in a form in which a tracer sees that blocks fit.

A length n is padded to whole blocks of b by ``(b - n % b) % b``, ``-n % b`` and the like, and then
viewed as blocks. That n and its padding are a multiple of b is a property of remainders that the
tracer does not know.

Rules:

1. A remainder ``n % b`` of a symbolic size by a number is n − (n // b)·b, which is the same: sums
of it and n cancel to multiples of b.
2. ``chunk`` of a symbolic size that its number divides, for what the tracer knows, gives pieces of
one size.

It must not fire on tensors, nor on divisors that are symbolic or not positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from crossfuse.export.capture.traceable import replaced

__all__ = ["even_chunks", "whole_blocks"]


@contextmanager
def whole_blocks() -> Iterator[None]:
    """Write remainders as differences, for a while."""
    remainder = vars(torch.SymInt)["__mod__"]

    def mod(self: Any, other: Any) -> Any:
        if isinstance(other, int) and other > 0:
            return self - (self // other) * other
        return remainder(self, other)

    with replaced(torch.SymInt, "__mod__", mod):
        yield


@contextmanager
def even_chunks() -> Iterator[None]:
    """Cut symbolic sizes into equal pieces, for a while."""
    with ExitStack() as stack:
        for owner in (torch, Tensor):
            stack.enter_context(replaced(owner, "chunk", _even(owner.chunk)))
        yield


def _even(chunk: Callable[..., Any]) -> Callable[..., Any]:
    def cut(*args: Any, **kwargs: Any) -> Any:
        given = {"dim": 0, **dict(zip(("input", "chunks", "dim"), args, strict=False)), **kwargs}
        tensor, chunks, dim = (given[name] for name in ("input", "chunks", "dim"))
        size = tensor.shape[dim]
        if not isinstance(size, torch.SymInt) or not statically_known_true(size % chunks == 0):
            return chunk(tensor, chunks, dim)
        piece = size // chunks
        return tuple(tensor.narrow(dim, i * piece, piece) for i in range(chunks))

    return cut
