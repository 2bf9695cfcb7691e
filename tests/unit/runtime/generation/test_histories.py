"""The tokens so far."""

from __future__ import annotations

import numpy as np

from crossfuse.runtime.generation.histories import Histories


def test_a_row_has_its_own_length() -> None:
    one = np.ones(2, np.int64)
    histories = Histories(np.arange(8).reshape(2, 4), np.array([3, 1]), one, one)
    assert histories.row(0).tolist() == [0, 1, 2]
    assert histories.row(1).tolist() == [4]


def test_tokens_in_front_count_as_the_prompts() -> None:
    one = np.ones(2, np.int64)
    histories = Histories(np.arange(8).reshape(2, 4), np.array([3, 1]), one, 4 * one)
    assert histories.behind(None) is histories
    found = histories.behind(np.array([[7, 8], [9, 7]]))
    assert found.row(0).tolist() == [7, 8, 0, 1, 2]
    assert found.row(1).tolist() == [9, 7, 4]
    assert (found.prompts.tolist(), found.longest.tolist()) == ([3, 3], [6, 6])
