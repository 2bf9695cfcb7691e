"""Norms, activations, products and embeddings against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf

from crossfuse.errors import InputError
from crossfuse.export.sources.onnx_file.microsoft.operators import OPERATORS
from onnx_building import Graph, normal
from unit.export.sources.onnx_file.microsoft.expanding import computed, expanded

B, L, W = 2, 3, 8
Feeds = Mapping[str, np.ndarray]
X, BIAS, SCALE = normal(B, L, W), normal(W, seed=1), normal(W, seed=2)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rms(x: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * SCALE


def layer_norm(x: np.ndarray, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * SCALE


D = X.astype(np.float64)
FORMULAS: dict[str, tuple[Callable[[Graph], str], np.ndarray]] = {
    "Gelu": (lambda g: g.microsoft("Gelu", "x"), gelu(D)),
    "BiasGelu": (lambda g: g.microsoft("BiasGelu", "x", g.weight(BIAS)), gelu(D + BIAS)),
    "FastGelu": (lambda g: g.microsoft("FastGelu", "x", g.weight(BIAS)), tanh_gelu(D + BIAS)),
    "QuickGelu": (lambda g: g.microsoft("QuickGelu", "x", alpha=2.0), D / (1 + np.exp(-2.0 * D))),
    "BiasAdd": (
        lambda g: g.microsoft("BiasAdd", "x", g.weight(BIAS), g.weight(X)),
        D + BIAS + D,
    ),
    "BiasSplitGelu": (
        lambda g: g.microsoft("BiasSplitGelu", "x", g.weight(BIAS)),
        (D + BIAS)[..., :4] * gelu((D + BIAS)[..., 4:]),
    ),
    "SkipLayerNormalization": (
        lambda g: g.microsoft(
            "SkipLayerNormalization", "x", g.weight(X * 2), g.weight(SCALE), epsilon=0.1
        ),
        layer_norm(3 * D, 0.1),
    ),
    "SkipSimplifiedLayerNormalization": (
        lambda g: g.microsoft(
            "SkipSimplifiedLayerNormalization", "x", g.weight(X * 2), g.weight(SCALE), epsilon=0.1
        ),
        rms(3 * D, 0.1),
    ),
    "SimplifiedLayerNormalization": (
        lambda g: g.op("SimplifiedLayerNormalization", "x", g.weight(SCALE), axis=-1, epsilon=0.1),
        rms(D, 0.1),
    ),
    "FusedMatMul": (
        lambda g: g.microsoft("FusedMatMul", "x", g.weight(normal(5, W)), transB=1, alpha=0.5),
        0.5 * D @ normal(5, W).astype(np.float64).T,
    ),
    "TransposeMatMul": (
        lambda g: g.microsoft("TransposeMatMul", "x", g.weight(normal(B, L, 5)), transA=1),
        D.swapaxes(1, 2) @ normal(B, L, 5).astype(np.float64),
    ),
}


@pytest.mark.parametrize("name", list(FORMULAS))
def test_formulas(tmp_path: Path, name: str) -> None:
    make, expected = FORMULAS[name]
    assert name in OPERATORS
    g = Graph()
    g.input("x", ["batch", "length", W])
    g.op("Identity", make(g), outputs=["y"])
    g.output("y", ["a", "b", "c"])
    np.testing.assert_allclose(computed(g, tmp_path, {"x": X}), expected, atol=2e-6)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations_turn_pairs_by_their_places_angle(tmp_path: Path, interleaved: int) -> None:
    """Pairs as complex numbers, times e^{i·angle}."""
    heads, size, length = 2, 4, 3
    x = normal(1, heads, length, size)
    angles = normal(5, size // 2, seed=3).astype(np.float64)
    places = np.array([[4, 0, 2]])
    g = Graph()
    g.input("x", ["batch", heads, "length", size])
    g.input("places", ["batch", "length"], 7)
    made = g.microsoft(
        "RotaryEmbedding",
        "x",
        "places",
        g.weight(np.cos(angles), np.float32),
        g.weight(np.sin(angles), np.float32),
        interleaved=interleaved,
    )
    g.op("Identity", made, outputs=["y"])
    g.output("y", ["a", "b", "c", "d"])
    got = computed(g, tmp_path, {"x": x, "places": places})
    pairs = (
        x.reshape(1, heads, length, 2, 2)
        if interleaved
        else x.reshape(1, heads, length, 2, 2).swapaxes(-1, -2)
    )
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles[places])[:, None]
    both = np.stack([turned.real, turned.imag], -1)
    expected = (both if interleaved else both.swapaxes(-1, -2)).reshape(x.shape)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (
            lambda g: g.microsoft("FusedGemm", "x", g.weight(normal(W, 3)), activation="Erf"),
            "its activation 'Erf' is not known",
        ),
        (
            lambda g: g.microsoft("BiasSoftmax", "x", g.weight(X), axis=1, is_inner_broadcast=1),
            "its softmax is over several axes",
        ),
    ],
)
def test_what_an_expansion_does_not_know(
    tmp_path: Path, make: Callable[[Graph], str], why: str
) -> None:
    g = Graph()
    g.input("x", [L, W] if "activation" in why else ["batch", L, W])
    g.op("Identity", make(g), outputs=["y"])
    g.output("y", ["a", "b"] if "activation" in why else ["a", "b", "c"])
    with pytest.raises(InputError, match=why):
        expanded(g, tmp_path)
