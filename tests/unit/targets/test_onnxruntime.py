"""Forms for ONNX Runtime's CPU provider; their numbers are tested in `test_lowering`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.tensors import NEXT, STATE
from crossfuse.ops.reference import attention_reference
from crossfuse.targets.onnxruntime import lower_ort_cpu
from graphs_for_tests import Case, run_model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(), ["Attention"]),
        (Case(causal="upper_left"), ["Attention"]),
        (Case(heads=4, kv_heads=2), ["Attention"]),
        (Case(length=7, causal="lower_right", known_shapes=False), None),  # a mask, with its nodes
    ],
)
def test_plain_forms_need_one_node(case: Case, expected: list[str] | None) -> None:
    found = operators(lower_ort_cpu(case.model()).model)
    assert found == expected if expected else found.count("Attention") == 1 and len(found) > 3


def long(case: Case) -> ir.Model:
    model = case.model()
    for value, size in zip(model.graph.inputs, (800, 7, 7), strict=True):
        assert value.shape is not None
        value.shape = ir.Shape([value.shape[0], size, value.shape[2]])
    return model


@pytest.mark.parametrize("case", [Case(), Case(heads=4, kv_heads=1, value_size=6), Case(fan_out=3)])
def test_many_queries_without_a_mask(case: Case) -> None:
    """MultiHeadAttention, grouped heads repeated; against the reference."""
    lowered = lower_ort_cpu(long(case))
    assert lowered.kernels == {"site": "MultiHeadAttention"}
    inputs = case.inputs()
    rng = np.random.default_rng(1)
    shape = (inputs["query"].shape[0], 800, inputs["query"].shape[2])
    inputs["query"] = rng.standard_normal(shape, np.float32)
    (got,) = run_model(lowered.model, inputs)
    np.testing.assert_allclose(got, attention_reference(**inputs, **case.attributes), atol=3e-6)


def stateful(case: Case) -> ir.Model:
    """The case, its keys and values those of a state that the graph hands on."""
    model = case.model()
    graph = model.graph
    (node,) = list(graph)
    for index, value in enumerate(graph.inputs[1:3], 1):
        assert value.shape is not None
        value.shape = ir.Shape([value.shape[0], case.keys, value.shape[2]])
        name, value.name = value.name, f"{STATE}{value.name}"
        kept = ir.Value(name=f"{NEXT}{name}", type=value.type, shape=value.shape)
        graph.insert_before(node, ir.Node("", "Identity", [value], outputs=[kept]))
        node.replace_input_with(index, kept)
        graph.outputs.append(kept)
    return model


@pytest.mark.parametrize(
    "case",
    [
        Case(keys=160, mask=True, mask_batch="k", mask_heads=True),
        Case(keys=160, mask=True, bias=True, heads=4, kv_heads=2),
        Case(keys=128, lengths=True),
    ],
)
@pytest.mark.parametrize("seen", [1, 37, 128])
def test_places_of_a_state_that_nobody_attends_are_not_read(case: Case, seen: int) -> None:
    """Values there are NaN, which a kernel that reads them multiplies by 0."""
    inputs = case.inputs()
    if case.lengths:
        inputs["key_lengths"] = np.array([0, seen])
    else:
        inputs["mask"][..., seen:] = False
        inputs["mask"][-1, 0, -1, seen - 1] = True
    model = stateful(case)
    held = {name: array.copy() for name, array in inputs.items()}
    held["key"][:, seen:] = held["value"][:, seen:] = np.nan
    given = {f"{STATE}{n}" if n in ("key", "value") else n: held[n] for n in held}
    got = run_model(lower_ort_cpu(model).model, given)[0]
    expected = attention_reference(**inputs, **case.attributes)
    np.testing.assert_allclose(got, expected, atol=3e-6)


@pytest.mark.parametrize("empty", [False, True])
def test_places_that_a_bias_of_the_lowest_number_keeps_from_sight(empty: bool) -> None:
    """As libraries mask; a row of nothing else averages all values, so all are read."""
    lowest = np.finfo(np.float32).min
    case = Case(keys=160, bias=True)
    inputs = case.inputs()
    inputs["bias"] = np.maximum(inputs["bias"], -3)
    inputs["bias"][..., 21:] = lowest
    if empty:
        inputs["bias"][0, 0, 1] = lowest
    held = {f"{STATE}{n}" if n in ("key", "value") else n: inputs[n].copy() for n in inputs}
    if not empty:
        held[f"{STATE}value"][:, 21:] = np.nan
    got = run_model(lower_ort_cpu(stateful(case)).model, held)[0]
    expected = attention_reference(**inputs, **case.attributes)
    np.testing.assert_allclose(got, expected, atol=3e-6)


def test_of_few_places_all_are_read() -> None:
    found = operators(lower_ort_cpu(stateful(Case(keys=64, mask=True))).model)
    assert "Slice" not in found
    assert "Attention" in found


def test_a_bias_of_the_lowest_number_keeps_its_key() -> None:
    """The kernel takes exactly ``finfo.min`` for a removed key; a row of it averages the values."""
    lowest = np.finfo(np.float32).min
    case = Case(bias=True, mask_rows=False)
    inputs = case.inputs()
    inputs["bias"] = np.full_like(inputs["bias"], lowest)
    (got,) = run_model(lower_ort_cpu(case.model()).model, inputs)
    expected = attention_reference(**inputs, **case.attributes)
    np.testing.assert_allclose(got, expected, atol=3e-6)
    means = inputs["value"].mean(axis=1, keepdims=True).repeat(case.length, 1)
    np.testing.assert_allclose(got, means, atol=3e-6)
