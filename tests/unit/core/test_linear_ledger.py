"""The ledger of linear layers."""

from __future__ import annotations

import pytest

from crossfuse.core.json_codec import encode, json_text
from crossfuse.core.json_reader import Origin, decode_text
from crossfuse.core.linear_ledger import FP32, INT8, LinearLedger, LinearRow, in_words, weights_in
from crossfuse.errors import BundleError, QuantizationError

ROWS = (
    LinearRow("a.q", "MatMul", (64, 64), INT8),
    LinearRow("a.k", "MatMul", (64, 64), INT8),
    LinearRow("head", "MatMul", (64, 3), FP32, "narrower than 8", asked=False),
    LinearRow(
        "mlp", "Gemm", (64, 64), FP32, "it adds an error", asked=False, error=0.3, seconds=1e-3
    ),
    LinearRow("b.q", "MatMul", (64, 64), f"query: {INT8}; step: {weights_in(8, 'int8')}"),
)


def test_counts_and_words() -> None:
    ledger = LinearLedger(ROWS)
    assert ledger.counts()[INT8] == 2
    assert ledger.counts()[FP32] == 2
    assert in_words(ledger).startswith("5 linear layers: 2 int8 × int8, 2 kept in fp32")
    assert in_words(LinearLedger()) == "0 linear layers: none"
    ledger.require_quantized("ort-cpu")


def test_what_was_asked_for_and_is_not_there_is_named() -> None:
    missed = (
        LinearRow("x", "Einsum", (4, 4), FP32, "an Einsum"),
        LinearRow("y", "MatMul", (9, 9), f"query: {INT8}; step: {FP32}", "folded back"),
    )
    with pytest.raises(
        QuantizationError, match=r"2 of 7 linear layers were not .* x: an Einsum; y"
    ):
        LinearLedger((*ROWS, *missed)).require_quantized("ort-cpu")


def test_json_there_and_back() -> None:
    ledger = LinearLedger(ROWS)
    text = json_text(encode(ledger))
    origin = Origin("ledger", "here", BundleError, broken="", newer="")
    assert decode_text(LinearLedger, text, origin) == ledger
    assert set(encode(ledger)[0]) == {"site", "operator", "shape", "became", "asked"}
