"""Files as other exporters and converters write them: half precision, quantizers around products,
Keras and TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.helper import make_tensor

import crossfuse
from crossfuse import FusionError, runtime
from onnx_building import BFLOAT16, FLOAT, HALF, INT32, INT64, Graph, attention, normal, run

W, H, D = 16, 4, 4
SIZES = ((2, 5, 7), (1, 9, 3), (3, 1, 11))
Feeds = dict[str, np.ndarray]
SLOW = pytest.mark.slow


def masks(b: int, t: int) -> np.ndarray:
    mask = (np.random.default_rng(b * t).random((b, t)) > 0.4).astype(np.int32)
    mask[:, -1] = 1
    return mask


def added(mask: np.ndarray, fill: float) -> np.ndarray:
    return np.where(mask[:, None, None] > 0, 0.0, fill)


# Half precision


def of_kind(g: Graph, array: np.ndarray, kind: int) -> str:
    if kind != BFLOAT16:
        return g.weight(array.astype(np.float16 if kind == HALF else np.float32))
    name = f"w{len(g.weights)}"
    g.weights.append(make_tensor(name, BFLOAT16, array.shape, array.reshape(-1).tolist()))
    return name


def rounded(array: np.ndarray, kind: int) -> np.ndarray:
    """A weight's content in float64."""
    if kind == BFLOAT16:
        return numpy_helper.to_array(
            make_tensor("w", kind, array.shape, array.reshape(-1).tolist())
        ).astype(np.float64)
    return array.astype(np.float16).astype(np.float64)


PROJECTIONS = [normal(W, W, seed=s) / 3 for s in range(4)]


def half(kind: int, outside: int) -> Callable[[Graph], None]:
    """Cross-attention in half precision, the mask added as the least number, the norm behind it in
    float32."""

    def make(g: Graph) -> None:
        x, y = (
            g.input(n, ["batch", length, W], outside) for n, length in (("x", "nx"), ("y", "ny"))
        )
        mask = g.input("mask", ["batch", "ny"], INT32)
        if outside != kind:
            x, y = g.op("Cast", x, to=kind), g.op("Cast", y, to=kind)

        def heads(t: str, weight: np.ndarray, *order: int) -> str:
            projected = g.op("MatMul", t, of_kind(g, weight, kind))
            return g.op("Transpose", g.op("Reshape", projected, g.ints(0, 0, H, D)), perm=order)

        q, k, v = (
            heads(x, PROJECTIONS[0], 0, 2, 1, 3),
            heads(y, PROJECTIONS[1], 0, 2, 3, 1),
            heads(y, PROJECTIONS[2], 0, 2, 1, 3),
        )
        scores = g.op("Mul", g.op("MatMul", q, k), of_kind(g, np.array(0.5), kind))
        left = g.op("Sub", of_kind(g, np.array(1.0), kind), g.op("Cast", mask, to=kind))
        least = of_kind(g, np.array(-65504.0), kind)
        scores = g.op("Add", scores, g.op("Unsqueeze", g.op("Mul", left, least), g.ints(1, 2)))
        out = g.op("MatMul", g.op("Softmax", scores, axis=-1), v)
        out = g.op("Reshape", g.op("Transpose", out, perm=[0, 2, 1, 3]), g.ints(0, 0, W))
        out = g.op("Cast", g.op("MatMul", out, of_kind(g, PROJECTIONS[3], kind)), to=FLOAT)
        out = g.op("LayerNormalization", out, g.weight(normal(W)), g.weight(normal(W, seed=1)))
        g.op("Cast", out, outputs=["y_out"], to=outside) if outside != FLOAT else g.op(
            "Identity", out, outputs=["y_out"]
        )
        g.output("y_out", ["batch", "nx", W], outside)

    return make


def half_truth(f: Feeds, kind: int) -> np.ndarray:
    q, k, v, o = (rounded(w, kind) for w in PROJECTIONS)
    x, y = f["x"].astype(np.float64), f["y"].astype(np.float64)
    out = attention(x @ q, y @ k, y @ v, H, added(f["mask"], -65504.0), scale=0.5) @ o
    out = (out - out.mean(-1, keepdims=True)) / np.sqrt(out.var(-1, keepdims=True) + 1e-5)
    return out * normal(W) + normal(W, seed=1)


