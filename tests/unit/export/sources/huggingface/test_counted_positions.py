"""Positions that count on behind the first tokens."""

from __future__ import annotations

import torch

from crossfuse.export.sources.huggingface.counted_positions import count_on, counting_on

IDS = torch.tensor([[1, 4, 4, 7, 8], [1, 4, 4, 7, 0]])
PLAIN = torch.arange(5).repeat(2, 1)
AXES = {"input_ids": 1, "position_ids": 1}


def test_one_by_one_from_the_greatest() -> None:
    first = torch.tensor([[[0, 1, 1], [0, 3, 1]], [[0, 1, 2], [0, 0, 0]]], dtype=torch.int32)
    found = count_on(first, torch.zeros(2, 2))
    assert found.dtype == torch.int32
    assert found.tolist() == [[[3, 4], [4, 5]]] * 2
    assert count_on(PLAIN[:, :3], IDS[:, 3:]).tolist() == [[3, 4], [3, 4]]


def test_what_counts_on_in_every_example() -> None:
    one = {"input_ids": IDS, "position_ids": PLAIN}
    assert counting_on(AXES, [one], 3) == {"position_ids"}
    other = {**one, "position_ids": PLAIN + 10 * (PLAIN == 4)}
    assert counting_on(AXES, [one, other], 3) == frozenset()
    masked = {**other, "attention_mask": (PLAIN != 4).long()}
    assert counting_on({**AXES, "attention_mask": 1}, [masked], 3) == {"position_ids"}
    assert counting_on(AXES, [masked], 3) == frozenset()


def test_other_layouts_stay_inputs() -> None:
    last = {"input_ids": IDS, "position_ids": PLAIN[..., None]}
    assert counting_on(AXES, [last], 3) == frozenset()
    of_one = {"input_ids": IDS, "position_ids": PLAIN[:1]}
    assert counting_on(AXES, [of_one], 3) == frozenset()
