"""The manifest's content as typed data, and its JSON; ``manifest.schema.json`` tells outsiders the
same, and is made from these classes (`python -m crossfuse.bundle.schema`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from crossfuse.bundle.records import ParityRecord, SourceRecord
from crossfuse.core.json_codec import encode, json_text
from crossfuse.core.json_form import AtLeast, Entries, Form, Length, Matches
from crossfuse.core.json_reader import Origin, decode_text
from crossfuse.core.ledger import Ledger
from crossfuse.core.linear_ledger import LinearLedger
from crossfuse.core.tensors import Dim, Dtype, TensorSpec
from crossfuse.errors import BundleError

__all__ = [
    "FILE_NAME",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Decode",
    "EngineInfo",
    "FileEntry",
    "Manifest",
    "PrefixReuse",
    "StageSpec",
    "TargetEntry",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1

FILE_NAME = Matches(
    r"[A-Za-z0-9_][A-Za-z0-9._+-]*",
    "a plain file name, without separators: nothing leads outside the bundle",
    do="Don't use this bundle: it was not written by crossfuse",
)
"""Names of the bundle's files."""

_FileName = Annotated[str, FILE_NAME]
_Digest = Annotated[str, Matches("[0-9a-f]{64}", "64 hexadecimal digits")]
_Profile = Mapping[
    str,
    Annotated[
        tuple[Annotated[int, AtLeast(1)], ...], Length(3, "smallest, typical and largest size")
    ],
]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle.

    Attributes:
        size: in bytes.
        sha256: of its content, in hexadecimal.
    """

    size: Annotated[int, AtLeast(0)]
    sha256: _Digest


@dataclass(frozen=True)
class StageSpec:
    """One stage's boundary.

    Stages are ``model`` alone, or ``context`` and ``query``, whose further inputs are the context's
    outputs; and ``step``, which decodes.

    Attributes:
        inputs: in the graph's order.
        outputs: in the graph's order.
        flops: floating-point operations at the example's sizes, or null where not known.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    flops: int | None = None


@dataclass(frozen=True)
class Decode:
    """How a bundle decodes.

    Attributes:
        tokens: its input of ids, of which the stage ``step`` takes one at a time.
        length: the most tokens that one sequence may have.
    """

    tokens: str
    length: Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class PrefixReuse:
    """What of the tokens that stand in front of the queries' own is computed once per context.

    Attributes:
        rows: how many tokens of a sequence those are, or null where none is computed apart.
        attentions: sites whose keys and values of those tokens are of the context stage.
        reason: why there is none; empty where there is one.
    """

    rows: int | str | None
    attentions: tuple[str, ...] = ()
    reason: str = ""


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
        request: a digest of all that the build depended on; part of a file's name in the cache.
    """

    __json__: ClassVar[Form] = Form(required=frozenset({"lean", "request"}))

    library: str
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[_Profile, ...]
    lean: bool = False
    request: Annotated[str, Matches("[0-9a-f]*", "a digest in hexadecimal")] = ""


@dataclass(frozen=True)
class TargetEntry:
    """One target.

    Attributes:
        stages: stage → its graph or engine file.
        files: that those need, themselves included.
        precision: of the target.
        producers: package → version.
        parity: how it compared with the reference when it was built.
        kept: nodes that stayed in fp32 → why.
        boundary: tensors at the stages' boundaries that have another dtype than ``stages`` of the
            manifest says → that dtype.
        engine: of targets that are engines.
        package: which provides a target that is not built in.
        linears: the model's linear layers and what each became: in low precision, and of targets
            whose engine tells.
        calibration: what a low precision was chosen on.
    """

    __json__: ClassVar[Form] = Form(sparse=frozenset({"package", "linears", "calibration"}))

    stages: Mapping[str, _FileName]
    files: tuple[_FileName, ...]
    precision: str
    producers: Mapping[str, str]
    parity: Annotated[Mapping[str, Any] | None, Entries(ParityRecord)] = None
    kept: Mapping[str, str] = field(default_factory=dict)
    boundary: Mapping[str, Dtype] = field(default_factory=dict)
    engine: EngineInfo | None = None
    package: str = ""
    linears: LinearLedger = field(default_factory=LinearLedger)
    calibration: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a crossfuse bundle says about itself.

    Attributes:
        name: the model's.
        source: what was exported; of it only a zoo model's name, size and seed are ever used to
            load the model again.
        created_by: crossfuse and its version.
        dims: named dynamic dimensions and the sizes they may take; a max of null is no limit.
        stages: ``model``, or ``context`` and ``query``; and ``step``.
        context: inputs that change rarely.
        shared_batch: the queries' batch dimension in a split bundle whose contexts have a batch of
            their own, ``contexts``: the first is a multiple of the second.
        with_queries: tensors made of the context alone that are computed with the queries all the
            same, and why; those that cheap operators repeat for them are not listed.
        prefix: what of the context's tokens in front of the queries' is computed once; null where
            no tokens of the one stand among those of the other.
        ledger: the model's attentions, in the order of execution as far as captured.
        example: sizes of the dimensions in the example inputs.
        fused_graph: the graph with FusedAttention nodes, from which targets are built.
        decode: null where the bundle doesn't decode.
        generation: settings for choosing tokens, as ``generation_config.json`` names them.
        targets: by name.
        reference: inputs and eager results for parity.
        quick: it was checked at few points, for work in progress.
        files: every file of the bundle but the manifest.
    """

    __json__: ClassVar[Form] = Form(
        version=SCHEMA_VERSION,
        keyed={"dims": "name"},
        required=frozenset({"targets", "files"}),
        sparse=frozenset({"generation", "quick", "with_queries", "prefix"}),
    )

    name: str
    source: Annotated[Mapping[str, Any], Entries(SourceRecord)]
    created_by: str
    dims: Mapping[str, Dim]
    stages: Mapping[str, StageSpec]
    context: tuple[str, ...]
    shared_batch: str | None
    ledger: Ledger
    example: Mapping[str, int] = field(default_factory=dict)
    fused_graph: _FileName
    decode: Decode | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    with_queries: Mapping[str, str] = field(default_factory=dict)
    prefix: PrefixReuse | None = None
    targets: Mapping[str, TargetEntry] = field(default_factory=dict)
    reference: _FileName | None = None
    quick: bool = False
    files: Mapping[_FileName, FileEntry] = field(default_factory=dict)

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
        return json_text(encode(self), indent=1) + "\n"

    @classmethod
    def loads(cls, text: str, where: str) -> Manifest:
        """Read JSON text, checking every field.

        Raises:
            BundleError: not JSON, NaN or infinity, a newer schema version, or a field that is
                missing or wrong.
        """
        return decode_text(
            cls,
            text,
            Origin(
                "the manifest",
                where,
                BundleError,
                broken="Export the bundle again",
                newer="Upgrade crossfuse here, or export the bundle with this version",
            ),
        )