@pytest.mark.parametrize(
    ("kind", "outside"),
    [(HALF, HALF), (HALF, FLOAT), (BFLOAT16, BFLOAT16), (BFLOAT16, FLOAT)],
    ids=["float16", "float16_inside", "bfloat16", "bfloat16_inside"],
)
def test_half_precision(tmp_path: Path, kind: int, outside: int) -> None:
    """Computed in float32 with the file's weights: inputs of float16 stay that, results are
    float32, right to 1e-5."""
    g = Graph()
    half(kind, outside)(g)
    dtype = np.float16 if outside == HALF else np.float32

    def feeds_at(b: int, s: int, t: int) -> Feeds:
        return {
            "x": normal(b, s, W).astype(dtype),
            "y": normal(b, t, W, seed=1).astype(dtype),
            "mask": masks(b, t),
        }

    bundle = crossfuse.export(
        g.save(tmp_path / "half.onnx", 17), tmp_path / "b", ["ort-cpu", "onnx"]
    )
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    parity = bundle.manifest.targets["ort-cpu"].parity
    assert parity["reference_dtype"] == "float64"
    with runtime.load(bundle.path) as session:
        for sizes in SIZES:
            feeds = feeds_at(*sizes)
            got = session.run(**feeds)["y_out"]
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, half_truth(feeds, kind), atol=3e-5)


# Quantizers


def quantised(
    *, per_channel: bool, operands: bool = False, probabilities: bool = False
) -> Callable[[Graph], None]:
    """Projections between quantizers, weights in int8; and, where said, the attention's own
    operands."""

    def make(g: Graph) -> None:
        x, y = (g.input(n, ["batch", length, W]) for n, length in (("x", "nx"), ("y", "ny")))
        mask = g.input("mask", ["batch", "ny"], INT32)

        def through(t: str, scale: float, zero: int = 128) -> str:
            given = [g.weight(np.float32(scale)), g.weight(np.uint8(zero))]
            return g.op("DequantizeLinear", g.op("QuantizeLinear", t, *given), *given)

        def weight(array: np.ndarray) -> str:
            scale = np.abs(array).max(0 if per_channel else None) / 127
            stored = np.round(array / scale).astype(np.int8)
            more = {"axis": 1} if per_channel else {}
            zero = np.zeros(W, np.int8) if per_channel else np.int8(0)
            return g.op(
                "DequantizeLinear",
                g.weight(stored),
                g.weight(scale.astype(np.float32)),
                g.weight(zero),
                **more,
            )

        def product(t: str, array: np.ndarray) -> str:
            return g.op(
                "Add", g.op("MatMul", through(t, 0.03), weight(array)), g.weight(normal(W, seed=8))
            )

        def heads(t: str, *order: int) -> str:
            t = through(t, 0.04) if operands else t
            return g.op("Transpose", g.op("Reshape", t, g.ints(0, 0, H, D)), perm=order)

        q, k, v = (product(t, w) for t, w in zip((x, y, y), PROJECTIONS[:3], strict=True))
        scores = g.op(
            "Div",
            g.op("MatMul", heads(q, 0, 2, 1, 3), heads(k, 0, 2, 3, 1)),
            g.weight(np.float32(2)),
        )
        hidden = g.op("Unsqueeze", g.op("Equal", mask, g.weight(0, np.int32)), g.ints(1, 2))
        p = g.op("Softmax", g.op("Where", hidden, g.weight(np.float32(-np.inf)), scores), axis=3)
        out = g.op("MatMul", through(p, 1 / 255, 0) if probabilities else p, heads(v, 0, 2, 1, 3))
        out = g.op("Reshape", g.op("Transpose", out, perm=[0, 2, 1, 3]), g.ints(0, 0, W))
        g.op("Identity", product(out, PROJECTIONS[3]), outputs=["y_out"])
        g.output("y_out", ["batch", "nx", W])

    return make


