"""The PyTorch operator and the portable body against the float64 reference; gradients against
finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfuse.errors import InputError
from crossfuse.ops.contract import check_shapes
from crossfuse.ops.onnx_schema import register_schema
from crossfuse.ops.reference import attention_reference
from crossfuse.ops.torch_op import fused_attention
from graphs_for_tests import Case

CASES = st.builds(
    Case,
    contexts=st.integers(1, 3),
    fan_out=st.integers(1, 3),
    heads=st.sampled_from([2, 4]),
    kv_heads=st.sampled_from([1, 2]),
    value_size=st.sampled_from([3, 4]),
    length=st.integers(1, 6),
    keys=st.integers(1, 9),
    causal=st.sampled_from(["none", "upper_left", "lower_right"]),
    mask=st.booleans(),
    bias=st.booleans(),
    lengths=st.booleans(),
    mask_batch=st.sampled_from(["1", "k", "q"]),
    mask_heads=st.booleans(),
    mask_rows=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(CASES, st.integers(0, 1000))
def test_torch_operator_equals_reference(case: Case, seed: int) -> None:
    inputs = case.inputs(seed)
    expected = attention_reference(**inputs, **case.attributes)
    got = fused_attention(**{k: torch.from_numpy(v) for k, v in inputs.items()}, **case.attributes)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)


def test_reference_equals_pytorchs_attention_where_both_are_defined() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    mask = torch.rand(2, 1, 5, 7) > 0.3
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
    flat = [t.transpose(1, 2).flatten(2).numpy() for t in (q, k, v)]
    got = attention_reference(*flat, mask.numpy(), num_heads=4, kv_num_heads=4, scale=8**-0.5)
    np.testing.assert_allclose(got, expected.transpose(1, 2).flatten(2).numpy(), atol=1e-12)


def test_row_without_keys_is_zero_and_finite_bias_is_arithmetic() -> None:
    ones = torch.ones(1, 1, 4)
    value = torch.randn(1, 3, 4)
    nothing = torch.zeros(1, 1, 1, 3, dtype=torch.bool)
    assert fused_attention(ones, value, value, nothing, num_heads=1).abs().max() == 0
    lowest = torch.full((1, 1, 1, 3), torch.finfo(torch.float32).min)
    averaged = fused_attention(ones, torch.zeros(1, 3, 4), value, bias=lowest, num_heads=1)
    torch.testing.assert_close(averaged[0, 0], value[0].mean(0))


def test_queries_of_a_context_are_consecutive() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(6, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    got = fused_attention(q, k, v, num_heads=2)
    repeated = fused_attention(q, k.repeat_interleave(3, 0), v.repeat_interleave(3, 0), num_heads=2)
    torch.testing.assert_close(got, repeated)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients(masked: bool) -> None:
    torch.manual_seed(0)
    q = torch.randn(4, 3, 8, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 5, 8, dtype=torch.double, requires_grad=True) for _ in range(2))
    bias = torch.randn(1, 2, 3, 5, dtype=torch.double, requires_grad=True)
    mask = torch.rand(4, 1, 1, 5) > 0.3 if masked else None
    if mask is not None:
        mask[0] = False
    assert torch.autograd.gradcheck(
        lambda *t: fused_attention(*t[:3], mask, t[3], num_heads=2), (q, k, v, bias)
    )


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_registration_is_complete(masked: bool) -> None:
    q = torch.randn(4, 3, 8, requires_grad=True)
    k = torch.randn(2, 5, 8)
    options = {"num_heads": 2, "kv_num_heads": 2, "scale": 0.5, "causal": "upper_left"}
    mask = torch.ones(4, 1, 1, 5, dtype=torch.bool)
    arguments = (q, k, k, mask) if masked else (q, k, k)
    torch.library.opcheck(torch.ops.crossfuse.fused_attention.default, arguments, options)


def test_runs_in_half_precision() -> None:
    q = torch.randn(2, 3, 8, dtype=torch.bfloat16)
    assert (
        fused_attention(q, q, q, torch.ones(1, 1, 1, 3, dtype=torch.bool), num_heads=2).dtype
        == torch.bfloat16
    )


def test_schema_is_known_to_onnx() -> None:
    register_schema()
    register_schema()
    schema = onnx.defs.get_schema("FusedAttention", 1, "crossfuse")
    assert [i.name for i in schema.inputs] == [
        "query",
        "key",
        "value",
        "mask",
        "bias",
        "key_lengths",
    ]
    assert {name for name, a in schema.attributes.items() if a.required} == {
        "num_heads",
        "kv_num_heads",
        "scale",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 8)}, "rank"),
        ({"kv_num_heads": 3}, "must divide"),
        ({"value": (2, 4, 8)}, "differ in batch or length"),
        ({"query": (3, 5, 8)}, "batch must divide"),
        ({"query": (2, 5, 9)}, "widths and heads"),
        ({"mask": (2, 1, 4, 7)}, "mask has the wrong shape"),
        ({"bias": (2, 3, 5, 7)}, "bias has the wrong shape"),
        ({"key_lengths": (3,)}, "key_lengths"),
        ({"causal": "right"}, "causal kind"),
    ],
)
def test_contract_is_checked(change: dict, message: str) -> None:
    good = {
        "query": (2, 5, 8),
        "key": (2, 7, 8),
        "value": (2, 7, 8),
        "num_heads": 2,
        "kv_num_heads": 2,
    }
    assert check_shapes(**good) == (2, 5, 8)
    with pytest.raises(InputError, match=message):
        check_shapes(**(good | change))


def test_every_bit_of_the_mask_matters() -> None:
    """The test inputs can tell a wrong mask from a right one: flipping any element changes the
    result."""
    case = Case(mask=True, mask_batch="q", mask_heads=True)
    inputs = case.inputs()
    base = attention_reference(**inputs, **case.attributes)
    for index in itertools.islice(np.ndindex(inputs["mask"].shape), 0, None, 7):
        flipped = inputs["mask"].copy()
        flipped[index] = ~flipped[index]
        assert (
            np.abs(
                attention_reference(**(inputs | {"mask": flipped}), **case.attributes) - base
            ).max()
            > 1e-4
        )
