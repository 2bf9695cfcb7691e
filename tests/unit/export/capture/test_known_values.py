"""Branches on weights, decided while a module is traced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec, huggingface_spec
from crossfuse.export.capture.known_values import MOST_NUMBERS
from crossfuse.export.capture.trace import capture


class OnBuffers(nn.Module):
    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.on = nn.Buffer(torch.tensor([0.0, 1.0]))
        self.shift = nn.Parameter(torch.tensor(2.5))
        self.ready = nn.Buffer(torch.tensor(True))
        self.wide = nn.Buffer(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            return x
        for i in range(2):
            if (self.on * 2)[i] - 1 > 0:
                x = x + 10**i
        if self.wide.sum() > 1:
            x = x * self.shift.item()
        return x


def spec_of(module: nn.Module) -> ModelSpec:
    return ModelSpec(module.eval(), {"x": torch.randn(2, 3)}, {"x": {0: "batch"}})


def test_branches_and_numbers() -> None:
    module = OnBuffers()
    program, _ = capture(spec_of(module))
    x = torch.randn(5, 3)
    assert torch.allclose(program.module()(x=x)[0], (x + 10) * 2.5)


def test_what_is_large_is_not_known() -> None:
    with pytest.raises(InputError, match="Avoid control flow"):
        capture(spec_of(OnBuffers(MOST_NUMBERS + 1)))


class Written(OnBuffers):
    def forward(self, x: Tensor) -> Tensor:
        self.on.add_(x.sum())
        return x if self.on[0] > 0 else -x


class Noisy(OnBuffers):
    def forward(self, x: Tensor) -> Tensor:
        return x if torch.bernoulli(self.on)[1] > 0 else -x


@pytest.mark.parametrize("kind", [Written, Noisy])
def test_what_is_written_or_random_is_not_known(kind: type[OnBuffers]) -> None:
    with pytest.raises(InputError):
        capture(spec_of(kind()))


@pytest.mark.slow
def test_eomt_s_masks() -> None:
    """Its last layers ask a buffer whether they mask. Its masks are thresholds, which float64 may
    pass elsewhere, so float32 is compared."""
    import transformers
    from tests.coverage.cases import VISION, perturbed

    config = transformers.EomtConfig(
        **VISION | {"num_hidden_layers": 3, "image_size": 32}, num_upscale_blocks=1,
        num_blocks=2, num_queries=5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = perturbed(transformers.EomtForUniversalSegmentation(config))
    pixels = {"pixel_values": torch.randn(2, 3, 32, 32)}
    spec = huggingface_spec(model, inputs=pixels, dynamic={"pixel_values": {0: "batch"}})
    with spec.tracing(model):
        program, _ = capture(spec)
    more = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values=more).class_queries_logits
        made = program.module()(pixel_values=more)
    assert any(t.shape == expected.shape and torch.allclose(t, expected, atol=1e-5) for t in made)


class AllThere(nn.Module):
    """A mask that the model makes itself: everything is there, whatever the sizes."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self._written = written

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.ones(x.shape[0], dtype=torch.bool)
        if self._written:
            rows[0] = x[0, 0] > 0
        there = torch.ones(x.shape) * rows.expand(size=(x.shape[1], x.shape[0])).T
        x = x * torch.ones(x.shape, dtype=torch.int64).to(x.dtype)
        half = (there * 0.5).to(torch.int64)
        if not self._written and half.any():
            return x - 1
        if there.any():
            return x * there
        return x + 1


def test_what_holds_one_number_everywhere_decides_branches() -> None:
    program, spec = capture(spec_of(AllThere(written=False)))
    x = torch.randn(5, 3)
    assert torch.equal(program.module()(x=x)[0], x)
    assert not spec.examples


def test_a_write_ends_that() -> None:
    module = AllThere(written=True)
    _, spec = capture(spec_of(module))
    others = [sample["x"] for sample in spec.examples]
    assert any(torch.equal(module(x), x + 1) for x in others)  # the other way is compared
