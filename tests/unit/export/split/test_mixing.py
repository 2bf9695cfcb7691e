"""What mixes the samples of a batch is found, and computed with the queries."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.split.assembly import assemble
from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.mixing import Batch, mixing, no_axis_of_their_own
from crossfuse.export.split.partition import split
from onnx_text import parse, run_reference, value_of

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4))
SIZES = {"n": 4, "s": 3, "l": 2}
WEIGHTS = {
    "w": W,
    "i0": [0],
    "i1": [1],
    "i2": [2],
    "m1": [-1],
    "big": [2**62],
    "low": [-(2**62)],
    "two": [0, 1],
    "zero": 0,
    "one": 1,
    "half": [0.5],
    "last": [1, 2],
    "four": [4],
}
HEAD = "(float[n, s, 4] image, float[n, l, 4] text) => (float[n, l, 4] y)"
TAIL = "k = MatMul(image, w) g = ReduceMax(k, i1) z = Add(text, g)"
"""What is hoisted in any case."""

MIXED = {
    "a sum over the batch": ("ReduceSum(p, i0) p = ReduceMax(image, i1)", "joins the samples"),
    "the largest of all": ("ReduceMax<keepdims = 1>(image)", "joins the samples"),
    "a softmax over the batch": (
        "Softmax<axis = 0>(p) p = ReduceMax(image, i1)",
        "Softmax runs along",
    ),
    "a running sum": ("CumSum(p, zero) p = ReduceMax(image, i1)", "CumSum runs along"),
    "turned around": (
        "Slice(p, m1, low, i0, m1) p = ReduceMax(image, i1)",
        "Slice runs along",
    ),
    "chosen samples": ("ReduceMax(p, i1) p = Gather(image, i0)", "Gather runs along"),
    "normalised over all axes": (
        "ReduceMax(q, i1) q = LayerNormalization<axis = 0>(image, half)",
        "LayerNormalization runs along",
    ),
    "a table of places in the batch": (
        "Unsqueeze(e, i1) e = Gather<axis = 0>(w, v) v = Mod(a, four) a = Add(r, q) "
        "q = Cast<to = 7>(f) f = ReduceMax<keepdims = 0>(image, last) r = Range(zero, c, one) "
        "c = Squeeze(b) b = Shape<end = 1>(image)",
        "computed with the number of samples",
    ),
    "the number of samples": (
        "Mul(p, f) p = ReduceMax(image, i1) f = Cast<to = 1>(c) c = Shape<end = 1>(image)",
        "computed with the number of samples",
    ),
}
APART = {
    "of each sample alone": "Softmax<axis = 2>(p) p = ReduceMax(image, i1)",
    "sizes in a shape": "ReduceMax(r, i1) r = Reshape(image, c) c = Concat<axis = 0>(b, m1, f) "
    "b = Shape<end = 1>(image) f = Shape<start = 2>(image)",
    "merged with the places": "ReduceMax(u, i1) u = Reshape(v, c) c = Shape(image) "
    "v = MatMul(t, w) t = Reshape(image, d) d = Concat<axis = 0>(m1, f) "
    "f = Shape<start = 2>(image)",
    "two pictures in one batch": "ReduceMax(a, i1) a, b = Split<axis = 0, num_outputs = 2>(t) "
    "t = Concat<axis = 0>(image, o) o = Neg(image)",
    "all of a slice": "ReduceMax(p, i1) p = Slice(image, i0, big, i0)",
}
SHAPES = {
    "merged with the places": {"t": ["n*s", 4], "v": ["n*s", 4], "u": ["n", "s", 4]},
    "two pictures in one batch": {"t": ["2*n", "s", 4], "a": ["n", "s", 4]},
    "all of a slice": {"p": ["n", "s", 4]},
    "a table of places in the batch": {"a": ["n"], "v": ["n"], "e": ["n", 4], "r": ["n"]},
    "sizes in a shape": {"r": ["n", "s", 4]},
}
"""What a tracer knows, and the inference of shapes here does not."""


def graph(body: str) -> ir.Model:
    """A graph with ``m`` beside what is hoisted; the body's nodes are written last one first."""
    nodes = body.replace(") ", ")\n").splitlines()
    text = f"{HEAD} {{ {' '.join(reversed(nodes))} {TAIL} y = Add(z, m) }}"
    used = {name: value for name, value in WEIGHTS.items() if _reads(text, name)}
    return parse(text, **used)


def _reads(text: str, name: str) -> bool:
    return any(f"{before}{name}{after}" in text for before in "( " for after in ",)")


