"""Input checks, compiled once per session: names, dtypes, ranks, fixed sizes, and named dimensions with their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.errors import InputError
from crossfuse.runtime.device_array import device_array
from crossfuse.runtime.dlpack import CPU, CUDA_HOST
from crossfuse.specs import Dim, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = ["InputChecker", "is_on_device"]


def is_on_device(value: object) -> bool:
    """An array with DLPack, or with the CUDA array interface alone, that is not in host memory."""
    if isinstance(value, np.ndarray):
        return False
    device = getattr(value, "__dlpack_device__", None)
    return device()[0] not in (CPU, CUDA_HOST) if device is not None else hasattr(value, "__cuda_array_interface__")


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
            feeds[spec.name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
        return feeds

    def check_device(self, inputs: Mapping[str, Any], engine: Stage, known: Mapping[str, int] | None = None) -> dict[str, Any]:
        """The same checks where some arrays are on a GPU: those as `DeviceArray`, the others as host arrays.

        ``known`` are sizes of dimensions that other inputs have already.

        Raises:
            InputError: as above, an array on another GPU than the engine's, or an engine that is on none.
        """
        if inputs.keys() != self._names:
            self._wrong_names(inputs)
        if not engine.on_device:
            where = ", ".join(name for name, value in inputs.items() if is_on_device(value))
            raise InputError(
                "an input is on a GPU, and the session computes on the CPU", where=where, do="Copy it to host memory first"
            )
        feeds: dict[str, Any] = {}
        sizes: dict[str, int] = dict(known or {})
        for spec, _, rank, axes in self._plan:
            value = inputs[spec.name]
            array = device_array(value, engine.device, spec.name) if is_on_device(value) else _as_array(spec, value)
            if str(array.dtype) != spec.dtype:
                raise InputError(
                    "an input has the wrong dtype", where=spec.name, got=array.dtype, expected=spec.dtype, do="Convert it"
                )
            self._check_shape(spec, tuple(array.shape), rank, axes, sizes)
            feeds[spec.name] = array
        return feeds

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
