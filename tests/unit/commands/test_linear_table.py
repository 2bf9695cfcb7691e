"""The ledger of linear layers, for people."""

from __future__ import annotations

import pytest

from crossfuse.commands.linear_table import show_linears
from crossfuse.commands.output import Output
from crossfuse.core.linear_ledger import FP32, INT8, LinearLedger, LinearRow


def shown(capsys: pytest.CaptureFixture[str], *rows: LinearRow) -> str:
    capsys.readouterr()
    show_linears(Output(as_json=False), LinearLedger(rows))
    return " ".join(capsys.readouterr().out.split())


def test_what_stays_in_fp32_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    fast = LinearRow("a.q", "MatMul", (64, 32), INT8)
    kept = LinearRow("a.k", "MatMul", (64, 32), FP32, "errs", False, 0.312, 0.00123)
    assert shown(capsys, fast) == "1 linear layers: 1 int8 × int8"
    out = shown(capsys, fast, kept)
    assert "2 linear layers: 1 int8 × int8, 1 kept in fp32" in out
    assert "a.k │ 64×32 │ errs │ 0.31 │ 1.23" in out
    many = [LinearRow(f"l{i}", "MatMul", (9, 9), FP32, "r", False) for i in range(30)]
    assert "… and 6 more layers in fp32 (--json)" in shown(capsys, *many)
