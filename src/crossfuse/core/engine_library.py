"""A library that builds engines: what it is called, and the GPUs that it builds for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EngineLibrary"]


@dataclass(frozen=True)
class EngineLibrary:
    """A library with TensorRT's API, which builds a target's engines and executes them.

    Attributes:
        module: its Python module, which builds engines and executes them.
        distributions: packages that it may be installed by.
        lean_module: a smaller module that executes engines which were built for it, if there is
            one.
        capabilities: compute capabilities of the GPUs that it can build for, without one; none
            where it builds for the GPU at hand.
        fp8_from: the first compute capability whose GPUs multiply in fp8.
    """

    module: str
    distributions: tuple[str, ...]
    lean_module: str | None = None
    capabilities: tuple[str, ...] = ()
    fp8_from: tuple[int, int] = (8, 9)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Modules that can execute its engines, best first."""
        return (self.module,) if self.lean_module is None else (self.module, self.lean_module)
