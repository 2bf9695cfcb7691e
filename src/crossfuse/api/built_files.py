"""What the build of a target leaves: its files, and what its attentions became, in all stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crossfuse.bundle.manifest import EngineInfo
from crossfuse.core.foreign import blaming
from crossfuse.core.target import Target
from crossfuse.errors import InputError
from crossfuse.graph.metadata import SITE
from crossfuse.runtime.backends import open_stage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.stage import CompiledStage, StageRequest

if TYPE_CHECKING:
    from crossfuse.targets.lowering import Lowered

__all__ = ["BuiltFiles", "Fusions", "compiled_attentions"]


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


def compiled_attentions(
    target: Target, lowered: Lowered, graph: Path, precision: str
) -> tuple[dict[str, str], dict[str, str]]:
    """What the attentions of a written graph become where the target's engine compiles it: site →
    kernel, and site → why it has none.

    Args:
        target: that compiles its graphs.
        lowered: the graph, with the operators that it asks for.
        graph: its file.
        precision: of the target.

    Raises:
        BundleError: the engine is not installed, or can't compile the graph.
        InputError: its stages don't tell.
    """
    outputs = {
        site: str(node.outputs[0].name)
        for node in lowered.model.graph
        if (site := node.metadata_props.get(SITE)) in lowered.kernels and node.name == site
    }
    stage = open_stage(StageRequest(target, graph, SessionOptions(), precision=precision))
    if not isinstance(stage, CompiledStage):
        raise InputError(
            f"the stages of target {target.name!r} don't tell what attentions became",
            got=type(stage).__name__,
            expected="crossfuse.runtime.stage.CompiledStage",
        )
    with blaming(f"the stage of target {target.name!r} raised"):
        kernels, reasons = stage.attentions(outputs)
    stage.close()
    return kernels, {**lowered.reasons, **reasons}
