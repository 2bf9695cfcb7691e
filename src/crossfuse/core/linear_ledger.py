"""The ledger of linear layers: one row per product with weights, and what became of it in a target,
as the engine's own graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.core.text import listed
from crossfuse.errors import Advice, QuantizationError, Said

__all__ = [
    "FLOATS",
    "FP8",
    "FP32",
    "INT8",
    "UNKNOWN",
    "Became",
    "LinearLedger",
    "LinearRow",
    "in_words",
    "kept_in",
    "weights_in",
]

FP32 = "kept in fp32"
INT8 = "int8 × int8"
FP8 = "fp8 × fp8"
UNKNOWN = "not told"

_MOST_NAMES = 12
FLOATS = ("fp32", "bf16", "fp16")
"""Types of layers that are computed in floats."""

_IN_FLOATS = (UNKNOWN, *FLOATS)


def kept_in(dtype: str) -> str:
    """The words for a layer that stays in floats."""
    return f"kept in {dtype}"


def weights_in(bits: int, computed: str = "fp32") -> str:
    """The words for weights of so many bits that are widened, or meet activations rounded on the
    way."""
    return f"weights int{bits}, computed in {computed}"


@dataclass(frozen=True)
class Became:
    """What a layer is in an engine: the ledger's words, and why where that is fp32."""

    words: str
    reason: str = ""


@dataclass(frozen=True)
class LinearRow(JsonData):
    """One linear layer.

    Attributes:
        site: PyTorch module path; ``#2`` and up tell apart several layers of one module, in order
            of execution.
        operator: of the fused graph.
        shape: of its weights there.
        became: what it became, in words, as the engine's own graph has it. Where stages differ,
            ``STAGE: WORDS`` of each.
        reason: why it is in floats although its precision is another one; empty where it is not.
        asked: it was to be quantised.
        error: of a layer that a search kept in floats, the relative RMS error that int8 gives its
            results, or its rows where that is more.
        seconds: of such a layer, what int8 would have saved at the first calibration inputs.
    """

    __json__: ClassVar[Form] = Form(sparse=frozenset({"reason", "error", "seconds"}))

    site: str
    operator: str
    shape: tuple[int, ...]
    became: str
    reason: str = ""
    asked: bool = True
    error: float | None = None
    seconds: float | None = None

    @property
    def missed(self) -> bool:
        """It was to be quantised, and is not computed in integers in one of its stages at least."""
        return self.asked and any(words in self.became for words in _IN_FLOATS)


@dataclass(frozen=True)
class LinearLedger(Sequence[LinearRow]):
    """All rows, in order of execution."""

    __json__: ClassVar[Form] = Form(whole="rows")

    rows: tuple[LinearRow, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LinearRow]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def counts(self) -> dict[str, int]:
        """How many layers became what."""
        return dict(Counter(row.became for row in self.rows))

    def require_quantized(self, target: str) -> None:
        """Raise :class:`QuantizationError` naming all layers that were to be quantised and are
        not, by reason."""
        missed = [row for row in self.rows if row.missed]
        if not missed:
            return
        by_reason: dict[str, list[str]] = {}
        for row in missed:
            by_reason.setdefault(row.reason, []).append(row.site)
        lines = [f"{listed(sites, _MOST_NAMES)}: {why}" for why, sites in by_reason.items()]
        raise QuantizationError(
            f"{len(missed)} of {len(self.rows)} linear layers were not quantised in {target}: "
            f"{'; '.join(lines)}",
            do=Advice(
                "Let them compute in floats with {}; the manifest lists them",
                Said("--allow-unquantized", "allow_unquantized=True"),
            ),
        )


def in_words(ledger: LinearLedger) -> str:
    """What became of the layers, in one line."""
    counts = ", ".join(f"{n} {became}" for became, n in ledger.counts().items())
    return f"{len(ledger)} linear layers: {counts or 'none'}"
