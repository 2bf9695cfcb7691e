"""The two stages of small graphs, run after one another and compared with the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import InputError
from crossfuse.export.split.dependence import Dependence
from crossfuse.export.split.partition import Split, split
from crossfuse.export.split.per_context import (
    Batches,
    QueryStage,
    read_sizes_per_context,
    repeat_where_they_meet,
)
from crossfuse.export.split.stage_builder import StageBuilder
from crossfuse.export.split.stage_sizes import MissingSizeError
from onnx_text import parse, run_reference, value_of

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 4))
SIZES = {"n": 4, "s": 3, "l": 2}

GRAPHS = {
    # Keys meet queries in a product that is no attention node.
    "attention by hand": """(float[n, s, 4] image, float[n, l, 4] text) => (float[n, l, 4] y) {
        k = MatMul(image, w) t = Transpose<perm = [0, 2, 1]>(k) a = MatMul(text, t)
        p = Softmax(a) y = MatMul(p, k) }""",
    # The context stage reads the batch, which it has, off its own input.
    "size read off queries": """(float[n, s, 4] image, float[n, l, 4] text) => (float[n, l, 4] y) {
        k = MatMul(image, w) b = Shape<end = 1>(text) c = Concat<axis = 0>(b, one, minus)
        r = Reshape(k, c) m = ReduceMax(r, last) y = Add(text, m) }""",
    # Made again in the query stage, where the batch is the number of contexts.
    "made again": """(float[n, 3, 4] image, float[n, 12] text, float[n, 3, 4] other)
        => (float[n, 12] y, float[n, 3, 4] z) {
        k = MatMul(image, w) b = Shape<end = 1>(text) c = Concat<axis = 0>(b, minus)
        r = Reshape(k, c) y = Add(text, r) z = Add(other, k) }""",
    # An output of the context alone has the queries' batch.
    "output of the context": """(float[n, s, 4] image, float[n, l, 4] text)
        => (float[n, l, 4] y, float[n, s, 4] k) {
        k = MatMul(image, w) m = ReduceMax(k, middle) y = Add(text, m) }""",
}


def whole(name: str) -> ir.Model:
    weights = {"w": W, "one": [1], "minus": [-1], "last": [2], "middle": [1]}
    text = GRAPHS[name]
    return parse(text, **{k: v for k, v in weights.items() if f" {k})" in text or f" {k}," in text})


def parts(name: str) -> Split:
    return split(whole(name), ["image"], SIZES)


@pytest.mark.parametrize("name", list(GRAPHS))
@pytest.mark.parametrize("fan_out", [1, 3])
def test_both_stages_are_the_whole(name: str, fan_out: int) -> None:
    found = parts(name)
    image = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    inputs = {"image": np.repeat(image, fan_out, 0)}
    for value in whole(name).graph.inputs:
        if value.name != "image":
            assert value.shape is not None
            sizes = {"n": 2 * fan_out, "l": 5}
            shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
            inputs[value.name or ""] = RNG.standard_normal(shape).astype(np.float32)
    truth = run_reference(whole(name), inputs)
    handed = run_reference(found.context, {"image": image})
    queries = {k: v for k, v in inputs.items() if k != "image"}
    got = run_reference(found.query, queries | dict(zip(found.frontier, handed, strict=True)))
    for one, other in zip(got, truth, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_frontier_has_the_contexts_own_batch() -> None:
    found = parts("attention by hand")
    assert (found.frontier, found.shared) == (("context:k",), "n")
    (handed,) = found.context.graph.outputs
    incoming = value_of(found.query, "context:k")
    for value in (handed, incoming):
        assert value.shape is not None
        assert str(value.shape[0]) == CONTEXTS
    assert [node.op_type for node in found.context.graph] == ["MatMul"]


def test_what_meets_queries_is_repeated_once() -> None:
    operators = [node.op_type for node in parts("attention by hand").query.graph]
    assert operators.count("Expand") == 2, "keys as they are, and transposed"


def test_a_context_input_on_the_frontier_goes_through_an_identity() -> None:
    model = whole("attention by hand")
    image = model.graph.inputs[0]
    builder = StageBuilder(
        model, Dependence(model.graph, ["image"]), {image: "context:image"}, Batches("n", CONTEXTS)
    )
    context = builder.context_stage()
    assert [node.op_type for node in context.graph] == ["Identity"]
    assert [v.name for v in context.graph.outputs] == ["context:image"]


def test_a_size_that_no_value_has_is_named() -> None:
    """The query stage reads the number of patches, which the only tensor handed over lacks."""
    model = parse(
        """(float[n, s, 4] image, float[n, 4] text) => (float[n, 4] y) {
             m = ReduceMax<keepdims = 0>(image, one) c = Shape<start = 1, end = 2>(image)
             f = Cast<to = 1>(c) t = Mul(text, f) y = Add(t, m) }""",
        one=[1],
    )
    m = value_of(model, "m")
    dependence = Dependence(model.graph, ["image"])
    builder = StageBuilder(model, dependence, {m: "context:m"}, Batches("n", CONTEXTS))
    with pytest.raises(MissingSizeError, match="a size is read off a tensor that is in the other"):
        builder.query_stage()
    found = split(model, ["image"], SIZES)
    assert set(found.frontier) == {"context:m", "context:image"}, "it is handed over for its size"


def test_batches() -> None:
    batches = Batches("n", CONTEXTS)
    value = ir.Value(name="x", shape=ir.Shape(["l", "n", "2*n"]))
    assert batches.context_axis(value) is None
    batches.rename(value)
    assert str(value.shape) == f"[l,{CONTEXTS},2*n]"
    assert batches.context_axis(value) == 1
    assert batches.context_axis(None) is None
    apart = ir.Value(name="x", shape=ir.Shape(["n"]))
    Batches(None, CONTEXTS).rename(apart)
    assert str(apart.shape) == "[n]"


def test_without_a_shared_batch_nothing_is_rewritten() -> None:
    model = whole("attention by hand")
    before = [node.op_type for node in model.graph]
    stage = QueryStage(model.graph, Batches(None, CONTEXTS), [], [], {})
    read_sizes_per_context(stage)
    repeat_where_they_meet(stage)
    assert [node.op_type for node in model.graph] == before
    assert stage.counted is None


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (["image", "text"], "every input is context, so no query is left to ask many of"),
        ([], "nothing is computed from the context inputs alone"),
    ],
)
def test_nothing_to_split(context: list[str], reason: str) -> None:
    with pytest.raises(InputError, match=f"there is nothing to split: {reason}"):
        split(whole("attention by hand"), context, SIZES)
