"""The zoo's formulas in NumPy and float64, written from the papers and not from the modules."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

Array = np.ndarray


def array(tensor: object) -> Array:
    return tensor.detach().double().numpy()  # type: ignore[attr-defined]


def linear(layer: nn.Linear, x: Array) -> Array:
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def layer_norm(layer: nn.LayerNorm, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + layer.eps) * array(layer.weight) + array(layer.bias)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(
    layer: nn.Module, x: Array, context: Array | None = None, keep: Array | None = None
) -> Array:
    """Multi-head attention, one head after the other; ``keep`` is ``[B, L, S]``."""
    context = x if context is None else context
    q, k, v = (
        linear(part, source)
        for part, source in ((layer.query, x), (layer.key, context), (layer.value, context))
    )
    size = q.shape[-1] // layer.num_heads
    heads = []
    for h in range(layer.num_heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(size)
        scores = scores if keep is None else np.where(keep, scores, -np.inf)
        heads.append(softmax(scores) @ v[..., part])
    return linear(layer.out, np.concatenate(heads, -1))


def feed_forward(layer: nn.Module, x: Array, act: Callable[[Array], Array] = gelu) -> Array:
    return linear(layer.down, act(linear(layer.up, x)))
