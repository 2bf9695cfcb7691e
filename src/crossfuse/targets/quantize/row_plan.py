"""Which layers round what they are given row by row: those for which one grid for all rows is too
coarse on calibration data.

Rounding row by row costs some passes over what a layer is given and what it gives. It pays where a
few rows are far larger than the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from crossfuse.targets.quantize.layers import LinearLayer
from crossfuse.targets.quantize.sensitivity import Sensitivity

__all__ = ["RowPlan", "row_plan"]

_SMALL = 0.01
"""Errors up to this one are those of 8 bits, and left."""

_GAIN = 1.5
"""How many times smaller rows have to make an error."""


@dataclass(frozen=True)
class RowPlan:
    """Layers whose rows have steps of their own.

    Attributes:
        layers: nodes' names.
        weights: the weights of these layers, for a stage that has them under other names.
    """

    layers: frozenset[str] = field(default=frozenset())
    weights: frozenset[tuple[object, ...]] = field(default=frozenset())

    def takes(self, layer: LinearLayer) -> bool:
        """Whether a layer is one of them."""
        return layer.key in self.layers or layer.weights_key in self.weights


def row_plan(
    plain: Sequence[Sensitivity], by_row: Sequence[Sensitivity]
) -> tuple[RowPlan, list[Sensitivity]]:
    """The plan, and what integers do to each layer with it, the most sensitive first.

    Args:
        plain: what one grid for all rows does to each layer.
        by_row: the same of rows with steps of their own, as far as layers can have them.
    """
    known = {one.layer.key: one for one in by_row}
    found = [_better(one, known.get(one.layer.key)) for one in plain]
    chosen = [one.layer for one, is_row in found if is_row]
    plan = RowPlan(
        frozenset(layer.key for layer in chosen), frozenset(layer.weights_key for layer in chosen)
    )
    return plan, sorted((one for one, _ in found), key=lambda one: -one.worst)


def _better(plain: Sensitivity, by_row: Sensitivity | None) -> tuple[Sensitivity, bool]:
    """What applies to a layer, and whether that is by row."""
    if by_row is None or plain.worst <= max(_SMALL, _GAIN * by_row.worst):
        return plain, False
    return by_row, True
