"""The parity gate: what passes, and above all what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import crossfuse
from crossfuse import ParityError
from crossfuse.core.tensors import Dim
from crossfuse.export.fuse import fuse
from crossfuse.graph.attention_node import attentions
from crossfuse.models.registry import ZOO, zoo_spec
from crossfuse.parity.eager import eager_reference
from crossfuse.parity.policy import output_error
from crossfuse.parity.reference import ReferencePoint, ReferenceSet, load_reference, save_reference
from crossfuse.parity.report import compare
from crossfuse.parity.shape_points import rows_of, shape_points
from crossfuse.targets.registry import lower
from graphs_for_tests import run_model


def scale_off_by_two_percent(model: ir.Model) -> None:
    last = attentions(model.graph)[-1]
    last.set_scale(last.scale * 1.02)


def one_mask_ignored(model: ir.Model) -> None:
    masked = [found for found in attentions(model.graph) if found.mask is not None]
    masked[-1].set_operand("mask", None)
    # Under a causal mask, padding after the last token can't matter; there, the causal mask is the
    # one to lose.
    masked[-1].set_causal("none")


def one_head_permuted(model: ir.Model) -> None:
    """Swap the first two heads of one attention's values, as a wrong weight mapping would."""
    attention = attentions(model.graph)[0]
    value = attention.value
    width, heads = value.shape[2], attention.num_heads
    order = np.arange(width).reshape(heads, -1)
    order[[0, 1]] = order[[1, 0]]
    index = ir.Value(name="swapped", const_value=ir.tensor(order.flatten(), name="swapped"))
    model.graph.initializers["swapped"] = index
    gather = ir.Node("", "Gather", [value, index], attributes=[ir.AttrInt64("axis", 2)])
    gather.outputs[0].name = "swapped_values"
    gather.outputs[0].shape, gather.outputs[0].type = value.shape, value.type
    model.graph.insert_before(attention.node, gather)
    attention.set_operand("value", gather.outputs[0])


def parity_of(name: str, breakage: Callable[[ir.Model], None] | None, target: str):
    spec = zoo_spec(name, "tiny")
    graph = fuse(spec).model
    if breakage is not None:
        breakage(graph)
    model = lower(graph, target).model
    names = [value.name for value in model.graph.outputs]
    return compare(
        lambda inputs: dict(zip(names, run_model(model, dict(inputs)), strict=True)),
        eager_reference(spec),
        target=target,
        executed_on="CPUExecutionProvider",
    )


@pytest.mark.parametrize("target", [pytest.param("onnx", marks=pytest.mark.slow), "ort-cpu"])
@pytest.mark.parametrize(
    "breakage", [scale_off_by_two_percent, one_mask_ignored, one_head_permuted]
)
@pytest.mark.parametrize(
    "name",
    [
        "cross_modal_attention",
        "qformer",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("clip", "vilt", "dalle")),
    ],
)
def test_broken_graphs_fail(name: str, breakage: Callable[[ir.Model], None], target: str) -> None:
    report = parity_of(name, breakage, target)
    assert not report.passed
    with pytest.raises(
        ParityError, match=f"target '{target}' does not compute what the eager model computes"
    ):
        report.require_passed()
    worst = max(o.max_abs / o.tolerance for o in report.outputs.values() if o.tolerance > 0)
    assert worst > 5, f"caught by a factor of {worst} only"


def test_the_same_graph_unbroken_passes() -> None:
    assert parity_of("qformer", None, "ort-cpu").passed


def reference_of(truth: np.ndarray, eager: float) -> ReferenceSet:
    return ReferenceSet("float64", (ReferencePoint({"n": 1}, 0, {}, {"y": truth}, {"y": eager}),))


def judge(got: np.ndarray, truth: np.ndarray, eager: float = 0.0):
    report = compare(lambda _: {"y": got}, reference_of(truth, eager), target="t", executed_on="x")
    return report.outputs["y"]


def test_policy() -> None:
    truth = np.array([1.0, -2.0])
    assert judge(truth + 0.9e-5, truth).passed
    assert not judge(truth + 1.1e-5, truth).passed
    loose = judge(truth + 3.9e-3, truth, eager=1e-3)
    assert loose.passed
    assert loose.tolerance_from == "4 × eager fp32 error"
    assert not judge(truth + 4.1e-3, truth, eager=1e-3).passed


