"""Running a graph on ONNX Runtime's CPU provider while building."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossfuse.targets.cpu_run import opened, run_once
from onnx_building import Graph, normal
from small_graphs import model_of

WEIGHT = normal(32, 32)


def product() -> ir.Model:
    g = Graph()
    x = g.input("x", ["B", 32])
    g.op("MatMul", x, g.weight(WEIGHT), outputs=["y"])
    g.op("Neg", x, outputs=["z"])
    g.output("y", ["B", 32])
    g.output("z", ["B", 32])
    return model_of(g)


def test_outputs_come_in_the_graphs_order() -> None:
    x = normal(3, 32, seed=1)
    y, z = run_once(product(), {"x": x})
    np.testing.assert_allclose(y, x.astype(np.float64) @ WEIGHT, atol=1e-5)
    np.testing.assert_array_equal(z, -x)


def test_one_session_for_many_runs() -> None:
    with opened(product()) as run:
        for batch in (1, 4):
            x = normal(batch, 32, seed=batch)
            np.testing.assert_array_equal(run({"x": x})[1], -x)
