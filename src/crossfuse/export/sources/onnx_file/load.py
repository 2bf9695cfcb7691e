"""An ONNX file as a source: its graph to fuse, and the file itself, executed, as the model to
compare with."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossfuse.core.foreign import blaming
from crossfuse.core.tensors import Dim
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.sources.onnx_file.module import OnnxModule
from crossfuse.export.sources.onnx_file.reading import load_onnx
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["OnnxModule", "load_onnx", "onnx_spec"]

_LOG = logging.getLogger(__name__)
_SIZES = (2, 7, 5, 9, 11, 6, 8, 10, 12, 13)
_TRIALS = 60
_PARTED = 7


def onnx_spec(
    source: str,
    example: Mapping[str, NDArray[Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> ModelSpec:
    """The spec of an ONNX file: inputs and dynamic dimensions as it declares them.

    Args:
        source: the file.
        example: inputs by name; where omitted, seeded ones are made: ids within the table that they
            look up, masks padded.
        sizes: of named dimensions in made inputs.

    Raises:
        InputError: the file or the example can't be used.
    """
    path = Path(source)
    file = _OnnxFile(load_onnx(path), OnnxModule(path).eval(), path.stem, example, sizes or {})
    file.check_ranks()
    first: ModelSpec | None = None
    for joined in itertools.islice(_joined(file.axes), _TRIALS):
        inputs = file.inputs(joined)
        try:
            spec = file.spec(joined, inputs)
        except InputError:
            if first is None:
                raise
            continue  # The example tells dimensions apart that would be joined.
        if first is None:
            first = spec
            if len(spec.dims) < 2 or not file.module.executable:
                return spec
        if file.module.accepts(inputs if example is None else _apart(spec)):
            _LOG.debug("%s: dimensions %s", path.name, joined)
            return spec
    assert first is not None
    return first


def _apart(spec: ModelSpec) -> dict[str, Tensor]:
    """Inputs with another size for each dimension."""
    return spec.sample({dim: _SIZES[i % len(_SIZES)] for i, dim in enumerate(spec.dims)}, 0)


@dataclass(frozen=True)
class _OnnxFile:
    """A file, and what the user gave for its inputs."""

    model: ir.Model
    module: OnnxModule
    name: str
    example: Mapping[str, NDArray[Any]] | None
    sizes: Mapping[str, int]

    @cached_property
    def axes(self) -> dict[str, dict[int, str]]:
        """Input → axis → name of its dynamic dimension."""
        return {
            value.name or "": {
                i: str(d.value) for i, d in enumerate(value.shape or ()) if not isinstance(d, int)
            }
            for value in self.model.graph.inputs
        }

    def check_ranks(self) -> None:
        """Raise :class:`InputError` where an array of the example has another rank than the file's
        input."""
        for value in self.model.graph.inputs:
            name, rank = value.name or "", len(value.shape or ())
            given = None if self.example is None else self.example.get(name)
            if given is not None and self.axes[name] and given.ndim != rank:
                raise InputError(
                    "the example has another rank",
                    where=name,
                    got=list(given.shape),
                    expected=f"{rank} axes",
                )

    def inputs(self, joined: Mapping[str, str]) -> dict[str, Tensor]:
        """The example, or made inputs; equal dimensions of ``joined`` have equal sizes."""
        chosen = dict(self.sizes)
        generator = torch.Generator().manual_seed(0)
        inputs: dict[str, Tensor] = {}
        for value in self.model.graph.inputs:
            name = value.name or ""
            shape = [
                size
                if isinstance(size, int)
                else chosen.setdefault(joined[str(size.value)], self._size(name, axis, len(chosen)))
                for axis, size in enumerate(value.shape or ())
            ]
            inputs[name] = (
                _made(value, shape, generator)
                if self.example is None
                else _given(self.example, name)
            )
        return inputs

    def _size(self, name: str, axis: int, known: int) -> int:
        """An axis's size in the example, else one that other dimensions don't have."""
        if self.example is not None and name in self.example:
            return int(self.example[name].shape[axis])
        return _SIZES[known % len(_SIZES)]

    def spec(self, joined: Mapping[str, str], inputs: Mapping[str, Tensor]) -> ModelSpec:
        """The spec where the dimensions are joined so.

        Raises:
            InputError: the inputs contradict it.
        """
        dynamic: dict[str, dict[int, str | Dim]] = {
            n: {i: joined[d] for i, d in axes.items()} for n, axes in self.axes.items() if axes
        }
        rows = {value.name or "": _table_rows(value) for value in self.model.graph.inputs}
        vocabulary = {name: count for name, count in rows.items() if count is not None}
        return ModelSpec(self.module, dict(inputs), dynamic, name=self.name, vocabulary=vocabulary)


def _joined(names: Mapping[str, Mapping[int, str]]) -> Iterator[dict[str, str]]:
    """Which dimensions may be one: first none, then all first axes, then more and more of them.

    Files name dimensions that must be equal differently, or not at all; only a run tells.
    """
    every = list(dict.fromkeys(dim for axes in names.values() for dim in axes.values()))
    yield {dim: dim for dim in every}
    firsts = list(dict.fromkeys(axes[0] for axes in names.values() if 0 in axes))
    others = [dim for dim in every if dim not in firsts]
    for batch, rest in ((firsts, others), ([], every)):
        for blocks in sorted(_partitions(rest[:_PARTED]), key=len, reverse=True):
            found = {dim: dim for dim in every} | dict.fromkeys(batch, batch[0] if batch else "")
            for block in blocks:
                found |= dict.fromkeys(block, block[0])
            yield found


def _partitions(items: list[str]) -> Iterator[list[list[str]]]:
    """All ways to part a list into blocks."""
    if not items:
        yield []
        return
    first, *rest = items
    for blocks in _partitions(rest):
        yield [[first], *blocks]
        for i, block in enumerate(blocks):
            yield [*blocks[:i], [first, *block], *blocks[i + 1 :]]


def _given(example: Mapping[str, NDArray[Any]], name: str) -> Tensor:
    if name not in example:
        raise InputError("the example lacks an input", got=", ".join(example), expected=name)
    with blaming("the example can't be used:", where=name):
        return torch.from_numpy(example[name])


def _made(value: ir.Value, shape: list[int], generator: torch.Generator) -> Tensor:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        raise InputError(
            "an input's type can't be made up",
            where=value.name,
            got=value.dtype,
            do=Advice("Give {}", Said("--example FILE.npz", "example='FILE.npz'")),
        )
    dtype = torch.from_numpy(np.zeros((), value.dtype.numpy())).dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    rows = _table_rows(value)
    if rows is not None and dtype != torch.bool:
        return torch.randint(rows, shape, generator=generator).to(dtype)
    length = shape[-1] if shape else 1
    kept = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
    kept.view(-1)[0] = length
    return (torch.arange(length) < kept).reshape(shape).to(dtype)


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the table that ids look up."""
    for node, index in value.uses():
        if (
            node.op_type == "Gather"
            and index == 1
            and node.inputs[0] is not None
            and node.inputs[0].shape is not None
        ):
            size = node.inputs[0].shape[node.attributes.get_int("axis", 0) or 0]
            return size if isinstance(size, int) else None
        if node.op_type in ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze") and index == 0:
            rows = _table_rows(node.outputs[0])
            if rows is not None:
                return rows
    return None
