"""What is made of weights alone by operators without a translation is computed, once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from crossfuse.export.capture.computed_weights import compute_weights, has_translation
from crossfuse.export.capture.to_onnx import OPSET, program_to_onnx
from crossfuse.spec.model_spec import ModelSpec
from crossfuse.targets.cpu_run import opened

SIZE = 6


class Made(nn.Module):
    """x times a matrix that a function makes of a weight."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.make = make
        self.weight = nn.Parameter(torch.eye(SIZE) + 0.2 * torch.randn(SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.make(self.weight) + 1


class Parametrized(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = parametrizations.orthogonal(nn.Linear(SIZE, SIZE), orthogonal_map=how)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def several(w: Tensor) -> Tensor:
    q, r = torch.linalg.qr(w)
    return q @ r.T + torch.linalg.eigvalsh(w + w.T)


MODULES = {
    "exponential": lambda: Made(lambda w: torch.matrix_exp(w - w.T) * 2),
    "inverse": lambda: Made(lambda w: torch.linalg.inv(w @ w.T)),
    "several results": lambda: Made(several),
    **{how: lambda how=how: Parametrized(how) for how in ("matrix_exp", "cayley", "householder")},
}


@pytest.mark.parametrize("kind", MODULES)
def test_equals_the_module(kind: str) -> None:
    module = MODULES[kind]().eval()
    spec = ModelSpec(module, {"x": torch.randn(3, SIZE)}, {"x": {0: "n:1:8"}})
    n = torch.export.Dim("n", min=1, max=8)
    with torch.no_grad():
        program = torch.export.export(
            module, (), dict(spec.inputs), dynamic_shapes={"x": {0: n}}, strict=False
        )
    model = program_to_onnx(program, spec, ("y",))
    x = torch.randn(5, SIZE)
    with opened(model) as run:
        (got,) = run({"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, module.double()(x.double()).numpy(), atol=1e-5)


def test_what_inputs_or_chance_make_stays() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(SIZE))

        def forward(self, x: Tensor) -> Tensor:
            return torch.matrix_exp(x) + torch.rand_like(self.weight) + self.weight.exp()

    program = torch.export.export(Other(), (torch.randn(SIZE, SIZE),), strict=False)
    before = [node.target for node in program.graph.nodes]
    compute_weights(program, lambda target: target is torch.ops.aten.exp.default)
    assert [node.target for node in program.graph.nodes] == before


def test_what_the_exporter_knows() -> None:
    known = has_translation(OPSET)
    assert known(torch.ops.aten.exp.default)
    assert not known(torch.ops.aten.matrix_exp.default)
