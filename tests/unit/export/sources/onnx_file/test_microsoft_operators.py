"""Operators of ONNX Runtime's own, written out: each computes what ONNX Runtime computes for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from crossfuse.export.sources.onnx_file.load import load_onnx
from graphs_for_tests import run_model
from onnx_building import INT32, INT64, Graph, normal, run

B, S, T, H, D = 2, 5, 7, 4, 8
W = H * D
Feeds = Mapping[str, np.ndarray]
Make = Callable[[Graph], Feeds]


def ids(*shape: int, below: int = 9, dtype: type = np.int32) -> np.ndarray:
    return np.random.default_rng(3).integers(0, below, shape).astype(dtype)


def x3(g: Graph, name: str = "x", length: int = S, width: int = W) -> np.ndarray:
    g.input(name, ["batch", f"length_{name}", width])
    return normal(B, length, width, seed=ord(name[0]))


def layer_norm_of_old(g: Graph) -> Feeds:
    x = x3(g)
    g.op(
        "LayerNormalization",
        "x",
        g.weight(normal(W)),
        g.weight(normal(W, seed=1)),
        outputs=["y"],
        axis=-1,
        epsilon=1e-3,
    )
    return {"x": x}


def simplified(g: Graph) -> Feeds:
    x = x3(g)
    g.op(
        "SimplifiedLayerNormalization",
        "x",
        g.weight(normal(W)),
        outputs=["y"],
        axis=-1,
        epsilon=1e-3,
        stash_type=1,
    )
    return {"x": x}


def skip(kind: str, *, beta: bool, bias: bool, summed: bool) -> Make:
    def make(g: Graph) -> Feeds:
        x, other = x3(g), normal(B, S, W, seed=5)
        g.input("other", ["batch", "length_x", W])
        given = ["x", "other", g.weight(normal(W))]
        if kind == "SkipLayerNormalization":
            given.append(g.weight(normal(W, seed=1)) if beta else "")
        if bias:
            given.append(g.weight(normal(W, seed=2)))
        g.microsoft(kind, *given, outputs=["n", "", "", "s"] if summed else ["n"], epsilon=1e-3)
        g.op("Add", "n", "s", outputs=["y"]) if summed else g.op("Identity", "n", outputs=["y"])
        return {"x": x, "other": other}

    return make


def embed(*, mask: bool, segments: bool, positions: bool) -> Make:
    def make(g: Graph) -> Feeds:
        feeds = {"ids": ids(B, S)}
        g.input("ids", ["batch", "length"], INT32)
        given = [
            "ids",
            "",
            g.weight(normal(9, W)),
            g.weight(normal(12, W, seed=1)),
            "",
            g.weight(normal(W, seed=2)),
            g.weight(normal(W, seed=3)),
        ]
        if segments:
            feeds["segments"] = ids(B, S, below=2)
            given[1], given[4] = (
                g.input("segments", ["batch", "length"], INT32),
                g.weight(normal(2, W, seed=4)),
            )
        if mask:
            feeds["mask"] = np.array([[1] * S, [1, 1, 0, 0, 0]], np.int32)
            given.append(g.input("mask", ["batch", "length"], INT32))
        if positions:
            feeds["places"] = ids(B, S, below=12)
            given += [""] * (8 - len(given)) + [g.input("places", ["batch", "length"], INT32)]
        g.microsoft("EmbedLayerNormalization", *given, outputs=["n", "lengths"], epsilon=1e-3)
        lengths = g.op("Unsqueeze", g.op("Cast", "lengths", to=1), g.ints(1, 2))
        g.op("Add", "n", lengths, outputs=["y"])
        return feeds

    return make


def unary(kind: str, *, bias: bool = False, **attributes: float) -> Make:
    def make(g: Graph) -> Feeds:
        x = x3(g)
        g.microsoft(
            kind, "x", *([g.weight(normal(W, seed=1))] if bias else []), outputs=["y"], **attributes
        )
        return {"x": x}

    return make


def fused_matmul(**attributes: float) -> Make:
    def make(g: Graph) -> Feeds:
        a, b = normal(3, 4, 5, 6), normal(3, 4, 6, 7, seed=1)
        order = list(range(4))
        for side, name in (("A", "a"), ("B", "b")):
            value = a if side == "A" else b
            if attributes.get(f"trans{side}"):
                value = value.swapaxes(-1, -2)
            if attributes.get(f"transBatch{side}"):
                order = [2, 0, 1, 3]
                value = value.transpose(order)
            g.input(name, [f"{name}{i}" for i in range(3)] + [f"{name}3"])
            a, b = (value, b) if side == "A" else (a, value)
        g.microsoft("FusedMatMul", "a", "b", outputs=["y"], **attributes)
        return {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)}

    return make


def fused_gemm(g: Graph) -> Feeds:
    g.input("a", ["n", W])
    g.microsoft(
        "FusedGemm",
        "a",
        g.weight(normal(6, W)),
        g.weight(normal(6)),
        outputs=["y"],
        transB=1,
        alpha=0.5,
        beta=2.0,
        activation="LeakyRelu",
        activation_alpha=0.2,
    )
    return {"a": normal(S, W)}


def fused_conv(*, addend: bool, activation: str, params: tuple[float, ...] = ()) -> Make:
    def make(g: Graph) -> Feeds:
        g.input("x", ["batch", 3, "h", "w"])
        feeds = {"x": normal(B, 3, 6, 8)}
        given = ["x", g.weight(normal(5, 3, 3, 3)), g.weight(normal(5))]
        if addend:
            given.append(g.input("z", ["batch", 5, "h", "w"]))
            feeds["z"] = normal(B, 5, 6, 8)
        more = {"activation_params": params} if params else {}
        g.microsoft(
            "FusedConv", *given, outputs=["y"], pads=[1, 1, 1, 1], activation=activation, **more
        )
        return feeds

    return make


def rotary(*, four: bool, interleaved: int, partial: bool = False, offset: bool = False) -> Make:
    def make(g: Graph) -> Feeds:
        half = D // 4 if partial else D // 2
        x = normal(B, H, S, D) if four else normal(B, S, W)
        g.input("x", ["batch", H, "length", D] if four else ["batch", "length", W])
        angles = normal(16, half)
        places = np.array([3], np.int64) if offset else ids(B, S, below=16, dtype=np.int64)
        g.input("places", [1] if offset else ["batch", "length"], INT64)
        more = {"num_heads": H, "rotary_embedding_dim": 2 * half} if partial else {}
        g.microsoft(
            "RotaryEmbedding",
            "x",
            "places",
            g.weight(np.cos(angles)),
            g.weight(np.sin(angles)),
            outputs=["y"],
            interleaved=interleaved,
            **more,
        )
        return {"x": x, "places": places}

    return make


def quantised_product(kind: str) -> Make:
    def make(g: Graph) -> Feeds:
        x = x3(g)
        weights, zero = (
            np.random.default_rng(0).integers(0, 255, (W, 6)).astype(np.uint8),
            np.array(120, np.uint8),
        )
        scale, bias = g.weight(np.float32(0.02)), g.weight(normal(6))
        if kind == "DynamicQuantizeMatMul":
            g.microsoft(kind, "x", g.weight(weights), scale, g.weight(zero), bias, outputs=["y"])
        else:
            g.op("DynamicQuantizeLinear", "x", outputs=["q", "s", "z"])
            g.microsoft(
                kind, "q", g.weight(weights), "s", scale, "z", g.weight(zero), bias, outputs=["y"]
            )
        return {"x": x}

    return make


def quantised_elementwise(kind: str) -> Make:
    def make(g: Graph) -> Feeds:
        x = x3(g)
        scale, zero = g.weight(np.float32(0.03)), g.weight(np.array(128, np.uint8))
        own, own_zero = g.weight(np.float32(0.02)), g.weight(np.array(100, np.uint8))
        g.op("QuantizeLinear", "x", scale, zero, outputs=["q"])
        second = ["q", scale, zero] if kind in ("QLinearAdd", "QLinearMul") else []
        more = {"axis": -1, "opset": 13} if kind == "QLinearSoftmax" else {}
        g.microsoft(kind, "q", scale, zero, *second, own, own_zero, outputs=["r"], **more)
        g.op("DequantizeLinear", "r", own, own_zero, outputs=["y"])
        return {"x": x}

    return make


def quantisers_of_16_bits(g: Graph) -> Feeds:
    x = x3(g)
    scale, zero = g.weight(np.float32(2e-4)), g.weight(np.array(30000, np.uint16))
    g.microsoft(
        "DequantizeLinear",
        g.microsoft("QuantizeLinear", "x", scale, zero),
        scale,
        zero,
        outputs=["y"],
    )
    return {"x": x}


CASES: dict[str, Make] = {
    "layer_norm_of_opset_12": layer_norm_of_old,
    "simplified": simplified,
    **{
        f"{kind}{'_beta' * beta}{'_bias' * bias}{'_sum' * summed}": skip(
            kind, beta=beta, bias=bias, summed=summed
        )
        for kind, beta, bias, summed in (
            ("SkipLayerNormalization", True, True, True),
            ("SkipLayerNormalization", False, False, False),
            ("SkipLayerNormalization", True, False, True),
            ("SkipSimplifiedLayerNormalization", False, True, True),
            ("SkipSimplifiedLayerNormalization", False, False, False),
        )
    },
    "embed": embed(mask=True, segments=True, positions=False),
    "embed_without_segments": embed(mask=True, segments=False, positions=False),
    "embed_at_positions": embed(mask=True, segments=False, positions=True),
    "embed_without_mask": embed(mask=False, segments=True, positions=False),
    "gelu": unary("Gelu"),
    "fast_gelu": unary("FastGelu"),
    "fast_gelu_bias": unary("FastGelu", bias=True),
    "bias_gelu": unary("BiasGelu", bias=True),
    "quick_gelu": unary("QuickGelu"),
    "quick_gelu_alpha": unary("QuickGelu", alpha=1.1),
    "matmul": fused_matmul(alpha=0.3),
    "matmul_a": fused_matmul(transA=1),
    "matmul_b": fused_matmul(transB=1, alpha=2.0),
    "matmul_batches": fused_matmul(transBatchA=1, transBatchB=1),
    "gemm": fused_gemm,
    "conv": fused_conv(addend=False, activation="Relu"),
    "conv_sum": fused_conv(addend=True, activation="Relu"),
    "conv_clip": fused_conv(addend=False, activation="Clip", params=(-0.5, 0.7)),
    "rotary": rotary(four=False, interleaved=0),
    "rotary_interleaved": rotary(four=True, interleaved=1),
    "rotary_partial": rotary(four=False, interleaved=0, partial=True),
    "rotary_from_offset": rotary(four=True, interleaved=0, offset=True),
    "dynamic_matmul": quantised_product("DynamicQuantizeMatMul"),
    "integer_matmul": quantised_product("MatMulIntegerToFloat"),
    **{
        kind: quantised_elementwise(kind)
        for kind in (
            "QLinearAdd",
            "QLinearMul",
            "QLinearSigmoid",
            "QLinearLeakyRelu",
            "QLinearSoftmax",
        )
    },
    "quantisers_of_16_bits": quantisers_of_16_bits,
}


@pytest.mark.parametrize("name", CASES)
def test_written_out(tmp_path: Path, name: str) -> None:
    """What ONNX Runtime computes for the operator, and the graph without it, are the same."""
    g = Graph()
    feeds = CASES[name](g)
    g.output("y", [f"y{axis}" for axis in range(_rank(name))])
    path = g.save(tmp_path / "file.onnx", 12 if name.endswith("12") else 17)
    model = load_onnx(Path(path))
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    (expected,) = run(path, feeds)
    (got,) = run_model(model, dict(feeds))
    quantised = name in ("dynamic_matmul", "integer_matmul") or name.startswith("QLinear")
    np.testing.assert_allclose(
        got, expected, atol=2e-2 + 1e-6 if quantised and "matmul" not in name else 2e-5, rtol=2e-5
    )
    assert np.abs(expected).max() > 0.1


def _rank(name: str) -> int:
    if name == "gemm":
        return 2
    return 4 if name.startswith(("matmul", "conv", "rotary_interleaved", "rotary_from")) else 3
