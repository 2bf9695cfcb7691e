"""Scales and shifts of channels are in the weights and biases of convolutions; sums with zeros are
gone. `applied` compares the numbers before and after in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.fold_affine import FoldAffinePass
from onnx_building import Graph, normal
from small_graphs import applied, counts, model_of, untouched

CHANNELS = 6
SPATIAL = {1: ["N"], 2: [5, "N"], 3: [3, 4, "N"]}


def convolved(
    g: Graph, axes: int = 2, *, bias: str = "normal", kind: str = "Conv", group: int = 1
) -> str:
    x = g.input("x", ["B", 4, *SPATIAL[axes]])
    first, second = (CHANNELS, 4 // group) if kind == "Conv" else (4, CHANNELS // group)
    inputs = [x, g.weight(normal(first, second, *[1] * axes))]
    if bias:
        inputs.append(g.weight(normal(CHANNELS) if bias == "normal" else np.zeros(CHANNELS, "f")))
    return g.op(kind, *inputs, group=group)


def ended(g: Graph, value: str, axes: int = 2) -> ir.Model:
    g.op("Relu", value, outputs=["y"])
    g.output("y", ["B", CHANNELS, *SPATIAL[axes]])
    return model_of(g)


def channels(axes: int = 2) -> np.ndarray:
    return normal(CHANNELS, *[1] * axes)


def biases(model: ir.Model) -> int:
    return sum(len(n.inputs) > 2 for n in model.graph if n.op_type.startswith("Conv"))


@pytest.mark.parametrize("bias", ["", "normal"])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("kind", "group"), [("Conv", 1), ("Conv", 2), ("ConvTranspose", 1)])
def test_a_batch_norm_written_out(axes: int, bias: str, kind: str, group: int) -> None:
    g = Graph()
    value = convolved(g, axes, bias=bias, kind=kind, group=group)
    centred = g.op("Sub", value, g.weight(channels(axes)))
    scaled = g.op("Div", centred, g.weight(np.abs(channels(axes)) + 0.5))
    weighted = g.op("Mul", g.weight(channels(axes)[None]), scaled)
    model = ended(g, g.op("Add", weighted, g.weight(channels(axes))), axes)
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {kind: 1, "Relu": 1}
    assert biases(model) == 1


@pytest.mark.parametrize("number", [np.float32(2.5), np.full(1, 0.5, "f"), np.full((1, 1), 3, "f")])
def test_one_number_for_all_channels(number: np.ndarray) -> None:
    g = Graph()
    value = g.op("Add", g.op("Mul", convolved(g), g.weight(number)), g.weight(number))
    model = ended(g, value)
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"Conv": 1, "Relu": 1}


def test_what_several_convolutions_share_is_folded_into_each() -> None:
    g = Graph()
    # Powers of two: the folded weights are exact, and errors can't add up over the layers.
    scale = g.weight(np.exp2(np.arange(CHANNELS, dtype="f")).reshape(channels().shape))
    shift = g.weight(channels())
    value = convolved(g, bias="")
    for _ in range(2):
        value = g.op("Add", g.op("Mul", value, scale), shift)
        value = g.op("Conv", g.op("Relu", value), g.weight(normal(CHANNELS, CHANNELS, 1, 1)))
    model = ended(g, g.op("Add", g.op("Mul", value, scale), shift))
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"Conv": 3, "Relu": 3}
    assert len({node.inputs[2].name for node in model.graph if node.op_type == "Conv"}) == 3


def test_a_result_keeps_the_name_of_its_output() -> None:
    g = Graph()
    g.op("Mul", convolved(g), g.weight(channels()), outputs=["y"])
    g.output("y", ["B", CHANNELS, 5, "N"])
    model = model_of(g)
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"Conv": 1}
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_shifts_that_cancel_leave_no_bias() -> None:
    g = Graph()
    shift = channels()
    value = g.op("Sub", g.op("Add", convolved(g, bias=""), g.weight(shift)), g.weight(shift))
    model = ended(g, value)
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"Conv": 1, "Relu": 1}
    assert biases(model) == 0


def test_a_bias_of_zeros_is_none() -> None:
    g = Graph()
    model = ended(g, convolved(g, bias="zeros"))
    assert applied(FoldAffinePass(), model).modified
    assert biases(model) == 0


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("shape", [(), (CHANNELS,), (1, 1, CHANNELS)])
def test_adding_zeros_is_left_out(left: bool, shape: tuple[int, ...]) -> None:
    g = Graph()
    value = g.op("MatMul", g.input("x", ["B", "N", 4]), g.weight(normal(4, CHANNELS)))
    zeros = g.weight(np.zeros(shape, "f"))
    g.op("Relu", g.op("Add", *((zeros, value) if left else (value, zeros))), outputs=["y"])
    g.output("y", ["B", "N", CHANNELS])
    model = model_of(g)
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"MatMul": 1, "Relu": 1}


def test_zeros_that_widen_stay() -> None:
    g = Graph()
    g.op("Relu", g.op("Add", g.input("x", ["B", 1]), g.weight(np.zeros(3, "f"))), outputs=["y"])
    g.output("y", ["B", 3])
    untouched(FoldAffinePass(), model_of(g))


def test_a_difference_from_zeros_is_a_sign() -> None:
    g = Graph()
    g.op("Relu", g.op("Sub", g.weight(np.zeros(3, "f")), g.input("x", ["B", 3])), outputs=["y"])
    g.output("y", ["B", 3])
    untouched(FoldAffinePass(), model_of(g))


@pytest.mark.parametrize("operator", ["Sub", "Div"])
def test_a_constant_on_the_left_stays(operator: str) -> None:
    g = Graph()
    untouched(
        FoldAffinePass(),
        ended(g, g.op(operator, g.weight(np.abs(channels()) + 1), convolved(g))),
    )


@pytest.mark.parametrize("shape", [(5, 1), (CHANNELS, 5, 1), (1, 1, CHANNELS, 1, 1)])
def test_numbers_that_differ_from_place_to_place_stay(shape: tuple[int, ...]) -> None:
    g = Graph()
    value = g.op("Mul", convolved(g), g.weight(normal(*shape)))
    g.op("Relu", value, outputs=["y"])
    rank = max(len(shape), 4)
    g.output("y", [f"d{axis}" for axis in range(rank)])
    untouched(FoldAffinePass(), model_of(g))


def test_a_result_with_another_use_stays() -> None:
    g = Graph()
    value = convolved(g)
    scaled = g.op("Mul", value, g.weight(channels()))
    untouched(FoldAffinePass(), ended(g, g.op("Add", scaled, value)))


def test_weights_of_two_layers_stay() -> None:
    g = Graph()
    value = convolved(g)
    again = g.op("Conv", g.inputs[0].name, g.nodes[0].input[1])
    left, right = (g.op("Mul", one, g.weight(channels())) for one in (value, again))
    untouched(FoldAffinePass(), ended(g, g.op("Add", left, right)))


def test_weights_that_come_from_outside_stay() -> None:
    g = Graph()
    x, w = g.input("x", ["B", 4, 5, "N"]), g.input("w", [CHANNELS, 4, 1, 1])
    untouched(
        FoldAffinePass(),
        ended(g, g.op("Mul", g.op("Conv", x, w), g.weight(channels()))),
    )


def test_transposed_groups_stay() -> None:
    g = Graph()
    value = convolved(g, kind="ConvTranspose", group=2)
    untouched(FoldAffinePass(), ended(g, g.op("Mul", value, g.weight(channels()))))


@pytest.mark.parametrize("number", [np.inf, 3e38])
def test_numbers_beyond_the_range_stay(number: float) -> None:
    g = Graph()
    value = g.op("Mul", convolved(g), g.weight(np.float32(number)))
    twice = g.op("Mul", value, g.weight(np.float32(1e5)))
    untouched(FoldAffinePass(), ended(g, twice))


def test_a_quotient_by_zero_stays() -> None:
    g = Graph()
    untouched(FoldAffinePass(), ended(g, g.op("Div", convolved(g), g.weight(np.float32(0)))))


def test_a_batch_norm_behind_a_scale() -> None:
    g = Graph()
    scaled = g.op("Mul", convolved(g), g.weight(channels()))
    numbers = [normal(CHANNELS), normal(CHANNELS, seed=1), normal(CHANNELS, seed=2)]
    given = [g.weight(one) for one in (*numbers, np.abs(normal(CHANNELS)) + 0.1)]
    model = ended(g, g.op("BatchNormalization", scaled, *given, epsilon=1e-3))
    assert applied(FoldAffinePass(), model).modified
    assert counts(model) == {"Conv": 1, "Relu": 1}


def test_a_batch_norm_of_computed_numbers_stays() -> None:
    g = Graph()
    mean = g.input("mean", [CHANNELS])
    ones = g.weight(np.ones(CHANNELS, "f"))
    untouched(
        FoldAffinePass(),
        ended(g, g.op("BatchNormalization", convolved(g), ones, ones, mean, ones)),
    )
