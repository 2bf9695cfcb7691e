"""Whether sequences that stand beside each other are computed apart: it is tried, because shapes
don't tell it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.context import Context
from crossfuse.runtime.session import Session
from crossfuse.runtime.slots import Slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["require_apart"]

_LOUDER = 1000
"""How much larger a neighbour's context is, where it is on the host."""
_SHARE = 0.02
"""Of the largest output: less is the rounding of half precision, and of kernels for other sizes."""


def require_apart(session: Session, like: Context) -> None:
    """Compute a sequence alone, then in front of and behind a neighbour with other tokens and a
    much larger context, its prompt and a further token.

    Args:
        session: of a bundle that decodes.
        like: a context of it.

    Raises:
        InputError: what stands beside a sequence changes its outputs.
    """
    one = like.select([0]) if like.count > 1 else like
    loud = {name: _louder(tensor) for name, tensor in one.tensors.items()}
    neighbour = replace(one, tensors=MappingProxyType(loud))
    own, other = _two_tokens(session)
    state = session.start(one, prompt=[[own]])
    expected = [_last(state.outputs, 0), _last(session.step(state, np.array([own])), 0)]
    slots = Slots(session, one, 2)
    for row in (0, 1):
        pair = [(one, own), (neighbour, other)] if row == 0 else [(neighbour, other), (one, own)]
        taken, made = slots.join([context for context, _ in pair], [[token] for _, token in pair])
        found = [_last(made, row)]
        found.append(_last(slots.step(dict(zip(taken, (t for _, t in pair), strict=True))), row))
        slots.leave(taken)
        for mine, alone in zip(found, expected, strict=True):
            _require_same(mine, alone)


def _two_tokens(session: Session) -> tuple[int, int]:
    """Ids that the model takes; equal where it takes one."""
    assert session.decode is not None
    tokens = session.decode.tokens
    spec = next(spec for spec in session.stages["step"].inputs if spec.name == tokens)
    low, high = (0, 1) if spec.range is None else spec.range
    return low, low + 1 if high is None else min(low + 1, high)


def _louder(tensor: Any) -> Any:
    is_float = isinstance(tensor, np.ndarray) and tensor.dtype.kind == "f"
    return np.clip(tensor, -1, 1) * tensor.dtype.type(_LOUDER) if is_float else tensor


def _last(outputs: Mapping[str, NDArray[Any]], row: int) -> dict[str, NDArray[np.float64]]:
    return {name: np.array(array[row, -1], np.float64) for name, array in outputs.items()}


def _require_same(
    found: Mapping[str, NDArray[np.float64]], alone: Mapping[str, NDArray[np.float64]]
) -> None:
    for name, array in found.items():
        limit = _SHARE * max(1.0, float(np.abs(alone[name]).max()))
        if not (np.abs(array - alone[name]) <= limit).all():
            raise InputError(
                "sequences of this model change those beside them, so each has to be decoded alone",
                where=name,
                got=f"a difference of {float(np.abs(array - alone[name]).max()):.2g}",
                do="Decode each with session.start",
            )
