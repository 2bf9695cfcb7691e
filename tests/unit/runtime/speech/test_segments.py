"""Windows cut into segments, as ``transformers`` cuts them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from crossfuse.runtime.speech.segments import cut

FIRST = 50


def theirs(tokens: np.ndarray, frames: int) -> tuple[list[tuple[list[int], float, float]], int]:
    from transformers.models.whisper.generation_whisper import WhisperGenerationMixin

    segments, ahead = WhisperGenerationMixin._retrieve_segment(
        seek_sequence=torch.from_numpy(tokens), seek_outputs=[None],
        time_offset=torch.zeros(1, dtype=torch.float64), timestamp_begin=FIRST,
        seek_num_frames=torch.tensor([frames]), time_precision=0.02,
        time_precision_features=0.01, input_stride=2, prev_idx=0, idx=0,
        return_token_timestamps=False, decoder_input_ids=torch.zeros(1, 3),
    )  # fmt: skip
    found = [(s["tokens"].tolist(), float(s["start"]), float(s["end"])) for s in segments]
    return found, int(ahead)


def said(generator: np.random.Generator) -> np.ndarray:
    """Text between times that ascend, cut anywhere."""
    times = np.sort(generator.integers(1, 40, 9))
    tokens = [FIRST]
    for begin, end in itertools.pairwise(times):
        tokens += [*generator.integers(0, 20, int(generator.integers(1, 4))), FIRST + int(begin)]
        if end > begin:
            tokens.append(FIRST + int(begin))
    return np.array(tokens[: int(generator.integers(2, len(tokens)))], np.int64)


def test_random_windows() -> None:
    generator = np.random.default_rng(1)
    kinds = set()
    for _ in range(300):
        tokens = said(generator)
        expected, ahead = theirs(tokens, 73)
        found, mine = cut(tokens, FIRST, 73)
        assert [one.tokens.tolist() for one in found] == [tokens for tokens, _, _ in expected]
        ends = [(one.start * 0.02, one.end * 0.02) for one in found]
        np.testing.assert_allclose(ends, [(a, b) for _, a, b in expected], atol=1e-9)
        assert mine == ahead
        kinds.add((len(found) > 1, ahead == 73))
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


@pytest.mark.parametrize("tokens", [[], [3, 4, 5], [FIRST, 3], [FIRST, FIRST]])
def test_windows_without_a_pair_that_ends_one_go_on_behind_it(tokens: list[int]) -> None:
    found, ahead = cut(np.array(tokens, np.int64), FIRST, 60)
    assert [one.tokens.tolist() for one in found] == [tokens]
    assert ahead == 60, "a window never begins where the last one did"


def test_without_times_all_is_one() -> None:
    tokens = np.array([60, 61, 3])
    found, ahead = cut(tokens, None, 40)
    assert (found[0].tokens is tokens, found[0].end, ahead) == (True, 20.0, 40)
