"""What kind each input is, told by its examples; `crossfuse.spec.imitation` makes others of that
kind.

======== ================================== ======================================
kind     examples hold                      what is made
======== ================================== ======================================
mask     booleans, or zeros and ones of     rows padded at the end, at the start,
         any type                           with holes, with one key, without any
                                            key
additive floats of which some hide (−∞, or  the same rows; hidden places get the
         far below all others)              values seen
ids      integers, perhaps with one         ids over the whole table where one is
         negative value that is to be       known, otherwise over the range seen;
         ignored (−100)                     the ignored one where rows end
lengths  one integer per sample, up to the  what the masks of that dimension show
         size of a dimension
features other floats                       normal, with the mean and deviation
                                            seen
======== ================================== ======================================

Masks over the same dimensions show the same places, and where the examples' ids hold one value in
all hidden places (padding), so do the ids made. Which of a mask's two values shows a place is told
by its examples: the one that no row lacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Axes", "Kind", "kinds_of"]

_HIDES = -50.0
"""The largest additive value that hides a place beside zeros."""

_HIDES_BESIDE_BIASES, _FURTHER = -1e3, 100.0
"""The same beside other numbers, of which it must be so many times the largest magnitude."""

_MOST_VALUES = 4
"""The most different values that hide."""


@dataclass(frozen=True)
class Kind:
    """What an input is.

    Attributes:
        name: ``mask``, ``additive``, ``ids``, ``lengths`` or ``features``.
        shown: of a mask, the value of places that are shown.
        hiding: of an additive mask, the values that hide.
        low, high: of ids, the range seen.
        ignored: of ids, the negative value among them.
        padding: of ids, the value in all places that a mask hides.
        dim: of lengths, the dimension that they count along.
        mean, deviation: of features, and of an additive mask's other values.
    """

    name: str
    shown: int = 1
    hiding: tuple[float, ...] = ()
    low: int = 0
    high: int = 1
    ignored: int | None = None
    padding: int | None = None
    dim: str | None = None
    mean: float = 0.0
    deviation: float = 1.0


Axes = Mapping[str, Mapping[int, str]]


def kinds_of(examples: Sequence[Mapping[str, Tensor]], axes: Axes) -> dict[str, Kind]:
    """The kind of each input, from all examples together.

    Args:
        examples: at least one; inputs by name, the same names in each.
        axes: names of the dynamic axes per input.
    """
    kinds = {}
    for name, first in examples[0].items():
        may_pad = first.ndim - 1 in axes.get(name, {}) or "mask" in name
        kinds[name] = _kind([example[name] for example in examples], may_pad=may_pad)
    for name, kind in kinds.items():
        if kind.name == "ids":
            tensors = [example[name] for example in examples]
            dim = _counted_dim(name, tensors, examples, axes) if kind.ignored is None else None
            if dim:
                kinds[name] = replace(kind, name="lengths", dim=dim)
            else:
                kinds[name] = replace(kind, padding=_padding(name, examples, kinds))
    return kinds


def _kind(tensors: Sequence[Tensor], *, may_pad: bool) -> Kind:
    """``may_pad``: nothing but ones is a mask that hides nothing, not features."""
    values = torch.cat([tensor.reshape(-1) for tensor in tensors])
    if values.dtype == torch.bool:
        return Kind("mask", shown=_shown_value(tensors))
    if not values.is_floating_point():
        return _kind_of_integers(tensors, values)
    ones, zeros = values == 1, values == 0
    if bool((ones | zeros).all()) and bool(ones.any()) and (bool(zeros.any()) or may_pad):
        return Kind("mask", shown=_shown_value(tensors))
    wide = values.double()
    hiding = _hiding(wide)
    if hiding.numel():
        mean, deviation = _moments(wide[~torch.isin(wide, hiding)], still=True)
        return Kind("additive", hiding=tuple(hiding.tolist()), mean=mean, deviation=deviation)
    mean, deviation = _moments(wide[wide.isfinite()], still=False)
    return Kind("features", mean=mean, deviation=deviation)


def _kind_of_integers(tensors: Sequence[Tensor], values: Tensor) -> Kind:
    if not values.numel():
        return Kind("ids")
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high == 1:
        return Kind("mask", shown=_shown_value(tensors))
    others = values[values != low]
    if low < 0 and others.numel() and int(others.min()) >= 0:
        return Kind("ids", low=int(others.min()), high=high, ignored=low)
    return Kind("ids", low=low, high=high)


def _hiding(values: Tensor) -> Tensor:
    """The values that hide, in an additive mask; none in anything else."""
    for limit, beside_biases in ((_HIDES, False), (_HIDES_BESIDE_BIASES, True)):
        rest = values[values > limit]
        hidden: Tensor = torch.unique(values[values <= limit])
        largest = float(rest.abs().max()) if rest.numel() else math.inf
        far = (
            float(hidden.max()) <= -_FURTHER * max(largest, 1.0)
            if beside_biases and hidden.numel()
            else largest == 0
        )
        if 0 < hidden.numel() <= _MOST_VALUES and math.isfinite(largest) and far:
            return hidden
    return torch.empty(0, dtype=torch.float64)


def _moments(values: Tensor, *, still: bool) -> tuple[float, float]:
    """Mean and deviation; of values that are all the same the deviation is 1, or where ``still``
    0."""
    if not values.numel():
        return 0.0, 0.0 if still else 1.0
    deviation = float(values.std()) if values.numel() > 1 else 0.0
    return float(values.mean()), deviation if deviation > 0 or still else 1.0


def _shown_value(tensors: Sequence[Tensor]) -> int:
    """Which value of a mask shows a place: the one that no row lacks; where none lacks either, the
    one that rows begin with."""
    rows = [(t != 0).reshape(-1, t.shape[-1] if t.ndim else 1) for t in tensors if t.numel()]
    if not rows:
        return 1
    ones, zeros = (
        all(bool(r.any(-1).all()) for r in rows),
        all(bool((~r).any(-1).all()) for r in rows),
    )
    if ones != zeros:
        return int(ones)
    first = torch.cat([r[:, 0] for r in rows])
    return int(2 * int(first.sum()) >= first.numel())


def _counted_dim(
    name: str, tensors: Sequence[Tensor], examples: Sequence[Mapping[str, Tensor]], axes: Axes
) -> str | None:
    """The dimension whose size bounds an input of one positive number per sample, reached in each
    example."""
    own = set(axes.get(name, {}).values())
    if any(
        t.ndim == 0 or t.numel() == 0 or t.numel() != t.shape[0] or int(t.min()) < 1
        for t in tensors
    ):
        return None
    for other, named in axes.items():
        for axis, dim in named.items():
            if dim not in own and all(
                int(t.max()) == e[other].shape[axis] for t, e in zip(tensors, examples, strict=True)
            ):
                return dim
    return None


def _padding(
    name: str, examples: Sequence[Mapping[str, Tensor]], kinds: Mapping[str, Kind]
) -> int | None:
    """The one id in all places that a mask of the same shape hides."""
    for other, kind in kinds.items():
        if kind.name == "mask" and all(e[other].shape == e[name].shape for e in examples):
            hidden = torch.cat([e[name][e[other] != kind.shown].reshape(-1) for e in examples])
            if hidden.numel() and bool((hidden == hidden[0]).all()):
                return int(hidden[0])
    return None
