"""`load`: from a bundle's folder to a session."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crossfuse.bundle.graph_checks import require_safe_graph
from crossfuse.bundle.manifest import Decode, EngineInfo, StageSpec, TargetEntry
from crossfuse.bundle.staging import unreplaced
from crossfuse.bundle.store import Bundle
from crossfuse.bundle.trust import require_own_engine
from crossfuse.core.foreign import door
from crossfuse.core.target import Target
from crossfuse.core.tensors import POSITION, STATE, Dim, TensorSpec, names_of
from crossfuse.errors import BundleError, InputError, unknown
from crossfuse.runtime.backends import open_stage, target_of_bundle
from crossfuse.runtime.empty_stage import for_empty
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.refused_inputs import Takes
from crossfuse.runtime.session import Session
from crossfuse.runtime.stage import Stage, StageRequest
from crossfuse.runtime.tuned import chosen_target

__all__ = ["SessionSpec", "load", "open_session", "with_dtypes"]

_LOG = logging.getLogger(__name__)
_STAGES = ({"model"}, {"context", "query"}, {"context", "query", "step"})


@dataclass(frozen=True)
class SessionSpec:
    """What a session has to know beside its graphs.

    Attributes:
        stages: inputs and outputs by stage.
        dims: ranges of the named dimensions.
        shared_batch: the queries' batch dimension, where contexts have one of their own.
        decode: of a bundle that decodes step by step.
        engine: what the manifest says about an engine.
        precision: of the target.
        owner: tells the contexts of different bundles apart; made up where omitted.
        constants: arguments of the model that are no tensors, and part of what was exported.
        generation: settings that the bundle holds for `generate`.
        opened: the stages to open; all where omitted.
    """

    stages: Mapping[str, StageSpec]
    dims: Mapping[str, Dim]
    shared_batch: str | None = None
    decode: Decode | None = None
    engine: EngineInfo | None = None
    precision: str = "fp32"
    owner: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    opened: Collection[str] | None = None


@door
def load(
    path: str | Path | Bundle,
    target: str | None = None,
    options: SessionOptions | None = None,
    *,
    stages: Collection[str] | None = None,
) -> Session:
    """Open a bundle for execution. Sizes and hashes of all its files are checked before any of them
    is parsed. Where a command replaces the bundle meanwhile, the old or the new one is opened.

    Args:
        path: the bundle's folder, or the open bundle.
        target: a target of the bundle; where omitted, the fastest that `crossfuse tune` found
            here, or else the best that runs here.
        options: threads and provider options.
        stages: the stages to open, of ``context``, ``query`` and ``step``; all where omitted. Each
            engine holds weights of its own, so a process that only encodes, or only decodes
            (``("context", "step")``), takes less memory with those it needs. What needs another
            stage raises `InputError`.

    Raises:
        BundleError: no bundle, a damaged or unsafe one, or one that this machine has no engine for;
            or an open bundle in whose place another one came; or an engine that was not built
            here, where ``options`` don't trust those.
        InputError: stages that the bundle hasn't.
    """

    def opened(bundle: Bundle) -> Session:
        session = _load(bundle, target, options or SessionOptions(), stages)
        bundle.require_unreplaced()
        return session

    return unreplaced(path, opened)


def _load(
    bundle: Bundle,
    target: str | None,
    options: SessionOptions,
    stages: Collection[str] | None,
) -> Session:
    manifest = bundle.manifest
    name = target or chosen_target(bundle)
    entry = bundle.target(name)
    known = target_of_bundle(name, entry.package)
    if set(entry.stages) not in _STAGES or set(manifest.stages) != set(entry.stages):
        raise BundleError(
            "the bundle's stages are not known to this version", got=", ".join(entry.stages)
        )
    if manifest.decode is not None:
        _require_tokens(manifest.decode.tokens, manifest.stages)
    if stages is not None:
        _require_stages(stages, manifest.stages)
    bundle.verified({*manifest.files, *entry.files, *entry.stages.values()})
    if not options.trust_engines:
        require_own_engine(bundle, name)
    spec = SessionSpec(
        with_dtypes(manifest.stages, entry.boundary),
        manifest.dims,
        shared_batch=manifest.shared_batch,
        decode=manifest.decode,
        engine=entry.engine,
        precision=entry.precision,
        owner=_owner(bundle, name, entry),
        constants=manifest.source.get("constants") or {},
        generation=manifest.generation,
        opened=stages,
    )
    graphs = {stage: bundle.path / file for stage, file in entry.stages.items()}
    for graph in graphs.values():
        if graph.suffix == ".onnx":
            require_safe_graph(graph, manifest.files)
    return open_session(known, graphs, spec, options)


def _require_stages(asked: Collection[str], there: Collection[str]) -> None:
    if isinstance(asked, str) or not asked:
        raise InputError(
            "stages to open are a list of names", got=repr(asked), expected=", ".join(there)
        )
    for name in asked:
        if name not in there:
            raise unknown("the bundle has no such stage", name, there)


def _require_tokens(name: str, stages: Mapping[str, StageSpec]) -> None:
    """A bundle that decodes has a step, and rows of the tokens that it names."""
    for stage in ("query", "step"):
        inputs = stages[stage].inputs if stage in stages else ()
        if not any(spec.name == name and len(spec.shape) == 2 for spec in inputs):
            raise BundleError(
                "the bundle says that it decodes by an input that its stages don't have so",
                where=f"stage {stage}",
                got=name,
                expected="rows of tokens",
                do="Export the model again",
            )


def _owner(bundle: Bundle, target: str, entry: TargetEntry) -> str:
    """The same for bundles whose target has the same files."""
    files = bundle.manifest.files
    digests = (
        files[name].sha256 for name in (*entry.files, *entry.stages.values()) if name in files
    )
    return f"{target} {hashlib.sha256(''.join(digests).encode()).hexdigest()}"


def with_dtypes(stages: Mapping[str, StageSpec], dtypes: Mapping[str, str]) -> dict[str, StageSpec]:
    """The stages with other dtypes for some tensors of their boundaries."""

    def changed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, dtype=dtypes.get(spec.name, spec.dtype)) for spec in specs)

    return {
        n: replace(stage, inputs=changed(stage.inputs), outputs=changed(stage.outputs))
        for n, stage in stages.items()
    }


def open_session(
    target: Target, graphs: Mapping[str, Path], spec: SessionSpec, options: SessionOptions
) -> Session:
    """A session over graph files that the caller vouches for; `load` is the way in for bundles.

    Args:
        target: whose graphs they are.
        graphs: file by stage.
        spec: of the session.
        options: threads and provider options.

    Raises:
        BundleError: the engine is not installed, can't execute a graph, or finds other inputs and
            outputs in it than ``spec`` has.
    """
    opened: dict[str, Stage] = {}
    for name, stage in spec.stages.items():
        if spec.opened is not None and name not in spec.opened:
            continue
        expected = (names_of(stage.inputs), names_of(stage.outputs))
        opened[name] = open_stage(
            StageRequest(
                target,
                graphs[name],
                options,
                alone=len(spec.stages) == 1,
                engine=spec.engine,
                precision=spec.precision,
                boundary=expected,
                key=f"{name} of {spec.owner}" if spec.owner else "",
                takes=_takes(spec, stage),
            )
        )
        _LOG.debug("stage %s: %s on %s", name, graphs[name].name, opened[name].provider)
        if opened[name].boundary != expected:
            raise BundleError(
                "the graph's inputs and outputs are not the manifest's",
                where=name,
                got=opened[name].boundary,
                expected=expected,
            )
        if name != "step":
            opened[name] = for_empty(opened[name], stage, spec.dims)
    return Session(
        target.name,
        spec.stages,
        spec.dims,
        opened,
        shared_batch=spec.shared_batch,
        decode=spec.decode,
        owner=spec.owner,
        constants=spec.constants,
        generation=spec.generation,
    )


def _takes(spec: SessionSpec, stage: StageSpec) -> Takes:
    """What a caller gives to a stage: all but what other stages, and it itself, made before."""
    made = {tensor.name for other in spec.stages.values() for tensor in other.outputs}
    if stage is spec.stages.get("step"):
        made.add(POSITION)
    given = (
        tensor
        for tensor in stage.inputs
        if tensor.name not in made and not tensor.name.startswith(STATE)
    )
    return Takes(tuple(given), spec.dims)
