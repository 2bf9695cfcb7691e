"""Every lowering of the operator against the float64 reference, over the grid of the contract's
cases."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.core.target import TARGETS
from crossfuse.ops.reference import attention_reference
from crossfuse.targets.registry import cpu_equivalent, lower
from graphs_for_tests import Case, run_model

SHAPES = [
    dict(contexts=1, fan_out=1, length=1, keys=7),
    dict(contexts=2, fan_out=1, length=5, keys=7),
    dict(contexts=2, fan_out=1, length=6, keys=6, value_size=6),
    dict(contexts=1, fan_out=3, length=5, keys=3),
    dict(contexts=2, fan_out=3, length=1, keys=9, heads=4),
    dict(contexts=2, fan_out=2, length=5, keys=7, heads=4, kv_heads=2, value_size=6),
    dict(contexts=3, fan_out=1, length=5, keys=1, heads=4, kv_heads=1),
]
USES = [
    dict(),
    dict(mask=True),
    dict(bias=True),
    dict(lengths=True),
    dict(mask=True, bias=True),
    dict(mask=True, lengths=True),
    dict(mask=True, bias=True, lengths=True),
]
MASKS = [
    dict(mask_batch=b, mask_heads=h, mask_rows=r)
    for b in "1kq"
    for h in (False, True)
    for r in (False, True)
]


def check(target: str, case: Case) -> None:
    inputs = case.inputs()
    expected = attention_reference(**inputs, **case.attributes)
    (got,) = run_model(cpu_equivalent(case.model(), TARGETS[target]), inputs)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=3e-6, err_msg=f"{target} {case}")


SAME_FORMS = ("openvino", "tensorrt-rtx")
"""Targets whose forms are another's; OpenVINO's own numbers are in `test_openvino`."""


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in SAME_FORMS])
@pytest.mark.parametrize("causal", ["none", "upper_left", "lower_right"])
@pytest.mark.parametrize("use", USES, ids=lambda u: "+".join(u) or "plain")
@pytest.mark.parametrize(
    "stride",
    [pytest.param(1, marks=pytest.mark.slow, id="all masks"), pytest.param(5, id="some masks")],
)
def test_grid(target: str, causal: str, use: dict[str, bool], stride: int) -> None:
    for shape, known in itertools.product(SHAPES, (True, False)):
        masks = MASKS if use.get("mask") or use.get("bias") else [{}]
        for i, mask in enumerate(masks[::stride]):
            if known or i % 3 == 0:
                check(target, Case(**shape, **use, **mask, causal=causal, known_shapes=known))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("case", "target", "kernel"),
    [
        (Case(), "ort-cpu", "Attention"),
        (Case(mask=True), "ort-cpu", "Attention"),
        (Case(causal="upper_left"), "ort-cpu", "Attention"),
        (Case(mask=True), "ort-cuda", "Attention (efficient)"),
        (Case(mask=True), "onnx", "crossfuse.FusedAttention"),
    ],
)
def test_kernel_and_site(case: Case, target: str, kernel: str) -> None:
    lowered = lower(case.model(), target)
    assert lowered.kernels == {"site": kernel}
    named = [node.op_type for node in lowered.model.graph if node.name == "site"]
    assert named == [kernel.removeprefix("crossfuse.").split(" ")[0]]


def test_unmasked_attention_needs_one_node() -> None:
    assert operators(lower(Case().model(), "ort-cpu").model) == ["Attention"]


@pytest.mark.parametrize(
    ("queries", "keys", "kernel"),
    [
        (8, "S", "Attention"),
        (577, 577, "Attention"),
        (1500, 1500, "MultiHeadAttention"),
        ("L", "L", "MultiHeadAttention"),
    ],
)
def test_many_queries_without_a_mask_take_the_flash_path(
    queries: int | str, keys: int | str, kernel: str
) -> None:
    """A length that isn't known, of a self-attention, may be long: scores of all pairs may not fit
    in memory."""
    case = Case()
    model = case.model()
    for value, size in zip(model.graph.inputs, (queries, keys, keys), strict=True):
        assert value.shape is not None
        value.shape = ir.Shape([value.shape[0], size, value.shape[2]])
    assert lower(model, "ort-cpu").kernels == {"site": kernel}
    masked = Case(mask=True).model()
    assert lower(masked, "ort-cpu").kernels == {"site": "Attention"}


def test_fan_out_does_not_copy_keys_and_values() -> None:
    """Keys and values go into the kernel as they are; only queries are reshaped."""
    masked = Case(fan_out=3, mask=True, mask_batch="k", mask_rows=False)
    for case, target in (
        (masked, "ort-cpu"),
        (Case(fan_out=3, size=8, value_size=8, lengths=True), "ort-cuda"),
    ):
        model = lower(case.model(), target).model
        (kernel,) = [n for n in model.graph if n.op_type in ("Attention", "MultiHeadAttention")]
        assert [v.name for v in kernel.inputs[1:3]] == ["key", "value"]


def test_mask_preparation_is_shared() -> None:
    """Two attentions with one mask prepare it once."""
    case = Case(mask=True, mask_rows=False)
    model = case.model()
    (first,) = list(model.graph)
    second = ir.Node(
        first.domain,
        first.op_type,
        [first.outputs[0], *first.inputs[1:]],
        attributes=list(first.attributes.values()),
    )
    second.name, second.outputs[0].name = "second", "again"
    second.outputs[0].type, second.outputs[0].shape = first.outputs[0].type, ir.Shape(["B", "L", 8])
    first.outputs[0].shape = ir.Shape(["B", "L", 8])
    model.graph.append(second)
    model.graph.outputs.append(second.outputs[0])
    ops = operators(lower(model, "ort-cpu").model)
    assert ops.count("Attention") == 2
    assert ops.count("Expand") == 1


def test_lowering_leaves_the_fused_graph_alone() -> None:
    model = Case(mask=True).model()
    for target in TARGETS:
        lower(model, target)
        cpu_equivalent(model, TARGETS[target])
    assert operators(model) == ["FusedAttention"]
    assert list(model.functions) == []
