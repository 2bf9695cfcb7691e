"""The manifest's content as typed data, and its JSON form; ``manifest.schema.json`` describes the
same for outsiders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossfuse.core.json_codec import json_text
from crossfuse.core.ledger import Ledger
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.errors import BundleError, CrossfuseError

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Decode",
    "EngineInfo",
    "FileEntry",
    "Manifest",
    "StageSpec",
    "TargetEntry",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """A file's size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class StageSpec:
    """One stage's boundary: of the single stage ``model``, or of ``context`` and ``query``.

    ``flops``: floating-point operations at the example's sizes, or None where not known.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flops: int | None = None


@dataclass(frozen=True)
class Decode:
    """How a bundle decodes: its input of ids, and the most tokens that one sequence may have."""

    tokens: str
    length: int


@dataclass(frozen=True)
class EngineInfo:
    """What an engine plan was built with, and for.

    Attributes:
        library: Python module of the builder.
        version: of the library.
        compute_capabilities: of the GPUs that it runs on.
        profiles: dimension → smallest, typical and largest size, one mapping per optimization
            profile.
        lean: the lean runtime, and other versions of the same major, can execute it.
        request: a digest of all that the build depended on.
    """

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[Mapping[str, tuple[int, ...]], ...]
    lean: bool = False
    request: str = ""


@dataclass(frozen=True)
class TargetEntry:
    """One target: its graph or engine file per stage, the files those need, precision, producers
    and results.

    ``kept`` says which nodes stayed in fp32 and why, ``boundary`` which tensors at the stages'
    boundaries have another dtype than ``Manifest.stages`` says, ``package`` which package provides
    a target that is not built in.
    """

    stages: Mapping[str, str]
    files: tuple[str, ...]
    precision: str
    producers: Mapping[str, str]
    parity: Mapping[str, Any] | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    boundary: Mapping[str, str] = field(default_factory=dict)
    engine: EngineInfo | None = None
    package: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything the bundle says about itself.

    ``shared_batch`` is the queries' batch dimension in a split bundle whose contexts have a batch
    of their own, ``contexts``: the first is a multiple of the second. ``example`` holds the
    dimensions' sizes in the example inputs.
    """

    name: str
    source: Mapping[str, Any]
    created_by: str
    dims: Mapping[str, Dim]
    stages: Mapping[str, StageSpec]
    context: tuple[str, ...]
    shared_batch: str | None
    ledger: Ledger
    fused_graph: str
    decode: Decode | None = None
    example: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, TargetEntry] = field(default_factory=dict)
    reference: str | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def with_target(self, name: str, entry: TargetEntry) -> Manifest:
        """The manifest with one target added or replaced."""
        return replace(self, targets={**self.targets, name: entry})

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the whole model takes: the only stage's inputs, or the context's and the query's
        own."""
        if "model" in self.stages:
            return self.stages["model"].inputs
        context, query = self.stages["context"], self.stages["query"]
        between = {tensor.name for tensor in context.outputs}
        return (*context.inputs, *(tensor for tensor in query.inputs if tensor.name not in between))

    def dumps(self) -> str:
        """JSON text; strict, so that no NaN can enter."""
        data = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "source": dict(self.source),
            "created_by": self.created_by,
            "dims": {d.name: {"min": d.min, "max": d.max} for d in self.dims.values()},
            "stages": {
                name: {
                    "inputs": [_tensor_json(t) for t in s.inputs],
                    "outputs": [_tensor_json(t) for t in s.outputs],
                    "flops": s.flops,
                }
                for name, s in self.stages.items()
            },
            "context": list(self.context),
            "shared_batch": self.shared_batch,
            "ledger": [row.to_json() for row in self.ledger],
            "example": dict(self.example),
            "fused_graph": self.fused_graph,
            "decode": None
            if self.decode is None
            else {"tokens": self.decode.tokens, "length": self.decode.length},
            "targets": {
                name: {
                    "stages": dict(t.stages),
                    "files": list(t.files),
                    "precision": t.precision,
                    "producers": dict(t.producers),
                    "parity": t.parity,
                    "kept": dict(t.kept),
                    "boundary": dict(t.boundary),
                    "engine": None if t.engine is None else _engine_json(t.engine),
                    **({"package": t.package} if t.package else {}),
                }
                for name, t in self.targets.items()
            },
            "reference": self.reference,
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
        }
        return json_text(data, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, where: str) -> Manifest:
        """Read JSON text, checking every field.

        Raises:
            BundleError: not JSON, NaN or infinity, a newer schema version, or a field of the wrong
                type.
        """
        from crossfuse.bundle.reader import read_manifest

        try:
            data = json.loads(text, parse_constant=_no_constants)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"the manifest is not valid JSON: {error}",
                where=where,
                do="Export the bundle again",
            ) from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and not isinstance(version, bool) and version > SCHEMA_VERSION:
            raise BundleError(
                "the bundle was written by a newer crossfuse",
                where=where,
                got=f"schema version {version}",
                expected=f"at most {SCHEMA_VERSION}",
                do="Upgrade crossfuse here, or export the bundle with this version",
            )
        try:
            return read_manifest(data, where)
        except CrossfuseError as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"the manifest is invalid: {error}", where=where) from error


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    known = {} if spec.range is None else {"range": list(spec.range)}
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), **known}


def _engine_json(engine: EngineInfo) -> dict[str, Any]:
    return {
        "library": engine.library,
        "version": engine.version,
        "compute_capabilities": list(engine.compute_capabilities),
        "profiles": [
            {name: list(sizes) for name, sizes in profile.items()} for profile in engine.profiles
        ],
        "lean": engine.lean,
        "request": engine.request,
    }
