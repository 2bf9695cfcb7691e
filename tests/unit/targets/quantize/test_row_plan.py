"""Which layers round row by row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import DYNAMIC, WHOLE, RoundedWeights
from crossfuse.targets.quantize.row_plan import RowPlan, row_plan
from crossfuse.targets.quantize.sensitivity import Sensitivity, sensitivities
from crossfuse.targets.quantize.stages import quantize_stages, sites_of
from onnx_building import normal
from onnx_text import parse

N = 32
SIZES = np.array([1000, 1, 1, 1, 1, 1], np.float32)[:, None]
POINTS = [{"x": normal(6, N, seed=s)} for s in (8, 9)]


def model() -> ir.Model:
    """Two layers; the second is given one row that is far larger than the others."""
    return parse(
        f"""(float[6, {N}] x) => (float[6, {N}] y) {{
              a = MatMul(x, w0) s = Mul(a, sizes) m = MatMul(s, w1) y = Div(m, sizes) }}""",
        w0=normal(N, N, seed=1),
        w1=normal(N, N, seed=2),
        sizes=SIZES,
    )


def both() -> tuple[list[Sensitivity], list[Sensitivity]]:
    whole, rows = (
        sensitivities(model(), POINTS, form, RoundedWeights()) for form in (WHOLE, DYNAMIC)
    )
    return whole, rows


def test_layers_with_large_rows_round_row_by_row() -> None:
    plan, ranked = row_plan(*both())
    first, second = linear_layers(model())
    assert plan.takes(second)
    assert not plan.takes(first), "8 bits are enough for all its rows"
    assert max(one.worst for one in ranked) < 0.02
    graphs = {"model": model()}
    found = quantize_stages(graphs, "int8", sites_of(model()), rows=plan).graphs["model"]
    (truth,) = run_once(model(), POINTS[0])
    (got,) = run_once(found, POINTS[0])
    (whole,) = run_once(
        quantize_stages(graphs, "int8", sites_of(model())).graphs["model"], POINTS[0]
    )
    sizes = np.linalg.norm(truth, axis=1)
    assert (np.linalg.norm(got - truth, axis=1) / sizes).max() < 0.03
    assert (np.linalg.norm(whole - truth, axis=1) / sizes).max() > 0.3


def test_layers_under_other_names_are_known_by_their_weights() -> None:
    second = linear_layers(model())[1]
    assert RowPlan(weights=frozenset({second.weights_key})).takes(second)
    assert not RowPlan().takes(second)


def test_what_can_not_round_row_by_row_is_left() -> None:
    plan, ranked = row_plan(both()[0], [])
    assert plan == RowPlan()
    assert ranked[0].worst > 0.3
