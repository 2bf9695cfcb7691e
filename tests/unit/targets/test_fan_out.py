"""Folding, masks and padding that every lowering shares, against NumPy."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.graph.attention_node import attentions
from crossfuse.targets.fan_out import LoweringBuilder, Site
from graphs_for_tests import Case
from small_graphs import computed


def emitted(
    case: Case, form: Callable[[LoweringBuilder, Site], ir.Value | None]
) -> np.ndarray | None:
    """What a form emits for a case's attention, computed from the case's inputs."""
    model = case.model()
    (attention,) = attentions(model.graph)
    build = LoweringBuilder(np.dtype(np.float32))
    made = form(build, Site.of(attention))
    if made is None:
        return None
    made = build.op("Identity", made)
    build.insert_before(attention.node)
    model.graph.outputs[:] = [made]
    made.name = "made"
    model.graph.remove(attention.node)
    inputs = case.inputs()
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in inputs.items()}
    (found,) = computed(model, wide)
    return found


FANNED = Case(contexts=2, fan_out=3)


def test_queries_fold_into_their_contexts() -> None:
    query = FANNED.inputs()["query"]
    got = emitted(FANNED, lambda build, site: build.fold_query(site))
    assert got is not None
    np.testing.assert_array_equal(got, query.reshape(2, 3 * FANNED.length, -1))
    back = emitted(FANNED, lambda b, s: b.unfold_output(s, b.fold_query(s)))
    np.testing.assert_array_equal(back, query)


@pytest.mark.parametrize("batch", ["1", "k", "q"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_masks_fold_with_them(batch: str, rows: bool, known: bool) -> None:
    case = Case(
        fan_out=3, mask=True, mask_batch=batch, mask_rows=rows, mask_heads=True, known_shapes=known
    )
    mask = case.inputs()["mask"]
    got = emitted(case, lambda build, site: build.attended(site))
    assert got is not None
    batches = {"1": 1, "k": case.contexts, "q": case.contexts * 3}[batch]
    whole = np.broadcast_to(mask, (batches, 2, case.length, case.keys))
    per_query = np.stack([whole[{"1": 0, "k": q // 3, "q": q}[batch]] for q in range(6)])
    folded = per_query.reshape(2, 3, 2, case.length, case.keys).transpose(0, 2, 1, 3, 4)
    expected = folded.reshape(2, 2, 3 * case.length, case.keys)
    np.testing.assert_array_equal(np.broadcast_to(got, expected.shape), expected)


@pytest.mark.parametrize("causal", ["upper_left", "lower_right"])
@pytest.mark.parametrize("fan_out", [1, 2])
def test_lengths_and_causality_join(causal: str, fan_out: int) -> None:
    case = Case(fan_out=fan_out, lengths=True, causal=causal)
    got = emitted(case, lambda build, site: build.attended(site))
    assert got is not None
    rows, keys = np.arange(case.length)[:, None], np.arange(case.keys)
    last = rows + (case.keys - case.length if causal == "lower_right" else 0)
    seen = np.tile(keys <= last, (fan_out, 1))
    valid = keys < case.inputs()["key_lengths"][:, None]
    np.testing.assert_array_equal(got[:, 0], seen[None] & valid[:, None])
    without = emitted(case, lambda build, site: build.attended(site, skip_causal=True))
    assert without is not None
    np.testing.assert_array_equal(without[:, 0, 0], valid)


def test_nothing_removes_keys() -> None:
    assert emitted(Case(), lambda build, site: build.attended(site)) is None
    assert emitted(Case(), lambda build, site: build.additive(site, None, None)) is None


def test_additive_masks() -> None:
    case = Case(mask=True, bias=True)
    given = case.inputs()

    def form(build: LoweringBuilder, site: Site) -> ir.Value | None:
        return build.additive(site, build.attended(site), site.bias)

    got = emitted(case, form)
    np.testing.assert_array_equal(got, np.where(given["mask"], given["bias"], -np.inf))


@pytest.mark.parametrize(("more", "multiple"), [(1, 8), (0, 7), (3, 5)])
@pytest.mark.parametrize("known", [True, False])
def test_keys_are_padded(more: int, multiple: int, known: bool) -> None:
    def form(build: LoweringBuilder, site: Site) -> ir.Value:
        return build.longer(site.key, 1, build.rest(site.key, 1, multiple), 9.0)

    case = Case(known_shapes=known)
    got = emitted(case, form)
    assert got is not None
    key = case.inputs()["key"]
    np.testing.assert_array_equal(got[:, : case.keys], key)
    assert got.shape[1] == case.keys + more
    assert (got[:, case.keys :] == 9).all()


def test_without_pad_it_is_a_concatenation() -> None:
    """In bfloat16 the CUDA provider has no Pad."""
    build = LoweringBuilder(np.dtype(ml_dtypes.bfloat16))
    kind = ir.TensorType(ir.DataType.BFLOAT16)
    value = ir.Value(name="x", shape=ir.Shape([2, 3, 4]), type=kind)
    made = build.longer(value, 1, build.ints(2), 0)
    assert {node.op_type for node in build.nodes} == {"Constant", "Concat", "Expand"}
    assert made.shape is not None
    assert made.shape[0] == 2
    assert made.shape[2] == 4


@pytest.mark.parametrize(
    ("case", "folded", "square", "never_empty", "causal_alone", "one_head"),
    [
        (Case(), False, False, True, False, True),
        (Case(fan_out=2), True, False, True, False, True),
        (Case(causal="upper_left"), False, False, True, True, True),
        (Case(causal="lower_right"), False, False, False, False, True),
        (Case(causal="upper_left", mask=True, mask_heads=True), False, False, False, False, False),
        (Case(causal="upper_left", fan_out=2), True, False, True, False, True),
        (Case(bias=True), False, False, False, False, True),
        (Case(lengths=True), False, False, False, False, True),
    ],
)
def test_what_is_known_of_a_site(
    case: Case, folded: bool, square: bool, never_empty: bool, causal_alone: bool, one_head: bool
) -> None:
    (attention,) = attentions(case.model().graph)
    site = Site.of(attention)
    assert site.name == "site"
    found = (site.folded, site.square, site.never_empty, site.causal_alone, site.rows_of_one_head)
    assert found == (folded, square, never_empty, causal_alone, one_head)
    assert (site.num_heads, site.kv_num_heads) == (case.heads, case.kv_heads)
    assert (site.scale, site.causal) == (pytest.approx(0.37), case.causal)


@pytest.mark.parametrize("source", ["input", "lowest", "small"])
def test_the_lowest_number_moves_up_only_where_it_may_be(source: str) -> None:
    build = LoweringBuilder(np.dtype(np.float32))
    lowest = float(np.finfo(np.float32).min)
    bias = ir.Value(name="b", type=ir.TensorType(ir.DataType.FLOAT))
    if source != "input":
        bias = build.constant([lowest if source == "lowest" else -1e4, 1.0], np.float32)
    made = build.above_lowest(bias)
    assert (made is bias) == (source == "small")
