"""Adaptive pooling of inputs whose size is not known, by what it is.

Place i of the result covers ⌊i·n/count⌋ … ⌈(i + 1)·n/count⌉ − 1 of the n there are. PyTorch's own
decomposition makes a loop of the widest of these windows: as many steps as it has at the sizes of
the trace.

Rules:

1. An average becomes a product with a matrix of windows, one axis after the other.
2. A maximum is taken over what is outside of a window as −∞.
3. What has the sizes of numbers alone stays as PyTorch does it, and so does a maximum of which the
   places are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["adaptive_pools"]

_aten = torch.ops.aten
_AVERAGES = (
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten._adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten._adaptive_avg_pool3d.default,
)
_MAXIMA = (
    _aten.adaptive_max_pool1d.default,
    _aten.adaptive_max_pool2d.default,
    _aten.adaptive_max_pool3d.default,
)


def adaptive_pools(graph: fx.Graph) -> Mapping[Any, Callable[..., Any]]:
    """Operator → its decomposition, of those that the graph applies to a size that is not known."""
    found: dict[Any, Callable[..., Any]] = {}
    for node in graph.nodes:
        if node.target in _AVERAGES and _is_open(node):
            found[node.target] = _average
        elif node.target in _MAXIMA and _is_open(node) and not _reads_places(node):
            found[node.target] = _maximum
    return found


def _is_open(node: fx.Node) -> bool:
    x, counts = node.args[0], node.args[1]
    assert isinstance(x, fx.Node)
    assert isinstance(counts, Sequence)
    shape = x.meta["val"].shape[-len(counts) :]
    return any(
        type(size) is not int and count not in (1, None)
        for size, count in zip(shape, counts, strict=True)
    )


def _reads_places(node: fx.Node) -> bool:
    return any(use.args[1] != 0 and use.users for use in node.users)


def _average(x: Tensor, counts: Sequence[int | None]) -> Tensor:
    for axis, count in _pooled(counts):
        inside, width = _windows(x, axis, count)
        weights = inside.to(x.dtype) / width.to(x.dtype)
        x = (x.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return x


def _maximum(x: Tensor, counts: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    for axis, count in _pooled(counts):
        inside, _ = _windows(x, axis, count)
        hidden = torch.where(inside, x.movedim(axis, -1).unsqueeze(-2), -torch.inf)
        x = hidden.amax(-1).movedim(-1, axis)
    return x, torch.zeros_like(x, dtype=torch.int64)


def _pooled(counts: Sequence[int | None]) -> list[tuple[int, int]]:
    """Axis and count, of the axes that do not keep their size."""
    axes = range(-len(counts), 0)
    return [(a, count) for a, count in zip(axes, counts, strict=True) if count is not None]


def _windows(x: Tensor, axis: int, count: int) -> tuple[Tensor, Tensor]:
    """``[count, n]`` bool: what is in each window; ``[count, 1]``: how many are."""
    n = x.shape[axis]
    first = torch.arange(count, device=x.device)[:, None]
    start, end = first * n // count, ((first + 1) * n + count - 1) // count
    places = torch.arange(n, device=x.device)
    return (places >= start) & (places < end), end - start
