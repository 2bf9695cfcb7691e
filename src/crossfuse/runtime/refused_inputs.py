"""What is said of inputs that an engine refuses although the session's checks let them pass: which
they were, of which sizes, what the stage takes, and what helps.

Such sizes are within the ranges of the bundle, which were tried at some sizes and taken on trust at
the others. So an engine's refusal means that the ranges are wider than the model's own, or that it
made an index of the inputs that is outside a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import Advice, CrossfuseError, EngineError, InputError, Said

__all__ = ["Takes", "refused_inputs"]

_MEMORY = re.compile(r"out of memory|failed to allocate|bad.?alloc", re.IGNORECASE)
_INDEX = re.compile(r"out.of.(?:data.)?bounds?|out.of.range|indices element", re.IGNORECASE)

_RANGE = Said("--dynamic INPUT:AXIS=NAME:MIN:MAX", "ModelSpec(dynamic=...)")
_ABOUT_INDICES = Advice(
    "It makes an index that is outside its table, of ids, positions or lengths among these inputs "
    "or of a size that the table is too short for. Give smaller ones; where a size within its "
    "range is too large for the model, export again with the model's own range: {}",
    _RANGE,
)
_ABOUT_SIZES = Advice(
    "The sizes are within the ranges that the bundle was exported for. Where module(**inputs) "
    "fails on such inputs as well, those ranges are wider than the model's own: give sizes that "
    "it takes, or export again with its ranges, and with one name for dimensions that have to be "
    "equal: {}",
    _RANGE,
)


@dataclass(frozen=True)
class Takes:
    """What a caller may give to a stage.

    Attributes:
        inputs: those that a caller gives; nothing is known where there are none.
        dims: ranges of the named dimensions.
    """

    inputs: tuple[TensorSpec, ...] = ()
    dims: Mapping[str, Dim] = field(default_factory=dict)

    def __str__(self) -> str:
        """The inputs, and the ranges of their dimensions."""
        sizes = [size for spec in self.inputs for size in spec.shape if isinstance(size, str)]
        names = [(multiple_of(size) or (1, size))[1] for size in sizes]
        ranges = [str(self.dims[name]) for name in dict.fromkeys(names) if name in self.dims]
        inputs = ", ".join(map(str, self.inputs))
        return f"{inputs} ({', '.join(ranges)})" if ranges else inputs


def refused_inputs(
    text: str,
    feeds: Mapping[str, Any],
    takes: Takes | None = None,
    *,
    who: str = "the engine",
    where: object = None,
) -> CrossfuseError:
    """The error of an engine that raised on inputs.

    Args:
        text: what it says.
        feeds: all that it got, by name.
        takes: what a caller gives; the feeds are told whole where omitted.
        who: refused them.
        where: they come from.

    Returns:
        an `EngineError` where memory ran out, else an `InputError`.
    """
    if _MEMORY.search(text):
        return EngineError(
            f"{who} ran out of memory: {text}",
            where=where,
            got=_told(feeds) or None,
            do="Give fewer or smaller inputs at once",
        )
    takes = takes or Takes()
    given = {spec.name: feeds[spec.name] for spec in takes.inputs if spec.name in feeds}
    return InputError(
        f"{who} refused the inputs: {text}",
        where=where,
        got=_told(given or feeds) or "no input",
        expected=takes if takes.inputs else None,
        do=_ABOUT_INDICES if _INDEX.search(text) else _ABOUT_SIZES,
    )


def _told(feeds: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {array.dtype}[{', '.join(map(str, array.shape))}]"
        for name, array in feeds.items()
    )
