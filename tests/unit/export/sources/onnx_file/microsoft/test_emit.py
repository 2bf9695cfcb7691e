"""What expansions ask of a node, and what they write."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.sources.onnx_file.microsoft.emit import (
    DOMAIN,
    NotYetError,
    Operator,
    UntakenError,
)


def operator(*shapes: list[int | str] | None, outputs: int = 1, **attributes: object) -> Operator:
    inputs = [
        None if shape is None else ir.val(f"x{i}", dtype=ir.DataType.FLOAT, shape=shape)
        for i, shape in enumerate(shapes)
    ]
    return Operator(
        ir.node("Thing", inputs, attributes, domain=DOMAIN, num_outputs=outputs)  # type: ignore[arg-type]
    )


def test_inputs_may_be_missing_where_they_are_optional() -> None:
    of = operator([2], None)
    assert of.given(0) is of.needed(0)
    assert of.given(1) is None
    assert of.given(7) is None
    with pytest.raises(UntakenError, match="its input 1 is missing"):
        of.needed(1)


def test_attributes_have_defaults() -> None:
    of = operator([2], heads=4, scale=0.5, mode="fast")
    assert (of.integer("heads"), of.integer("others", 7)) == (4, 7)
    assert (of.number("scale", 1.0), of.number("other", 1.0)) == (0.5, 1.0)
    assert (of.text("mode"), of.text("other", "slow")) == ("fast", "slow")


def test_outputs_that_are_used_may_be_refused() -> None:
    of = operator([2], outputs=3)
    ir.node("Identity", [of.node.outputs[2]])
    assert [of.used(i) for i in range(4)] == [False, False, True, False]
    of.refuse_outputs(1, but=[2])
    with pytest.raises(UntakenError, match="its output 2 is used"):
        of.refuse_outputs(1)


def test_sizes_that_are_not_known_yet_are_waited_for() -> None:
    of = operator(["batch", 3])
    assert (of.rank(of.needed(0)), of.static_size(of.needed(0), 1)) == (2, 3)
    with pytest.raises(NotYetError):
        of.static_size(of.needed(0), 0)
    with pytest.raises(NotYetError):
        of.rank(ir.Value(name="unknown"))


def test_what_is_written_computes_what_it_says() -> None:
    of = operator(["batch", 3])
    x = of.needed(0)
    places = of.op("Add", of.positions(of.size(x, 1)), of.ints(10))
    first, rest = of.split(x, [1, 2], 1)
    places.name, first.name, rest.name = "places", "first", "rest"
    graph = ir.Graph([x], [places, first, rest], nodes=of.nodes, opset_imports={"": 18})
    from onnx.reference import ReferenceEvaluator

    model = ir.to_proto(ir.Model(graph, ir_version=9))
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = ReferenceEvaluator(model).run(None, {"x0": given})
    np.testing.assert_array_equal(got[0], [10, 11, 12])
    np.testing.assert_array_equal(got[1], given[:, :1])
    np.testing.assert_array_equal(got[2], given[:, 1:])
