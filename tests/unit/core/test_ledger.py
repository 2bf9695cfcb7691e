"""The ledger says what became of each attention, and fails where one did not fuse."""

from __future__ import annotations

import pytest

from crossfuse.core.json_codec import encode
from crossfuse.core.json_reader import Origin, decode
from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.errors import BundleError, FusionError

ROWS = Ledger(
    (
        LedgerRow("layers.0.attn", "self", "sdpa", 4, 4, 8, 8, ("ids",), ("ids",)),
        LedgerRow("layers.1.attn", "cross", "sdpa", 4, 4, 8, 8, ("ids",), ("image",)),
        LedgerRow("pool", "unknown", None, reasons={"capture": "capped scores"}),
    )
)


def test_a_targets_column() -> None:
    ledger = ROWS.with_target("onnx", {"layers.0.attn": "Attention"}, {"layers.1.attn": "why"})
    assert [row.fused["onnx"] for row in ledger] == ["Attention", None, None]
    assert ledger[1].reasons == {"onnx": "why"}
    assert ledger[2].reasons == {"capture": "capped scores"}
    assert ledger.counts() == {"self": 1, "cross": 1, "unknown": 1}
    assert ledger.counts("onnx") == {"self": 1}
    again = ledger.with_target("onnx", {"layers.1.attn": "Attention"}, {})
    assert again[1].reasons == {}, "an old reason goes with the new kernel"
    assert "no fused operator" in again[0].reasons["onnx"]


def test_what_did_not_fuse_is_named() -> None:
    kernels = {"layers.0.attn": "Attention", "layers.1.attn": "Attention"}
    ledger = ROWS.with_target("onnx", kernels, {})
    with pytest.raises(FusionError, match=r"1 of 3 attentions did not fuse: pool: capped scores"):
        ledger.require_fused(["onnx"])
    Ledger(ledger[:2]).require_fused(["onnx"])
    both = Ledger(ROWS.with_target("onnx", {}, {}).rows[:2])
    assert both.unfused(["onnx"]) == [
        "2 × layers.*.attn in onnx: the target's graph has no fused operator for it"
    ]


def test_rows_as_json() -> None:
    data = encode(ROWS)
    assert list(data[0]) == [
        "site", "kind", "captured", "num_heads", "kv_num_heads", "head_size", "value_size",
        "query_inputs", "key_inputs", "fused", "reasons",
    ]  # fmt: skip
    origin = Origin("the manifest", "m", BundleError)
    assert decode(Ledger, data, origin) == ROWS
    assert data == [row.to_json() for row in ROWS]
    for key in ("site", "kind", "fused", "reasons", "query_inputs", "key_inputs"):
        row = {name: value for name, value in data[0].items() if name != key}
        with pytest.raises(BundleError, match=rf"\[0\]\.{key}"):
            decode(Ledger, [row], origin)
    for change in ({"kind": "both"}, {"fused": {"onnx": 1}}, {"num_heads": True}):
        with pytest.raises(BundleError, match=next(iter(change))):
            decode(Ledger, [data[0] | change], origin)
