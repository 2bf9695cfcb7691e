"""From a source, as users name it, to the spec of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from crossfuse.arrays import load_arrays
from crossfuse.errors import InputError
from crossfuse.models.registry import ZOO, zoo_spec

if TYPE_CHECKING:
    from torch import Tensor

    from crossfuse.model_spec import ModelSpec

__all__ = ["Examples", "describe", "resolve", "with_tensors"]

Examples = str | Path | Iterable[str | Path] | None
"""NPZ files of real inputs."""

HUGGING_FACE = "hf:"


def resolve(
    source: ModelSpec | str,
    *,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    task: str | None = None,
    trust_remote_code: bool = False,
    example: Examples = (),
) -> ModelSpec:
    """The spec behind a source; the options are those of `export`.

    Raises:
        InputError: unknown name, a factory that fails, or examples that the model doesn't take.
    """
    files = [Path(example)] if isinstance(example, str | Path) else [Path(file) for file in example or ()]
    arrays = [(str(file), load_arrays(file)) for file in files]
    if isinstance(source, str) and source.endswith(".onnx"):
        from crossfuse.export.onnx_files import onnx_spec

        return _with_examples(onnx_spec(source, arrays[0][1] if arrays else None), arrays[1:])
    if not isinstance(source, str):
        return _with_examples(source, arrays)
    return _with_examples(_named(source, size, seed, checkpoint, task, trust_remote_code), arrays)


def with_tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Arrays as tensors."""
    import numpy as np
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _with_examples(spec: ModelSpec, examples: Sequence[tuple[str, Mapping[str, NDArray[Any]]]]) -> ModelSpec:
    """The spec with real inputs from files among its examples."""
    if not examples:
        return spec
    tensors = []
    for where, arrays in examples:
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise InputError("an input has a dtype that no tensor has", where=f"{where}, {name}", got=array.dtype)
        tensors.append(with_tensors(arrays))
        spec.sizes_of(tensors[-1], where)
    return replace(spec, examples=(*spec.examples, *tensors))


def _named(source: str, size: str, seed: int, checkpoint: str | None, task: str | None, trust_remote_code: bool) -> ModelSpec:
    from crossfuse.export.sources import factory_spec, is_factory

    if source.startswith(HUGGING_FACE):
        from crossfuse.export.huggingface.source import huggingface_spec

        return huggingface_spec(source.removeprefix(HUGGING_FACE), task=task, trust_remote_code=trust_remote_code)
    if is_factory(source):
        return factory_spec(source)
    if source not in ZOO:
        raise InputError(
            "unknown source",
            got=repr(source),
            expected=f"a zoo name ({', '.join(ZOO)}), hf:FOLDER-OR-ID, package.module:factory, path/file.py:factory or "
            "model.onnx",
            do="See `crossfuse models`",
        )
    return zoo_spec(source, size, seed, checkpoint)


def describe(source: ModelSpec | str, size: str, seed: int, checkpoint: str | None, task: str | None) -> dict[str, Any]:
    """What the manifest says about a source; the options are those of `export`."""
    if not isinstance(source, str):
        return {"kind": "spec", "name": source.name}
    if source in ZOO:
        about: dict[str, Any] = {"kind": "zoo", "name": source}
        return about | ({"checkpoint": checkpoint} if checkpoint else {"size": size, "seed": seed})
    if source.startswith(HUGGING_FACE):
        return {"kind": "huggingface", "name": source} | ({"task": task} if task else {})
    return {"kind": "onnx" if source.endswith(".onnx") else "factory", "name": source}
