"""Tokens of the context in front of the queries' are computed apart, wherever no number changes."""

from __future__ import annotations

import re

import pytest

from crossfuse.bundle.manifest import PrefixReuse
from crossfuse.export.split.dependence import Content, Dependence
from crossfuse.graph.attention_node import attentions
from prefix_graphs import ROWS, attend, cut, in_stages, layer, made

PLAIN = [layer(0, attend()), layer(1, attend(layer=1))]
BOTH = PrefixReuse(3, ("layer0", "layer1"))
MASKED = [
    layer(0, attend("q0, k0, v0, mask", "none")),
    layer(1, attend("q1, k1, v1, mask", "none", 1)),
]
BIASED = [layer(0, attend("q0, k0, v0, , bias", "none")), layer(1, attend(layer=1))]
MASK = "mask = Unsqueeze(causal, heads)"
FRONT = """sum = ReduceSum<keepdims = 0>(image, minus) front = Greater(sum, null)
           padding = Concat<axis = 1>(front, seen) mask0 = Unsqueeze(causal, heads)"""
PADDED = f"""{FRONT} bs = Shape<start = 0, end = 1>(image) bn = Squeeze(bs)
             br = Range(zero, bn, one) b4 = Unsqueeze(br, behind) k4 = Unsqueeze(r, before)
             most = Max(b4, k4) shape = Shape(most) be = Expand(b4, shape) ke = Expand(k4, shape)
             bu = Unsqueeze(be, minus) ku = Unsqueeze(ke, minus)
             places = Concat<axis = 4>(bu, ku)"""
PADDED_SHAPES = {
    "float[B, 3]": ("sum",),
    "bool[B, 3]": ("front",),
    "bool[B, N]": ("padding",),
    "bool[1, 1, N, N]": ("mask0",),
    "int64[B]": ("br",),
    "int64[B, 1, 1, 1]": ("b4",),
    "int64[1, 1, 1, N]": ("k4",),
    "int64[4]": ("shape",),
    "int64[B, 1, 1, N]": ("most", "be", "ke"),
    "int64[B, 1, 1, N, 1]": ("bu", "ku"),
    "int64[B, 1, 1, N, 2]": ("places",),
    "bool[B, 1, 1, N]": ("g",),
    "bool[B, 1, N, N]": ("mask",),
}
"""A padding mask of the queries behind one of the context, taken at the places of the keys."""

ONE_PADDED = PADDED.replace(
    FRONT,
    """padding = Concat<axis = 1>(seen_first, seen)
                            mask0 = Unsqueeze(causal, heads)""",
).replace("bn = Squeeze(bs)", "bn = Identity(one)")
ONE_PADDED_SHAPES = {
    "bool[1, N]": ("padding",),
    "bool[1, 1, N, N]": ("mask0", "mask"),
    "int64[1]": ("br", "s"),
    "int64[1, 1, 1, 1]": ("b4",),
    "int64[4]": ("shape",),
    "int64[1, 1, 1, N]": ("k4", "most", "be", "ke"),
    "int64[1, 1, 1, N, 1]": ("bu", "ku"),
    "int64[1, 1, 1, N, 2]": ("places",),
    "bool[1, 1, 1, N]": ("g",),
}
"""The same of a batch that is always one row."""

