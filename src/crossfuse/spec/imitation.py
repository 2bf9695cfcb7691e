"""Inputs like the examples, at other sizes, with the values that matter to a check.

Masks over the same dimensions show the same places, and where the examples' ids hold one value in
all hidden places (padding), so do the ids made. `crossfuse.spec.input_kinds` tells what kind each
input is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from crossfuse.spec.input_kinds import Axes, Kind
from crossfuse.spec.padding import padded_mask

__all__ = ["Draw", "Patterns", "Table", "imitate", "vary"]


@dataclass(frozen=True)
class Table:
    """What ids look up: how many rows, and those with the largest magnitudes, the largest first."""

    rows: int
    extremes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Draw:
    """What a set of inputs is to reach.

    Attributes:
        masks: ``prefix``: rows padded at the end; ``holes``: at the start, with holes, or with one
            key; ``none``: as ``holes``, but the first sample has no key at all, nor has the first
            row of the second.
        scale: how many times the features' deviation and mean.
        tables: by input, what its ids look up: ids are drawn from all of it.
        extremes: ids of the rows with the largest magnitudes are among them.
        flipped: a mask's other value is taken to show a place.
    """

    masks: str = "prefix"
    scale: float = 1.0
    tables: Mapping[str, Table] = field(default_factory=dict)
    extremes: bool = False
    flipped: bool = False

    def words(self) -> str:
        """For people."""
        words = {
            "prefix": "rows padded at the end",
            "holes": "rows padded at the start, with holes, or of one key",
            "none": "a sample without any key",
        }[self.masks]
        also = [f"features × {self.scale:g}"] * (self.scale != 1.0)
        also += [
            "ids of the whole table, its largest rows among them"
            if self.extremes
            else "ids of the whole table"
        ] * bool(self.tables)
        also += ["masks read the other way round"] * self.flipped
        return ", ".join([words, *also])


def imitate(
    kinds: Mapping[str, Kind],
    like: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    axes: Axes,
    draw: Draw,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Inputs of the given shapes.

    Args:
        kinds: of the inputs.
        like: examples, for the dtypes.
        shapes: by input.
        axes: names of the dynamic axes per input: masks that share them show the same places.
        draw: what they are to reach.
        generator: makes them the same again.
    """
    patterns = Patterns(draw.masks, generator)
    made = {}
    for name, example in like.items():
        kind, shape, names = kinds[name], shapes[name], axes.get(name, {})
        if (
            name in draw.tables
            and kind.name in ("mask", "ids", "lengths")
            and example.dtype != torch.bool
        ):
            kind = replace(kind, name="ids", low=0, high=draw.tables[name].rows - 1)
        if kind.name == "features":
            values = _features(kind, shape, draw.scale, generator)
        elif kind.name == "lengths":
            values = _lengths(kind, shape, name, axes, shapes, patterns, generator)
        elif kind.name == "ids":
            values = torch.randint(kind.low, kind.high + 1, shape, generator=generator)
            beyond = kind.ignored if kind.ignored is not None else kind.padding
            if beyond is not None and shape:
                another = beyond + 1 if beyond < kind.high else max(beyond - 1, kind.low)
                shown = patterns.shown(shape, names)
                values = torch.where(shown, torch.where(values == beyond, another, values), beyond)
            if draw.extremes and name in draw.tables:
                among = None if beyond is None else values != beyond
                values = _with_extremes(values, draw.tables[name], generator, among=among)
        else:
            values = _masked(kind, patterns.shown(shape, names), draw.flipped, generator)
        made[name] = values.to(example.dtype)
    return made


