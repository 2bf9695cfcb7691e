"""Values computed for as many tokens as a state has room for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.errors import InputError
from crossfuse.export.split.full_length import FullLength
from crossfuse.targets.cpu_run import run_once
from onnx_text import parse

LENGTH = 5


def model_of(text: str, shapes: str) -> ir.Model:
    return parse(
        f"(int64[b, t] ids) => (int64[n] y) <{shapes}> {{ {text} y = Neg(r) }}", zero=0, one=1
    )


def full(model: ir.Model) -> FullLength:
    def refusal(why: str, got: object) -> Exception:
        return InputError(why, got=got)

    graph = model.graph
    needs = {value: True for node in graph for value in node.outputs}
    return FullLength(graph, "t", LENGTH, {graph.inputs[0]}, needs, refusal)


def test_what_counts_the_tokens_counts_the_state() -> None:
    text = "n = Shape<start = 1, end = 2>(ids) c = Squeeze(n) r = Range(zero, c, one)"
    model = model_of(text, "int64[t] r")
    (last,) = (node for node in model.graph if node.op_type == "Neg")
    made = full(model)
    value = made.of(last.inputs[0], last)
    assert value.shape == ir.Shape([LENGTH])
    assert made.of(model.graph.inputs[0], last) is model.graph.inputs[0]
    last.replace_input_with(0, value)
    (found,) = run_once(model, {"ids": np.zeros((2, 3), np.int64)})
    assert found.tolist() == [0, -1, -2, -3, -4]
    assert (made.long("t"), made.long("b"), made.long("2*t")) == (LENGTH, "b", 2 * LENGTH)


def test_a_size_with_others_in_it_is_refused() -> None:
    model = parse("(int64[b, t] ids, float[m] flat) => (int64[1] y) { n = Shape(flat) y = Neg(n) }")
    model.graph.inputs[1].shape = ir.Shape(["b*t"])
    last = model.graph.outputs[0].producer()
    assert last is not None
    with pytest.raises(InputError, match="a size is merged with the token axis"):
        full(model).of(last.inputs[0], last)
