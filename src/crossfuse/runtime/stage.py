"""What a session asks of an engine: one stage of a bundle, opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from crossfuse.core.target import Target
from crossfuse.errors import InputError
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.refused_inputs import Takes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.bundle.manifest import EngineInfo
    from crossfuse.core.linear_ledger import Became
    from crossfuse.runtime.device_array import DeviceArray

__all__ = ["CompiledStage", "HostStage", "LinearStage", "OpenedStages", "Stage", "StageRequest"]


@dataclass(frozen=True)
class StageRequest:
    """What a target's opener is to open.

    Attributes:
        target: whose graph it is.
        graph: the stage's file, verified; files that it refers to lie beside it.
        options: of the session.
        alone: the bundle has no other stage.
        engine: what the manifest says about an engine; None for graphs.
        precision: of the target.
        boundary: names of inputs and outputs that the graph should have; None where nobody knows.
        key: tells the content of the stage's files from any other; empty where nobody vouches for
            it, and nothing may be kept by it.
        takes: what a caller gives to the stage, to be told where the engine refuses it.
    """

    target: Target
    graph: Path
    options: SessionOptions
    alone: bool = True
    engine: EngineInfo | None = None
    precision: str = "fp32"
    boundary: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    key: str = ""
    takes: Takes | None = None


@runtime_checkable
class Stage(Protocol):
    """One stage on some engine. Several threads may run it at once.

    Attributes:
        provider: what executes it.
        boundary: names of inputs and outputs.
        on_device: results can stay on a GPU, and are handed from stage to stage there.
        device: number of that GPU.
    """

    provider: str
    boundary: tuple[tuple[str, ...], tuple[str, ...]]
    on_device: bool
    device: int

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the boundary's order, for host arrays."""

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """Outputs as host arrays, for any mix of host and device arrays."""

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[Any]:
        """Outputs on the engine's device (`DeviceArray` on a GPU), for any mix of host and device
        arrays."""

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Any]:
        """Outputs as host arrays, but for those that are written into arrays where the engine
        computes; on the host these may be inputs, too."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the GPU, its content undefined; for engines on one."""

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """Inputs and outputs fixed in memory; `run_bound` executes them in place."""

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""

    def close(self) -> None:
        """Nobody runs it any more."""


@runtime_checkable
class CompiledStage(Protocol):
    """A stage whose engine compiled the graph here, and tells what it made of it."""

    def attentions(self, outputs: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Site → kernel and its type, of the attentions that one kernel computes; and site → why
        none does, for the others. ``outputs`` are the names of their results in the graph."""


@runtime_checkable
class LinearStage(Protocol):
    """A stage whose engine tells what it made of linear layers, too."""

    def linears(self, results: Collection[str]) -> dict[str, Became]:
        """What the products and convolutions with these results became, by the names of the results
        in the graph; without those that the engine tells nothing of."""


class OpenedStages(dict[str, Stage]):
    """What executes each stage of a session, by name; a stage that wasn't opened raises
    :class:`InputError`."""

    def __missing__(self, stage: str) -> Stage:
        raise InputError(
            f"the session was opened without the stage {stage!r}",
            got=", ".join(self),
            do=f"Load the bundle with stages={[*self, stage]}",
        )


class HostStage:
    """A stage of an engine that takes and gives arrays on the host: a subclass defines `run`.

    Args:
        provider: what executes it.
        inputs, outputs: their names, in the graph's order.
    """

    on_device = False
    device = 0

    def __init__(self, provider: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.provider = provider
        self.boundary = (tuple(inputs), tuple(outputs))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Outputs in the boundary's order, for host arrays."""
        raise NotImplementedError

    def run_mixed(self, feeds: Mapping[str, Any]) -> list[NDArray[Any]]:
        """As `run`."""
        return self.run(feeds)

    def run_on_device(self, feeds: Mapping[str, Any]) -> list[Any]:
        """As `run`."""
        return self.run(feeds)

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, Any]) -> list[Any]:
        """Outputs as host arrays, some of them written into arrays that are there."""
        outputs = self.run(feeds)
        for name, array in zip(self.boundary[1], outputs, strict=True):
            if name in kept:
                np.copyto(kept[name], array)
        return [kept.get(n, array) for n, array in zip(self.boundary[1], outputs, strict=True)]

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Not asked of an engine that is on no GPU."""
        raise NotImplementedError

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """The arrays themselves, for `run_bound`."""
        return dict(feeds), list(outputs)

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""
        feeds, outputs = binding
        for kept, made in zip(outputs, self.run(feeds), strict=True):
            np.copyto(kept, made)

    def close(self) -> None:
        """Nothing is held."""
