"""Emit what brings a value from one arrangement of its atoms to another: reshape, transpose,
expand, reshape."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from crossfuse.export.matching.axes import Atom, Axes, leaves, size_of

__all__ = ["Arranger", "UnknownSizeError"]


class UnknownSizeError(Exception):
    """A size that can't be read off any known value at run time."""


class Arranger:
    """Emits nodes onto a tape, with the shapes of what they make.

    Sizes that are known only at run time are read off the values given to `knows`.
    """

    def __init__(self) -> None:
        self.tape = Tape()
        self._places: list[tuple[ir.Value, Axes]] = []

    def knows(self, value: ir.Value, axes: Axes) -> None:
        """Sizes of atoms may be read off this value at run time."""
        self._places.append((value, axes))

    def op(self, name: str, inputs: Sequence[ir.Value | None], like: ir.Value, shape: Sequence[int | str] | None = None,
           **attributes: object) -> ir.Value:  # fmt: skip
        """Emit a node with one output of the type of ``like``."""
        out = self.tape.op(name, list(inputs), attributes=attributes or None)  # type: ignore[arg-type]
        out.type = like.type
        out.shape = ir.Shape(shape) if shape is not None else None
        return out

    def constant(self, values: object, dtype: object) -> ir.Value:
        """A small constant."""
        array = np.asarray(values, dtype=dtype)  # type: ignore[call-overload]
        value: ir.Value = self.tape.op("Constant", [], attributes={"value": ir.tensor(array)})
        value.shape, value.type = (
            ir.Shape(array.shape),
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        value.const_value = ir.tensor(array)
        return value

    def arrange(
        self, value: ir.Value, axes: Axes, target: Axes, *, expand: bool = True
    ) -> ir.Value:
        """Bring a value to the target's axes.

        Atoms of the target that the value lacks are expanded to their size, or, without ``expand``,
        must make up whole axes, which then have size 1.
        """
        have = [leaf for axis in axes for leaf in leaves(axis)]
        want = [leaf for axis in target for leaf in leaves(axis)]
        assert set(have) <= set(want), "the target lacks axes that the value has"
        order = [leaf for leaf in want if leaf in have]
        now = axes
        if order != have:
            runs = _runs(axes, order)
            if [leaves(a) for a in axes] != runs:
                value = self._reshape(value, axes, runs)
            now = sorted(runs, key=lambda run: order.index(run[0]))
            perm = [runs.index(run) for run in now]
            value = self.op("Transpose", [value], value, _dims(now), perm=perm)
        if len(order) < len(want) and expand:
            spread: Axes = [[leaf] if leaf in order else [] for leaf in want]
            value = self._reshape(value, now, spread)
            now = [[leaf] for leaf in want]
            value = self.op("Expand", [value, self.sizes(now)], value, _dims(now))
        final = (
            target
            if expand
            else [[leaf for leaf in leaves(axis) if leaf in have] for axis in target]
        )
        return (
            value
            if [leaves(a) for a in final] == [leaves(a) for a in now]
            else self._reshape(value, now, final)
        )

    def sizes(self, axes: Axes) -> ir.Value:
        """The shape of the axes as a 1-D int64 value."""
        known = [size_of(leaves(axis)).static for axis in axes]
        if all(size is not None for size in known):
            return self.constant(known, np.int64)
        parts = [
            self.constant([size], np.int64) if size is not None else self._product(leaves(axis))
            for axis, size in zip(axes, known, strict=True)
        ]
        return (
            parts[0]
            if len(parts) == 1
            else self.op("Concat", parts, parts[0], [len(parts)], axis=0)
        )

    def _reshape(self, value: ir.Value, axes: Axes, target: Axes) -> ir.Value:
        """Regroup without changing the order, by a constant shape where one does (0 copies a size,
        −1 infers it)."""
        before, after = [leaves(a) for a in axes], [leaves(a) for a in target]
        shape = []
        for i, atoms in enumerate(after):
            static = size_of(atoms).static
            shape.append(
                static
                if static is not None
                else 0
                if i < len(before) and before[i] == atoms
                else -1
            )
        wanted = self.constant(shape, np.int64) if shape.count(-1) <= 1 else self.sizes(target)
        return self.op("Reshape", [value, wanted], value, _dims(target))

    def _product(self, atoms: Sequence[Atom]) -> ir.Value:
        """``[1]`` int64: the product of the atoms' sizes at run time."""
        for value, axes in self._places:
            for axis, group in enumerate(axes):
                held = leaves(group)
                others = [leaf for leaf in held if leaf not in atoms]
                divisor = size_of(others).static
                if set(atoms) <= set(held) and divisor is not None and atoms:
                    like = self.constant([divisor], np.int64)
                    size = self.op("Shape", [value], like, [1], start=axis, end=axis + 1)
                    return size if divisor == 1 else self.op("Div", [size, like], like, [1])
        if len(atoms) > 1:
            first, rest = self._product(atoms[:1]), self._product(atoms[1:])
            return self.op("Mul", [first, rest], first, [1])
        static = size_of(atoms).static
        if static is None:
            raise UnknownSizeError(size_of(atoms).dim)
        return self.constant([static], np.int64)


def _runs(axes: Axes, order: Sequence[Atom]) -> Axes:
    """The axes' atoms in as few axes as a transpose to ``order`` allows: neighbours that stay
    neighbours stay together."""
    following = dict(itertools.pairwise(order))
    runs: Axes = []
    for axis in axes:
        held = leaves(axis)
        for i, leaf in enumerate(held):
            if i and following.get(held[i - 1]) is leaf:
                runs[-1].append(leaf)
            else:
                runs.append([leaf])
    return runs


def _dims(axes: Axes) -> list[int | str]:
    return [size_of(leaves(axis)).dim for axis in axes]
