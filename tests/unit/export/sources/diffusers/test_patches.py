"""What is patched while a model is traced gives the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models import embeddings
from diffusers.models.upsampling import Upsample2D
from torch import Tensor

from crossfuse.export.sources.diffusers.patches import tracing


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_conv": True},
        {"use_conv": True, "name": "Conv2d_0"},
        {"use_conv_transpose": True},
        {"interpolate": False, "use_conv": True},
        {"norm_type": "ln_norm", "eps": 1e-5, "elementwise_affine": True},
    ],
)
@pytest.mark.parametrize("size", [None, (7, 9)])
def test_upsampling(options: dict[str, Any], size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    module, x = Upsample2D(6, **options), torch.randn(2, 6, 4, 5)
    own = Upsample2D.forward
    with torch.no_grad():
        expected = module(x, size)
        with tracing(module):
            assert Upsample2D.forward is not own
            assert torch.equal(module(x, size), expected)
    assert Upsample2D.forward is own


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip_sin_to_cos": True, "downscale_freq_shift": 0},
        {"scale": 1000, "max_period": 100},
    ],
)
@pytest.mark.parametrize("size", [32, 33])
def test_embeddings_of_time_steps(options: dict[str, Any], size: int) -> None:
    times = torch.tensor([0.0, 0.37, 1.0, 999.0])
    own = embeddings.get_timestep_embedding
    expected = own(times, size, **options)
    with tracing(None):
        assert embeddings.get_timestep_embedding is not own
        assert torch.equal(embeddings.get_timestep_embedding(times, size, **options), expected)
    assert embeddings.get_timestep_embedding is own


class Squeezing(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1).squeeze(2) + 1


def test_axes_that_are_no_1_are_not_squeezed() -> None:
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(
        Squeezing(), (torch.rand(3, 4, 1),), dynamic_shapes={"x": {1: rows}}
    )
    with tracing(None) as found:
        found.fix_program(program)
    squeezed = [node for node in program.graph.nodes if "squeeze" in str(node.target)]
    assert [node.args[1] for node in squeezed] == [2]
    assert program.module()(torch.ones(3, 5, 1)).shape == (3, 5)


class Times(torch.nn.Module):
    def forward(self, times: Tensor) -> Tensor:
        return embeddings.get_timestep_embedding(times, 64, True, 0)


def test_frequencies_are_no_exponentials_of_an_engine() -> None:
    with tracing(None):
        program = torch.export.export(Times(), (torch.rand(3),))
    called = {str(node.target) for node in program.graph.nodes}
    assert "aten.sin.default" in called
    assert "aten.exp.default" not in called
