"""`Binding`: inputs and outputs fixed in memory, for hot loops."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.stage import Stage

__all__ = ["Binding"]


class Binding:
    """Inputs and outputs fixed in memory: write into the bound input arrays, call `run`, read
    ``outputs``.

    For one thread at a time; make one binding per thread.
    """

    def __init__(
        self, stages: list[tuple[Stage, dict[str, NDArray[Any]], tuple[str, ...]]]
    ) -> None:
        self._bound: list[tuple[Stage, Any]] = []
        self._kept: list[dict[str, NDArray[Any]]] = []
        made: dict[str, NDArray[Any]] = {}
        for engine, feeds, names in stages:
            feeds = {**feeds, **made}
            first = [np.ascontiguousarray(array) for array in engine.run(feeds)]
            made = dict(zip(names, first, strict=True))
            self._bound.append((engine, engine.bind(feeds, first)))
            self._kept += [feeds, made]
        self.outputs: Mapping[str, NDArray[Any]] = MappingProxyType(made)

    def run(self) -> Mapping[str, NDArray[Any]]:
        """Execute; the arrays in ``outputs`` are overwritten."""
        for engine, binding in self._bound:
            engine.run_bound(binding)
        return self.outputs
