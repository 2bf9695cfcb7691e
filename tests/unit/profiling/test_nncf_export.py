"""A plain export in int8 by NNCF: integers in the file, made once; its absence is told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from crossfuse.errors import PackageError
from crossfuse.profiling.nncf_export import quantized_by_nncf
from onnx_building import Graph, normal

X = normal(4, 16)


def product(folder: Path) -> Path:
    graph = Graph()
    x = graph.input("x", [4, 16])
    graph.output(graph.op("MatMul", x, graph.weight(normal(16, 24, seed=1))), [4, 24])
    graph.save(folder / "plain.onnx")
    return folder / "plain.onnx"


@pytest.mark.slow
def test_the_file_computes_in_integers(tmp_path: Path) -> None:
    import openvino

    path = product(tmp_path)
    made = quantized_by_nncf(path, [{"x": X, "unused": X}])
    before = made.read_bytes()
    assert b'element_type="i8"' in before
    assert quantized_by_nncf(path, []).read_bytes() == before, "made once"
    outputs = openvino.Core().compile_model(made, "CPU")({"x": X})
    error = np.abs(outputs[0] - X @ normal(16, 24, seed=1)).max()
    assert 1e-4 < error < 0.5


def test_without_nncf_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(PackageError, match=r"crossfuse\[rivals\]"):
        quantized_by_nncf(product(tmp_path), [{"x": X}])