CUT = {
    "plain": made(PLAIN),
    "text alone": made(
        PLAIN,
        behind="y = Slice(x2, first, end, at)",
        output="float[B, T, 8] y",
    ),
    "last token": made(PLAIN, behind="y = Slice(x2, minus, end, at)", output="float[B, 1, 8] y"),
    "positions": made(
        PLAIN,
        join="""m = MatMul(image, wi) j = Concat<axis = 1>(m, text)
                s = Shape<start = 1, end = 2>(j) n = Squeeze(s) r = Range(zero, n, one)
                e = Gather(table, r) x0 = Add(j, e)""",
        shapes={"float[B, N, 8]": ("x0", "o0", "o1", "j"), "float[N, 8]": ("e",)},
    ),
    "a learned token in front": made(
        PLAIN,
        join="""m = MatMul(image, wi) b = Shape<start = 0, end = 1>(image)
                bt = Concat<axis = 0>(b, at, eight) t = Expand(bos, bt)
                x0 = Concat<axis = 1>(t, m, text)""",
        shapes={"float[B, 1, 8]": ("t",)},
        whole="T + 4",
    ),
    "joined twice": made(
        PLAIN,
        join="""m = MatMul(image, wi) j = Concat<axis = 1>(m, text)
                x0 = Concat<axis = 1>(j, text)""",
        shapes={"float[B, N2, 8]": ("x0", "o0", "o1", "y"), "float[B, N, 8]": ("j",)},
        output="float[B, N2, 8] y",
    ),
    "mask": made(MASKED, before=f"{ROWS} {MASK}", shapes={"bool[1, 1, N, N]": ("mask",)}),
    "bias of -inf": made(
        BIASED,
        before=f"{ROWS} f = Where(causal, null, inf) bias = Unsqueeze(f, heads)",
        shapes={"float[1, 1, N, N]": ("bias",), "float[N, N]": ("f",)},
    ),
    "low bias": made(
        BIASED,
        before=f"{ROWS} f = Where(causal, null, low) bias = Unsqueeze(f, heads)",
        shapes={"float[1, 1, N, N]": ("bias",), "float[N, N]": ("f",)},
    ),
    "layout of a mask": made(
        MASKED,
        before=f"{ROWS} u = Unsqueeze(causal, heads) sq = Shape(u) mask = Reshape(u, sq)",
        shapes={"bool[1, 1, N, N]": ("mask", "u"), "int64[4]": ("sq",)},
    ),
    "padding taken by positions": made(
        MASKED,
        inputs=", bool[B, T] seen",
        before=f"{ROWS} {PADDED} g = GatherND(padding, places) mask = And(mask0, g)",
        shapes=PADDED_SHAPES,
    ),
    "padding of one row": made(
        MASKED,
        inputs=", bool[1, T] seen",
        before=f"""{ROWS} {ONE_PADDED} g = GatherND(padding, places) mask = And(mask0, g)""",
        shapes=ONE_PADDED_SHAPES,
    ),
    "padding looked up": made(
        MASKED,
        inputs=", bool[B, T] seen",
        before=f"""{ROWS} {FRONT} g2 = Gather<axis = 1>(padding, r) g = Unsqueeze(g2, inner)
                   mask = And(mask0, g)""",
        shapes=PADDED_SHAPES | {"bool[B, N]": ("padding", "g2")},
    ),
    "keys alone": made(
        ["k0 = MatMul(x0, wk) v0 = MatMul(x0, wv)", attend("text, k0, v0", "none")],
        behind="y = Relu(o0)",
        output="float[B, T, 8] y",
        shapes={"float[B, N, 8]": ("x0",), "float[B, T, 8]": ("o0", "y")},
    ),
}
"""Graphs, and that all of their attentions have keys in two parts."""


@pytest.mark.parametrize("name", list(CUT))
def test_keys_of_the_context_depend_on_it_alone(name: str) -> None:
    model = CUT[name]
    apart, found = cut(model)
    assert found is not None
    sites = tuple(attention.site for attention in attentions(model.graph))
    assert (found.attentions, found.reason) == (sites, "")
    dependence = Dependence(apart.graph, ["image"])
    for attention in attentions(apart.graph):
        if attention.node.name == attention.site:
            first, *_, last = attention.key.producer().inputs  # type: ignore[union-attr]
            assert dependence.early(first)  # type: ignore[arg-type]
            assert Content.QUERY in dependence.of(last)


