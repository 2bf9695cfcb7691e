"""Sizes of images as numbers of an export."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossfuse.export.sources.huggingface.known_sizes import (
    Known,
    fix_sizes,
    says_sizes,
    with_positions,
)


class Cut(nn.Module):
    """Cuts rows into as many as each image has, as a loop over numbers."""

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        counts = torch.repeat_interleave(image_grid_thw[:, 1], image_grid_thw[:, 0])
        places = (counts.cumsum(0) - counts)[:, None] + image_grid_thw[:, 2:]
        parts = [part.sum(0) * len(part) for part in pixel_values.split(counts.tolist())]
        return torch.stack(parts) + places


GRID = [[1, 2, 5], [1, 6, 7]]


def test_what_is_made_of_known_numbers_is_known() -> None:
    known, plain = Known.of(GRID), torch.tensor(GRID)
    assert (known.prod(-1) // 2).tolist() == (plain.prod(-1) // 2).tolist()
    assert isinstance(known[0] + known[1], Known)
    assert not isinstance(known + torch.ones(2, 3), Known)
    assert torch.equal(known + torch.ones(2, 3), plain + torch.ones(2, 3))


def test_a_graph_reads_them_as_constants() -> None:
    module, x = Cut(), torch.randn(8, 4)
    expected = module(x, torch.tensor(GRID))
    fix_sizes(module, {"image_grid_thw": GRID})
    assert torch.equal(module(pixel_values=x), expected)
    inputs = {"pixel_values": x, "image_grid_thw": None}
    program = torch.export.export(module, (), inputs, strict=False)
    inputs["pixel_values"] = torch.randn(8, 4)
    torch.testing.assert_close(
        program.module()(**inputs), Cut()(inputs["pixel_values"], torch.tensor(GRID))
    )


def test_which_inputs_say_sizes() -> None:
    assert says_sizes("image_grid_thw", torch.tensor(GRID))
    assert says_sizes("image_sizes", torch.tensor([[4, 4]]))
    assert not says_sizes("pixel_values", torch.tensor(GRID))
    assert not says_sizes("image_sizes", torch.ones(1, 2))


def test_a_model_without_positions_keeps_its_inputs() -> None:
    inputs = {"pixel_values": torch.ones(8, 4)}
    assert list(with_positions(Cut(), inputs)) == ["pixel_values"]
