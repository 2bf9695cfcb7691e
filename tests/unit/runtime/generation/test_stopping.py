"""What ends a sequence."""

from __future__ import annotations

import numpy as np

from crossfuse.runtime.generation.settings import GenerationSettings
from crossfuse.runtime.generation.stopping import Stopping


def test_tokens_and_sequences_of_new_tokens_end_one() -> None:
    stopping = Stopping(GenerationSettings(eos_token_id=(2, 9), stop_sequences=((4, 5), (7,))))
    ids = np.array([[4, 5, 2], [4, 5, 6], [1, 4, 5], [3, 3, 7], [2, 9, 1]])
    assert stopping.hit(ids, 1).tolist() == [True, False, True, True, False]
    # What reaches into the prompt is no sequence of new tokens.
    assert stopping.hit(ids, 2).tolist() == [True, False, False, True, False]


def test_nothing_ends_without_settings() -> None:
    assert not Stopping(GenerationSettings()).hit(np.array([[1, 2]]), 0).any()
