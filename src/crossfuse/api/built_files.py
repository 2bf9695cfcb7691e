"""What the files of a target's stages are, and what became of its attentions in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossfuse.bundle.manifest import EngineInfo

__all__ = ["BuiltFiles", "Fusions"]


@dataclass(frozen=True)
class BuiltFiles:
    """What a target's files are, and what its attentions became.

    Attributes:
        stages: graph or engine file by stage.
        files: all that these need, themselves included.
        kernels: attention site → kernel.
        reasons: site that did not fuse → why.
        engine: of an engine, what the manifest says about it.
    """

    stages: Mapping[str, str]
    files: frozenset[str]
    kernels: Mapping[str, str]
    reasons: Mapping[str, str]
    engine: EngineInfo | None = None


class Fusions:
    """Kernels and reasons by site, of all stages: an attention that several of them compute counts
    as fused if it is in all of them."""

    def __init__(self) -> None:
        self.kernels: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def note(self, kernels: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        """Add a stage's."""
        self.reasons |= reasons
        for site, kernel in kernels.items():
            known = self.kernels.get(site, "").split(", ") if site in self.kernels else []
            self.kernels[site] = ", ".join([*known, *([] if kernel in known else [kernel])])
        for site in self.reasons:
            self.kernels.pop(site, None)
