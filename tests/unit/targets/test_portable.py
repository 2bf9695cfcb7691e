"""The portable graph: attention nodes with the operator's body beside them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.ops.reference import attention_reference
from crossfuse.targets.portable import lower_portable
from graphs_for_tests import Case, run_model


@pytest.mark.parametrize(
    ("case", "overload"),
    [
        (Case(), "none"),
        (Case(mask=True, lengths=True), "mask_key_lengths_none"),
        (Case(bias=True, causal="lower_right"), "bias_lower_right"),
    ],
)
def test_a_function_per_variant(case: Case, overload: str) -> None:
    model = case.model()
    lowered = lower_portable(model)
    assert lowered.kernels == {"site": "crossfuse.FusedAttention"}
    assert not lowered.reasons
    (node,) = list(lowered.model.graph)
    assert node.overload == overload
    assert len(node.inputs) == 6
    assert [f.overload for f in lowered.model.functions.values()] == [overload]
    inputs = case.inputs()
    (got,) = run_model(lowered.model, inputs)
    expected = attention_reference(**inputs, **case.attributes)
    np.testing.assert_allclose(got, expected, atol=3e-6)


def test_the_fused_graph_stays_as_it_is() -> None:
    model = Case(mask=True).model()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower_portable(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
