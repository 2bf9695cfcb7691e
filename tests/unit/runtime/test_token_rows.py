"""Tokens as callers give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from crossfuse import InputError
from crossfuse.runtime.token_rows import TokenRows, common


@pytest.mark.parametrize(
    ("tokens", "options", "rows"),
    [
        ([3, 4], {}, [[3, 4]]),
        (5, {}, [[5]]),
        ([[3, 4], [5]], {}, [[3, 4], [5]]),
        ([np.array([3]), np.array([4, 5, 6])], {}, [[3], [4, 5, 6]]),
        (np.array([[3, 4, 9], [5, 9, 9]]), {"lengths": [2, 1]}, [[3, 4], [5]]),
        (np.array([[9, 3, 4], [5, 6, 7]]), {"mask": [[0, 1, 1], [1, 1, 1]]}, [[3, 4], [5, 6, 7]]),
        (np.array([[3, 4, 9], [9, 9, 7]]), {"mask": [[1, 1, 0], [0, 0, 1]]}, [[3, 4], [7]]),
        ([3, 4], {"batch": 3}, [[3, 4]] * 3),
        (np.array([[3, 4], [5, 6]]), {"lengths": [0, 2]}, [[], [5, 6]]),
    ],
)
def test_rows_begin_with_what_counts(tokens: Any, options: Any, rows: list[list[int]]) -> None:
    found = TokenRows.of(tokens, **options)
    assert found.batch == len(rows)
    assert [found.ids[i, :n].tolist() for i, n in enumerate(found.lengths)] == rows
    assert found.ids.shape == found.counted.shape == (len(rows), max(map(len, rows)))
    assert found.counted.sum(1).tolist() == [len(row) for row in rows]


def test_first_columns_in_common() -> None:
    ids = np.array([[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 3, 9], [7, 2, 3, 4]])
    lengths = np.array([4, 4, 3, 4])

    def shared(rows: list[int], others: list[int], *tables: np.ndarray) -> int:
        return common((ids, *tables), lengths, np.array(rows, int), np.array(others, int))

    assert shared([0], [1]) == 2
    assert shared([0], [2]) == 3, "what is behind a row's length means nothing"
    assert shared([0, 2], [2, 1]) == 2
    assert shared([0], [3]) == 0
    assert shared([0], [2], np.array([[1, 1], [1, 1], [1, 0], [1, 1]]).repeat(2, 1)) == 2
    assert shared([], []) == 0


def test_what_is_beside_the_tokens_follows_them() -> None:
    rows = TokenRows.of(np.array([[9, 3], [5, 6]]), mask=[[0, 1], [1, 1]])
    beside = rows.beside("kinds", [[7, 1], [2, 4]], np.dtype(np.float32))
    assert beside[rows.counted].tolist() == [1, 2, 4]
    assert beside.dtype == np.float32
    assert rows.beside("mask", None, np.dtype(bool)).all()
    with pytest.raises(InputError, match=r"an element for each.*kinds"):
        rows.beside("kinds", [[1], [2]], np.dtype(np.int64))


@pytest.mark.parametrize(
    ("tokens", "options", "error"),
    [
        ([0.5], {}, "whole numbers"),
        ({"ids": [1]}, {}, "can't be read"),
        (np.zeros((1, 2, 2), int), {}, "whole numbers"),
        ([[1, 2]], {"lengths": [3]}, "lengths say how many"),
        ([[1, 2]], {"lengths": [-1]}, "lengths say how many"),
        ([[1, 2]], {"lengths": [1, 1]}, "lengths say how many"),
        ([[1, 2]], {"mask": [[1]]}, "an element per token"),
        ([[1, 2, 3]], {"mask": [[1, 0, 1]]}, "padding stands between"),
        ([[1, 2]], {"mask": [[1, 1]], "lengths": [2]}, "give one of them"),
        ([[1], [2]], {"batch": 3}, "each sequence needs its tokens"),
    ],
)
def test_what_cannot_be_read_says_why(tokens: Any, options: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        TokenRows.of(tokens, **options)
