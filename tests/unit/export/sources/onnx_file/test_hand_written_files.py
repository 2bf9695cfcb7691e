"""Files as people and old tools write them: scores made flat for the softmax, masks as a product
with zeros and ones, nodes in any order. Each equals its formula in float64, at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from crossfuse.errors import InputError
from crossfuse.export.fuse import FusedGraph, fuse
from crossfuse.export.sources.onnx_file.load import OnnxModule, onnx_spec
from crossfuse.targets.onnxruntime import lower_ort_cpu
from graphs_for_tests import run_model
from onnx_building import FLOAT, INT64, Graph, attention, normal, run, softmax

W, H, D = 16, 4, 4
WEIGHTS = [normal(W, W, seed=seed) / 3 for seed in range(3)]
Feeds = dict[str, np.ndarray]


def heads(g: Graph, value: str, weight: np.ndarray, *order: int) -> str:
    wide = g.op("Reshape", g.op("MatMul", value, g.weight(weight)), g.ints(0, 0, H, D))
    return g.op("Transpose", wide, perm=order)


def written(between: Callable[[Graph, str], str], keys: str = "y") -> Graph:
    """Attention of four heads; ``between`` makes probabilities of scores that have their scale."""
    g = Graph()
    g.input("x", ["b", "n", W])
    if keys == "y":
        g.input("y", ["b", "m", W])
        g.input("mask", ["b", "m"], INT64)
    q, v = (heads(g, t, w, 0, 2, 1, 3) for t, w in (("x", WEIGHTS[0]), (keys, WEIGHTS[2])))
    k = heads(g, keys, WEIGHTS[1], 0, 2, 3, 1)
    scores = g.op("Mul", g.op("MatMul", q, k), g.weight(np.float32(0.5)))
    out = g.op("Transpose", g.op("MatMul", between(g, scores), v), perm=[0, 2, 1, 3])
    g.op("Reshape", out, g.ints(0, 0, W), outputs=["out"])
    g.output("out", ["b", "n", W])
    return g


def feeds(b: int, n: int, m: int) -> Feeds:
    mask = (np.random.default_rng(n * m).random((b, m)) > 0.4).astype(np.int64)
    mask[-1] = 0 if b > 1 else 1  # a row that sees nothing, and one that sees something
    return {"x": normal(b, n, W), "y": normal(b, m, W, seed=1), "mask": mask}


SIZES = [feeds(2, 3, 5), feeds(1, 6, 4), feeds(3, 1, 7)]


def truth(f: Feeds, seen: np.ndarray | None = None, low: float = 0.0) -> np.ndarray:
    """In float64, with ``low`` in the place of scores that are not seen."""
    keys = f.get("y", f["x"])
    q, k, v = (
        (t.astype(np.float64) @ w).reshape(*t.shape[:2], H, D).transpose(0, 2, 1, 3)
        for t, w in zip((f["x"], keys, keys), WEIGHTS, strict=True)
    )
    scores = q @ k.swapaxes(-1, -2) / 2
    out = softmax(scores if seen is None else np.where(seen, scores, low)) @ v
    return out.transpose(0, 2, 1, 3).reshape(*f["x"].shape[:2], W)


def fused(path: str, kinds: dict[str, int]) -> FusedGraph:
    graph = fuse(onnx_spec(path))
    assert graph.ledger.counts() == kinds, [row.reasons for row in graph.ledger]
    return graph


def require_equal(path: str, expected: Callable[[Feeds], np.ndarray], kind: str = "cross") -> None:
    graph = fused(path, {kind: 1})
    lowered = lower_ort_cpu(graph.model)
    assert set(lowered.kernels) == {row.site for row in graph.ledger}
    names = [value.name for value in lowered.model.graph.inputs]
    for each in SIZES:
        given = {name: each[name] for name in names}
        np.testing.assert_allclose(run_model(lowered.model, given)[0], expected(given), atol=2e-5)


# Scores made flat


def flat(axis: int, **attributes: int) -> Callable[[Graph, str], str]:
    def between(g: Graph, scores: str) -> str:
        normal_ = g.op("Softmax", g.op("Flatten", scores, axis=axis), **attributes)
        return g.op("Reshape", normal_, g.op("Shape", scores))

    return between


@pytest.mark.parametrize(("opset", "axis"), [(9, 3), (11, 3), (11, -1), (13, -1)])
def test_scores_are_made_flat_for_the_softmax(tmp_path: Path, opset: int, axis: int) -> None:
    """``[rows, keys]``, for a softmax of two axes."""
    path = written(flat(axis)).save(tmp_path / "flat.onnx", opset, 6)
    require_equal(path, truth)


@pytest.mark.parametrize("axis", [2, 1])
def test_a_softmax_over_several_axes_is_none_of_keys(tmp_path: Path, axis: int) -> None:
    """As before opset 13; the reason is the softmax, and not how it was made flat."""
    g = written(lambda g, scores: g.op("Softmax", scores, axis=axis))
    graph = fused(g.save(tmp_path / "old.onnx", 11, 6), {"unknown": 1})
    (row,) = graph.ledger
    assert row.reasons["capture"] == "its softmax is over another axis than the keys'"
    given = SIZES[0]
    got = run_model(lower_ort_cpu(graph.model).model, {n: given[n] for n in ("x", "y", "mask")})
    np.testing.assert_allclose(got[0], run(tmp_path / "old.onnx", given)[0], atol=1e-5)


# Masks as products


def ones_where_seen(g: Graph) -> str:
    seen = g.op("Equal", "mask", g.weight(1, np.int64))
    return g.op("Unsqueeze", seen, g.ints(1, 2))


def minus_what_is_hidden(g: Graph, scores: str) -> str:
    ones = g.op("Cast", ones_where_seen(g), to=FLOAT)
    hidden = g.op("Sub", g.weight(np.float32(1)), ones)
    return g.op("Sub", g.op("Mul", scores, ones), g.op("Mul", hidden, g.weight(np.float32(1e9))))


def plus_what_is_hidden(g: Graph, scores: str) -> str:
    seen = ones_where_seen(g)
    hidden = g.op("Cast", g.op("Not", seen), to=FLOAT)
    low = g.op("Mul", g.weight(np.float32(-1e9)), hidden)
    return g.op("Add", low, g.op("Mul", g.op("Cast", seen, to=FLOAT), scores))


def plus_a_choice(g: Graph, scores: str) -> str:
    seen = ones_where_seen(g)
    low = g.op("Where", seen, g.weight(np.float32(0)), g.weight(np.float32(-1e9)))
    return g.op("Add", g.op("Mul", scores, g.op("Cast", seen, to=FLOAT)), low)


@pytest.mark.parametrize("how", [minus_what_is_hidden, plus_what_is_hidden, plus_a_choice])
def test_masks_as_a_product(tmp_path: Path, how: Callable[[Graph, str], str]) -> None:
    """``scores · m + low · (1 − m)`` fills; rows that see nothing average the values."""
    g = written(lambda g, scores: g.op("Softmax", how(g, scores), axis=3))
    require_equal(
        g.save(tmp_path / "product.onnx", 13),
        lambda f: truth(f, f["mask"][:, None, None] > 0, -1e9),
    )


def test_a_causal_table_as_a_product(tmp_path: Path) -> None:
    """A table of zeros and ones, cut to the length at hand."""

    def between(g: Graph, scores: str) -> str:
        table = g.weight(np.tril(np.ones((1, 1, 32, 32))), np.float32)
        length = g.op("Slice", g.op("Shape", "x"), g.ints(1), g.ints(2))
        ends = g.op("Concat", length, length, axis=0)
        ones = g.op("Slice", table, g.ints(0, 0), ends, g.ints(2, 3))
        hidden = g.op("Sub", g.weight(np.float32(1)), ones)
        low = g.op("Mul", g.weight(np.float32(-1e4)), hidden)
        return g.op("Softmax", g.op("Add", g.op("Mul", scores, ones), low), axis=3)

    def expected(f: Feeds) -> np.ndarray:
        n = f["x"].shape[1]
        return truth(f, np.tril(np.ones((n, n))) > 0, -1e4)

    path = written(between, "x").save(tmp_path / "causal.onnx", 13)
    require_equal(path, expected, "self")


def other_half(g: Graph, scores: str) -> str:
    """What is added hides the keys that are seen."""
    ones = g.op("Cast", ones_where_seen(g), to=FLOAT)
    low = g.op("Mul", ones, g.weight(np.float32(-1e9)))
    return g.op("Add", g.op("Mul", scores, ones), low)


def any_number(g: Graph, scores: str) -> str:
    """What multiplies need not be zeros and ones."""
    numbers = g.op("Unsqueeze", g.op("Cast", "mask", to=FLOAT), g.ints(1, 2))
    hidden = g.op("Sub", g.weight(np.float32(1)), numbers)
    return g.op("Sub", g.op("Mul", scores, numbers), g.op("Mul", hidden, g.weight(np.float32(1e9))))


@pytest.mark.parametrize("how", [other_half, any_number])
def test_products_that_are_no_mask(tmp_path: Path, how: Callable[[Graph, str], str]) -> None:
    g = written(lambda g, scores: g.op("Softmax", how(g, scores), axis=3))
    (row,) = fused(g.save(tmp_path / "product.onnx", 13), {"unknown": 1}).ledger
    assert "multiplied by a tensor that differs from key to key" in row.reasons["capture"]


# Nodes in any order


def test_nodes_may_stand_in_any_order(tmp_path: Path) -> None:
    """As ONNX Runtime reads them, and as its converter to half precision writes them."""
    g = written(lambda g, scores: g.op("Softmax", scores, axis=3))
    g.nodes.reverse()
    path = g.save(tmp_path / "reversed.onnx", 13)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(path)
    require_equal(path, truth)
    (got,) = (
        OnnxModule(Path(path))
        .double()(**{name: torch.from_numpy(SIZES[0][name]) for name in ("x", "y", "mask")})
        .values()
    )
    np.testing.assert_allclose(got.numpy(), truth(SIZES[0]), atol=1e-6)


def test_a_circle_of_nodes_is_refused(tmp_path: Path) -> None:
    g = Graph()
    g.input("x", ["b", 4])
    g.op("Add", "x", "back", outputs=["there"])
    g.op("Neg", "there", outputs=["back"])
    g.output("back", ["b", 4])
    with pytest.raises(InputError, match="can't be read"):
        onnx_spec(g.save(tmp_path / "circle.onnx"))


def test_the_formula_is_that_of_other_tests() -> None:
    f = SIZES[0]
    q, k, v = (
        t.astype(np.float64) @ w for t, w in zip((f["x"], f["y"], f["y"]), WEIGHTS, strict=True)
    )
    np.testing.assert_allclose(truth(f), attention(q, k, v, H, scale=0.5))