def both_stages_equal_the_whole(model: ir.Model, count: int, fan_out: int) -> None:
    found = split(model, ["image"], SIZES)
    image = RNG.standard_normal((count, 3, 4)).astype(np.float32)
    text = RNG.standard_normal((count * fan_out, 2, 4)).astype(np.float32)
    (truth,) = run_reference(model, {"image": np.repeat(image, fan_out, 0), "text": text})
    handed = dict(zip(found.frontier, run_reference(found.context, {"image": image}), strict=True))
    (got,) = run_reference(found.query, {"text": text, **handed})
    np.testing.assert_allclose(got, truth, atol=1e-5)


@pytest.mark.parametrize("name", list(MIXED))
def test_what_mixes_samples_is_computed_with_the_queries(name: str) -> None:
    body, reason = MIXED[name]
    model = graph(f"m = {body}")
    for value, dims in SHAPES.get(name, {}).items():
        value_of(model, value).shape = ir.Shape(dims)
    found = split(model, ["image"], SIZES)
    assert len(found.kept) == 1
    assert reason in next(iter(found.kept.values()))
    both_stages_equal_the_whole(model, 2, 3)
    both_stages_equal_the_whole(model, 3, 1)


@pytest.mark.parametrize("name", list(APART))
def test_what_keeps_samples_apart_is_hoisted(name: str) -> None:
    model = graph(f"m = {APART[name]}")
    for value, dims in {**SHAPES.get(name, {}), "m": ["n", 1, 4]}.items():
        value_of(model, value).shape = ir.Shape(dims)
    found = split(model, ["image"], SIZES)
    assert not found.kept
    assert {"m", "g"} & {frontier.partition(":")[2] for frontier in found.frontier}
    both_stages_equal_the_whole(model, 2, 3)


def test_pairs_and_parts_of_a_batch_are_named() -> None:
    model = parse(
        """(float[n, 4] image, float[n, 4] text) => (float[n, 4] y, float[o, 4] z) {
             t = Transpose<perm = [1, 0]>(image) p = MatMul(image, t) q = MatMul(p, image)
             y = Add(text, q) z = Concat<axis = 0>(image, w) }""",
        w=W,
    )
    z = value_of(model, "z")
    z.shape = ir.Shape(["n + 4", 4])
    found = mixing(model.graph, Dependence(model.graph, ["image"]), "n")
    assert {value.name: reason for value, reason in found.items()} == {
        "p": "it pairs the samples of the batch with each other",
        "z": "it takes some samples of the batch, or adds to them",
    }
    assert mixing(model.graph, Dependence(model.graph, ["image"]), None) == {}


def test_samples_that_attend_to_each_other() -> None:
    model = parse(
        """(float[n, s, 4] image, float[n, l, 4] text) => (float[n, l, 4] y) {
             a = crossfuse.FusedAttention<num_heads = 1, kv_num_heads = 1, scale = 1.0>
               (image, image, image)
             y = crossfuse.FusedAttention<num_heads = 1, kv_num_heads = 1, scale = 1.0>
               (text, a, a) }""",
    )
    a = value_of(model, "a")
    a.shape, a.type = ir.Shape(["n", "s", 4]), ir.TensorType(ir.DataType.FLOAT)
    dependence = Dependence(model.graph, ["image"])
    assert mixing(model.graph, dependence, "n") == {}
    assert mixing(model.graph, dependence, "s") == {a: "FusedAttention runs along the batch"}


def test_a_batch_that_is_no_axis() -> None:
    def value(*dims: int | str | None) -> ir.Value:
        return ir.Value(name="x", shape=ir.Shape(dims))

    batch = Batch("n", frozenset({"n", "s"}))
    fine = [value("n", 4), value("s", 4), value(3, "n", "2*s")]
    merged, unknown, other = value("4*n", "s"), value("n", None), value("made_up", 4)
    assert no_axis_of_their_own([*fine, merged, unknown, other], batch) == {
        merged: "the batch is no axis of its own in its shape [4*n, s]",
        unknown: "its shape is not known",
        other: "its shape is not known",
    }


def test_a_graph_of_mixtures_alone_stays_whole() -> None:
    model = parse(
        """(float[n, 4] image, float[n, 4] text) => (float[n, 4] y) {
             m = ReduceSum(image, i0) y = Add(text, m) }""",
        i0=[0],
    )
    stages = assemble(model, ["image"], {}, {"n": 4})
    assert set(stages.graphs) == {"model"}
    assert stages.with_queries == {"m": "it joins the samples of the batch"}