@pytest.mark.parametrize("name", list(CUT))
def test_stages_give_the_numbers_of_the_whole_graph(name: str) -> None:
    parts = in_stages(CUT[name])
    handed = [name for name in parts.frontier if name.endswith((".key", ".value"))]
    assert len(handed) == 2 * len(list(attentions(CUT[name].graph)))
    if name in ("text alone", "last token", "keys alone"):
        assert len(handed) == len(parts.frontier)


KEPT = {
    "sees everything": (
        made([layer(0, attend(causal="none")), layer(1, attend(causal="none", layer=1))]),
        "no causal mask is known to hide it",
    ),
    "sees the next token": (
        made(
            MASKED,
            before=f"""{ROWS} d = Sub(column, row) c = LessOrEqual(d, one)
                       mask = Unsqueeze(c, heads)""",
            shapes={
                "bool[1, 1, N, N]": ("mask",),
                "int64[N, N]": ("d",),
                "bool[N, N]": ("c", "causal"),
            },
        ),
        "no causal mask is known to hide it",
    ),
    "a mask of the queries over all tokens": (
        made(
            MASKED,
            inputs=", bool[B, 1, 1, N] seen4",
            before=f"{ROWS} mask0 = Unsqueeze(causal, heads) mask = And(mask0, seen4)",
            shapes={"bool[B, 1, N, N]": ("mask",), "bool[1, 1, N, N]": ("mask0",)},
        ),
        "the input seen4 of the queries holds something for each of its tokens, too",
    ),
    "positions of the queries": (
        made(
            PLAIN,
            join="m = MatMul(image, wi) j = Concat<axis = 1>(m, text) x0 = Add(j, places)",
            inputs=", float[B, N, 8] places",
            shapes={"float[B, N, 8]": ("x0", "o0", "o1", "j")},
        ),
        "the input places of the queries",
    ),
    "scaled by the queries": (
        made(
            PLAIN,
            join="m = MatMul(image, wi) j = Concat<axis = 1>(m, text) x0 = Mul(j, factor)",
            inputs=", float[B, 1, 8] factor",
            shapes={"float[B, N, 8]": ("x0", "o0", "o1", "j")},
        ),
        "they are computed with factor of the queries",
    ),
    "behind the text": (
        made(PLAIN, join="m = MatMul(image, wi) x0 = Concat<axis = 1>(text, m)"),
        "the context's tokens stand behind those of the queries",
    ),
    "scattered": (
        made(
            PLAIN,
            join="m = MatMul(image, wi) x0 = ScatterND(text, places, m)",
            inputs=", int64[B, 3, 2] places",
            shapes={"float[B, T, 8]": ("x0", "o0", "o1", "y")},
            output="float[B, T, 8] y",
        ),
        r"where the context's tokens stand is computed from the queries \(ScatterND, by places\)",
    ),
}


@pytest.mark.parametrize("name", list(KEPT))
def test_what_cannot_be_told_apart_stays_and_says_why(name: str) -> None:
    model, reason = KEPT[name]
    apart, found = cut(model)
    assert apart is model
    assert found is not None
    assert (found.rows, found.attentions) == (None, ())
    assert re.search(reason, found.reason)


def test_what_stands_apart_already_is_nothing_to_cut() -> None:
    """Cross-attention needs no cut, and nothing is said of it."""
    model = made(
        [layer(0, attend("q0, image, image", "none"))],
        join="x0 = Relu(text)",
        behind="y = Relu(x1)",
        output="float[B, T, 8] y",
        shapes={"float[B, T, 8]": ("x0", "o0", "y"), "float[B, N, 8]": ()},
    )
    assert cut(model) == (model, None)


def test_an_attention_that_sees_all_ends_it() -> None:
    """Keys of the layer before are computed apart; what comes behind is whole."""
    model = made([layer(0, attend()), layer(1, attend(causal="none", layer=1))])
    _, found = cut(model)
    assert found == PrefixReuse(3, ("layer0",))
    in_stages(model)
