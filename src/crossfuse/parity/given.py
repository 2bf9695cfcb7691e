"""The user's own inputs: from NPZ files or as arrays, checked against a bundle as a session
would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from crossfuse.bundle.manifest import Manifest
from crossfuse.core.dimensions import multiple_of
from crossfuse.core.npz import load_arrays
from crossfuse.core.tensors import CONTEXTS, TensorSpec, names_of
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.given_inputs import GivenInputs
from crossfuse.runtime.input_checks import InputChecker

__all__ = [
    "Given",
    "Inputs",
    "check_given",
    "fan_out_of",
    "read_given",
    "sizes_given",
    "whole_boundary",
]

Inputs = str | Path | Mapping[str, Any]
"""A file, or arrays by name."""

Given = tuple[str, dict[str, Any]]
"""Where a set of inputs is from, and its arrays, or containers of them."""


def read_given(inputs: Inputs | Sequence[Inputs] | None) -> list[Given]:
    """One set of inputs, or several, read.

    Raises:
        InputError: a file that can't be read, something that is neither a path nor a mapping, or no
            set at all.
    """
    if inputs is None:
        return []
    several = [inputs] if isinstance(inputs, str | Path | Mapping) else list(inputs)
    found: list[Given] = []
    for i, one in enumerate(several):
        if isinstance(one, str | Path):
            found.append((str(one), load_arrays(Path(one))))
        elif isinstance(one, Mapping):
            where = "the inputs" if len(several) == 1 else f"inputs {i + 1}"
            found.append((where, {str(name): value for name, value in one.items()}))
        else:
            raise InputError(
                "inputs can't be read",
                got=type(one).__name__,
                expected="paths of NPZ files, or arrays by name",
            )
    if not found:
        raise InputError(
            "there are no inputs to compare on", expected="paths of NPZ files, or arrays by name"
        )
    return found


def whole_boundary(manifest: Manifest) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the whole, as a session takes and gives them.

    Raises:
        BundleError: stages that are not known.
    """
    stages = manifest.stages
    if "model" in stages:
        return stages["model"].inputs, stages["model"].outputs
    if not {"context", "query"} <= set(stages):
        raise BundleError(
            "the bundle's stages are not known to this version", got=", ".join(stages) or "none"
        )
    frontier = {spec.name for spec in stages["context"].outputs}
    own = tuple(spec for spec in stages["query"].inputs if spec.name not in frontier)
    return (*stages["context"].inputs, *own), stages["query"].outputs


def check_given(given: Sequence[Given], manifest: Manifest) -> list[Given]:
    """The inputs, checked: names, dtypes, ranks, sizes and their ranges.

    Raises:
        InputError: naming where the inputs are from, and the input.
    """
    inputs = whole_boundary(manifest)[0]
    check = InputChecker(inputs, manifest.dims)
    flat = GivenInputs(names_of(inputs), manifest.source.get("constants") or {})
    found = []
    for where, arrays in given:
        try:
            checked = check(flat(arrays, {}))
        except InputError as error:
            raise InputError(
                error.what,
                where=where if error.where is None else f"{where}, {error.where}",
                got=error.got,
                expected=error.expected,
                do=error.do,
            ) from error
        queries, contexts = _batches(checked, manifest)
        if queries % contexts:
            raise InputError(
                "the number of queries is no multiple of the number of contexts",
                where=where,
                got=f"{queries} of {contexts}",
            )
        found.append((where, checked))
    return found


def sizes_given(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> dict[str, int]:
    """Sizes of the named dimensions in checked inputs."""
    named = (
        (*(multiple_of(size) or (1, size)), arrays[spec.name].shape[axis])
        for spec in whole_boundary(manifest)[0]
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    )
    return {name: got // factor for factor, name, got in named}


def fan_out_of(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> int:
    """Queries per context in checked inputs."""
    queries, contexts = _batches(arrays, manifest)
    return queries // contexts


def _batches(arrays: Mapping[str, NDArray[Any]], manifest: Manifest) -> tuple[int, int]:
    sizes = sizes_given(arrays, manifest)
    contexts = sizes.get(CONTEXTS, 1)
    if manifest.shared_batch is None or CONTEXTS not in sizes:
        return contexts, contexts
    return sizes.get(manifest.shared_batch, contexts), contexts
