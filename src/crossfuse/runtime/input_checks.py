"""Input checks, compiled once per session: names, dtypes, ranks, fixed sizes, and named dimensions
with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.foreign import cause_of
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import InputError, suggestion
from crossfuse.runtime.device_array import device_array
from crossfuse.runtime.dlpack import CPU, CUDA_HOST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = [
    "InputChecker",
    "any_on_device",
    "check_counts",
    "check_indices",
    "ids_of",
    "is_on_device",
    "positions_of",
]

_TAKES = "a NumPy array or an object with DLPack"
_UNSIGNED: dict[int, Any] = {4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


def is_on_device(value: object) -> bool:
    """An array with DLPack, or with the CUDA array interface alone, that is not in host memory."""
    if isinstance(value, np.ndarray):
        return False
    device = getattr(value, "__dlpack_device__", None)
    try:
        if device is None:
            return hasattr(value, "__cuda_array_interface__")
        kind = device()[0]
    except Exception as error:  # another library's code
        raise InputError(
            f"an input can't be read through DLPack: {cause_of(error)}", got=type(value).__name__
        ) from error
    return kind not in (CPU, CUDA_HOST)


def any_on_device(inputs: Mapping[str, Any]) -> bool:
    """Some input is an array that is not in host memory."""
    return any(type(value) is not np.ndarray and is_on_device(value) for value in inputs.values())


class _Axis(NamedTuple):
    """One axis of an input: its size, or its name with its range; ``factor`` times that."""

    place: int
    size: int | str
    dim: Dim | None
    factor: int = 1

    @classmethod
    def of(cls, place: int, size: int | str, dims: Mapping[str, Dim]) -> _Axis:
        if isinstance(size, int):
            return cls(place, size, None)
        factor, name = multiple_of(size) or (1, size)
        if size in dims or name not in dims:
            return cls(place, size, dims.get(size) or Dim("size"))
        return cls(place, name, dims[name], factor)


@dataclass(frozen=True)
class _TensorCheck:
    """What one input must be, looked up once per session."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    axes: tuple[_Axis, ...]

    @classmethod
    def of(cls, spec: TensorSpec, dims: Mapping[str, Dim]) -> _TensorCheck:
        axes = tuple(_Axis.of(i, size, dims) for i, size in enumerate(spec.shape))
        return cls(spec, np.dtype(spec.dtype), axes)

    def shape(self, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
        """Check a shape; ``sizes`` are those of named dimensions, and get the new ones."""
        spec = self.spec
        if len(shape) != len(self.axes):
            raise InputError(
                "an input has the wrong rank", where=spec.name, got=shape, expected=spec
            )
        for axis, size, dim, factor in self.axes:
            got = shape[axis]
            if factor != 1:
                if got % factor:
                    raise InputError(
                        f"the size of an axis is no multiple of {factor}",
                        where=f"{spec.name}, axis {axis}",
                        got=got,
                        expected=spec,
                    )
                got //= factor
            if dim is None:
                if got != size:
                    raise InputError(
                        "an input has the wrong size",
                        where=f"{spec.name}, axis {axis}",
                        got=got,
                        expected=spec,
                    )
                continue
            assert isinstance(size, str)
            if got < dim.min or (dim.max is not None and got > dim.max):
                dim.check(got, f"{spec.name}, axis {axis}")
            if sizes.setdefault(size, got) != got:
                raise InputError(
                    f"inputs disagree about dimension {size!r}",
                    where=f"{spec.name}, axis {axis}",
                    got=got,
                    expected=sizes[size],
                )


class InputChecker:
    """Checks a session's inputs and turns them into what the engine takes."""

    def __init__(self, specs: tuple[TensorSpec, ...], dims: Mapping[str, Dim]) -> None:
        self._names = {spec.name for spec in specs}
        self._plan = [_TensorCheck.of(spec, dims) for spec in specs]

    def __call__(
        self, inputs: Mapping[str, Any], known: Mapping[str, int] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Checked host arrays, without a copy where the input is contiguous.

        ``known`` dimensions have these sizes already.

        Raises:
            InputError: naming the input, what it got, and what it takes.
        """
        if inputs.keys() != self._names:
            self._wrong_names(inputs)
        feeds: dict[str, NDArray[Any]] = {}
        sizes: dict[str, int] = dict(known) if known else {}
        for check in self._plan:
            spec, dtype = check.spec, check.dtype
            value = inputs[spec.name]
            array = value if type(value) is np.ndarray else _as_array(spec, value)
            if array.dtype != dtype:
                raise InputError(
                    "an input has the wrong dtype",
                    where=spec.name,
                    got=array.dtype,
                    expected=dtype,
                    do=f"Convert it, for example with .astype('{dtype}')",
                )
            check.shape(array.shape, sizes)
            if spec.range is not None:
                check_indices(spec, array)
            if spec.counts:
                check_counts(spec, array)
            feeds[spec.name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        return feeds

    def check_device(
        self, inputs: Mapping[str, Any], engine: Stage, known: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """The same checks where some arrays are on a GPU: those as `DeviceArray`, the others as
        host arrays.

        Ids on the GPU are not checked: they would have to be copied to be seen. ``known``
        dimensions have these sizes already.

        Raises:
            InputError: as above, an array on another GPU than the engine's, or an engine that is on
                none.
        """
        if inputs.keys() != self._names:
            self._wrong_names(inputs)
        if not engine.on_device:
            where = ", ".join(name for name, value in inputs.items() if is_on_device(value))
            raise InputError(
                "an input is on a GPU, and the session computes on the CPU",
                where=where,
                do="Copy it to host memory first",
            )
        feeds: dict[str, Any] = {}
        sizes: dict[str, int] = dict(known or {})
        for check in self._plan:
            spec = check.spec
            value = inputs[spec.name]
            array = (
                device_array(value, engine.device, spec.name)
                if is_on_device(value)
                else _as_array(spec, value)
            )
            if str(array.dtype) != spec.dtype:
                raise InputError(
                    "an input has the wrong dtype",
                    where=spec.name,
                    got=array.dtype,
                    expected=spec.dtype,
                    do="Convert it",
                )
            check.shape(tuple(array.shape), sizes)
            if spec.range is not None and isinstance(array, np.ndarray):
                check_indices(spec, array)
            if spec.counts and isinstance(array, np.ndarray):
                check_counts(spec, array)
            feeds[spec.name] = array
        return feeds

    def _wrong_names(self, inputs: Mapping[str, Any]) -> None:
        takes = ", ".join(str(check.spec) for check in self._plan)
        unknown = sorted(map(str, set(inputs) - self._names))
        missing = sorted(self._names - set(inputs))
        problems = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [
            f"missing {', '.join(missing)}"
        ] * bool(missing)
        near = [suggestion(name, missing) for name in unknown]
        raise InputError(
            "the inputs' names are wrong",
            got="; ".join(problems),
            expected=takes,
            do=next(filter(None, near), None),
        )


def check_indices(spec: TensorSpec, array: NDArray[Any]) -> None:
    """Refuse indices outside the spec's range, in one pass: as unsigned numbers, those below the
    range are above it.

    Raises:
        InputError: naming the first index outside, and the range.
    """
    if spec.range is None or not array.size or array.dtype.kind not in "iu":
        return
    low, high = spec.range
    if array.itemsize < 4:  # numbers that may be smaller than the table
        array = array.astype(np.int64)
    # `argmax` is several times faster than `max` for the sizes that ids have.
    if high is not None:
        places = (array if low == 0 else array - low).view(_UNSIGNED[array.itemsize])
        if places.item(places.argmax()) <= high - low:
            return
    elif array.item(array.argmin()) >= low:
        return
    outside = (array < low) if high is None else (array < low) | (array > high)
    place = tuple(int(i) for i in np.argwhere(outside)[0])
    raise InputError(
        "an input holds an index outside its table",
        where=spec.name + (f"[{', '.join(map(str, place))}]" if place else ""),
        got=int(array[place]),
        expected=f"at least {low}" + ("" if high is None else f" and at most {high}"),
        do="Give indices within the table; what pads must be within it as well, and be masked",
    )


def check_counts(spec: TensorSpec, array: NDArray[Any]) -> None:
    """Refuse ids ``[batch, tokens]`` whose rows hold another number of some id than the model was
    exported for.

    Raises:
        InputError: naming the first such row, and what it holds.
    """
    for token, count in spec.counts:
        held = (np.atleast_1d(array) == token).sum(-1).reshape(-1)
        wrong = np.flatnonzero(held != count)
        if not len(wrong):
            continue
        row = int(wrong[0])
        raise InputError(
            f"a row of ids holds the placeholder {token} another number of times than the model "
            "was exported for",
            where=f"{spec.name}[{row}]",
            got=int(held[row]),
            expected=count,
            do="Give as many as the images make features, in the first tokens where these are an "
            "input of their own; for others, export again with examples that have as many",
        )


def _as_array(spec: TensorSpec, value: object) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not spec.shape and isinstance(value, bool | int | float | np.generic):
        number = np.asarray(value)
        if np.can_cast(number.dtype, spec.dtype, "same_kind"):
            return number.astype(spec.dtype)
        return number
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            "an input is not an array",
            where=spec.name,
            got=type(value).__name__,
            expected=_TAKES,
        )
    try:
        return np.from_dlpack(value)
    except Exception as error:  # another library's code
        raise InputError(
            f"an input can't be read through DLPack: {cause_of(error)}", where=spec.name
        ) from error


def positions_of(values: object) -> NDArray[np.int64]:
    """Whole numbers given as an array or a list, in one row.

    Raises:
        InputError: nothing of the kind.
    """
    found = ids_of(values).reshape(-1)
    if found.dtype.kind not in "iu" and found.size:
        raise InputError("positions are no whole numbers", got=found.dtype)
    return found.astype(np.int64)


def ids_of(values: object) -> NDArray[Any]:
    """Integers given as an array, a list, or anything with DLPack, as a column.

    Raises:
        InputError: nothing of the kind.
    """
    try:
        return np.asarray(values).reshape(-1, 1)
    except Exception as error:  # a ragged list, or another library's code
        raise InputError(
            f"token ids can't be read: {cause_of(error)}", got=type(values).__name__
        ) from error
