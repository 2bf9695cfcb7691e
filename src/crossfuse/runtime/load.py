"""`load`: from a bundle's folder to a session."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from crossfuse.bundle.manifest import Decode, EngineInfo, StageSpec
from crossfuse.bundle.store import open_bundle
from crossfuse.core.foreign import door
from crossfuse.core.tensors import Dim, TensorSpec, names_of
from crossfuse.errors import BundleError
from crossfuse.runtime.backends import best_target, open_stage
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Session
from crossfuse.runtime.stage import Stage

__all__ = ["load", "open_session", "with_dtypes"]

_STAGES = ({"model"}, {"context", "query"}, {"context", "query", "step"})


@door
def load(
    path: str | Path, target: str | None = None, options: SessionOptions | None = None
) -> Session:
    """Open a bundle for execution. Sizes and hashes of all its files are checked before any of them
    is parsed.

    Args:
        path: the bundle's folder.
        target: a target of the bundle; where omitted, the best that runs here.
        options: threads and provider options.

    Raises:
        BundleError: no bundle, a damaged or unsafe one, or one that this machine has no engine for.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    name = target or best_target(bundle.targets)
    entry = bundle.target(name)
    if set(entry.stages) not in _STAGES or set(manifest.stages) != set(entry.stages):
        raise BundleError(
            "the bundle's stages are not known to this version", got=", ".join(entry.stages)
        )
    bundle.verified({*manifest.files, *entry.files, *entry.stages.values()})
    graphs = {stage: bundle.path / file for stage, file in entry.stages.items()}
    digests = "".join(
        manifest.files[file].sha256
        for file in (*entry.files, *entry.stages.values())
        if file in manifest.files
    )
    owner = f"{name} {hashlib.sha256(digests.encode()).hexdigest()}"
    return open_session(
        name,
        with_dtypes(manifest.stages, entry.boundary),
        manifest.dims,
        graphs,
        options or SessionOptions(),
        shared_batch=manifest.shared_batch,
        decode=manifest.decode,
        owner=owner,
        engine=entry.engine,
    )


def with_dtypes(stages: Mapping[str, StageSpec], dtypes: Mapping[str, str]) -> dict[str, StageSpec]:
    """The stages with other dtypes for some tensors of their boundaries."""

    def changed(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, dtype=dtypes.get(spec.name, spec.dtype)) for spec in specs)

    return {
        n: replace(stage, inputs=changed(stage.inputs), outputs=changed(stage.outputs))
        for n, stage in stages.items()
    }


def open_session(
    target: str,
    stages: Mapping[str, StageSpec],
    dims: Mapping[str, Dim],
    graphs: Mapping[str, Path],
    options: SessionOptions,
    *,
    shared_batch: str | None = None,
    decode: Decode | None = None,
    owner: str = "",
    engine: EngineInfo | None = None,
) -> Session:
    """A session over graph files that the caller vouches for; `load` is the way in for bundles."""
    engines: dict[str, Stage] = {}
    for name, stage in stages.items():
        engines[name] = open_stage(
            target, graphs[name], options, alone=len(stages) == 1, engine=engine
        )
        expected = (names_of(stage.inputs), names_of(stage.outputs))
        if engines[name].boundary != expected:
            raise BundleError(
                "the graph's inputs and outputs are not the manifest's",
                where=name,
                got=engines[name].boundary,
                expected=expected,
            )
    return Session(
        target, stages, dims, engines, shared_batch=shared_batch, decode=decode, owner=owner
    )
