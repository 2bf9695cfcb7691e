"""Which part of a tensor's shape comes from where: axes as groups of atoms, followed through
transposes and reshapes.

An *atom* is an indivisible factor of a shape: ``[batch·heads, length, size]`` begins as three
atoms; a reshape to ``[batch, heads, length, size]`` splits the first. As in row-major order a
reshape never mixes atoms, a chain of layout operators is the same as a regrouping and a permutation
of atoms, and two chains that do the same are known to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from crossfuse.graph.metadata import dim_of

__all__ = ["LAYOUT_OPS", "Atom", "Axes", "Size", "axes_of", "follow", "leaves", "size_of"]

LAYOUT_OPS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that move elements without changing them."""


@dataclass(frozen=True)
class Size:
    """A size as a product: a number and symbols. Symbols that are no plain names (``length//2``)
    are opaque."""

    factor: int = 1
    symbols: tuple[str, ...] = ()

    @classmethod
    def parse(cls, dim: int | str) -> Size:
        """From a dimension of a graph."""
        if isinstance(dim, int):
            return cls(dim)
        parts = [part.strip() for part in _factors(dim)]
        if not all(re.fullmatch(r"\w+|\([^()]*\)", part) for part in parts):
            return cls(1, (dim,))
        numbers = [int(p) for p in parts if p.isdigit()]
        return cls(math.prod(numbers), tuple(sorted(p for p in parts if not p.isdigit())))

    def __mul__(self, other: Size) -> Size:
        return Size(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Size) -> Size | None:
        """The quotient, or None where it is not known to be whole."""
        rest = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in rest:
                return None
            rest.remove(symbol)
        if not other.factor or self.factor % other.factor:
            return None
        return Size(self.factor // other.factor, tuple(rest))

    @property
    def static(self) -> int | None:
        """The number, where there are no symbols."""
        return None if self.symbols else self.factor

    @property
    def dim(self) -> int | str:
        """As a dimension of a graph."""
        if not self.symbols:
            return self.factor
        return "*".join(([str(self.factor)] if self.factor != 1 else []) + list(self.symbols))


def _factors(dim: str) -> list[str]:
    """Split at ``*`` outside parentheses."""
    return re.split(r"\*(?![^(]*\))", dim)


ONE = Size()


class Atom:
    """A factor of a shape; ``parts`` once a reshape has split it."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.parts: tuple[Atom, Atom] | None = None

    def leaves(self) -> Iterator[Atom]:
        """The atoms that it is made of now."""
        if self.parts is None:
            yield self
        else:
            for part in self.parts:
                yield from part.leaves()

    def split(self, first: Size, rest: Size) -> tuple[Atom, Atom]:
        """Split into two, the first one varying slower."""
        self.parts = (Atom(first), Atom(rest))
        return self.parts


Axes = list[list[Atom]]
"""One list of atoms per axis, slowest first; an axis of size 1 has none."""


def leaves(atoms: Sequence[Atom]) -> list[Atom]:
    """Atoms, split as far as known by now."""
    return [leaf for atom in atoms for leaf in atom.leaves()]


def size_of(atoms: Sequence[Atom]) -> Size:
    """The product of atoms' sizes."""
    return math.prod((atom.size for atom in atoms), start=ONE)


def axes_of(value: ir.Value) -> Axes | None:
    """Fresh atoms for a value, or None where its rank is unknown. An unknown size is a symbol of
    its own."""
    if value.shape is None:
        return None
    sizes = [_size(value, axis) for axis in range(len(value.shape))]
    return [[] if size == ONE else [Atom(size)] for size in sizes]


def follow(node: ir.Node, axes: Axes) -> Axes | None:
    """Axes of a layout operator's output, given those of its input; None where they can't be
    told."""
    out = node.outputs[0]
    if node.op_type == "Transpose":
        perm = node.attributes.get("perm")
        order = list(perm.as_ints()) if perm is not None else list(range(len(axes)))[::-1]
        return [axes[i] for i in order]
    if out.shape is None:
        return None
    return _regroup(axes, [_size(out, axis) for axis in range(len(out.shape))])


def _regroup(axes: Axes, sizes: Sequence[Size]) -> Axes | None:
    """The same atoms in the same order, cut into axes of other sizes; splits atoms where a cut goes
    through them."""
    pending = leaves([atom for axis in axes for atom in axis])[::-1]
    found: Axes = []
    for size in sizes:
        group: list[Atom] = []
        while size != ONE:
            if not pending:
                return None
            atom = pending.pop()
            rest = size.over(atom.size)
            if rest is None:
                beyond = atom.size.over(size)
                if beyond is None:
                    return None
                first, last = atom.split(size, beyond)
                pending.append(last)
                atom, rest = first, ONE
            group.append(atom)
            size = rest
        found.append(group)
    return found if not pending else None


def _size(value: ir.Value, axis: int) -> Size:
    dim = dim_of(value, axis)
    return Size.parse(dim) if dim is not None else Size(1, (f"{value.name}[{axis}]?",))
