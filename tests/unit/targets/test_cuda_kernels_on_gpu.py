"""Every form of an attention on a real GPU, against the float64 reference."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest

from crossfuse.ops.reference import attention_reference
from crossfuse.targets.cuda.lowering import lower_ort_cuda
from crossfuse.targets.precision.cast import cast_graph
from graphs_for_tests import Case, run_model
from unit.targets.test_cuda_lowering import SHAPES, USES

pytestmark = pytest.mark.gpu

ALLOWED = {"fp32": 3e-6, "fp16": 2e-2, "bf16": 0.1}


def lowered(case: Case, precision: str) -> ir.Model:
    model = case.model()
    if precision != "fp32":
        model = cast_graph(model, precision).model
    return lower_ort_cuda(model).model


@pytest.mark.parametrize("causal", ["none", "upper_left", "lower_right"])
@pytest.mark.parametrize(
    "use", USES, ids=lambda u: "+".join(k for k in u if "_" not in k) or "plain"
)
@pytest.mark.parametrize("precision", ALLOWED)
def test_forms(causal: str, use: dict[str, bool], precision: str) -> None:
    for shape, known in itertools.product(SHAPES, (True, False)):
        case = Case(**shape, **use, causal=causal, known_shapes=known)
        inputs = case.inputs()
        expected = attention_reference(**inputs, **case.attributes)
        (got,) = run_model(lowered(case, precision), inputs, gpu=True)
        np.testing.assert_allclose(got, expected, atol=ALLOWED[precision], err_msg=str(case))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("keys", [5, 8, 70])
@pytest.mark.parametrize("fill", [-np.inf, float(np.finfo(np.float32).min), -1e30, -1e29, -64.0])
@pytest.mark.parametrize("precision", ALLOWED)
def test_rows_of_lowest_biases(precision: str, fill: float, keys: int, masked: bool) -> None:
    """A finite bias is arithmetic, also where every key has it; rows of −inf give 0."""
    case = Case(size=8, value_size=8, mask=masked, bias=True, keys=keys)
    inputs = case.inputs()
    inputs["bias"][:, :, 1] = fill
    if masked:
        inputs["mask"][:, :, 1] = np.arange(keys) != 2
    expected = attention_reference(**inputs, **case.attributes)
    (got,) = run_model(lowered(case, precision), inputs, gpu=True)
    np.testing.assert_allclose(got, expected, atol=ALLOWED[precision])
