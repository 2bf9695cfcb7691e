"""Input checks, compiled once per session: names, dtypes, ranks, fixed sizes, and named dimensions with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import InputError
from crossfuse.specs import Dim, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["InputChecker", "check_indices", "is_on_device"]

_UNSIGNED: dict[int, Any] = {4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}


def is_on_device(value: object) -> bool:
    """A DLPack array that is not in host memory."""
    device = getattr(value, "__dlpack_device__", None)
    # 1 is kDLCPU and 3 kDLCUDAHost in DLPack's device types.
    return device is not None and not isinstance(value, np.ndarray) and device()[0] not in (1, 3)


class InputChecker:
    """Checks a session's inputs and turns them into what the engine takes."""

    def __init__(self, specs: tuple[TensorSpec, ...], dims: Mapping[str, Dim]) -> None:
        self._names = {spec.name for spec in specs}
        self._plan = []
        for spec in specs:
            axes = tuple(
                (axis, size, None) if isinstance(size, int) else (axis, size, dims.get(size) or Dim("size"))
                for axis, size in enumerate(spec.shape)
            )
            self._plan.append((spec, np.dtype(spec.dtype), len(spec.shape), axes))

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Checked host arrays, without a copy where the input is contiguous.

        Raises:
            InputError: naming the input, what it got, and what it takes.
        """
        if inputs.keys() != self._names:
            self._wrong_names(inputs)
        feeds: dict[str, NDArray[Any]] = {}
        sizes: dict[str, int] = {}
        for spec, dtype, rank, axes in self._plan:
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
            self._check_shape(spec, array.shape, rank, axes, sizes)
            if spec.range is not None:
                check_indices(spec, array)
            feeds[spec.name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        return feeds

    def check_device(self, inputs: Mapping[str, Any]) -> None:
        """The same checks where some arrays are on a device: not of dtypes, which DLPack leaves to the engine, nor of indices
        on the device, which would have to be copied to be seen."""
        if inputs.keys() != self._names:
            self._wrong_names(inputs)
        sizes: dict[str, int] = {}
        for spec, _, rank, axes in self._plan:
            self._check_shape(spec, tuple(inputs[spec.name].shape), rank, axes, sizes)
            if spec.range is not None and not is_on_device(inputs[spec.name]):
                check_indices(spec, _as_array(spec, inputs[spec.name]))

    @staticmethod
    def _check_shape(
        spec: TensorSpec,
        shape: tuple[int, ...],
        rank: int,
        axes: tuple[tuple[int, int | str, Dim | None], ...],
        sizes: dict[str, int],
    ) -> None:
        if len(shape) != rank:
            raise InputError("an input has the wrong rank", where=spec.name, got=shape, expected=spec)
        for axis, size, dim in axes:
            got = shape[axis]
            if dim is None:
                if got != size:
                    raise InputError("an input has the wrong size", where=f"{spec.name}, axis {axis}", got=got, expected=spec)
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

    def _wrong_names(self, inputs: Mapping[str, Any]) -> None:
        takes = ", ".join(str(spec) for spec, *_ in self._plan)
        unknown = sorted(set(inputs) - self._names)
        missing = sorted(self._names - set(inputs))
        problems = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise InputError("the inputs' names are wrong", got="; ".join(problems), expected=takes)


def check_indices(spec: TensorSpec, array: NDArray[Any]) -> None:
    """Refuse indices outside the spec's range, in one pass: as unsigned numbers, those below the range are above it.

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


def _as_array(spec: TensorSpec, value: object) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            "an input is not an array",
            where=spec.name,
            got=type(value).__name__,
            expected="a NumPy array or an object with DLPack",
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"an input can't be read through DLPack: {error}", where=spec.name) from error
