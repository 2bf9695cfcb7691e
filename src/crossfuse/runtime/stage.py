"""What a session asks of an engine: one stage of a bundle, opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crossfuse.runtime.device_array import DeviceArray

__all__ = ["Stage"]


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

    def run_into(self, feeds: Mapping[str, Any], kept: Mapping[str, DeviceArray]) -> list[Any]:
        """Outputs as host arrays, but for those that are written into arrays on the GPU; for
        engines on one."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """A new array on the GPU, its content undefined; for engines on one."""

    def bind(self, feeds: Mapping[str, Any], outputs: Sequence[NDArray[Any]]) -> Any:
        """Inputs and outputs fixed in memory; `run_bound` executes them in place."""

    def run_bound(self, binding: Any) -> None:
        """Execute a binding: reads the bound inputs, writes the bound outputs."""

    def close(self) -> None:
        """Nobody runs it any more."""
