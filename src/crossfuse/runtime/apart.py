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
    low = _lowest(session)
    own, other = [low + 1, low], [low]
    state = session.start(one, prompt=[own])
    expected = [_last(state.outputs, 0), _last(session.step(state, np.array([low])), 0)]
    slots = Slots(session, one, 2)
    for order in ((0, 1), (1, 0)):
        both = [(one, own), (neighbour, other)]
        pair = [both[place] for place in order]
        taken, made = slots.join([context for context, _ in pair], [ids for _, ids in pair])
        row = order.index(0)
        found = [_last(made, row)]
        found.append(_last(slots.step(dict.fromkeys(taken, low)), taken[row]))
        slots.leave(taken)
        for mine, alone in zip(found, expected, strict=True):
            _require_same(mine, alone)


def _lowest(session: Session) -> int:
    assert session.decode is not None
    tokens = session.decode.tokens
    spec = next(spec for spec in session.stages["step"].inputs if spec.name == tokens)
    return 0 if spec.range is None else int(spec.range[0])


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
