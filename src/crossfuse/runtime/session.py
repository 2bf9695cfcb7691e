"""`load` and `Session`: a bundle's target, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.bundle.manifest import StageSpec
from crossfuse.bundle.store import open_bundle
from crossfuse.errors import BundleError, InputError
from crossfuse.runtime.checks import InputChecker, is_on_device
from crossfuse.runtime.engines import best_target, open_stage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.ort import OrtStage
from crossfuse.specs import Dim, TensorSpec, names_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Binding", "Session", "load"]


def load(path: str | Path, target: str | None = None, options: SessionOptions | None = None) -> Session:
    """Open a bundle for execution. Sizes and hashes of all its files are checked before any of them is parsed.

    Args:
        path: the bundle's folder.
        target: a target of the bundle; where omitted, the best that runs here.
        options: threads and provider options.

    Raises:
        BundleError: no bundle, a damaged or unsafe one, or one that this machine has no engine for.
    """
    bundle = open_bundle(path)
    name = target or best_target(bundle.targets)
    entry = bundle.target(name)
    if set(entry.stages) != {"model"} or "model" not in bundle.manifest.stages:
        raise BundleError("this version runs bundles with the single stage 'model'", got=", ".join(entry.stages))
    bundle.verified({*bundle.manifest.files, *entry.files, *entry.stages.values()})
    graphs = {stage: bundle.path / file for stage, file in entry.stages.items()}
    return open_session(name, bundle.manifest.stages, bundle.manifest.dims, graphs, options or SessionOptions())


def open_session(
    target: str,
    stages: Mapping[str, StageSpec],
    dims: Mapping[str, Dim],
    graphs: Mapping[str, Path],
    options: SessionOptions,
) -> Session:
    """A session over graph files that the caller vouches for; `load` is the way in for bundles."""
    engine = open_stage(target, graphs["model"], options)
    stage = stages["model"]
    expected = (names_of(stage.inputs), names_of(stage.outputs))
    if engine.boundary != expected:
        raise BundleError("the graph's inputs and outputs are not the manifest's", got=engine.boundary, expected=expected)
    return Session(target, stages, dims, engine)


class Session:
    """A target, ready to run. Safe to use from several threads at once; close it, or use it as a context manager."""

    def __init__(self, target: str, stages: Mapping[str, StageSpec], dims: Mapping[str, Dim], engine: OrtStage) -> None:
        self.target = target
        self.stages: Mapping[str, StageSpec] = MappingProxyType(dict(stages))
        self.inputs: tuple[TensorSpec, ...] = stages["model"].inputs
        self.outputs: tuple[TensorSpec, ...] = stages["model"].outputs
        self.provider = engine.provider
        self._names = names_of(self.outputs)
        self._check = InputChecker(self.inputs, dims)
        self._engine: OrtStage | None = engine

    def run(self, **inputs: Any) -> dict[str, Any]:
        """Run on inputs by name.

        Args:
            inputs: NumPy arrays, or anything with DLPack. Host arrays that are contiguous are not copied. Device arrays
                stay on the device, and then so do the outputs (objects with DLPack).

        Returns:
            outputs by name; NumPy arrays for host inputs.

        Raises:
            InputError: names, dtypes or shapes that the specs don't allow, values that the engine refuses, or a closed
                session.
        """
        engine = self._open_engine()
        for value in inputs.values():
            if type(value) is not np.ndarray and is_on_device(value):
                self._check.check_device(inputs)
                return dict(zip(self._names, engine.run_on_device(inputs), strict=True))
        return dict(zip(self._names, engine.run(self._check(inputs)), strict=True))

    def bind(self, **inputs: NDArray[Any]) -> Binding:
        """Check once, run many times: a binding to these host arrays for hot loops over one shape.

        Raises:
            InputError: as `run`, and for arrays that would have to be copied.
        """
        feeds = self._check(inputs)
        for name, array in feeds.items():
            if array is not inputs[name]:
                raise InputError("a bound input must be a contiguous NumPy array", where=name)
        return Binding(self._open_engine(), feeds, self._names)

    def close(self) -> None:
        """Release the engine; running threads finish first. Closing twice is fine."""
        self._engine = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._engine is None else self.provider
        return f"<crossfuse Session {self.target} on {state}: {', '.join(map(str, self.inputs))}>"

    def _open_engine(self) -> OrtStage:
        engine = self._engine
        if engine is None:
            raise InputError("the session is closed", do="Load the bundle again")
        return engine


class Binding:
    """Inputs and outputs fixed in memory: write into the bound input arrays, call `run`, read ``outputs``.

    For one thread at a time; make one binding per thread.
    """

    def __init__(self, engine: OrtStage, feeds: dict[str, NDArray[Any]], names: tuple[str, ...]) -> None:
        first = [np.ascontiguousarray(array) for array in engine.run(feeds)]
        self.outputs: Mapping[str, NDArray[Any]] = MappingProxyType(dict(zip(names, first, strict=True)))
        self._engine = engine
        self._feeds = feeds
        self._binding = engine.bind(feeds, first)

    def run(self) -> Mapping[str, NDArray[Any]]:
        """Execute; the arrays in ``outputs`` are overwritten."""
        self._engine.run_bound(self._binding)
        return self.outputs
