"""A user's own inputs, from files or as arrays, among the examples of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from crossfuse.core.npz import load_arrays
from crossfuse.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["tensors_of", "with_examples", "with_tensors"]


def with_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors."""
    import numpy as np
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def with_examples(
    spec: ModelSpec, examples: Sequence[tuple[str, Mapping[str, NDArray[Any]]]]
) -> ModelSpec:
    """The spec with real inputs from files among its examples.

    Raises:
        InputError: inputs that the spec doesn't take.
    """
    if not examples:
        return spec
    tensors = []
    for where, arrays in examples:
        _require_tensors(where, arrays)
        tensors.append(with_tensors(arrays))
        spec.sizes_of(tensors[-1], where)
    return replace(spec, examples=(*spec.examples, *tensors))


def _require_tensors(where: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(
                "an input has a dtype that no tensor has",
                where=f"{where}, {name}",
                got=array.dtype,
            )


def tensors_of(file: Path) -> dict[str, Tensor]:
    """The arrays of an NPZ file, as tensors.

    Raises:
        InputError: a file that can't be read, or an array that can't be a tensor.
    """
    arrays = load_arrays(file)
    _require_tensors(str(file), arrays)
    return with_tensors(arrays)
