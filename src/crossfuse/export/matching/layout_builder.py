"""The operators that bring a value from one arrangement of its axis factors to another: reshape,
transpose, expand, reshape, as few of them as the change needs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike

from crossfuse.export.matching.axes import Axes, Axis, AxisFactor, all_factors, factors, size_of
from crossfuse.graph.builder import GraphBuilder

__all__ = ["LayoutBuilder", "UnknownSizeError", "known_dims", "numpy_type"]


class UnknownSizeError(Exception):
    """A size that can't be read off any known value at run time."""


class LayoutBuilder:
    """Emits nodes through a builder, with the shapes and types of what they make.

    Sizes that are known only at run time are read off the values given to `knows`.
    """

    def __init__(self) -> None:
        self.build = GraphBuilder()
        self._known: list[tuple[ir.Value, Axes]] = []

    def knows(self, value: ir.Value, axes: Axes) -> None:
        """Sizes of factors may be read off this value at run time."""
        self._known.append((value, axes))

    def op(
        self,
        name: str,
        inputs: Sequence[ir.Value | None],
        like: ir.Value,
        shape: Sequence[int | str] | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Emit a node with one output of the type of ``like``."""
        return self.build.op(name, *inputs, like=like, shape=shape, **attributes)

    def constant(self, values: ArrayLike, dtype: DTypeLike) -> ir.Value:
        """A small constant."""
        return self.build.constant(values, dtype)

    def arrange(
        self, value: ir.Value, axes: Axes, target: Axes, *, expand: bool = True
    ) -> ir.Value:
        """Bring a value to the target's axes; the value itself where it has them.

        Factors of the target that the value lacks are expanded to their size, or, without
        ``expand``, must make up whole axes, which then have size 1.

        Raises:
            UnknownSizeError: a size that the operators need is on no value that the builder knows.
        """
        have, requested = all_factors(axes), all_factors(target)
        assert set(have) <= set(requested), "the target lacks axes that the value has"
        order = tuple(factor for factor in requested if factor in have)
        value, now = self._permute(value, axes, order)
        if not expand:
            target = [[factor for factor in factors(axis) if factor in have] for axis in target]
        elif len(order) < len(requested):
            value, now = self._expand(value, now, order, requested)
        if _grouping(now) == _grouping(target):
            return value
        return self._reshape(value, now, target)

    def sizes(self, axes: Axes) -> ir.Value:
        """The shape of the axes as a 1-D int64 value.

        Raises:
            UnknownSizeError: one of them is on no value that the builder knows.
        """
        known = [size_of(axis).static for axis in axes]
        numbers = [size for size in known if size is not None]
        if len(numbers) == len(known):
            return self.constant(numbers, np.int64)
        parts = [
            self.constant([size], np.int64) if size is not None else self._product(factors(axis))
            for axis, size in zip(axes, known, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return self.op("Concat", parts, parts[0], [len(parts)], axis=0)

    def _permute(self, value: ir.Value, axes: Axes, order: Axis) -> tuple[ir.Value, Axes]:
        """The value with its factors in another order, and its axes then."""
        if order == all_factors(axes):
            return value, axes
        runs = _runs(axes, order)
        if _grouping(axes) != runs:
            value = self._reshape(value, axes, runs)
        now = sorted(runs, key=lambda run: order.index(run[0]))
        perm = [runs.index(run) for run in now]
        return self.op("Transpose", [value], value, _dims(now), perm=perm), now

    def _expand(
        self, value: ir.Value, axes: Axes, order: Axis, requested: Axis
    ) -> tuple[ir.Value, Axes]:
        """The value with an axis for each requested factor, and its axes then."""
        spread = [[factor] if factor in order else [] for factor in requested]
        value = self._reshape(value, axes, spread)
        now = [[factor] for factor in requested]
        return self.op("Expand", [value, self.sizes(now)], value, _dims(now)), now

    def _reshape(self, value: ir.Value, axes: Axes, target: Axes) -> ir.Value:
        """Regroup without changing the order, by a constant shape where one does.

        In such a shape 0 copies a size, and −1 infers it.
        """
        before, after = _grouping(axes), _grouping(target)
        shape = []
        for i, axis in enumerate(after):
            static = size_of(axis).static
            copied = i < len(before) and before[i] == axis
            shape.append(static if static is not None else 0 if copied else -1)
        sizes = self.constant(shape, np.int64) if shape.count(-1) <= 1 else self.sizes(target)
        return self.op("Reshape", [value, sizes], value, _dims(target))

    def _product(self, product: Axis) -> ir.Value:
        """``[1]`` int64: the product of the factors' sizes at run time."""
        for value, axes in self._known:
            for axis, group in enumerate(axes):
                on_axis = factors(group)
                others = [factor for factor in on_axis if factor not in product]
                divisor = size_of(others).static
                if set(product) <= set(on_axis) and divisor is not None and product:
                    like = self.constant([divisor], np.int64)
                    size = self.op("Shape", [value], like, [1], start=axis, end=axis + 1)
                    return size if divisor == 1 else self.op("Div", [size, like], like, [1])
        if len(product) > 1:
            first, rest = self._product(product[:1]), self._product(product[1:])
            return self.op("Mul", [first, rest], first, [1])
        static = size_of(product).static
        if static is None:
            raise UnknownSizeError(size_of(product).dim)
        return self.constant([static], np.int64)


def _grouping(axes: Axes) -> list[Axis]:
    """The factors of each axis, comparable with other groupings."""
    return [factors(axis) for axis in axes]


def _runs(axes: Axes, order: Axis) -> list[Axis]:
    """The axes' factors in as few axes as a transpose to ``order`` allows: neighbours that stay
    neighbours stay together."""
    following = dict(itertools.pairwise(order))
    runs: list[list[AxisFactor]] = []
    for axis in axes:
        before = None
        for factor in factors(axis):
            if before is not None and following.get(before) is factor:
                runs[-1].append(factor)
            else:
                runs.append([factor])
            before = factor
    return [tuple(run) for run in runs]


def _dims(axes: Axes) -> list[int | str]:
    return [size_of(axis).dim for axis in axes]


def known_dims(value: ir.Value) -> list[int | str]:
    """Sizes of a value whose shape is known, by number or name."""
    assert value.shape is not None
    return [size if isinstance(size, int) else str(size.value) for size in value.shape]


def numpy_type(value: ir.Value) -> np.dtype[np.generic]:
    """The type of a value whose type is known."""
    assert value.dtype is not None
    return value.dtype.numpy()
