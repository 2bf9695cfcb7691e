"""What helps where a size has to be a multiple of a number, or must not be one."""

from __future__ import annotations

from crossfuse.errors import Advice, Said
from crossfuse.export.capture.guards import Guard
from crossfuse.export.capture.relations import multiples

__all__ = ["padding_advice"]


def padding_advice(guard: Guard) -> Advice | None:
    """What to do about a relation that asks for a multiple, or for none; None for any other."""
    if guard.is_multiple:
        return _padded(set(guard.multiples.values()))
    import sympy  # type: ignore[import-untyped]

    avoided = set(multiples(sympy.Not(guard.expression)).values())
    return _padded_without_branch(*avoided) if len(avoided) == 1 else None


def _padded(numbers: set[int]) -> Advice:
    number = str(*numbers) if len(numbers) == 1 else "multiple"
    return Advice(
        "Pad inside forward to such a multiple, and cut the result: F.pad(x, (0, -n % {})) takes "
        "every n; or leave the axis out of {}, where it has one size{}",
        number,
        Said("--dynamic", "ModelSpec(dynamic=...)"),
        f", or name it {number}*NAME there" if len(numbers) == 1 else "",
    )


def _padded_without_branch(number: int) -> Advice:
    """A padding of k − n % k is k where n is a multiple, and the code leaves that out."""
    return Advice(
        "A branch on whether a size is a multiple of {} has one way in a graph. Where it leaves "
        "out a padding, pad by -n % {} without a branch, which is 0 for multiples; or leave the "
        "axis out of {}, where it has one size",
        str(number),
        str(number),
        Said("--dynamic", "ModelSpec(dynamic=...)"),
    )
