"""Reference results from the bundle's fused graph, without the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from crossfuse.api.verify import fused_stages
from crossfuse.bundle.store import Bundle
from crossfuse.errors import InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.parity.fused import FUSED, _expected_error, fused_reference
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.session_check import reference_of
from crossfuse.parity.shape_points import EXAMPLE

NAME = "cross_modal_attention"


@pytest.fixture
def fused(zoo_bundle: Callable[[str], Bundle]) -> ir.Model:
    return fused_stages(zoo_bundle(NAME))[0]


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in zoo_spec(NAME, "tiny").inputs.items()}


def test_the_graph_computes_what_the_model_does(
    zoo_bundle: Callable[[str], Bundle], fused: ir.Model
) -> None:
    bundle, said = zoo_bundle(NAME), []
    found = fused_reference(
        fused, bundle.manifest, [("mine", arrays())], reference_of(bundle), said.append
    )
    assert (found.computed_by, found.dtype) == (FUSED, "float32")
    (point,) = found.points
    assert point.kind == EXAMPLE
    assert point.sizes == zoo_spec(NAME, "tiny").example_sizes
    spec = zoo_spec(NAME, "tiny")
    with torch.no_grad():
        expected = spec.module(**spec.inputs)
    for name, tensor in expected.items():
        np.testing.assert_allclose(point.outputs[name], tensor.numpy(), atol=1e-5)
        assert 0 < point.eager[name] < 1e-4
    assert said == ["fused graph in fp32 1/1: mine"]


def test_inputs_without_a_result_are_refused(
    zoo_bundle: Callable[[str], Bundle], fused: ir.Model
) -> None:
    given = arrays()
    given["a"] = given["a"] * np.float32(np.nan)
    with pytest.raises(InputError, match="NaN or infinity.*mine, fused"):
        fused_reference(fused, zoo_bundle(NAME).manifest, [("mine", given)], None)


def test_sizes_that_the_graph_refuses_are_told(
    zoo_bundle: Callable[[str], Bundle], fused: ir.Model
) -> None:
    given = arrays()
    name = next(iter(given))
    given[name] = given[name][..., :-1]
    with pytest.raises(InputError, match="the fused graph refused the inputs") as caught:
        fused_reference(fused, zoo_bundle(NAME).manifest, [("mine", given)], None)
    sizes = ", ".join(map(str, given[name].shape))
    assert f"{name}: float32[{sizes}]" in str(caught.value.got)
    assert f"{name}: float32[batch" in str(caught.value.expected)
    assert caught.value.where == "mine"


def own(error: float, truth: np.ndarray, kind: str = EXAMPLE) -> ReferenceSet:
    return ReferenceSet(
        "float64", (ReferencePoint({}, 0, {}, {"y": truth}, {"y": error}, kind=kind),)
    )


def test_an_error_grows_with_the_outputs_magnitude_and_counts_twice() -> None:
    """Twice, because the reference here has it as well as the target."""
    ones = np.ones(3)
    assert _expected_error(own(1e-4, ones), "y", "fp32", ones) == pytest.approx(2e-4)
    assert _expected_error(own(1e-4, ones), "y", "fp32", 5 * ones) == pytest.approx(1e-3)
    assert _expected_error(own(1e-4, ones), "y", "fp32", 0.1 * ones) == pytest.approx(2e-4)
    assert _expected_error(own(0.25, np.ones(4, int)), "y", "fp32", np.ones(4, int)) == 0.25
    assert _expected_error(None, "y", "fp32", ones) == 0.0
    assert _expected_error(own(1e-4, ones), "other", "fp32", ones) == 0.0
