"""``scores[mask] = number`` → ``where(mask, number, scores)``, on the exported program.

Rules:

1. An assignment by one bool mask of one number fills where the mask is True, in place or not. The
   mask may cover some of the axes, ``scores[:, :, mask]`` or ``scores[..., padding]``; it is
   broadcast over the others.

It must not fire where several indices or integers choose places, where what is assigned is more
than one number, or where it is added. The exporter writes those as a scatter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from crossfuse.export.capture.decompose import decompose
from crossfuse.export.capture.trace import quiet_exporter
from crossfuse.export.passes.base import ProgramResult

__all__ = ["FillAssignedMasksPass"]

_FUNCTIONAL = torch.ops.aten.index_put.default
_ASSIGNMENTS = (_FUNCTIONAL, torch.ops.aten.index_put_.default)


class FillAssignedMasksPass:
    """Assignments by a bool mask → ``where``, in an exported program."""

    def __call__(self, program: ExportedProgram) -> ProgramResult:
        """Replace every assignment that matches."""
        if not any(_is_masked(node) for node in program.graph.nodes):
            return ProgramResult(program, False)
        with quiet_exporter():
            program = decompose(program, {_FUNCTIONAL: _filled})
        return ProgramResult(program, True)


def _is_masked(node: torch.fx.Node) -> bool:
    if node.target not in _ASSIGNMENTS:
        return False
    _, indices, values, *rest = node.args
    found = [None if index is None else index.meta["val"] for index in indices]  # type: ignore[union-attr]
    return _place(found, values.meta["val"], *rest) is not None  # type: ignore[union-attr]


def _place(
    indices: Sequence[Tensor | None], values: Tensor, accumulate: object = False
) -> int | None:
    """The first axis that the one mask covers; None where the assignment is no fill."""
    given = [axis for axis, index in enumerate(indices) if index is not None]
    if accumulate or len(given) != 1 or not statically_known_true(values.numel() == 1):
        return None
    mask = indices[given[0]]
    return given[0] if mask is not None and mask.dtype == torch.bool else None


def _filled(
    scores: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Tensor:
    """The assignment as a fill; NotImplemented where it is none."""
    place = _place(indices, values, accumulate)
    if place is None:
        return NotImplemented  # type: ignore[no-any-return]
    mask = indices[place]
    assert mask is not None
    behind = scores.ndim - place - mask.ndim
    mask = mask.reshape(*mask.shape, *(1,) * behind)
    filled: Tensor = torch.where(mask, values.reshape(()).to(scores.dtype), scores)
    return filled
