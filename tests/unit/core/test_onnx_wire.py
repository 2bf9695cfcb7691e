"""ONNX files are read as ONNX's own library reads them, and damaged ones are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crossfuse.bundle.store import Bundle
from crossfuse.core.onnx_wire import Node, WireError, read_model


def names(nodes: list[Node]) -> list[tuple[str, str]]:
    return [(node.domain, node.op_type) for node in nodes]


def numbers_of(node: onnx.NodeProto) -> dict[str, list[int]]:
    return {
        one.name: [one.i] if one.type == one.INT else list(one.ints)
        for one in node.attribute
        if one.type in (one.INT, one.INTS)
    }


@pytest.mark.parametrize("name", ["cross_modal_attention", "dalle"])
def test_it_reads_what_the_library_reads(zoo_bundle: Callable[[str], Bundle], name: str) -> None:
    for path in sorted(zoo_bundle(name).path.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        found = read_model(path.read_bytes())
        assert names(found.graph.nodes) == [(n.domain, n.op_type) for n in model.graph.node]
        for ours, theirs in zip(found.graph.nodes, model.graph.node, strict=True):
            assert {k: v for k, v in ours.numbers.items() if v} == {
                k: v for k, v in numbers_of(theirs).items() if v
            }
        assert [f.name for f in found.functions] == [f.name for f in model.functions]
        external = [t for t in model.graph.initializer if t.data_location == t.EXTERNAL]
        assert [{key: values[0] for key, values in about.items()} for about in found.external] == [
            {item.key: item.value for item in t.external_data} for t in external
        ]


def outside(name: str = "elsewhere") -> TensorProto:
    tensor = TensorProto(dims=[4], data_type=TensorProto.FLOAT, name=name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return tensor


def test_external_data_is_found_at_any_depth() -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=outside("attribute"))],
        "inner",
        [],
        [],
        [outside("initializer")],
    )
    middle = helper.make_graph(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner)], "m", [], []
    )
    function = helper.make_function(
        "d", "f", [], ["y"], [helper.make_node("If", ["x"], ["y"], else_branch=middle)], []
    )
    sparse = onnx.SparseTensorProto(values=outside("values"), indices=outside("indices"))
    graph = helper.make_graph(
        [helper.make_node("Loop", ["x"], ["y"], body=middle)],
        "g",
        [],
        [],
        [],
        sparse_initializer=[sparse],
    )
    model = helper.make_model(graph, functions=[function])
    found = read_model(model.SerializeToString())
    assert sorted(about["location"][0] for about in found.external) == [
        "attribute",
        "attribute",
        "indices",
        "initializer",
        "initializer",
        "values",
    ]


def test_numbers_are_signed_and_every_one_counts() -> None:
    node = helper.make_node("Attention", ["x"], ["y"], num_heads=-3, sizes=[1, -1, 2**62])
    twice = onnx.NodeProto.FromString(node.SerializeToString())
    twice.attribute.add(name="num_heads", type=onnx.AttributeProto.INT, i=7)
    model = helper.make_model(helper.make_graph([twice], "g", [], []))
    (found,) = read_model(model.SerializeToString()).graph.nodes
    assert found.numbers == {"num_heads": [-3, 7], "sizes": [1, -1, 2**62]}


def test_damaged_files_are_refused_and_nothing_else_happens(
    zoo_bundle: Callable[[str], Bundle],
) -> None:
    data = (zoo_bundle("cross_modal_attention").path / "model.ort-cpu.onnx").read_bytes()
    generator = np.random.default_rng(1)
    refused = 0
    for turn in range(100):
        damaged = bytearray(data)
        if turn % 2:
            for _ in range(3):
                damaged[generator.integers(len(data))] = generator.integers(256)
        else:
            del damaged[generator.integers(1, len(data)) :]
        try:
            read_model(bytes(damaged))
        except WireError:
            refused += 1
    assert refused > 30
    for text in (b"\xff" * 12, b"\x3b", b"\x3a\x80", b"\x38\x01"):
        with pytest.raises(WireError):
            read_model(text)
