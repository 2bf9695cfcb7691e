"""Shortcuts through PyTorch's exporters: the graph is the one that they make without."""

from __future__ import annotations

import contextlib
import types

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.onnx._internal.exporter import _registration

from crossfuse import ModelSpec
from crossfuse.export.capture import exporter_shortcuts as shortcuts
from crossfuse.export.capture import to_onnx
from crossfuse.export.capture.trace import capture


class Mixed(nn.Module):
    """Operators whose operands PyTorch promotes: integers, numbers, bools, another width."""

    def forward(self, x: Tensor, ids: Tensor) -> dict[str, Tensor]:
        wide = ids * x + 2
        shown = ids > 1
        return {
            "a": torch.where(shown, wide, 0.5) / ids,
            "b": (ids / 3).exp() + shown,
            "c": x.double() * wide.mean(-1, keepdim=True) - 1,
            "d": ids.sqrt().pow(2) + shown.sum(),
        }


def lines(*, shortened: bool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    inputs = {"x": torch.randn(2, 3), "ids": torch.tensor([[1, 2, 3], [3, 2, 1]])}
    axes = {0: "batch", 1: "n"}
    spec = ModelSpec(Mixed().eval(), inputs, {"x": axes, "ids": axes})
    with monkeypatch.context() as patch:
        if not shortened:
            patch.setattr(to_onnx, "exporter_shortcuts", contextlib.nullcontext)
        program, spec = capture(spec)
        model = to_onnx.program_to_onnx(program, spec, ("a", "b", "c", "d"))
    return [
        f"{node.op_type} {[v and v.name for v in node.inputs]} "
        f"{[str(v.type) for v in node.outputs]}"
        for node in model.graph
    ]


def test_types_are_promoted_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = lines(shortened=True, monkeypatch=monkeypatch)
    assert ours == lines(shortened=False, monkeypatch=monkeypatch)
    assert any(line.startswith("Cast ") for line in ours)


def test_the_table_is_the_exporters_own() -> None:
    theirs = _registration.ONNXRegistry.from_torchlib(opset_version=20)
    with shortcuts.exporter_shortcuts():
        ours = _registration.ONNXRegistry().from_torchlib(opset_version=20)
        again = _registration.ONNXRegistry().from_torchlib(opset_version=20)
    assert {k: [d.signature for d in v] for k, v in ours.functions.items()} == {
        k: [d.signature for d in v] for k, v in theirs.functions.items()
    }
    ours.register_op(torch.ops.aten.relu.default, lambda x: x)
    assert len(again.get_decomps(torch.ops.aten.relu.default)) == 1, "tables are apart"
    assert _registration.ONNXRegistry.from_torchlib.__func__ is theirs.from_torchlib.__func__


def test_operators_registered_later_are_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def build(opset_version: int) -> object:
        seen.append(opset_version)
        return types.SimpleNamespace(functions={})

    for names in (["a"], ["a"], ["a", "b"]):
        monkeypatch.setattr(torch._C, "_dispatch_get_all_op_names", lambda names=names: names)
        shortcuts._copied_table(build, 20)
    assert len(seen) == 2


def test_signatures_are_read_once_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ir.schemas.OpSignature.from_op_schema
    schemas = [onnx.defs.get_schema(name, 20) for name in ("Add", "Mul", "Add")]
    with shortcuts.exporter_shortcuts():
        made = [ir.schemas.OpSignature.from_op_schema(schema) for schema in schemas]
    assert made[0] is made[2]
    assert made == [before(schema) for schema in schemas]
    assert ir.schemas.OpSignature.from_op_schema == before


def test_an_exporter_without_these_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "_found", lambda _: None)
    with shortcuts.exporter_shortcuts():
        assert _registration.ONNXRegistry.from_torchlib.__func__.__name__ == "from_torchlib"
