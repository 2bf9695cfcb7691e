"""Half precision in the graph: casts, islands, simulation and search, against eager and against
ONNX Runtime's own rounding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.tape import Tape

import crossfuse
from coverage.cases import CASES
from crossfuse import runtime
from crossfuse.bundle.store import Bundle
from crossfuse.errors import InputError, ParityError
from crossfuse.parity.eager import eager_reference
from crossfuse.parity.policy import EAGER_MULTIPLE
from crossfuse.parity.reference import load_reference
from crossfuse.targets.cpu_run import run_once
from crossfuse.targets.precision.activation_stats import deviations, peaks
from crossfuse.targets.precision.cast import HALF_TYPES, cast_graph, to_half
from crossfuse.targets.precision.mixed_search import MAX_TRIALS, search
from crossfuse.targets.precision.simulate import simulate

F32 = ir.DataType.FLOAT


def graph_of(build: Callable[[Tape, ir.Value], ir.Value], shape: tuple[int, ...]) -> ir.Model:
    """A graph from ``x`` to ``y`` in fp32, types and names given."""
    tape = Tape()
    x = ir.Value(name="x", type=ir.TensorType(F32), shape=ir.Shape(shape))
    y = build(tape, x)
    for i, node in enumerate(tape.nodes):
        node.name = f"n{i}"
        for value in node.outputs:
            value.name = value.name or f"v{i}"
            value.type = value.type or ir.TensorType(F32)
    y.name, y.shape = "y", ir.Shape(shape)
    return ir.Model(
        ir.Graph([x], [y], nodes=tape.nodes, opset_imports={"": 20}, name="g"), ir_version=9
    )


def constant(tape: Tape, values: object) -> ir.Value:
    return tape.op("Constant", [], attributes={"value": ir.tensor(np.asarray(values, np.float32))})


def test_simulation_rounds_as_numpy_does() -> None:
    """(x·a + b)·c with every result rounded to the half type, computed by NumPy and ml_dtypes."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1000) * np.logspace(-6, 6, 1000)).astype(np.float32)
    a, b, c = np.float32(1.7), np.float32(-0.3), np.float32(100.0)
    model = graph_of(
        lambda t, v: t.op(
            "Mul", [t.op("Add", [t.op("Mul", [v, constant(t, a)]), constant(t, b)]), constant(t, c)]
        ),
        (1000,),
    )
    for precision, dtype in (("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)):
        (got,) = run_once(simulate(cast_graph(model, precision).model), {"x": x})

        def half(value: np.ndarray, dtype: type = dtype) -> np.ndarray:
            with np.errstate(over="ignore"):
                return np.asarray(value, np.float32).astype(dtype).astype(np.float32)

        with np.errstate(over="ignore", invalid="ignore"):
            expected = half(half(half(half(x) * half(a)) + half(b)) * half(c))
        np.testing.assert_array_equal(got, expected)
        assert np.isinf(got).any() == (precision == "fp16")


def test_norms_stay_in_fp32_and_epsilon_survives() -> None:
    """An RMS norm of tiny values: in fp16 its squares and its epsilon would be 0."""

    def rms(t: Tape, x: ir.Value) -> ir.Value:
        square = t.op("Pow", [x, constant(t, 2.0)])
        mean = t.op(
            "ReduceMean",
            [square, t.op("Constant", [], attributes={"value_ints": [-1]})],
            attributes={"keepdims": 1},
        )
        root = t.op("Sqrt", [t.op("Add", [mean, constant(t, 1e-12)])])
        return t.op("Mul", [t.op("Div", [x, root]), constant(t, 3.0)])

    model = graph_of(rms, (4, 8))
    cast = cast_graph(model, "fp16")
    operators = {n.name: n.op_type for n in model.graph}
    assert sorted(operators[name] for name in cast.kept) == [
        "Add",
        "Div",
        "Pow",
        "ReduceMean",
        "Sqrt",
    ]
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32) * 1e-4
    (got,) = run_once(simulate(cast.model), {"x": x})
    np.testing.assert_allclose(
        got, 3 * x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True)), rtol=4e-3
    )


