"""Sizes of images as numbers of an export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def test_views_of_known_numbers_have_a_base_that_ends() -> None:
    """Tracers go from base to base when they describe a tensor."""
    for view in (Known.of(GRID)[0], Known.of(GRID).flatten()[1:], Known.of(GRID).mT):
        base: Tensor | None = view
        for _ in range(4):
            base = None if base is None else base._base
        assert base is None


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


class Pooled(nn.Module):
    """Means of the rows that each token lists, -1 for none, without the tokens that list none."""

    def forward(self, pixel_values: Tensor, image_token_pooling: Tensor) -> Tensor:
        listed = image_token_pooling >= 0
        rows = pixel_values[image_token_pooling.clip(0)] * listed[..., None]
        return (rows.sum(-2) / listed.sum(-1, keepdim=True).clip(1))[listed.any(-1)]


def test_rows_chosen_by_known_truth_values_are_as_many_as_these_say() -> None:
    lists = [[0, 3], [-1, -1], [2, -1]]
    module, x = Pooled(), torch.randn(4, 5)
    expected = module(x, torch.tensor(lists))
    assert expected.shape == (2, 5)
    fix_sizes(module, {"image_token_pooling": lists})
    inputs = {"pixel_values": x, "image_token_pooling": None}
    program = torch.export.export(module, (), inputs, strict=False)
    torch.testing.assert_close(program.module()(**inputs), expected)
    assert "nonzero" not in str(program.graph)
    known, rows = Known.of(GRID), torch.randn(2, 3)
    assert torch.equal(rows[known > 1], rows[torch.tensor(GRID) > 1])
    assert torch.equal(rows[:, (known > 1)[0]], rows[:, torch.tensor(GRID[0]) > 1])


class Counted(nn.Module):
    """Adds to each row its place within its image: a count of what is known."""

    def forward(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        counts = image_grid_thw.prod(-1)
        starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        places = (torch.arange(counts.sum(), device=counts.device) - starts) % 5
        return pixel_values + places[:, None] + torch.arange(pixel_values.shape[1])


def test_what_is_counted_up_to_a_known_number_is_known() -> None:
    module, x = Counted(), torch.randn(52, 3)
    expected = module(x, torch.tensor(GRID))
    fix_sizes(module, {"image_grid_thw": GRID})
    assert torch.equal(module(pixel_values=x), expected)
    inputs = {"pixel_values": x, "image_grid_thw": None}
    program = torch.export.export(module, (), inputs, strict=False)
    torch.testing.assert_close(program.module()(**inputs), expected)
    assert torch.arange(3).tolist() == [0, 1, 2]


def test_which_inputs_say_sizes() -> None:
    assert says_sizes("image_grid_thw", torch.tensor(GRID))
    assert says_sizes("image_sizes", torch.tensor([[4, 4]]))
    assert says_sizes("batch_num_images", torch.tensor([1, 1]))
    assert not says_sizes("batch_num_images", torch.ones(1))
    assert not says_sizes("pixel_values", torch.tensor(GRID))
    assert not says_sizes("image_sizes", torch.ones(1, 2))


class Placed(nn.Module):
    """Takes positions, and makes them of kinds of tokens."""

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return input_ids + position_ids

    def get_rope_index(self, input_ids: Tensor, mm_token_type_ids: Tensor) -> tuple[Tensor]:
        return (input_ids.new_ones(1).expand_as(input_ids).cumsum(1) + mm_token_type_ids,)


def test_positions_are_made_whatever_arguments_a_traced_model_shows() -> None:
    module, ids = Placed(), torch.tensor([[3, 4]])
    inputs = {"input_ids": ids, "mm_token_type_ids": torch.tensor([[0, 1]])}
    module.forward = lambda input_ids: input_ids  # type: ignore[method-assign, assignment]
    made = with_positions(module, inputs)
    assert list(made) == ["input_ids", "position_ids"]
    assert made["position_ids"].tolist() == [[1, 3]]


def test_a_model_without_positions_keeps_its_inputs() -> None:
    inputs = {"pixel_values": torch.ones(8, 4)}
    assert list(with_positions(Cut(), inputs)) == ["pixel_values"]


class Grids(nn.Module):
    """Cuts rows into one grid for each image, whose sides are tensors of one number."""

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> Tensor:
        sides = [(size[0] // 2, size[1] // 2) for size in image_sizes]
        counts = torch.as_tensor(image_sizes, device=pixel_values.device) // 2
        parts = pixel_values.split(counts.prod(-1).tolist())
        most = (image_sizes[:, 0] // 2).max()
        grids = [
            F.pad(part.view(height, width, 4), (0, 0, 0, 0, 0, most - height)).sum(0)
            for part, (height, width) in zip(parts, sides, strict=True)
        ]
        return torch.cat(grids)[: sides[0][1] + sides[1][1]]


def test_sides_of_grids_are_numbers() -> None:
    module, x, sizes = Grids(), torch.randn(10, 4), [[4, 6], [4, 4]]
    expected = module(x, torch.tensor(sizes))
    fix_sizes(module, {"image_sizes": sizes})
    inputs = {"pixel_values": x, "image_sizes": None}
    program = torch.export.export(module, (), inputs, strict=False)
    assert torch.equal(program.module()(**inputs), expected)
