"""Names, dtypes and named dimensions of tensors: plain data that every stage shares (NumPy
only)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from crossfuse.core.dimensions import is_name, multiple_of
from crossfuse.core.json_form import AtLeast, Form, OneOf, Where
from crossfuse.errors import Advice, InputError, Said

__all__ = [
    "ALIGNMENT_OUTPUTS",
    "CONTEXTS",
    "DTYPES",
    "MEDIAN_WIDTH",
    "NEW_TOKENS",
    "NEXT",
    "POSITION",
    "PREFIX",
    "PROBABILITIES",
    "SIZES",
    "STATE",
    "Dim",
    "Dtype",
    "TensorSpec",
    "axis_size",
    "collect_dims",
    "names_of",
]

DTYPES = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool", "bfloat16",
)  # fmt: skip
"""Tensor element types that a bundle may hold, by NumPy's names; bfloat16, which NumPy lacks, only
between its stages."""

SIZES = ("tiny", "published")
"""Sizes of a zoo model."""

CONTEXTS = "contexts"
"""The dimension that counts contexts in a split bundle, where the whole model has one batch for
contexts and queries."""

POSITION = "position"
"""The step stage's input that says the place of each new token, ``[batch, new_tokens]`` int64. In
bundles of crossfuse 0.1, whose step stages take one token, how many there were before, ``[1]``."""

PREFIX = "prefix_"
"""Stands before the name of a context input that holds the first tokens of an input of the queries,
``[contexts, tokens]``."""

NEW_TOKENS = "new_tokens"
"""The dimension that counts the tokens of one step."""

STATE, NEXT = "state:", "next:"
"""Prefixes of a decoding state's tensor, as an input and as an output of the step stage."""

PROBABILITIES = "probabilities."
"""Prefix of the outputs that are the kept probabilities of an attention; its site follows."""

ALIGNMENT_OUTPUTS, MEDIAN_WIDTH = "alignment_outputs", "median_filter_width"
"""Settings of generation that an export adds to a model's own: where the heads that follow a sound
come out, as pairs of an output of the step stage and a head; and over how many places their scores
are smoothed."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A named dynamic dimension and the sizes it may take.

    Args:
        name: an identifier; the same name on several inputs means the same size.
        min: smallest size; 0 where there may be nothing (an empty batch, a text without tokens).
        max: largest size, or None for no limit.
    """

    __json__: ClassVar[Form] = Form(required=frozenset({"min"}))

    name: str
    min: int = 1
    max: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not is_name(self.name):
            raise InputError("a dimension's name must be an identifier", got=repr(self.name))
        for bound in (self.min, self.max):
            if not isinstance(bound, int | None) or isinstance(bound, bool):
                raise InputError(
                    "a dimension's bound is no whole number", where=self.name, got=repr(bound)
                )
        if self.min < 0 or (self.max is not None and self.max < max(1, self.min)):
            raise InputError(
                "a dimension's range is empty",
                where=self.name,
                got=f"{self.min}..{self.max}",
                expected="0 ≤ min ≤ max, and max at least 1",
            )

    @classmethod
    def parse(cls, text: str | Dim) -> Dim:
        """Read ``NAME``, ``NAME:MIN`` or ``NAME:MIN:MAX``; of an axis that is a multiple of a
        dimension, ``8*NAME``, the dimension."""
        if isinstance(text, Dim):
            return text
        name, *bounds = text.split(":")
        found = multiple_of(name)
        name = name if found is None else found[1]
        try:
            numbers = [int(bound) for bound in bounds]
        except ValueError:
            numbers = [1, 1, 1]
        if len(numbers) > 2:
            raise InputError(
                "a dynamic dimension can't be read", got=repr(text), expected="NAME[:MIN[:MAX]]"
            )
        return cls(name, *numbers)

    def __str__(self) -> str:
        return f"{self.name}={self.min}..{'∞' if self.max is None else self.max}"

    def check(self, size: int, where: str) -> None:
        """Raise :class:`InputError` if ``size`` is outside the range; ``where`` names the tensor
        and axis."""
        if size < self.min or (self.max is not None and size > self.max):
            upper = "" if self.max is None else f" and at most {self.max}"
            raise InputError(
                f"dimension {self.name!r} is outside its range",
                where=where,
                got=size,
                expected=f"at least {self.min}{upper}",
                do=Advice(
                    "Give a size in the range, or export again with another one: {}",
                    Said(
                        "--dynamic INPUT:AXIS=NAME:MIN:MAX",
                        "dynamic={INPUT: {AXIS: 'NAME:MIN:MAX'}}",
                    ),
                ),
            )


def _ascends(ends: tuple[int, int | None]) -> bool:
    return ends[1] is None or ends[1] >= ends[0]


Dtype = Annotated[str, OneOf(DTYPES)]
"""An element type's name."""

_Range = Annotated[
    tuple[int, int | None] | None, Where(_ascends, "the lowest index, and the highest or null")
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of a tensor.

    Attributes:
        name: as the graphs call it.
        dtype: of its elements.
        shape: sizes; a string is a dynamic dimension's name, or an expression of such names.
        range: of an input that holds indices, the lowest and the highest that the model takes, or
            null where the highest is not known.
        counts: of an input of ids, those of which each row holds a number that the model relies on,
            and that number.
    """

    __json__: ClassVar[Form] = Form(sparse=frozenset({"range", "counts"}))

    name: str
    dtype: Dtype
    shape: tuple[Annotated[int, AtLeast(0)] | str, ...]
    range: _Range = None
    counts: tuple[tuple[int, Annotated[int, AtLeast(0)]], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(
                "a tensor's dtype isn't supported", where=self.name, got=self.dtype, expected=DTYPES
            )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def axis_size(text: str | Dim) -> str:
    """The size of a dynamic axis: a dimension's name, or a multiple of it such as ``8*height``."""
    if isinstance(text, Dim):
        return text.name
    factor, name = multiple_of(text.partition(":")[0]) or (1, Dim.parse(text).name)
    return name if factor == 1 else f"{factor}*{name}"


def collect_dims(dynamic: Mapping[str, Mapping[int, str | Dim]]) -> dict[str, Dim]:
    """The named dimensions of a spec, each once; a bare name takes the range given elsewhere.

    Raises:
        InputError: two different ranges under one name.
    """
    found: dict[str, Dim] = {}
    for axes in dynamic.values():
        for value in axes.values():
            _merge(found, Dim.parse(value))
    return found


def _merge(found: dict[str, Dim], dim: Dim) -> None:
    known = found.get(dim.name)
    bare = Dim(dim.name)
    if known is None or known == bare:
        found[dim.name] = dim
    elif dim not in (bare, known):
        raise InputError(
            "a dimension has two ranges",
            where=dim.name,
            got=f"{known} and {dim}",
            expected="one range",
        )


def names_of(specs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """The names, in order."""
    return tuple(spec.name for spec in specs)
