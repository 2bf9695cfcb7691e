"""What int8 does to each layer, which have to stay for it, and what these cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse import ParityError
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.precision.fewest import MAX_TRIALS, AddedError, Trials, fewest
from crossfuse.targets.quantize.layer_search import most_sensitive, search_layers
from crossfuse.targets.quantize.layer_times import seconds_saved
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rewrite import WHOLE, RoundedWeights, rewrite
from crossfuse.targets.quantize.sensitivity import Sensitivity, sensitivities
from onnx_building import normal
from onnx_text import parse

COUNT, N = 4, 32
SCALE = np.ones(N, np.float32)
SCALE[5] = 500.0
POINTS = [{"x": normal(6, N, seed=s)} for s in (8, 9)]


def chain() -> ir.Model:
    """Four layers; what the third is given has a channel of outliers, which its weights undo."""
    weights = {f"w{i}": normal(N, N, seed=i) / 6 for i in range(COUNT)}
    weights["w2"] = weights["w2"] / SCALE[:, None]
    return parse(
        f"""(float[b, {N}] x) => (float[b, {N}] y) {{
              a = MatMul(x, w0) b1 = Tanh(a) c = MatMul(b1, w1) d = Mul(c, scale)
              e = MatMul(d, w2) f = Tanh(e) y = MatMul(f, w3) }}""",
        **weights,
        scale=SCALE,
    )


def measured() -> list[Sensitivity]:
    return sensitivities(chain(), POINTS, WHOLE, RoundedWeights())


def test_each_layer_is_measured_on_exact_inputs() -> None:
    """Against each layer quantised alone, its results read one at a time."""
    found = {one.layer.site: one for one in measured()}
    assert len(found) == COUNT
    for site, result in (("n0", "a"), ("n2", "c"), ("n4", "e"), ("n6", "y")):
        worst = 0.0
        for point in POINTS:
            pair = []
            for quantise in (False, True):
                model = chain()
                if quantise:
                    chosen = [(one, WHOLE) for one in linear_layers(model) if one.site == site]
                    rewrite(model, chosen, RoundedWeights())
                values = {o.name: o for node in model.graph for o in node.outputs}
                model.graph.outputs[:] = [values[result]]
                pair.append(run_once(model, point)[0].astype(np.float64))
            worst = max(worst, float(np.linalg.norm(pair[1] - pair[0]) / np.linalg.norm(pair[0])))
        assert found[site].error == pytest.approx(worst, rel=1e-2)
        assert found[site].rows == 6


def test_outliers_come_first_and_are_named() -> None:
    ranked = measured()
    assert ranked[0].layer.site == "n4"
    assert ranked[0].error > 10 * ranked[1].error
    assert most_sensitive(ranked).startswith("n4 (")


def test_small_rows_beside_large_ones_are_seen() -> None:
    """Rounded as the largest one is, they are lost; the whole hardly errs."""
    sizes = np.array([1000, 1, 1, 1, 1, 1], np.float32)[:, None]
    found = sensitivities(
        parse(
            f"""(float[6, {N}] x) => (float[6, {N}] y) {{
                  s = Mul(x, sizes) m = MatMul(s, w) d = Div(m, sizes) y = MatMul(d, w) }}""",
            w=normal(N, N),
            sizes=sizes,
        ),
        POINTS,
        WHOLE,
        RoundedWeights(),
    )
    assert [one.layer.site for one in found] == ["n1", "n3"]
    assert found[0].error < 0.02
    assert found[0].row_error > 0.5
    assert found[0].worst == found[0].row_error
    assert found[1].worst < 0.05


def test_a_short_list_is_found() -> None:
    asked: list[set[str]] = []

    def passes(keep: Mapping[str, str]) -> bool:
        asked.append(set(keep))
        return "n4" in keep

    kept = search_layers(measured, passes)
    assert [one.layer.site for one in kept] == ["n4"]
    assert asked[0] == set(), "plain int8 first"
    assert len(asked) <= MAX_TRIALS
    assert search_layers(measured, lambda _: True) == []
    with pytest.raises(ParityError, match="doesn't hold in int8, even with all linear layers"):
        search_layers(measured, lambda _: False)


@pytest.mark.parametrize("needed", [1, 2, 3, 31, 32, 33, 99, 100])
def test_the_fewest_of_a_ranking(needed: int) -> None:
    said: list[str] = []
    trials = Trials(lambda keep: len(keep) >= needed, said.append, "int8", "layers")
    ranked = [AddedError(f"n{i}", 1.0 - i / 100) for i in range(100)]
    found = fewest(trials, {}, ranked)
    assert found is not None
    assert needed <= found <= max(needed + 4, needed * 1.1)
    assert trials.count == len(said) <= MAX_TRIALS - 1
    assert fewest(Trials(lambda _: False, said.append, "int8", "layers"), {}, ranked) is None


def test_time_of_what_stays_is_measured() -> None:
    ranked = measured()[:2]
    found = seconds_saved(ranked, WHOLE)
    assert set(found) == {one.layer.site for one in ranked}
    assert all(abs(seconds) < 1.0 for seconds in found.values())
