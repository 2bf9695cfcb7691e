"""Which sessions have slots, which contexts fit into one, and along which axes of their tensors
they are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.dimensions import symbols_in
from crossfuse.core.tensors import CONTEXTS, POSITION, names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.context import Context, require_own
from crossfuse.runtime.device_array import DeviceArray
from crossfuse.runtime.session import Session
from crossfuse.runtime.stage import Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["context_axes", "misfit", "require_slots"]


def require_slots(session: Session, like: Context | None) -> Stage:
    """The step stage of a session whose sequences can stand side by side in one state, each over a
    context of its own.

    Args:
        session: of any bundle.
        like: a context, where there is one already.

    Raises:
        InputError: they can't, and why.
    """
    if "step" not in session.stages:
        raise InputError(
            "the bundle has no step stage",
            do=Advice("Export it with {}", Said("--decode INPUT", "ModelSpec(decode=...)")),
        )
    places = next(s for s in session.stages["step"].inputs if s.name == POSITION)
    if places.shape == (1,):
        raise InputError(
            "the bundle's step stage has one position for all sequences",
            do="Export the model again with this version of crossfuse",
        )
    if like is not None:
        require_own(like, session.owner)
        if like.batch != CONTEXTS:
            raise InputError(
                "contexts of this bundle can't stand side by side in one state: contexts and "
                "tokens have no batch in common",
                got=like.batch or "no batch",
                do="Decode each with session.start",
            )
    return session.engine("step")


def context_axes(session: Session, like: Context) -> dict[str, int | None]:
    """The tensors of a context that the step stage takes, each with the axis that counts contexts;
    None where it has none.

    Raises:
        InputError: the batch of one is no axis of its own.
    """
    found: dict[str, int | None] = {}
    taken = names_of(session.stages["step"].inputs)
    for spec in like.specs:
        if spec.name not in taken:
            continue
        if any(size != CONTEXTS and CONTEXTS in symbols_in(size) for size in spec.shape):
            raise InputError(
                "a context tensor's batch is no axis of its own", where=spec.name, got=spec
            )
        found[spec.name] = spec.shape.index(CONTEXTS) if CONTEXTS in spec.shape else None
    return found


def misfit(own: Context, given: Context, axes: Mapping[str, int | None]) -> InputError | None:
    """Why contexts don't fit beside others; None where they do.

    Args:
        own: those in slots.
        given: that may join them.
        axes: as of `context_axes`.
    """
    for name, axis in axes.items():
        mine, theirs = own.tensors[name], given.tensors[name]
        sizes = [_apart(tensor.shape, axis) for tensor in (theirs, mine)]
        if sizes[0] != sizes[1] or (axis is None and (_bits(theirs) != _bits(mine)).any()):
            return InputError(
                "the context has another size than those of the slots",
                where=name,
                got=sizes[0],
                expected=sizes[1],
                do="Pad its inputs to the same size, or make slots for contexts of this one",
            )
    return None


def _apart(shape: Sequence[int], axis: int | None) -> list[int | str]:
    """A shape without the number of contexts."""
    return [CONTEXTS if place == axis else size for place, size in enumerate(shape)]


def _bits(tensor: Any) -> NDArray[Any]:
    return tensor.bits() if isinstance(tensor, DeviceArray) else np.asarray(tensor)
