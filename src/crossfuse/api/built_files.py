"""What the build of a target leaves: its files, and what its attentions and its linear layers
became, in all stages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from crossfuse.bundle.manifest import EngineInfo
from crossfuse.core.foreign import blaming
from crossfuse.core.linear_ledger import Became
from crossfuse.errors import InputError
from crossfuse.graph.metadata import SITE
from crossfuse.runtime.backends import open_stage
from crossfuse.runtime.stage import CompiledStage, LinearStage, StageRequest

if TYPE_CHECKING:
    from crossfuse.targets.lowering import Lowered

__all__ = ["BuiltFiles", "CompiledGraph", "Fusions", "compiled_graph"]


@dataclass(frozen=True)
class BuiltFiles:
    """What a target's files are, and what its attentions became.

    Attributes:
        stages: graph or engine file by stage.
        files: all that these need, themselves included.
        kernels: attention site → kernel.
        reasons: site that did not fuse → why.
        engine: of an engine, what the manifest says about it.
        linears: of an engine that compiles graphs, stage → name of a linear layer's result → what
            it became; without stages that don't tell. Of built engines the name of its product.
    """

    stages: Mapping[str, str]
    files: frozenset[str]
    kernels: Mapping[str, str]
    reasons: Mapping[str, str]
    engine: EngineInfo | None = None
    linears: Mapping[str, Mapping[str, Became]] = field(default_factory=dict)


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


class CompiledGraph(NamedTuple):
    """What an engine made of a graph.

    Attributes:
        kernels: attention site → kernel.
        reasons: site that did not fuse → why.
        linears: name of a linear layer's result → what it became; None where the engine doesn't
            tell.
    """

    kernels: dict[str, str]
    reasons: dict[str, str]
    linears: Mapping[str, Became] | None = None


def compiled_graph(
    lowered: Lowered, request: StageRequest, results: Collection[str]
) -> CompiledGraph:
    """What a written graph becomes where the target's engine compiles it.

    Args:
        lowered: the graph, with the operators that it asks for.
        request: its file, and the target.
        results: names of the linear layers' results.

    Raises:
        BundleError: the engine is not installed, or can't compile the graph.
        InputError: its stages don't tell what attentions became.
    """
    outputs = {
        site: str(node.outputs[0].name)
        for node in lowered.model.graph
        if (site := node.metadata_props.get(SITE)) in lowered.kernels and node.name == site
    }
    target, stage = request.target, open_stage(request)
    if not isinstance(stage, CompiledStage):
        raise InputError(
            f"the stages of target {target.name!r} don't tell what attentions became",
            got=type(stage).__name__,
            expected="crossfuse.runtime.stage.CompiledStage",
        )
    with blaming(f"the stage of target {target.name!r} raised"):
        kernels, reasons = stage.attentions(outputs)
        linears = stage.linears(results) if isinstance(stage, LinearStage) else None
    stage.close()
    return CompiledGraph(kernels, {**lowered.reasons, **reasons}, linears)
