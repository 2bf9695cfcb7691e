"""Files executed as modules: by ONNX Runtime, and in float64 by ONNX's reference."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto

from crossfuse.export.sources.onnx_file.module import OnnxModule
from onnx_building import HALF, Graph, normal, run


def product(path: Path, kind: int = 1, name: str = "x") -> Path:
    weight = normal(64, 3).astype(np.float16 if kind == HALF else np.float32)
    g = Graph()
    g.input(name, ["batch", 64], kind)
    g.op("MatMul", name, g.weight(weight), outputs=["y"])
    g.output("y", ["batch", 3], kind)
    g.save(path)
    return path


X = torch.from_numpy(normal(5, 64))


def test_it_gives_what_onnx_runtime_gives(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    module = OnnxModule(path)
    assert module.executable
    np.testing.assert_array_equal(module(x=X)["y"], run(path, {"x": X.numpy()})[0])
    assert copy.deepcopy(module).path == path


def test_double_is_exact(tmp_path: Path) -> None:
    module = OnnxModule(product(tmp_path / "m.onnx")).double()
    got = module(x=X)["y"]
    assert got.dtype == torch.float64
    exact = X.double() @ torch.from_numpy(normal(64, 3)).double()
    torch.testing.assert_close(got, exact, atol=1e-13, rtol=0)
    single = OnnxModule(module.path)(x=X)["y"].double()
    assert float((single - exact).abs().max()) > 1e-8, "float32 is not as exact"


def test_half_files_are_executed_with_the_same_weights_in_float32(tmp_path: Path) -> None:
    module = OnnxModule(product(tmp_path / "m.onnx", HALF))
    got = module(x=X.half())["y"]
    exact = X.half().double() @ torch.from_numpy(normal(64, 3)).half().double()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)


def test_an_input_may_have_any_name(tmp_path: Path) -> None:
    module = OnnxModule(product(tmp_path / "m.onnx", name="self"))
    assert module(**{"self": X})["y"].shape == (5, 3)


def test_only_a_run_tells_what_fits(tmp_path: Path) -> None:
    module = OnnxModule(product(tmp_path / "m.onnx"))
    assert module.accepts({"x": X})
    assert not module.accepts({"x": X[:, :3]})
    assert not module.accepts({"x": X.long()})
    with pytest.raises(RuntimeError):
        module(x=X[:, :3])


def test_what_onnx_runtime_refuses_is_executed_by_the_reference(tmp_path: Path) -> None:
    """It has no kernel for this operator in float64."""
    g = Graph()
    g.input("x", ["n"], TensorProto.DOUBLE)
    g.op("Acosh", "x", outputs=["y"])
    g.output("y", ["n"], TensorProto.DOUBLE)
    g.save(tmp_path / "m.onnx")
    module = OnnxModule(tmp_path / "m.onnx")
    x = torch.tensor([1.5, 3.0], dtype=torch.float64)
    assert not module.executable
    torch.testing.assert_close(module(x=x)["y"].double(), x.acosh(), atol=1e-6, rtol=0)
    exact = OnnxModule(module.path).double()(x=x)["y"]
    torch.testing.assert_close(exact, x.acosh(), atol=1e-15, rtol=0)


def test_nan_must_not_hide_behind_a_quantizer(tmp_path: Path) -> None:
    g = Graph()
    g.input("x", ["n"])
    root = g.op("Sqrt", "x")
    quantised = g.op("QuantizeLinear", root, g.weight(0.1, np.float32), g.weight(0, np.uint8))
    g.op(
        "DequantizeLinear",
        quantised,
        g.weight(0.1, np.float32),
        g.weight(0, np.uint8),
        outputs=["y"],
    )
    g.output("y", ["n"])
    g.save(tmp_path / "m.onnx")
    module = OnnxModule(tmp_path / "m.onnx")
    assert set(module(x=torch.tensor([4.0, 9.0]))) == {"y"}
    for exact in (module, OnnxModule(module.path).double()):
        with pytest.raises(RuntimeError, match="NaN reaches a quantizer"):
            exact(x=torch.tensor([4.0, -1.0]))