def test_floor_shrinks_with_small_outputs() -> None:
    truth = np.array([1e-4, -2e-4])
    assert not judge(truth * 1.02, truth).passed
    assert judge(truth * (1 + 1e-6), truth).passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_pass(bad: float) -> None:
    outcome = judge(np.array([1.0, bad]), np.array([1.0, 2.0]), eager=1e9)
    assert not outcome.passed


def test_wrong_shape_and_integers() -> None:
    assert not judge(np.ones(3), np.ones(2)).passed
    assert judge(np.array([1, 2]), np.array([1, 2])).passed
    assert not judge(np.array([1, 3]), np.array([1, 2])).passed
    assert output_error(np.array([1, 3]), np.array([1, 2])) == 0.5


def test_eager_reference_is_the_eager_model() -> None:
    spec = zoo_spec("cross_modal_attention", "tiny")
    reference = eager_reference(spec)
    assert reference.dtype == "float64"
    for point in reference.points:
        inputs = {k: torch.from_numpy(v) for k, v in point.inputs.items()}
        with torch.no_grad():
            eager = spec.module(**inputs)
        for name, tensor in eager.items():
            assert (
                0
                < np.abs(tensor.numpy() - point.outputs[name]).max()
                == pytest.approx(point.eager[name])
            )


def test_reference_round_trip(tmp_path: Path) -> None:
    reference = eager_reference(zoo_spec("dalle", "tiny"))
    save_reference(reference, tmp_path / "r.npz")
    again = load_reference(tmp_path / "r.npz")
    assert again.dtype == reference.dtype
    for a, b in zip(again.points, reference.points, strict=True):
        assert (a.sizes, a.seed, a.eager) == (b.sizes, b.seed, b.eager)
        assert a.inputs.keys() == b.inputs.keys()
        assert all(np.array_equal(a.outputs[k], b.outputs[k]) for k in b.outputs)


@pytest.mark.parametrize("name", list(ZOO))
def test_points_vary_every_dimension_and_pad(name: str) -> None:
    spec = zoo_spec(name, "tiny")
    points = shape_points(spec.dims, spec.example_sizes)
    assert len(points) >= 4
    for sizes in points:
        for dim, size in sizes.items():
            spec.dims[dim].check(size, "point")
    reference = eager_reference(spec)
    masks = [a for p in reference.points for k, a in p.inputs.items() if k.endswith("mask")]
    assert any((m == 0).any() for m in masks)


def test_rows_go_beyond_the_example_at_one_point_alone() -> None:
    """Every row more costs a run of the model; no other dimension is spared."""
    dims = {"batch": Dim("batch", 1, None), "n": Dim("n", 1, 64)}
    example = {"batch": 4, "n": 10}
    axes = {"x": {0: "batch", 1: "n"}, "mask": {0: "batch"}}
    points = shape_points(dims, example, rows_of(axes))
    assert sorted(point["batch"] for point in points) == [1, 1, 4, 4, 4, 6]
    assert {point["n"] for point in points} == {1, 10, 11, 15}
    assert [point["n"] for point in points] == [p["n"] for p in shape_points(dims, example)]
    assert rows_of({"x": {0: "batch"}, "table": {0: "n"}}) is None
    assert rows_of({"x": {0: "batch"}, "fixed": {}}) is None


def test_points_without_dynamic_dimensions() -> None:
    assert shape_points({}, {}) == [{}] * 4
    assert {p["n"] for p in shape_points({"n": Dim("n", 2, 3)}, {"n": 2})} == {2, 3}


def test_inputs_derived_from_examples() -> None:
    """Without a sampler: floats keep mean and deviation, ids their range, masks stay padded
    prefixes."""
    torch.manual_seed(0)
    spec = crossfuse.ModelSpec(
        torch.nn.Identity(),
        {
            "x": 5 + 2 * torch.randn(4, 50),
            "ids": torch.randint(10, 20, (4, 50)),
            "mask": torch.ones(4, 50, dtype=torch.long),
        },
        {name: {0: "batch", 1: "length"} for name in ("x", "ids", "mask")},
    )
    made = spec.sample({"batch": 30, "length": 40}, seed=3)
    assert made["x"].shape == (30, 40)
    assert abs(made["x"].mean() - 5) < 0.3
    assert abs(made["x"].std() - 2) < 0.3
    assert set(made["ids"].unique().tolist()) <= set(range(10, 20))
    mask = made["mask"]
    assert torch.equal(mask, mask.sort(1, descending=True).values)
    assert mask[:, 0].all()
    assert 0 < mask.float().mean() < 1
