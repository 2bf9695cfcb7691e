"""Which products are linear layers, what they are called, and which stay in fp32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.graph.metadata import MODULE
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rules import RULES, deciding_nodes, quantizable, refusal_of
from crossfuse.targets.quantize.stages import sites_of
from onnx_building import normal
from onnx_text import node_of, parse

W = normal(16, 24, seed=1)


def reasons(model: ir.Model) -> dict[str, tuple[str, bool] | None]:
    deciding = deciding_nodes(model)
    found = {layer.site: refusal_of(layer, deciding) for layer in linear_layers(model)}
    return {site: r if r is None else (r.reason, r.asked) for site, r in found.items()}


def test_products_of_computed_values_and_constants_alone_are_none() -> None:
    model = parse(
        """(float[b, 16, 16] x) => (float[b, 16, 24] y) {
             s = MatMul(x, x) c = MatMul(u, w) y = MatMul(s, c) }""",
        u=normal(16, 16),
        w=W,
    )
    (layer,) = linear_layers(model)
    assert layer.node is node_of(model, "MatMul", 2), "its weights are a product of constants"
    assert layer.tensor is not None
    np.testing.assert_allclose(layer.tensor.numpy(), normal(16, 16) @ W, rtol=1e-4, atol=1e-5)


def test_weights_that_no_reference_computes_are_told() -> None:
    model = parse("(float[b, 16] x) => (float[b, 24] y) { c = Gelu(w) y = MatMul(x, c) }", w=W)
    assert [layer.tensor for layer in linear_layers(model)] == [None]
    assert reasons(model) == {"n1": ("its weights are computed in the graph (Gelu)", True)}


def test_weights_by_chance_are_no_layer() -> None:
    model = parse("(float[b, 16] x) => (float[b, 24] y) { c = Bernoulli(w) y = MatMul(x, c) }", w=W)
    assert linear_layers(model) == []


def test_weights_behind_a_transpose_are_read() -> None:
    model = parse(
        """(float[b, 16] x) => (float[b, 24] y) {
             t = Transpose <perm = [1, 0]> (w) y = MatMul(x, t) }""",
        w=W.T.copy(),
    )
    (layer,) = linear_layers(model)
    assert layer.shape == (16, 24)
    assert layer.tensor is not None
    np.testing.assert_array_equal(layer.tensor.numpy(), W)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("t = Slice (w, start, end, axis, step)", W[14::-1]),
        ("g = Gather <axis = 1> (w, few) t = Identity (g)", W[:, [3, 1, 2, 0, 5, 7, 9, 23]]),
        ("r = Reshape (w, wide) t = Transpose <perm = [1, 0]> (r)", W.reshape(8, 48).T),
        ("u = Unsqueeze (w, axis) t = Squeeze (u, axis)", W),
        ("a, b = Split <axis = 1> (w, halves) t = Concat <axis = 1> (b, a)", np.roll(W, 12, 1)),
        ("n = ReduceL2 <keepdims = 1> (w, axis) t = Div (w, n)", W / np.sqrt((W**2).sum(0))),
    ],
)
def test_weights_that_are_parts_of_constants_are_read(text: str, taken: np.ndarray) -> None:
    model = parse(
        f"(float[b, {len(taken)}] x) => (float[b, n] y) {{ {text} y = MatMul(x, t) }}",
        w=W,
        start=np.array([14]),
        end=np.array([-100]),
        axis=np.array([0]),
        step=np.array([-1]),
        few=np.array([3, 1, 2, 0, 5, 7, 9, 23]),
        wide=np.array([8, -1]),
        halves=np.array([12, 12]),
    )
    (layer,) = linear_layers(model)
    assert layer.tensor is not None
    assert layer.shape == taken.shape
    np.testing.assert_allclose(layer.tensor.numpy(), taken, rtol=1e-6)
    assert reasons(model) == {layer.site: None}


def test_sites_are_modules_told_apart_by_calls() -> None:
    model = parse(
        """(float[b, 16] x) => (float[b, 16] y) {
             a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }""",
        w=normal(16, 16),
    )
    for node in model.graph:
        node.metadata_props[MODULE] = "encoder.proj"
    assert sites_of(model) == {"n0": "encoder.proj", "n2": "encoder.proj#2"}
    stage = model.clone()
    first = next(iter(stage.graph))
    assert linear_layers(stage, sites_of(model))[1].site == "encoder.proj#2"
    first.name = "made_by_the_split"
    assert linear_layers(stage, sites_of(model))[0].site == "encoder.proj#3", "a name of its own"


@pytest.mark.parametrize(
    ("text", "weights", "reason", "asked"),
    [
        ("(float[16, n] x) => (float[24, n] y) { y = MatMul(w, x) }", W.T, "left operand", True),
        (
            "(float[16, n] x) => (float[n, 24] y) { y = Gemm <transA = 1> (x, w) }",
            W,
            "a Gemm that transposes",
            True,
        ),
        (
            '(float[b, 16] x) => (float[b, 24] y) { y = Einsum <equation = "bk,kn->bn"> (x, w) }',
            W,
            "an Einsum",
            True,
        ),
        ("(float[b, 16] x) => (float[b, 3] y) { y = MatMul(x, w) }", W[:, :3], "narrower", False),
        (
            "(float[b, 3, 9] x) => (float[b, 16, m] y) { y = Conv(x, w) }",
            normal(16, 3, 2),
            "a convolution",
            False,
        ),
        (
            """(float[b, 16] x) => (int64[b] y) {
                 s = MatMul(x, w) y = ArgMax <axis = 1, keepdims = 0> (s) }""",
            W,
            "an ArgMax or ArgMin inside the model chooses by it",
            False,
        ),
    ],
)
def test_what_stays_in_fp32(text: str, weights: np.ndarray, reason: str, asked: bool) -> None:
    model = parse(text, w=weights)
    ((why, was_asked),) = reasons(model).values()
    assert reason in why
    assert was_asked is asked
    assert quantizable(model) == []
    assert len(RULES) == 7


def test_a_layer_in_a_body_counts() -> None:
    model = parse(
        """(bool c, float[b, 16] x) => (float[b, 24] y) {
             y = If (c) <
               then_branch = a () => (float[b, 24] t) { t = MatMul(x, w) },
               else_branch = e () => (float[b, 24] f) { s = MatMul(x, w) f = Neg(s) }> }""",
        w=W,
    )
    assert [layer.nested for layer in linear_layers(model)] == [True, True]
    assert set(reasons(model).values()) == {("it is in the body of an If, Loop or Scan", True)}
