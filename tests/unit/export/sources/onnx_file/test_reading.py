"""Files as they are read: what is refused, and what a graph looks like afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from crossfuse.errors import InputError
from crossfuse.export.capture.to_onnx import OPSET
from crossfuse.export.passes.raise_opset import opset_of
from crossfuse.export.sources.onnx_file.reading import NEWEST_IR, load_onnx, read_onnx, short
from onnx_building import HALF, Graph, normal, run


def product(path: Path, opset: int = 17, **more: int) -> Path:
    g = Graph()
    g.input("x", ["batch", 4])
    g.op("MatMul", "x", g.weight(normal(4, 3)), outputs=["y"])
    g.output("y", ["batch", 3])
    g.save(path, opset, **more)
    return path


def test_a_graph_comes_in_at_a_known_opset_and_computes_the_same(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", opset=9, ir_version=4)
    model = load_onnx(path)
    assert opset_of(model) == OPSET
    assert model.ir_version <= NEWEST_IR
    ir.save(model, tmp_path / "again.onnx")
    feeds = {"x": normal(2, 4)}
    (expected,), (got,) = run(path, feeds), run(tmp_path / "again.onnx", feeds)
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "doesn't exist"),
        (lambda path: path.write_bytes(b"no graph at all"), "can't be read"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.mkdir(), "doesn't exist"),
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "m.onnx"
    make(path)
    with pytest.raises(InputError, match=message):
        load_onnx(path)


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    product(folder / "m.onnx")
    model = onnx.load(folder / "m.onnx")
    (tmp_path / "secret").write_bytes(bytes(48))
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    weight.external_data.add(key="length", value="48")
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"m\.onnx"):
        read_onnx(folder / "m.onnx")


def test_weights_that_old_files_list_as_inputs_are_none(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx", opset=8, ir_version=3)
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("w0", 1, [4, 3]))
    onnx.save(model, path)
    assert [value.name for value in read_onnx(path).graph.inputs] == ["x"]


def test_dynamic_dimensions_get_plain_names(tmp_path: Path) -> None:
    g = Graph()
    g.input("x", ["batch size", "n", 4])
    g.input("z", [None, "batch size", 4])  # type: ignore[list-item]
    g.op("Add", "x", "z", outputs=["y"])
    g.output("y", ["batch size", "n", 4])
    g.save(tmp_path / "m.onnx")
    shapes = {
        v.name: [str(d) for d in v.shape] for v in load_onnx(tmp_path / "m.onnx").graph.inputs
    }
    assert shapes["x"][1:] == ["n", "4"]
    names = {shapes["x"][0], shapes["z"][0], shapes["z"][1]}
    assert all(name.isidentifier() for name in names)
    named = load_onnx(tmp_path / "m.onnx", {"x": {0: "b"}, "z": {1: "b"}})
    assert str(named.graph.inputs[0].shape[0]) == str(named.graph.inputs[1].shape[1]) == "b"


def test_half_precision_is_widened_behind_its_inputs(tmp_path: Path) -> None:
    g = Graph()
    g.input("x", ["batch", 4], HALF)
    g.op("MatMul", "x", g.weight(normal(4, 3).astype(np.float16)), outputs=["y"])
    g.output("y", ["batch", 3], HALF)
    g.save(tmp_path / "m.onnx")
    model = load_onnx(tmp_path / "m.onnx")
    (x,) = model.graph.inputs
    assert x.dtype == ir.DataType.FLOAT16, "inputs stay what they are"
    weights = [v.const_value.dtype for v in model.graph.initializers.values() if v.const_value]
    assert ir.DataType.FLOAT16 not in weights
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul"]


def test_an_opset_of_the_future_is_refused(tmp_path: Path) -> None:
    path = product(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 9999
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"m\.onnx"):
        load_onnx(path)


def test_errors_are_one_line() -> None:
    assert short(ValueError("a\n  b\tc")) == "a b c"
    long = short(ValueError("x" * 500))
    assert (len(long), long[-1]) == (300, "…")
