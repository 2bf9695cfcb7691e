"""Small graphs in which tokens of an image stand in front of those of a text, and what becomes of
them when these are cut apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from crossfuse.bundle.manifest import PrefixReuse
from crossfuse.export.split.partition import Split, split
from crossfuse.export.split.prefix import cut_prefix
from crossfuse.graph.attention_node import attentions
from crossfuse.graph.metadata import SITE
from onnx_text import parse
from small_graphs import computed, same_numbers

IMAGE, WIDTH = 3, 8
RNG = np.random.default_rng(0)
WEIGHTS = {
    **{name: RNG.standard_normal((WIDTH, WIDTH)) for name in ("wq", "wk", "wv", "wo", "wi")},
    "scale": np.abs(RNG.standard_normal(WIDTH)),
    "table": RNG.standard_normal((11, WIDTH)),
    "bos": RNG.standard_normal((1, 1, WIDTH)),
    "seen_first": np.array([[True, False, True]]),
    "zero": 0,
    "one": 1,
    "minus": [-1],
    "start": [0],
    "at": [1],
    "first": [IMAGE],
    "end": [2**31 - 1],
    "heads": [0, 1],
    "inner": [1, 2],
    "before": [0, 1, 2],
    "behind": [1, 2, 3],
    "eight": [8],
    "on": True,
    "inf": -np.inf,
    "low": -1e9,
    "null": 0.0,
}
ROWS = """s = Shape<start = 1, end = 2>(x0) n = Squeeze(s) r = Range(zero, n, one)
          row = Unsqueeze(r, at) column = Unsqueeze(r, start) causal = LessOrEqual(column, row)"""
SHAPES = {
    "float[B, N, 8]": ("x0", "o0", "o1"),
    "int64[N]": ("r",),
    "int64[N, 1]": ("row",),
    "int64[1, N]": ("column",),
    "bool[N, N]": ("causal",),
    "int64[1]": ("s",),
    "int64": ("n",),
}


def attend(operands: str = "q{0}, k{0}, v{0}", causal: str = "upper_left", layer: int = 0) -> str:
    """A ``FusedAttention`` of two heads."""
    return (
        f"o{layer} = crossfuse.FusedAttention<num_heads: int = 2, kv_num_heads: int = 2, "
        f'scale: float = 0.5, causal: string = "{causal}">({operands.format(layer)})'
    )


def layer(number: int, attention: str) -> str:
    """A residual layer: ``x{number}`` → ``x{number + 1}``."""
    x, i = f"x{number}", number
    return (
        f"n{i} = LayerNormalization<axis = -1>({x}, scale) q{i} = MatMul(n{i}, wq) "
        f"k{i} = MatMul(n{i}, wk) v{i} = MatMul(n{i}, wv) {attention} p{i} = MatMul(o{i}, wo) "
        f"x{i + 1} = Add({x}, p{i})"
    )


def made(
    layers: Sequence[str],
    *,
    join: str = "m = MatMul(image, wi) x0 = Concat<axis = 1>(m, text)",
    inputs: str = "",
    before: str = "",
    behind: str = "y = Relu(x2)",
    output: str = "float[B, N, 8] y",
    shapes: Mapping[str, Sequence[str]] | None = None,
    whole: str = "T + 3",
) -> ir.Model:
    """Two layers over the tokens of an image ``[B, 3, 8]`` and a text ``[B, T, 8]``."""
    text = " ".join([join, before, *layers, behind])
    known = {**SHAPES, **(shapes or {})}
    values = ", ".join(
        f"{kind} {name}" for kind, names in known.items() for name in names if f"{name} =" in text
    )
    model = parse(
        f"(float[B, 3, 8] image, float[B, T, 8] text{inputs}) => ({output}) "
        f"<{values}> {{ {text} }}",
        **WEIGHTS,
    )
    for value in every_value(model.graph):
        if value.shape is not None:
            dims = [d if isinstance(d, int) else d.value for d in value.shape]
            value.shape = ir.Shape([whole if dim == "N" else dim for dim in dims])
    for number, attention in enumerate(attentions(model.graph)):
        attention.node.name = attention.node.metadata_props[SITE] = f"layer{number}"
    return model


def every_value(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(out for node in graph for out in node.outputs)]


def feeds(model: ir.Model, batch: int = 2, tokens: int = 4) -> dict[str, np.ndarray]:
    """Seeded inputs of a graph."""
    rng, found = np.random.default_rng(1), {}
    sizes = {"B": batch, "T": tokens, "T + 3": tokens + IMAGE}
    for value in model.graph.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        array = rng.standard_normal(shape)
        if value.dtype == ir.DataType.BOOL:
            array = array > 0
            array[..., 0] = True
        elif not value.dtype.is_floating_point():
            array = rng.integers(0, 2, shape)
        found[str(value.name)] = array
    return found


def cut(
    model: ir.Model, context: Sequence[str] = ("image",)
) -> tuple[ir.Model, PrefixReuse | None]:
    """Cut the tokens apart, which changes no number of the graph, and nothing of the given one."""
    given = feeds(model)
    text = ir.to_proto(model).SerializeToString(deterministic=True)
    apart, found = cut_prefix(model, context)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == text
    assert [v.name for v in apart.graph.outputs] == [v.name for v in model.graph.outputs]
    same_numbers(computed(model, given), computed(apart, given))
    return apart, found


def in_stages(model: ir.Model, context: Sequence[str] = ("image",), fan_out: int = 3) -> Split:
    """Split the graph that was cut; two contexts, with several queries on each, give the numbers of
    the whole graph."""
    apart, _ = cut(model, context)
    parts = split(apart, context, {"B": 2, "T": 4})
    given = feeds(model, 2 * fan_out)
    own = {name: given[name][::fan_out] for name in context}
    (truth,) = computed(model, given | {n: a.repeat(fan_out, 0) for n, a in own.items()})
    handed = dict(zip(parts.frontier, computed(parts.context, own), strict=True))
    queries = {name: array for name, array in given.items() if name not in context}
    (got,) = computed(parts.query, queries | handed)
    np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-7)
    return parts
