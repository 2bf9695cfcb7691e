"""Sigmoids whose small values matter are exact; gates keep their operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.export.passes.exact_sigmoids import ExactSigmoidsPass
from onnx_building import Graph, run
from small_graphs import applied, counts, model_of, untouched

Form = Callable[[Graph, str], str]


def sigmoid(form: Form) -> ir.Model:
    g = Graph()
    x = g.input("x", ["N"])
    y = form(g, x)
    g.nodes[-1].output[0] = "y"
    g.output("y", ["N"])
    assert y
    return model_of(g)


SENSITIVE: dict[str, Form] = {
    "logarithm": lambda g, x: g.op("Log", g.op("Sigmoid", x)),
    "quotient": lambda g, x: g.op("Div", x, g.op("Sigmoid", x)),
    "reciprocal": lambda g, x: g.op("Reciprocal", g.op("Sigmoid", x)),
    "root": lambda g, x: g.op("Sqrt", g.op("Sigmoid", x)),
    "power": lambda g, x: g.op("Pow", g.op("Sigmoid", x), g.weight(0.5, np.float32)),
    "product": lambda g, x: g.op("Log", g.op("Mul", g.op("Sigmoid", x), g.weight(2, np.float32))),
    "moved": lambda g, x: g.op("Log", g.op("Identity", g.op("Sigmoid", x))),
    "output": lambda g, x: g.op("Sigmoid", x),
    "moved output": lambda g, x: g.op("Identity", g.op("Sigmoid", x)),
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_small_values_that_matter(name: str, tmp_path: Path) -> None:
    """Right at −40, where a kernel that is right to 1e-8 gives 0, against float64."""
    model = sigmoid(SENSITIVE[name])
    assert applied(ExactSigmoidsPass(), model).modified
    assert "Sigmoid" not in counts(model)
    assert counts(model)["Reciprocal"] == 1 + (name == "reciprocal")
    x = np.array([-40.0, -20.0, 0.0, 1.0], np.float32)
    small = 1 / (1 + np.exp(-x.astype(np.float64)))
    expected = {
        "logarithm": np.log(small),
        "quotient": x / small,
        "reciprocal": 1 / small,
        "root": np.sqrt(small),
        "power": np.sqrt(small),
        "product": np.log(2 * small),
        "moved": np.log(small),
    }.get(name, small)
    path = tmp_path / "g.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    (got,) = run(path, {"x": x})
    np.testing.assert_allclose(got, expected, rtol=2e-6)


GATES: dict[str, Form] = {
    "SiLU and a residual": lambda g, x: g.op("Add", x, g.op("Mul", x, g.op("Sigmoid", x))),
    "scaled": lambda g, x: g.op("Neg", g.op("Div", g.op("Sigmoid", x), g.weight(2, np.float32))),
    "subtracted": lambda g, x: g.op(
        "Log", g.op("Sub", g.weight(2, np.float32), g.op("Sigmoid", x))
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_stay(name: str) -> None:
    untouched(ExactSigmoidsPass(), sigmoid(GATES[name]))