@pytest.mark.parametrize(
    "name", [pytest.param("per_tensor", marks=SLOW), "per_channel", "operands"]
)
def test_quantised_products_stay(tmp_path: Path, name: str) -> None:
    """The attention between them is fused; quantizers and int8 weights are all there; a quantizer's
    step is the limit."""
    g = Graph()
    quantised(per_channel=name == "per_channel", operands=name == "operands")(g)
    path = g.save(tmp_path / "qdq.onnx", 17)
    bundle = crossfuse.export(path, tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {"cross": 1}
    graph = onnx.load(bundle.path / "model.ort-cpu.onnx", load_external_data=False).graph
    before, after = (
        [n.op_type for n in nodes] for nodes in (onnx.load(path).graph.node, graph.node)
    )
    assert "Softmax" not in after
    assert after.count("DequantizeLinear") >= before.count("DequantizeLinear") - 1
    assert (
        sum(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 2 for w in graph.initializer)
        == 4
    )
    with runtime.load(bundle.path) as session:
        for b, s, t in SIZES:
            feeds = {"x": normal(b, s, W), "y": normal(b, t, W, seed=1), "mask": masks(b, t)}
            np.testing.assert_allclose(session.run(**feeds)["y_out"], run(path, feeds)[0], atol=0.1)
            np.testing.assert_allclose(
                np.median(np.abs(session.run(**feeds)["y_out"] - run(path, feeds)[0])), 0, atol=1e-5
            )


def test_quantised_probabilities(tmp_path: Path) -> None:
    """An attention with quantizers inside is counted, and refused for that reason."""
    g = Graph()
    quantised(per_channel=True, operands=True, probabilities=True)(g)
    with pytest.raises(FusionError, match=r"1 of 1 .*QuantizeLinear"):
        crossfuse.export(g.save(tmp_path / "qdq.onnx", 17), tmp_path / "b")


# Keras and TensorFlow

KERNELS = [w.reshape(W, H, D) for w in PROJECTIONS[:3]]
OUT = PROJECTIONS[3].reshape(H, D, W)


def keras_truth(f: Feeds, fill: float, own: bool = False) -> np.ndarray:
    x = f["x"].astype(np.float64)
    y = x if own else f["y"].astype(np.float64)
    return (
        attention(
            x @ PROJECTIONS[0], y @ PROJECTIONS[1], y @ PROJECTIONS[2], H, added(f["mask"], fill)
        )
        @ PROJECTIONS[3]
    )


def keras(g: Graph, *, named: bool = False) -> None:
    """``keras.layers.MultiHeadAttention``: einsums with kernels, the query scaled, the mask as (1 −
    m) · −10⁹."""
    b = ["batch"] * 3 if named else ["unk__7", "unk__8", "unk__9"]
    x, y = g.input("x", [b[0], "nx", W]), g.input("y", [b[1], "ny", W])
    mask = g.input("mask", [b[2], "ny"], INT32)
    g.scope = "model/multi_head_attention/query/einsum/"
    q = g.op("Einsum", x, g.weight(KERNELS[0]), equation="abc,cde->abde")
    g.scope = "model/multi_head_attention/key/einsum/"
    k = g.op("Einsum", y, g.weight(KERNELS[1]), equation="abc,cde->abde")
    g.scope = "model/multi_head_attention/value/einsum/"
    v = g.op("Einsum", y, g.weight(KERNELS[2]), equation="abc,cde->abde")
    g.scope = "model/multi_head_attention/"
    q = g.op("Mul", q, g.weight(np.float32(D**-0.5)))
    g.scope = "model/multi_head_attention/einsum/"
    scores = g.op("Einsum", k, q, equation="aecd,abcd->acbe")
    g.scope = "model/multi_head_attention/softmax/"
    wide = g.op("Unsqueeze", g.op("Unsqueeze", g.op("Cast", mask, to=FLOAT), g.ints(1)), g.ints(1))
    hidden = g.op("Mul", g.op("Sub", g.weight(np.float32(1)), wide), g.weight(np.float32(-1e9)))
    p = g.op("Softmax", g.op("Add", scores, hidden), axis=3)
    g.scope = "model/multi_head_attention/einsum_1/"
    out = g.op("Einsum", p, v, equation="acbe,aecd->abcd")
    g.scope = "model/multi_head_attention/attention_output/einsum/"
    g.op("Einsum", out, g.weight(OUT), outputs=["y_out"], equation="abcd,cde->abe")
    g.output("y_out", [b[0], "nx", W])


def pack(g: Graph, *parts: str) -> str:
    """``tf.stack`` of numbers in int32, as a shape."""
    columns = [g.op("Unsqueeze", part, g.ints(0)) for part in parts]
    return g.op("Cast", g.op("Concat", *columns, axis=0), to=INT64)


def strided(g: Graph, t: str, axis: int) -> str:
    """A size of a tensor by ``StridedSlice``, in int32."""
    shape = g.op("Cast", g.op("Shape", t), to=INT32)
    return g.op(
        "Squeeze", g.op("Slice", shape, g.ints(axis), g.ints(axis + 1), g.ints(0)), g.ints(0)
    )


def dense(g: Graph, t: str, weight: np.ndarray) -> str:
    """``tf.tensordot``: rows made flat, with shapes from ``Gather`` and ``ReduceProd``."""
    shape = g.op("Cast", g.op("Shape", t), to=INT32)
    free = g.op("Gather", shape, g.weight([0, 1], np.int32), axis=0)
    count = g.op("ReduceProd", free, axes=[0], keepdims=0)
    inner = g.op("Gather", shape, g.weight(2, np.int32), axis=0)
    flat = g.op("Reshape", t, pack(g, count, inner))
    wanted = g.op(
        "Cast", g.op("Concat", free, g.weight([weight.shape[1]], np.int32), axis=0), to=INT64
    )
    return g.op("Reshape", g.op("MatMul", flat, g.weight(weight)), wanted)


def tensorflow(g: Graph, *, own: bool = False, where: bool = False) -> None:
    """BERT in TensorFlow: computed shapes everywhere, the scale on the scores or the queries, a
    mask added or by ``Where``."""
    x = g.input("x", ["unk__1", "unk__2", W])
    y = x if own else g.input("y", ["unk__3", "unk__4", W])
    mask = g.input("mask", ["unk__5", "unk__6"], INT32)
    g.scope = "StatefulPartitionedCall/bert/encoder/layer_._0/attention/self/"
    h, d, width = (g.weight(n, np.int32) for n in (H, D, W))

    def heads(t: str, weight: np.ndarray) -> str:
        t = dense(g, t, weight)
        return g.op(
            "Transpose",
            g.op("Reshape", t, pack(g, strided(g, t, 0), strided(g, t, 1), h, d)),
            perm=[0, 2, 1, 3],
        )

    q, k, v = heads(x, PROJECTIONS[0]), heads(y, PROJECTIONS[1]), heads(y, PROJECTIONS[2])
    if where:
        q = g.op("Mul", q, g.weight(np.float32(D**-0.5)))
    scores = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
    if where:
        kept = g.op(
            "Cast",
            g.op(
                "Reshape",
                mask,
                pack(
                    g,
                    strided(g, mask, 0),
                    g.weight(1, np.int32),
                    g.weight(1, np.int32),
                    strided(g, mask, 1),
                ),
            ),
            to=9,
        )
        scores = g.op("Where", kept, scores, g.weight(np.float32(-1e9)))
    else:
        scores = g.op("Div", scores, g.op("Sqrt", g.op("Cast", d, to=FLOAT)))
        wide = g.op("Unsqueeze", g.op("Cast", mask, to=FLOAT), g.ints(1, 2))
        scores = g.op(
            "Add",
            scores,
            g.op("Mul", g.op("Sub", g.weight(np.float32(1)), wide), g.weight(np.float32(-10000))),
        )
    out = g.op("Transpose", g.op("MatMul", g.op("Softmax", scores, axis=3), v), perm=[0, 2, 1, 3])
    out = g.op("Reshape", out, pack(g, strided(g, out, 0), strided(g, out, 1), width))
    g.op("Identity", dense(g, out, PROJECTIONS[3]), outputs=["y_out"])
    g.output("y_out", ["unk__1", "unk__2", W])


CONVERTED: dict[str, tuple[Callable[[Graph], None], str, str, Callable[[Feeds], np.ndarray]]] = {
    "keras": (
        lambda g: keras(g, named=True),
        "cross",
        "model.multi_head_attention",
        lambda f: keras_truth(f, -1e9),
    ),
    "keras_unnamed_batches": (
        keras,
        "cross",
        "model.multi_head_attention",
        lambda f: keras_truth(f, -1e9),
    ),
    "tensorflow": (
        tensorflow,
        "cross",
        "bert.encoder.layer_._0.attention.self",
        lambda f: keras_truth(f, -1e4),
    ),
    "tensorflow_self": (
        lambda g: tensorflow(g, own=True),
        "self",
        "bert.encoder.layer_._0.attention.self",
        lambda f: keras_truth(f, -1e4, own=True),
    ),
    "tensorflow_where": (
        lambda g: tensorflow(g, where=True),
        "cross",
        "bert.encoder.layer_._0.attention.self",
        lambda f: keras_truth(f, -1e9),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW) if n in ("keras", "tensorflow") else n for n in CONVERTED]
)
def test_converted(tmp_path: Path, name: str) -> None:
    make, kind, site, truth = CONVERTED[name]
    g = Graph()
    make(g)
    bundle = crossfuse.export(g.save(tmp_path / "converted.onnx", 15), tmp_path / "b")
    assert bundle.ledger.counts("ort-cpu") == {kind: 1}
    assert [row.site for row in bundle.ledger] == [site]
    with runtime.load(bundle.path) as session:
        for b, s, t in SIZES:
            feeds = {
                "x": normal(b, t if kind == "self" else s, W),
                "y": normal(b, t, W, seed=1),
                "mask": masks(b, t),
            }
            if kind == "self":
                del feeds["y"]
            np.testing.assert_allclose(session.run(**feeds)["y_out"], truth(feeds), atol=3e-5)