def vary(
    kinds: Mapping[str, Kind],
    made: Mapping[str, Tensor],
    axes: Axes,
    draw: Draw,
    generator: torch.Generator,
    settled: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Inputs that a sampler made, changed to what the draw is to reach.

    Masks of padded rows, ``[batch, length]``, get other patterns; ids under them move where their
    rows' padding does. Features are scaled, and some ids become those of the rows with the largest
    magnitudes. All else stays as the sampler made it; so do settled inputs, and settled ids among
    others, which no mask hides.
    """
    patterns = Patterns(draw.masks, generator)
    varied = dict(made)
    free = {name: tensor for name, tensor in made.items() if settled.get(name) != ()}
    for name, tensor in free.items():
        kind, names = kinds[name], axes.get(name, {})
        if kind.name == "features" and draw.scale != 1.0:
            varied[name] = (tensor * draw.scale).to(tensor.dtype)
        elif kind.name in ("mask", "additive") and tensor.ndim == 2 and draw.masks != "prefix":
            before = tensor == 0 if kind.name == "additive" else tensor == kind.shown
            if _is_padded(before):
                shown = patterns.shown(tuple(tensor.shape), names) | _settled(before, free, settled)
                varied[name] = _masked(kind, shown, False, generator).to(tensor.dtype)
                _move_padding(varied, free, before, shown, settled)
    if draw.extremes:
        for name, table in draw.tables.items():
            if name in free and kinds[name].name in ("ids", "lengths"):
                ids = settled.get(name, ())
                among = (varied[name] > 0) & ~_among(varied[name], ids)
                varied[name] = _with_extremes(
                    varied[name], table, generator, among=among, share=4, without=ids
                )
    return varied


def _settled(
    mask: Tensor, made: Mapping[str, Tensor], settled: Mapping[str, tuple[int, ...]]
) -> Tensor:
    """Places of a mask in which an input of its shape has settled ids."""
    places = torch.zeros(mask.shape, dtype=torch.bool)
    for name, ids in settled.items():
        if ids and made[name].shape == mask.shape:
            places |= _among(made[name], ids)
    return places


def _among(values: Tensor, ids: tuple[int, ...]) -> Tensor:
    return torch.isin(values, torch.tensor(ids, dtype=values.dtype))


class Patterns:
    """Which places are shown, one pattern for all masks over the same dimensions."""

    def __init__(self, style: str, generator: torch.Generator) -> None:
        self._style = style
        self._generator = generator
        self._made: dict[tuple[int | str, ...], Tensor] = {}

    def shown(self, shape: tuple[int, ...], names: Mapping[int, str]) -> Tensor:
        """Booleans of a shape; axes of one place share the pattern of the rest."""
        kept = [i for i, size in enumerate(shape) if size != 1 or i in names or i == len(shape) - 1]
        key = tuple(names.get(i, shape[i]) for i in kept)
        if key not in self._made:
            self._made[key] = self._make(tuple(shape[i] for i in kept))
        return self._made[key].reshape(shape)

    def _make(self, shape: tuple[int, ...]) -> Tensor:
        if not shape or math.prod(shape) == 0:
            return torch.ones(shape, dtype=torch.bool)
        length, count = shape[-1], math.prod(shape[:-1])
        rows = padded_mask((count, length), self._generator, whole=None)
        if self._style != "prefix" and length > 1:
            for i in range(count):
                rows[i] = self._unlike_prefix(i % 3, length)
        rows = rows.reshape(shape)
        if self._style == "none" and length > 1:
            if len(shape) == 1:
                rows[...] = False
            else:
                rows[0] = False
                if len(shape) > 2 and shape[0] > 1:
                    rows[(1, *[0] * (len(shape) - 2))] = False
        return rows

    def _unlike_prefix(self, form: int, length: int) -> Tensor:
        places = torch.arange(length)
        if form == 0:
            return places >= self._draw(1, length, ())
        if form == 2:
            return places == self._draw(1, length, ())
        row = torch.rand(length, generator=self._generator) < 0.5
        row[length // 2] = False
        row[0], row[-1] = length > 3, True
        return row

    def _draw(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, generator=self._generator)


def _features(
    kind: Kind, shape: tuple[int, ...], scale: float, generator: torch.Generator
) -> Tensor:
    return scale * (
        torch.randn(shape, generator=generator, dtype=torch.float64) * kind.deviation + kind.mean
    )


def _lengths(
    kind: Kind,
    shape: tuple[int, ...],
    name: str,
    axes: Axes,
    shapes: Mapping[str, tuple[int, ...]],
    patterns: Patterns,
    generator: torch.Generator,
) -> Tensor:
    samples = axes.get(name, {}).get(0, shape[0])
    for other, named in axes.items():
        for axis, dim in named.items():
            if dim == kind.dim:
                sizes = (shape[0], shapes[other][axis])
                names = {1: dim} | ({0: samples} if isinstance(samples, str) else {})
                return patterns.shown(sizes, names).sum(-1).clamp(min=1).reshape(shape)
    return torch.randint(kind.low, kind.high + 1, shape, generator=generator)


def _masked(kind: Kind, shown: Tensor, flipped: bool, generator: torch.Generator) -> Tensor:
    if kind.name == "mask":
        return shown == bool(kind.shown != flipped)
    values = torch.tensor(kind.hiding, dtype=torch.float64)
    hidden = values[torch.randint(len(values), tuple(shown.shape), generator=generator)]
    return torch.where(shown, _features(kind, tuple(shown.shape), 1.0, generator), hidden)


def _with_extremes(
    values: Tensor,
    table: Table,
    generator: torch.Generator,
    *,
    among: Tensor | None = None,
    share: int = 2,
    without: tuple[int, ...] = (),
) -> Tensor:
    """Ids with the table's extremes, its last and its first row in up to one of ``share`` places,
    chosen ``among`` some."""
    requested = [
        row
        for row in dict.fromkeys((*table.extremes, table.rows - 1, 0))
        if 0 <= row < table.rows and row not in without
    ]
    flat = values.reshape(-1).clone()
    places = (
        torch.arange(flat.numel()) if among is None else among.reshape(-1).nonzero().reshape(-1)
    )
    places = places[torch.randperm(places.numel(), generator=generator)][
        : max(1, places.numel() // share)
    ][: len(requested)]
    flat[places] = torch.tensor(requested[: places.numel()], dtype=flat.dtype)
    return flat.reshape(values.shape)


def _is_padded(shown: Tensor) -> bool:
    """Every row is shown up to a place, from the first on."""
    return bool((shown[:, 1:] <= shown[:, :-1]).all()) and bool(shown[:, :1].all())


def _move_padding(
    varied: dict[str, Tensor],
    made: Mapping[str, Tensor],
    before: Tensor,
    shown: Tensor,
    settled: Mapping[str, tuple[int, ...]],
) -> None:
    """Put the ids that stood in a mask's hidden places into the places that are hidden now."""
    for name, ids in made.items():
        if ids.shape == before.shape and not ids.is_floating_point() and ids.dtype != torch.bool:
            hidden = ids[~before]
            if hidden.numel() and bool((hidden == hidden[0]).all()) and int(ids.max()) > 1:
                plain = before & (ids != hidden[0]) & ~_among(ids, settled.get(name, ()))
                other = ids[plain]
                filled = torch.where(ids == hidden[0], other[0], ids) if other.numel() else ids
                varied[name] = torch.where(shown, filled, hidden[0])
