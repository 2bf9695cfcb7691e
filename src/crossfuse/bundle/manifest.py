"""The manifest's content as typed data, and its JSON form; ``manifest.schema.json`` describes the same for outsiders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossfuse.errors import BundleError, CrossfuseError
from crossfuse.ledger import KINDS, Ledger, LedgerRow
from crossfuse.specs import Dim, TensorSpec

__all__ = ["MANIFEST", "SCHEMA_VERSION", "Decode", "FileEntry", "Manifest", "StageSpec", "TargetEntry"]

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
class TargetEntry:
    """One target: its graph file per stage, the files those need, precision, producers and results."""

    stages: Mapping[str, str]
    files: tuple[str, ...]
    precision: str
    producers: Mapping[str, str]
    parity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Manifest:
    """Everything the bundle says about itself.

    ``shared_batch`` is the queries' batch dimension in a split bundle whose contexts have a batch of their own, ``contexts``:
    the first is a multiple of the second. ``example`` holds the dimensions' sizes in the example inputs.
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
            "decode": None if self.decode is None else {"tokens": self.decode.tokens, "length": self.decode.length},
            "targets": {
                name: {
                    "stages": dict(t.stages),
                    "files": list(t.files),
                    "precision": t.precision,
                    "producers": dict(t.producers),
                    "parity": t.parity,
                }
                for name, t in self.targets.items()
            },
            "reference": self.reference,
            "files": {name: {"size": f.size, "sha256": f.sha256} for name, f in self.files.items()},
        }
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str, where: str) -> Manifest:
        """Read JSON text, checking every field.

        Raises:
            BundleError: not JSON, NaN or infinity, a newer schema version, or a field of the wrong type.
        """
        try:
            data = json.loads(text, parse_constant=_no_constants)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"the manifest is not valid JSON: {error}", where=where, do="Export the bundle again") from error
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
            return _Reader(where).manifest(data)
        except CrossfuseError as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"the manifest is invalid: {error}", where=where) from error


def _no_constants(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _tensor_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


class _Reader:
    """Checks types on the way in; an error names the path of the field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def manifest(self, data: Any) -> Manifest:
        top = self.mapping(data, "manifest")
        if self.get(top, "schema_version", int) != SCHEMA_VERSION:
            self.fail("schema_version", top["schema_version"], SCHEMA_VERSION)
        dims = {
            name: self.dim(name, self.mapping(value, f"dims.{name}")) for name, value in self.get(top, "dims", dict).items()
        }
        return Manifest(
            name=self.get(top, "name", str),
            source=self.get(top, "source", dict),
            created_by=self.get(top, "created_by", str),
            dims=dims,
            stages={
                name: StageSpec(
                    self.tuple_of(stage, "inputs", self.tensor),
                    self.tuple_of(stage, "outputs", self.tensor),
                    self.optional(stage, "flops", int),
                )
                for name, stage in self.mappings(top, "stages").items()
            },
            context=self.strings(top, "context"),
            shared_batch=self.optional(top, "shared_batch", str),
            ledger=Ledger(self.tuple_of(top, "ledger", self.row)),
            fused_graph=self.get(top, "fused_graph", str),
            example=self.sizes(self.optional(top, "example", dict) or {}),
            decode=self.decode(self.optional(top, "decode", dict)),
            targets={name: self.target(value) for name, value in self.mappings(top, "targets").items()},
            reference=self.optional(top, "reference", str),
            files={
                name: FileEntry(self.size(value), self.digest(value)) for name, value in self.mappings(top, "files").items()
            },
        )

    def target(self, data: Mapping[str, Any]) -> TargetEntry:
        return TargetEntry(
            stages=self.string_map(data, "stages"),
            files=self.strings(data, "files"),
            precision=self.get(data, "precision", str),
            producers=self.string_map(data, "producers"),
            parity=self.optional(data, "parity", dict),
        )

    def decode(self, data: Mapping[str, Any] | None) -> Decode | None:
        if data is None:
            return None
        length = self.get(data, "length", int)
        return Decode(self.get(data, "tokens", str), length if length > 0 else self.fail("decode.length", length, "1 or more"))

    def dim(self, name: str, data: Mapping[str, Any]) -> Dim:
        return Dim(name, self.get(data, "min", int), self.optional(data, "max", int))

    def tensor(self, data: Mapping[str, Any]) -> TensorSpec:
        shape = self.get(data, "shape", list)
        for size in shape:
            if isinstance(size, bool) or not isinstance(size, int | str) or (isinstance(size, int) and size < 0):
                self.fail("shape", size, "a size or a dimension's name")
        return TensorSpec(self.get(data, "name", str), self.get(data, "dtype", str), tuple(shape))

    def row(self, data: Mapping[str, Any]) -> LedgerRow:
        kind = self.get(data, "kind", str)
        if kind not in KINDS:
            self.fail("ledger.kind", kind, KINDS)
        fused = self.get(data, "fused", dict)
        for value in fused.values():
            if value is not None and not isinstance(value, str):
                self.fail("ledger.fused", value, "a kernel's name or null")
        return LedgerRow(
            site=self.get(data, "site", str),
            kind=kind,
            captured=self.optional(data, "captured", str),
            num_heads=self.optional(data, "num_heads", int),
            kv_num_heads=self.optional(data, "kv_num_heads", int),
            head_size=self.optional(data, "head_size", int),
            value_size=self.optional(data, "value_size", int),
            query_inputs=self.strings(data, "query_inputs"),
            key_inputs=self.strings(data, "key_inputs"),
            fused=fused,
            reasons=self.string_map(data, "reasons"),
        )

    def sizes(self, data: Mapping[str, Any]) -> dict[str, int]:
        return {name: self.get(data, name, int) for name in data}

    def size(self, data: Mapping[str, Any]) -> int:
        size: int = self.get(data, "size", int)
        return size if size >= 0 else self.fail("files.size", size, "a number of bytes")

    def digest(self, data: Mapping[str, Any]) -> str:
        digest: str = self.get(data, "sha256", str)
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            self.fail("files.sha256", digest, "64 hexadecimal digits")
        return digest

    def fail(self, field: str, got: object, expected: object) -> Any:
        if isinstance(got, float) and not math.isfinite(got):
            got = "a number that is not finite"
        raise BundleError("the manifest is invalid", where=f"{self.where}, {field}", got=repr(got), expected=expected)

    def get(self, data: Mapping[str, Any], key: str, kind: type) -> Any:
        if key not in data:
            self.fail(key, "nothing", kind.__name__)
        value = data[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(key, value, kind.__name__)
        return value

    def optional(self, data: Mapping[str, Any], key: str, kind: type) -> Any:
        return None if data.get(key) is None else self.get(data, key, kind)

    def mapping(self, data: Any, name: str) -> Mapping[str, Any]:
        return data if isinstance(data, dict) else self.fail(name, data, "an object")

    def mappings(self, data: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
        return {name: self.mapping(value, f"{key}.{name}") for name, value in self.get(data, key, dict).items()}

    def tuple_of(self, data: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], Any]) -> tuple[Any, ...]:
        return tuple(read(self.mapping(item, f"{key}[{i}]")) for i, item in enumerate(self.get(data, key, list)))

    def strings(self, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
        items = self.get(data, key, list)
        return tuple(item if isinstance(item, str) else self.fail(key, item, "text") for item in items)

    def string_map(self, data: Mapping[str, Any], key: str) -> dict[str, str]:
        items = self.get(data, key, dict)
        return {k: v if isinstance(v, str) else self.fail(f"{key}.{k}", v, "text") for k, v in items.items()}
