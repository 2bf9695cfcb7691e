"""From a manifest's JSON to typed data, every field checked: what is loaded may come from
anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from crossfuse.bundle.manifest import (
    SCHEMA_VERSION,
    Decode,
    EngineInfo,
    FileEntry,
    Manifest,
    StageSpec,
    TargetEntry,
)
from crossfuse.core.ledger import KINDS, Ledger, LedgerRow
from crossfuse.core.tensors import DTYPES, SIZES, Dim, TensorSpec
from crossfuse.errors import BundleError

__all__ = ["read_manifest"]


def read_manifest(data: Any, where: str) -> Manifest:
    """The manifest in parsed JSON.

    Raises:
        BundleError: naming the first field that is missing or of the wrong type.
    """
    return _Reader(where).manifest(data)


class _Reader:
    """Checks types on the way in; an error names the path of the field."""

    def __init__(self, where: str) -> None:
        self.where = where

    def manifest(self, data: Any) -> Manifest:
        top = self.mapping(data, "manifest")
        if self.get(top, "schema_version", int) != SCHEMA_VERSION:
            self.fail("schema_version", top["schema_version"], SCHEMA_VERSION)
        dims = {
            name: self.dim(name, self.mapping(value, f"dims.{name}"))
            for name, value in self.get(top, "dims", dict).items()
        }
        return Manifest(
            name=self.get(top, "name", str),
            source=self.source(self.get(top, "source", dict)),
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
            targets={
                name: self.target(value) for name, value in self.mappings(top, "targets").items()
            },
            reference=self.optional(top, "reference", str),
            files={
                name: FileEntry(self.size(value), self.digest(value))
                for name, value in self.mappings(top, "files").items()
            },
        )

    def source(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        for field in ("kind", "name", "checkpoint", "task", "decode"):
            self.optional(data, field, str)
        for field in ("context", "drop_outputs"):
            if data.get(field) is not None:
                self.strings(data, field)
        for name, axes in (self.optional(data, "dynamic", dict) or {}).items():
            for axis in self.string_map({name: axes}, name):
                if not (axis.isascii() and axis.isdigit() and len(axis) < 4):
                    self.fail(f"source.dynamic.{name}", axis, "an axis, counted from 0")
        size = self.optional(data, "size", str)
        if size is not None and size not in SIZES:
            self.fail("source.size", size, " or ".join(SIZES))
        seed = self.optional(data, "seed", int)
        if seed is not None and not 0 <= seed < 2**63:
            self.fail("source.seed", seed, "0 or more, in 63 bits")
        return data

    def target(self, data: Mapping[str, Any]) -> TargetEntry:
        return TargetEntry(
            stages=self.string_map(data, "stages"),
            files=self.strings(data, "files"),
            precision=self.get(data, "precision", str),
            producers=self.string_map(data, "producers"),
            parity=self.optional(data, "parity", dict),
            kept=self.string_map(data, "kept") if "kept" in data else {},
            boundary={
                n: self.dtype(t)
                for n, t in (
                    self.string_map(data, "boundary") if "boundary" in data else {}
                ).items()
            },
            engine=self.engine(self.optional(data, "engine", dict)),
            package=self.optional(data, "package", str) or "",
        )

    def dtype(self, name: str) -> str:
        return name if name in DTYPES else str(self.fail("boundary", name, ", ".join(DTYPES)))

    def engine(self, data: Mapping[str, Any] | None) -> EngineInfo | None:
        if data is None:
            return None
        return EngineInfo(
            library=self.get(data, "library", str),
            version=self.get(data, "version", str),
            compute_capabilities=self.strings(data, "compute_capabilities"),
            profiles=self.tuple_of(data, "profiles", self.profile),
            lean=self.get(data, "lean", bool),
            request=self.request(self.get(data, "request", str)),
        )

    def request(self, digest: str) -> str:
        # It becomes part of a file's name.
        if digest and not (digest.isascii() and digest.isalnum()):
            self.fail("request", digest, "a digest")
        return digest

    def profile(self, data: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        found = {}
        for name in data:
            sizes = self.get(data, name, list)
            if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
                self.fail(f"profiles.{name}", sizes, "smallest, typical and largest size")
            found[name] = tuple(sizes)
        return found

    def decode(self, data: Mapping[str, Any] | None) -> Decode | None:
        if data is None:
            return None
        length = self.get(data, "length", int)
        return Decode(
            self.get(data, "tokens", str),
            length if length > 0 else self.fail("decode.length", length, "1 or more"),
        )

    def dim(self, name: str, data: Mapping[str, Any]) -> Dim:
        return Dim(name, self.get(data, "min", int), self.optional(data, "max", int))

    def tensor(self, data: Mapping[str, Any]) -> TensorSpec:
        shape = self.get(data, "shape", list)
        for size in shape:
            if (
                isinstance(size, bool)
                or not isinstance(size, int | str)
                or (isinstance(size, int) and size < 0)
            ):
                self.fail("shape", size, "a size or a dimension's name")
        return TensorSpec(
            self.get(data, "name", str),
            self.get(data, "dtype", str),
            tuple(shape),
            self.range(data),
        )

    def range(self, data: Mapping[str, Any]) -> tuple[int, int | None] | None:
        ends = self.optional(data, "range", list)
        if ends is None:
            return None
        if (
            len(ends) == 2
            and type(ends[0]) is int
            and (ends[1] is None or (type(ends[1]) is int and ends[1] >= ends[0]))
        ):
            return ends[0], ends[1]
        self.fail("range", ends, "the lowest index, and the highest or null")
        return None

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
        raise BundleError(
            "the manifest is invalid",
            where=f"{self.where}, {field}",
            got=repr(got),
            expected=expected,
        )

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
        return {
            name: self.mapping(value, f"{key}.{name}")
            for name, value in self.get(data, key, dict).items()
        }

    def tuple_of(
        self, data: Mapping[str, Any], key: str, read: Callable[[Mapping[str, Any]], Any]
    ) -> tuple[Any, ...]:
        return tuple(
            read(self.mapping(item, f"{key}[{i}]"))
            for i, item in enumerate(self.get(data, key, list))
        )

    def strings(self, data: Mapping[str, Any], key: str) -> tuple[str, ...]:
        items = self.get(data, key, list)
        return tuple(
            item if isinstance(item, str) else self.fail(key, item, "text") for item in items
        )

    def string_map(self, data: Mapping[str, Any], key: str) -> dict[str, str]:
        items = self.get(data, key, dict)
        return {
            k: v if isinstance(v, str) else self.fail(f"{key}.{k}", v, "text")
            for k, v in items.items()
        }
