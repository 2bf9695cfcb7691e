"""PyTorch's fast paths are off for a while, and as they were afterwards."""

from __future__ import annotations

import pytest
import torch

from crossfuse.export.capture.fast_paths import without_fast_paths


@pytest.fixture(params=[True, False])
def enabled(request: pytest.FixtureRequest) -> object:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield request.param
    torch.backends.mha.set_fastpath_enabled(before)


def test_off_inside_and_restored_behind(enabled: bool) -> None:
    with without_fast_paths():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_restored_behind_an_exception(enabled: bool) -> None:
    with pytest.raises(ValueError, match="inside"), without_fast_paths():
        raise ValueError("inside")
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_as_a_decorator(enabled: bool) -> None:
    @without_fast_paths()
    def inside() -> bool:
        return torch.backends.mha.get_fastpath_enabled()

    assert not inside()
    assert not inside(), "more than once"
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_padded_positions_are_what_the_layers_compute() -> None:
    """On the fast path they come out as zeros."""
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 1).eval()
    x, padding = torch.randn(1, 4, 8), torch.tensor([[False, False, False, True]])
    with torch.no_grad(), without_fast_paths():
        assert encoder(x, src_key_padding_mask=padding)[0, 3].abs().max() > 0.1