@pytest.mark.parametrize("operator", ["ArgMin", "ArgMax"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_close_distances_choose_the_code_that_fp32_chooses(operator: str, precision: str) -> None:
    """Codes 0.06 apart at 175: half floats there are 0.125 apart, or 1. Also where the distances
    are an input."""
    x = np.tile(np.array([[3.0, 0.06, 0.0, 0.12]], np.float32), (4, 1)) * np.array(
        [[1], [-1], [0.5], [2]], np.float32
    )
    for offset in (0.0, 175.0):

        def choice(t: Tape, v: ir.Value, offset: float = offset) -> ir.Value:
            distances = t.op("Add", [v, constant(t, offset)]) if offset else v
            codes = t.op(operator, [distances], attributes={"axis": 1, "keepdims": 0})
            codes.type = ir.TensorType(ir.DataType.INT64)
            return codes

        given = x if offset else x + np.float32(175)
        model = graph_of(choice, (4, 4))
        model.graph.outputs[0].shape = ir.Shape((4,))
        (got,) = run_once(simulate(cast_graph(model, precision).model), {"x": given})
        np.testing.assert_array_equal(got, (x.argmin(1) if operator == "ArgMin" else x.argmax(1)))


def test_constants_beyond_the_range_are_clamped_and_infinities_stay() -> None:
    values = np.array([1e30, -3.4e38, np.inf, -np.inf, 1.5], np.float32)
    np.testing.assert_array_equal(
        to_half(values, HALF_TYPES["fp16"]),
        np.array([65504, -65504, np.inf, -np.inf, 1.5], np.float16),
    )
    assert np.isfinite(to_half(values, HALF_TYPES["bf16"]).astype(np.float32)[:2]).all()


def test_boundary_keeps_its_types_unless_asked(zoo_bundle: Callable[[str], Bundle]) -> None:
    from crossfuse.targets.graph_files import load_graph

    bundle = zoo_bundle("cross_modal_attention")
    model = load_graph(bundle, bundle.manifest.fused_graph)
    before = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}
    for precision, dtype in HALF_TYPES.items():
        cast = cast_graph(model, precision).model
        assert {v.name: v.dtype for v in (*cast.graph.inputs, *cast.graph.outputs)} == before
        half = cast_graph(model, precision, boundary=before).model.graph
        assert {v.dtype for v in (*half.inputs, *half.outputs)} == {dtype, ir.DataType.INT64}
        assert all(o.dtype != F32 for n in half for o in n.outputs)
    assert {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == before


def test_peaks_and_deviations() -> None:
    model = graph_of(lambda t, v: t.op("Exp", [t.op("Mul", [v, constant(t, 3.0)])]), (3,))
    points = [
        {"x": np.array([0.0, 1.0, -1.0], np.float32)},
        {"x": np.array([2.0, 0.1, 0.0], np.float32)},
    ]
    found = peaks(model, points)
    assert found["y"] == pytest.approx(np.exp(6.0), rel=1e-5)
    assert found["v1"] == pytest.approx(6.0)
    errors = deviations(model, simulate(cast_graph(model, "fp16").model), points)
    assert 0 < errors["v1"] < 2e-3
    assert errors["y"] > 0


@pytest.mark.parametrize("name", ["clip", "qformer", "vilt"])
def test_targets_round_no_more_than_eager(
    name: str, zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Half targets stay within the policy's multiple of what eager in that precision gives; eager's
    error is not 0."""
    import shutil

    path = Path(shutil.copytree(zoo_bundle(name).path, tmp_path / "bundle"))
    reference = load_reference(path / "reference.npz")
    for precision in ("fp16", "bf16"):
        for target in ("ort-cpu", "ort-cuda"):
            entry = crossfuse.build(path, target, precision=precision).target(target)
            assert entry.precision == precision
            assert entry.parity is not None
            for output, result in entry.parity["outputs"].items():
                eager = reference.eager_error(output, precision)
                assert 1e-5 < eager < 0.5
                assert 0 < result["max_abs"] <= EAGER_MULTIPLE * eager
        assert crossfuse.verify(path, "ort-cpu").passed


def test_eager_error_of_halves_is_the_modules_own() -> None:
    """bf16 runs natively on the CPU: the recorded error is what ``module.bfloat16()`` gives."""
    from crossfuse.models.registry import zoo_spec

    spec = zoo_spec("vilt", "tiny")
    reference = eager_reference(spec)
    point = reference.points[0]
    import copy

    module = copy.deepcopy(spec.module).bfloat16()
    inputs = {n: torch.from_numpy(a) for n, a in point.inputs.items()}
    with torch.no_grad():
        given = {n: t.bfloat16() if t.is_floating_point() else t for n, t in inputs.items()}
        got = module(**given)["pooler_output"].float().numpy()
    assert np.abs(got - point.outputs["pooler_output"]).max() == pytest.approx(
        point.half["bf16"]["pooler_output"]
    )


def test_half_inputs_and_outputs(bundle_copy: Path) -> None:
    built = crossfuse.build(bundle_copy, "ort-cpu", precision="fp16", io_dtype="fp16")
    assert set(built.target("ort-cpu").boundary.values()) == {"float16"}
    point = load_reference(bundle_copy / "reference.npz").points[0]
    with runtime.load(bundle_copy, "ort-cpu") as session:
        assert {spec.dtype for spec in session.inputs} == {"float16", "int64"}
        inputs = {
            n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in point.inputs.items()
        }
        outputs = session.run(**inputs)
        assert {a.dtype for a in outputs.values()} == {np.dtype(np.float16)}
        np.testing.assert_allclose(outputs["fused"], point.outputs["fused"], atol=0.02)
        with pytest.raises(InputError, match="wrong dtype"):
            session.run(**point.inputs)
    with pytest.raises(InputError, match="need a target in fp16"):
        crossfuse.build(bundle_copy, "ort-cpu", precision="bf16", io_dtype="fp16")


def overflowing_t5() -> crossfuse.ModelSpec:
    """A T5 whose residual stream reaches 10⁶: fp16 ends at 65504."""
    spec = CASES["t5"].make()
    with torch.no_grad():
        for name, parameter in spec.module.named_parameters():
            if "DenseReluDense.wo" in name:
                parameter.mul_(2e5)
    return spec


@pytest.mark.slow
def test_mixed_precision_mends_what_fp16_overflows(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundle = crossfuse.export(overflowing_t5(), tmp_path / "bundle")
    assert load_reference(bundle.path / "reference.npz").points[0].half["fp16"] == {}, (
        "eager in fp16 was expected to overflow"
    )
    with pytest.raises(ParityError, match="NaN or infinity"):
        crossfuse.build(bundle.path, "ort-cpu", precision="fp16")
    said: list[str] = []
    entry = crossfuse.build(bundle.path, "ort-cpu", precision="mixed", step=said.append).target(
        "ort-cpu"
    )
    assert entry.parity is not None
    assert entry.parity["passed"]
    asked = {node: why for node, why in entry.kept.items() if "fp16 ends at 65504" in why}
    # The four products that overflow, and the additions that carry the residual stream on.
    assert 4 <= len(asked) <= 16
    # The stages share their half weights, too.
    seen: dict[bytes, tuple[str, int]] = {}
    for file in entry.stages.values():
        for value in ir.load(bundle.path / file).graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                place = (str(tensor.location), tensor.offset or 0)
                assert (
                    seen.setdefault(tensor.tobytes() + str(tensor.dtype).encode(), place) == place
                )
    trials = [text for text in said if text.startswith("mixed: trial")]
    assert len(trials) == 2
    assert (
        crossfuse.build(bundle.path, "ort-cuda", precision="bf16")
        .target("ort-cuda")
        .parity["passed"]
    )  # type: ignore[index]


def test_search_is_bounded_and_finds_the_smallest_share() -> None:
    """Thirty-two products in a row; parity is told to need the three that add most error."""

    def chain(t: Tape, x: ir.Value) -> ir.Value:
        for i in range(32):
            x = t.op("Mul", [x, constant(t, 1.0 + (0.0007 if i in (5, 11, 23) else 0.0))])
        return x

    model = graph_of(chain, (64,))
    points = [{"x": np.ones(64, np.float32)}]
    asked: list[int] = []

    def passes(keep: object) -> bool:
        assert isinstance(keep, dict)
        asked.append(len(keep))
        wanted = {f"n{2 * i + 1}" for i in (5, 11, 23)}
        return wanted <= set(keep)

    keep = search(model, points, passes)
    assert len(asked) <= MAX_TRIALS
    assert len(keep) == min(n for n in asked if n >= 3)
    assert len(keep) <= 4
    with pytest.raises(ParityError, match="even with all nodes but the attentions in fp32"):
        search(model, points, lambda keep: False)
