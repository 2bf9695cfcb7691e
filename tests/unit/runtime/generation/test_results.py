"""Sequences side by side."""

from __future__ import annotations

import numpy as np

from crossfuse.runtime.generation.results import Finished, Streamed, gathered


def test_sequences_of_different_lengths_are_padded() -> None:
    found = gathered(
        [
            Finished(np.array([1, 5, 2]), 1, np.float32([-0.5, -1]), -1.5, True),
            Finished(np.array([1, 3, 4, 5, 6]), 2, np.float32([-1, -2, -3]), -6, False),
        ],
        pad=9,
    )
    assert found.sequences.tolist() == [[1, 5, 2, 9, 9], [1, 3, 4, 5, 6]]
    assert (found.lengths.tolist(), found.prompts.tolist(), len(found)) == ([3, 5], [1, 2], 2)
    assert found.log_probs.tolist() == [[-0.5, -1, 0], [-1, -2, -3]]
    assert [row.tolist() for row in found.new_tokens] == [[5, 2], [4, 5, 6]]
    assert found.ended.tolist() == [True, False]
    assert found.scores.tolist() == [-1.5, -6]


def test_a_step_has_names() -> None:
    step = Streamed(np.array([4]), np.array([True]), np.float32([-1]))
    assert step.tokens.tolist() == [4]
