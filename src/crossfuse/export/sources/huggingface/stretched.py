"""A processor's sample at other sizes: what stands for an image stays, words come and go.

Along an axis of a text, places are of three kinds, row by row: padding, places that stay (special
tokens, placeholders of images), and free ones. A longer text has more of the free places, a shorter
one fewer, and the padding stays at its side. All inputs along that axis (masks, types) go with the
ids. Free ids become others of the vocabulary. Axes without ids, of sounds and pictures, have free
places alone. Features get noise, so that no two samples are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Stretched"]

_NOISE = 0.25
"""Of a feature's deviation."""


@dataclass(frozen=True)
class _Line:
    """One axis that changes its length.

    Attributes:
        kept: ``[rows, length]``, places that are no padding.
        fixed: of these, the ones that stay.
        padding: row and place of one that is padding, or None where there is none.
        left: padding comes first.
    """

    kept: Tensor
    fixed: Tensor
    padding: tuple[int, int] | None
    left: bool

    def least(self) -> int:
        """The shortest length at which every row has its fixed places, and one free place."""
        return int(self.fixed.sum(-1).max()) + 1

    def places(
        self, rows: Tensor, length: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """For rows by index ``[n]``, from where each of ``length`` places is taken ``[n, length]``:
        the row and the place."""
        from_row = rows[:, None].repeat(1, length)
        from_place = torch.zeros(len(rows), length, dtype=torch.long)
        for i, row in enumerate(rows.tolist()):
            low = int(self.fixed[row].sum()) + 1
            kept = length
            if self.padding is not None and i > 0 and low < length:
                kept = int(torch.randint(low, length + 1, (), generator=generator))
            chosen = self._chosen(row, kept)
            at = slice(length - kept, length) if self.left else slice(0, kept)
            from_place[i, at] = chosen
            if kept < length and self.padding is not None:
                rest = slice(0, length - kept) if self.left else slice(kept, length)
                from_row[i, rest], from_place[i, rest] = self.padding
        return from_row, from_place

    def _chosen(self, row: int, count: int) -> Tensor:
        """So many places of a row, in order: the fixed ones, and free ones spread evenly; the first
        ones where there is no room for all that are fixed."""
        fixed = self.fixed[row].nonzero().reshape(-1)
        free = (self.kept[row] & ~self.fixed[row]).nonzero().reshape(-1)
        wanted = count - len(fixed)
        if wanted < 1 or not len(free):
            return self.kept[row].nonzero().reshape(-1)[:count]
        spread = free[torch.arange(wanted) * len(free) // max(wanted, 1)]
        return torch.cat([fixed, spread]).sort().values


@dataclass(frozen=True)
class Stretched:
    """Samples like one of a processor's.

    Args:
        base: inputs by name.
        axes: input → axis → dimension.
        rows: names of the dimensions that count rows.
        ids: inputs that hold ids of a vocabulary.
        plain: ids that stand for nothing but words, ``[n]``.
    """

    base: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    rows: Sequence[str]
    ids: Sequence[str]
    plain: Tensor

    def least(self, dim: str) -> int | None:
        """The smallest size that a dimension along texts can have; None where none of its places is
        free in some row."""
        line = self._line(dim)
        free = (line.kept & ~line.fixed).any(-1)
        return line.least() if bool(free.all()) else None

    def sample(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Inputs of the given sizes of the dimensions."""
        taken: dict[str, tuple[Tensor, Tensor]] = {}
        found = {}
        for name, tensor in self.base.items():
            for dim in self.axes.get(name, {}).values():
                if dim not in self.rows and dim not in taken:
                    taken[dim] = self._line(dim).places(
                        self._indices(dim, sizes), sizes[dim], generator
                    )
            made = self._taken(name, tensor, taken, sizes)
            found[name] = self._words(name, made, generator)
        return {name: _noisy(made, generator) for name, made in found.items()}

    def _taken(
        self,
        name: str,
        tensor: Tensor,
        taken: Mapping[str, tuple[Tensor, Tensor]],
        sizes: Mapping[str, int],
    ) -> Tensor:
        axes = self.axes.get(name, {})
        batch = next((axis for axis, dim in axes.items() if dim in self.rows), None)
        along = [(axis, dim) for axis, dim in axes.items() if dim not in self.rows]
        made = tensor
        if batch is not None:
            rows = torch.arange(sizes[axes[batch]]) % tensor.shape[batch]
            if len(along) == 1:
                axis, dim = along[0]
                moved = tensor.movedim((batch, axis), (0, 1))
                return moved[taken[dim]].movedim((0, 1), (batch, axis)).contiguous()
            made = made.index_select(batch, rows)
        for axis, dim in along:
            made = made.index_select(axis, taken[dim][1][0])
        return made.contiguous()

    def _words(self, name: str, made: Tensor, generator: torch.Generator) -> Tensor:
        """Ids whose plain ones are others."""
        if name not in self.ids or not len(self.plain):
            return made
        other = self.plain[torch.randint(len(self.plain), made.shape, generator=generator)]
        return torch.where(torch.isin(made, self.plain), other.to(made.dtype), made)

    def _indices(self, dim: str, sizes: Mapping[str, int]) -> Tensor:
        """Rows of the base for the rows of a sample, of the inputs along a dimension."""
        for name, axes in self.axes.items():
            if dim in axes.values():
                for axis, other in axes.items():
                    if other in self.rows:
                        return torch.arange(sizes[other]) % self.base[name].shape[axis]
        return torch.zeros(1, dtype=torch.long)

    def _line(self, dim: str) -> _Line:
        """What is along a dimension, by its mask and ids."""
        masks: dict[str, Tensor] = {}
        ids, others, shape = [], [], (1, 1)
        for name, axes in self.axes.items():
            places = [axis for axis, other in axes.items() if other == dim]
            tensor = self.base[name]
            if len(places) != 1:
                continue
            rows = [axis for axis, other in axes.items() if other in self.rows]
            count = int(tensor.shape[rows[0]]) if rows else 1
            shape = (max(shape[0], count), int(tensor.shape[places[0]]))
            if places == [1] and rows in ([0], []) and tensor.ndim == 2:
                if name in self.ids:
                    ids.append(tensor)
                elif _is_mask(name, tensor):
                    masks[name] = tensor
                elif not tensor.is_floating_point():
                    others.append(tensor)
        kept = torch.ones(shape, dtype=torch.bool)
        if masks:
            chosen = min(masks, key=lambda name: not name.endswith("attention_mask"))
            kept = masks.pop(chosen) != 0
            others += masks.values()
        fixed = torch.zeros_like(kept)
        for tensor in ids:
            fixed |= kept & ~torch.isin(tensor, self.plain)
        for tensor in others:
            fixed |= kept & _unusual(tensor, kept & ~fixed)
        hidden = (~kept).nonzero()
        padding = (int(hidden[0, 0]), int(hidden[0, 1])) if len(hidden) else None
        left = padding is not None and padding[1] == 0
        return _Line(kept, fixed, padding, left)


def _unusual(tensor: Tensor, among: Tensor) -> Tensor:
    """Where a tensor holds anything but its most frequent value among some places."""
    if tensor.shape != among.shape or not bool(among.any()):
        return torch.zeros_like(among)
    return tensor != tensor[among].mode().values


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Zeros and ones of ``[rows, length]``, called a mask."""
    return (
        "mask" in name
        and tensor.ndim == 2
        and bool(((tensor == 0) | (tensor == 1)).all())
        and bool((tensor != 0).any(-1).all())
    )


def _noisy(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Features with noise; what holds whole numbers alone, along the last axis, stays."""
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        return tensor
    apart = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim else tensor.reshape(1, 1)
    if apart.shape[0] * apart.shape[1] < 2:
        return tensor
    counted = (apart == apart.round()).all(0)
    noise = torch.randn(tensor.shape, generator=generator) * (_NOISE * float(tensor.std()))
    return torch.where(counted, tensor, tensor + noise)
