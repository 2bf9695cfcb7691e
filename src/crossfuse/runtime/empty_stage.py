"""A stage whose inputs may hold nothing (an empty batch, a text without tokens): where its outputs
hold nothing either, no engine is asked. Fused kernels take no tensors without elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.bundle.manifest import StageSpec
from crossfuse.core.dimensions import multiple_of, size_at
from crossfuse.core.tensors import Dim

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.device_array import DeviceArray
    from crossfuse.runtime.stage import Stage

__all__ = ["EmptyStage", "executing", "for_empty"]

Shapes = list[tuple[int, ...]]


class EmptyStage:
    """A `Stage` around another one, which answers what is empty by itself.

    Args:
        inner: what executes the graph.
        spec: inputs and outputs, in the boundary's order.
    """

    def __init__(self, inner: Stage, spec: StageSpec) -> None:
        self.inner = inner
        self.provider, self.boundary = inner.provider, inner.boundary
        self.on_device, self.device = inner.on_device, inner.device
        self._spec = spec

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the boundary's order, for host arrays."""
        shapes = self._empty_shapes(feeds)
        return self.inner.run(feeds) if shapes is None else self._on_host(shapes)

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as host arrays, for any mix of host and device arrays."""
        shapes = self._empty_shapes(feeds)
        return self.inner.run_mixed(feeds) if shapes is None else self._on_host(shapes)

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs on the engine's device, for any mix of host and device arrays."""
        shapes = self._empty_shapes(feeds)
        if shapes is None:
            return self.inner.run_on_device(feeds)
        if not self.on_device:
            return self._on_host(shapes)
        specs = self._spec.outputs
        return [self.empty(shape, s.dtype) for shape, s in zip(shapes, specs, strict=True)]

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Any]:
        """Outputs as host arrays, but for those that are written into arrays that are there."""
        shapes = self._empty_shapes(feeds)
        if shapes is None:
            return self.inner.run_into(feeds, kept)
        made = zip(self._spec.outputs, self._on_host(shapes), strict=True)
        return [kept.get(spec.name, array) for spec, array in made]

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the GPU, its content undefined."""
        return self.inner.empty(shape, dtype)

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """Inputs and outputs for `run_bound`."""
        return None if self._empty_shapes(feeds) is not None else self.inner.bind(feeds, outputs)

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""
        if binding is not None:
            self.inner.run_bound(binding)

    def close(self) -> None:
        """Nobody runs it any more."""
        self.inner.close()

    def _empty_shapes(self, feeds: Mapping[str, Any]) -> Shapes | None:
        """The outputs' shapes, where each of them holds nothing; else None."""
        if not any(0 in value.shape for value in feeds.values()):
            return None
        sizes: dict[str, int] = {}
        for spec in self._spec.inputs:
            for size, got in zip(spec.shape, feeds[spec.name].shape, strict=True):
                factor, name = (isinstance(size, str) and multiple_of(size)) or (1, "")
                sizes[name] = int(got) // factor
        shapes: Shapes = []
        for spec in self._spec.outputs:
            found = [size_at(size, sizes) for size in spec.shape]
            shape = tuple(size for size in found if size is not None)
            if len(shape) < len(found) or 0 not in shape:
                return None
            shapes.append(shape)
        return shapes

    def _on_host(self, shapes: Shapes) -> list[NDArray[Any]]:
        specs = self._spec.outputs
        return [np.empty(shape, s.dtype) for shape, s in zip(shapes, specs, strict=True)]


def for_empty(stage: Stage, spec: StageSpec, dims: Mapping[str, Dim]) -> Stage:
    """The stage, which takes what is empty where some dimension may be."""
    return EmptyStage(stage, spec) if any(dim.min < 1 for dim in dims.values()) else stage


def executing(stage: Stage) -> Stage:
    """What executes a graph: the engine's own stage."""
    return stage.inner if isinstance(stage, EmptyStage) else stage
