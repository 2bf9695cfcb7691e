"""The operator's body in ONNX, against the float64 reference."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from crossfuse.ops.contract import CAUSAL_KINDS, INPUTS
from crossfuse.ops.onnx_function import Variant, attention_function
from crossfuse.ops.reference import attention_reference
from graphs_for_tests import Case

VARIANTS = [
    Variant(mask, bias, lengths, causal)
    for mask, bias, lengths in itertools.product((False, True), repeat=3)
    for causal in CAUSAL_KINDS
]


def test_names_tell_variants_apart() -> None:
    assert len({variant.overload for variant in VARIANTS}) == len(VARIANTS) == 24
    assert Variant(True, False, True, "lower_right").overload == "mask_key_lengths_lower_right"
    assert Variant(False, False, False, "none").overload == "none"


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.overload)
def test_body_equals_the_reference(variant: Variant) -> None:
    """In float64, with fan-out, grouped heads, odd sizes, and rows without keys."""
    case = Case(
        fan_out=2, heads=4, value_size=6, mask_batch="k", mask_heads=True,
        causal=variant.causal, mask=variant.mask, bias=variant.bias, lengths=variant.key_lengths,
    )  # fmt: skip
    inputs = {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in case.inputs().items()
    }
    function = ir.to_proto(attention_function(variant, 20))
    assert isinstance(function, onnx.FunctionProto)
    assert list(function.input) == list(INPUTS)
    given = {**dict.fromkeys(INPUTS), **inputs}
    attributes = {"num_heads": case.heads, "kv_num_heads": case.kv_heads, "scale": 0.37}
    evaluator = ReferenceEvaluator(function)
    (got,) = evaluator.run(None, given, attributes=attributes | {"causal": case.causal})
    expected = attention_reference(**inputs, **case.attributes)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)  # the scale is a float32


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.overload)
def test_rows_are_guarded_where_they_may_lack_keys(variant: Variant) -> None:
    """Upper-left causality alone leaves each row its first key; everything else may leave none."""
    alone = not (variant.mask or variant.bias or variant.key_lengths)
    assert variant.may_lack_keys is not (alone and variant.causal != "lower_right")
    body = attention_function(variant, 20)
    guards = [node for node in body if node.op_type == "ReduceMax"]
    assert len(guards) == variant.may_lack_keys
