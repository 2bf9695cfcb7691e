"""Graphs that end, hang or lead engines astray are refused before one sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from crossfuse.bundle.graph_checks import require_safe_graph
from crossfuse.bundle.manifest import FileEntry
from crossfuse.errors import BundleError

FILES = {"weights.bin": FileEntry(64, "0" * 64)}


def checks(folder: Path, *nodes: onnx.NodeProto, weights: Any = (), functions: Any = ()) -> None:
    graph = helper.make_graph(list(nodes), "g", [], [], list(weights))
    model = helper.make_model(graph, functions=list(functions))
    (folder / "g.onnx").write_bytes(model.SerializeToString())
    require_safe_graph(folder / "g.onnx", FILES)


def node(op_type: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, ["x"], ["y"], domain=domain, **attributes)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Attention", {"num_heads": 0}),
        ("Attention", {"q_num_heads": 0, "kv_num_heads": 2}),
        ("MultiHeadAttention", {"num_heads": -1}),
        ("GroupQueryAttention", {"num_heads": 4, "kv_num_heads": 0}),
        ("QAttention", {"num_heads": 1 << 40}),
        ("Conv", {"group": 0}),
        ("ConvTranspose", {"strides": [1, 0]}),
        ("MaxPool", {"kernel_shape": [0, 0]}),
        ("GroupNorm", {"groups": 0}),
        ("GroupNormalization", {"num_groups": -2}),
        ("DepthToSpace", {"blocksize": 0}),
        ("Split", {"num_outputs": 0}),
        ("LSTM", {"hidden_size": 0}),
    ],
)
def test_numbers_that_kernels_divide_by(
    tmp_path: Path, op_type: str, attributes: dict[str, Any]
) -> None:
    with pytest.raises(BundleError, match="can't divide by"):
        checks(tmp_path, node(op_type, "com.microsoft", **attributes))
    inner = helper.make_graph([node(op_type, **attributes)], "inner", [], [])
    with pytest.raises(BundleError, match="can't divide by"):
        checks(tmp_path, node("If", then_branch=inner))
    with pytest.raises(BundleError, match="can't divide by"):
        checks(tmp_path, functions=[function("f", node(op_type, **attributes))])
    good = {n: [2, 2] if isinstance(v, list) else 2 for n, v in attributes.items()}
    checks(tmp_path, node(op_type, **good))


def function(name: str, *nodes: onnx.NodeProto, attributes: Any = ()) -> onnx.FunctionProto:
    return helper.make_function("d", name, ["x"], ["y"], list(nodes), [], list(attributes))


def test_numbers_that_a_function_is_given(tmp_path: Path) -> None:
    body = node("MultiHeadAttention")
    body.attribute.add(name="num_heads", type=onnx.AttributeProto.INT, ref_attr_name="h")
    given = function("f", body, attributes=["h"])
    checks(tmp_path, node("f", "d", h=4), functions=[given])
    with pytest.raises(BundleError, match="h of 'f' is 0"):
        checks(tmp_path, node("f", "d", h=0), functions=[given])
    default = function("f", body)
    default.attribute_proto.append(helper.make_attribute("h", 0))
    with pytest.raises(BundleError, match="h of 'f' is 0"):
        checks(tmp_path, node("f", "d"), functions=[default])


def test_zeros_that_mean_something_else_stay(tmp_path: Path) -> None:
    checks(
        tmp_path,
        node("RotaryEmbedding", "com.microsoft", num_heads=0),
        node("DequantizeLinear", block_size=0),
        node("GroupQueryAttention", "com.microsoft", num_heads=4, kv_num_heads=2, do_rotary=0),
        node("Softmax", axis=0),
    )


def tensor(**about: str) -> TensorProto:
    made = TensorProto(dims=[4], data_type=TensorProto.FLOAT, name="w")
    made.data_location = TensorProto.EXTERNAL
    for key, value in about.items():
        made.external_data.add(key=key, value=value)
    return made


@pytest.mark.parametrize(
    "about",
    [
        {"location": "../weights.bin"},
        {"location": "/etc/passwd"},
        {"location": "manifest.json"},
        {"location": "*/_ORT_MEM_ADDR_/*", "offset": "0", "length": "16"},
        {"location": ""},
        {},
        {"location": "weights.bin", "offset": "60", "length": "16"},
        {"location": "weights.bin", "offset": "-16", "length": "16"},
        {"location": "weights.bin", "offset": "1e1"},
        {"location": "weights.bin", "offset": "9" * 30},
    ],
)
def test_weights_lie_in_files_of_the_bundle(tmp_path: Path, about: dict[str, str]) -> None:
    with pytest.raises(BundleError, match=r"its weights|weights is"):
        checks(tmp_path, weights=[tensor(**about)])
    inner = helper.make_graph([], "inner", [], [], [tensor(**about)])
    with pytest.raises(BundleError, match=r"its weights|weights is"):
        checks(tmp_path, node("If", then_branch=inner))
    checks(tmp_path, weights=[tensor(location="weights.bin", offset="48", length="16")])


def test_functions_that_grow_without_end(tmp_path: Path) -> None:
    doubling = [function("f0", node("Identity"))]
    for i in range(1, 40):
        doubling.append(function(f"f{i}", node(f"f{i - 1}", "d"), node(f"f{i - 1}", "d")))
    checks(tmp_path, node("f8", "d"), functions=doubling[:9])
    with pytest.raises(BundleError, match="written out, come to"):
        checks(tmp_path, node("f39", "d"), functions=doubling)
    with pytest.raises(BundleError, match="calls itself"):
        checks(tmp_path, functions=[function("a", node("b", "d")), function("b", node("a", "d"))])
    chain = [function("c0", node("Identity"))]
    chain += [function(f"c{i}", node(f"c{i - 1}", "d")) for i in range(1, 1200)]
    checks(tmp_path, node("c1199", "d"), functions=chain)


def test_graphs_within_graphs_without_end(tmp_path: Path) -> None:
    inner = helper.make_graph([node("Identity")], "g", [], [])
    for _ in range(26):
        inner = helper.make_graph([node("If", then_branch=inner)], "g", [], [])
    with pytest.raises(BundleError, match="graphs within graphs"):
        checks(tmp_path, node("If", then_branch=inner))


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"\x00\xff" * 100)
    with pytest.raises(BundleError, match="the graph is not opened"):
        require_safe_graph(tmp_path / "g.onnx", FILES)


@pytest.mark.parametrize("version", [1 << 40, 1 << 31, 1001, -1])
@pytest.mark.parametrize("domain", ["", "com.microsoft", "made.up"])
def test_versions_that_no_operator_set_has(tmp_path: Path, version: int, domain: str) -> None:
    """OpenVINO counts up to them."""
    match = "of no operator set"
    graph = helper.make_graph([node("Relu")], "g", [], [])
    strange = helper.make_opsetid(domain, version)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23), strange])
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=match):
        require_safe_graph(tmp_path / "g.onnx", FILES)
    made = function("f", node("Relu"))
    made.opset_import.append(strange)
    with pytest.raises(BundleError, match=match):
        checks(tmp_path, node("f", "own"), functions=[made])
