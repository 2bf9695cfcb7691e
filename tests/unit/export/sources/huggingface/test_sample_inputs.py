"""Rows for a processor: made ones, the user's, and both with one thing changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossfuse.errors import InputError
from crossfuse.export.sources.huggingface.sample_inputs import (
    CHANGES,
    Given,
    changed,
    companion,
    made_row,
    rows_of,
)

KINDS = ("images", "text", "videos", "audio")


def test_a_made_row_has_what_is_asked_for_and_is_the_same_each_time() -> None:
    row, again = made_row(KINDS, 8000), made_row(KINDS, 8000)
    assert (len(row.images), len(row.videos[0]), row.audio[0].shape) == (1, 4, (8000,))
    assert np.array_equal(np.asarray(row.images[0]), np.asarray(again.images[0]))
    assert np.asarray(row.images[0]).std() > 20
    assert 0.1 < np.abs(row.audio[0]).max() <= 1
    assert made_row(("text",), None).images == ()


def test_a_companion_is_shorter_and_mirrored() -> None:
    row = made_row(KINDS, 8000)
    other = companion(row)
    assert row.text.startswith(other.text)
    assert 0 < len(other.text.split()) < len(row.text.split())
    assert np.array_equal(np.asarray(other.images[0])[:, ::-1], np.asarray(row.images[0]))
    assert other.audio[0].size < row.audio[0].size


def test_one_thing_changes() -> None:
    rows = [made_row(KINDS, 8000), made_row(KINDS, 8000, 1)]

    def sizes(change: str) -> tuple[object, ...]:
        row = changed(rows, change)[0]
        image = np.asarray(row.images[0]).shape
        words = len(row.text.split())
        return len(changed(rows, change)), words, image, row.audio[0].size, len(row.videos[0])

    base = (2, len(rows[0].text.split()), np.asarray(rows[0].images[0]).shape, 8000, 4)
    for change, place in zip(CHANGES, (0, 1, 1, 1, 2, 2, 3, 4), strict=True):
        found = sizes(change)
        assert [i for i in range(5) if found[i] != base[i]] == [place], change


def test_what_a_user_gives_goes_in_rows(tmp_path: Path) -> None:
    for name in "ab":
        Image.new("RGB", (4, 6)).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / "a.png"), tmp_path / "b.png"]
    both = ("images", "text")
    one = rows_of(Given(["Which?"], files), both, None)
    assert [(row.text, len(row.images)) for row in one] == [("Which?", 2)]
    two = rows_of(Given(["This?", "That?"], files), both, None)
    assert [(row.text, len(row.images)) for row in two] == [("This?", 1), ("That?", 1)]
    assert len(rows_of(Given((), files), ("images",), None)) == 2
    assert len(rows_of(Given((), files), both, None)[0].images) == 2
    with pytest.raises(InputError, match="don't go together"):
        rows_of(Given(["a", "b", "c"], files), both, None)


def test_a_video_has_as_many_frames_as_the_model_takes() -> None:
    video = list(range(9))
    asked = {frames: rows_of(Given(videos=[video]), ("videos",), None, frames) for frames in (3, 1)}
    assert [asked[3][0].videos, asked[1][0].videos] == [((0, 4, 8),), ((0,),)]
    assert rows_of(Given(videos=[video]), ("videos",), None)[0].videos == (tuple(video),)
    assert len(rows_of(Given(videos=[[1, 2]]), ("videos",), None, 5)[0].videos[0]) == 5
    assert len(made_row(("videos",), None, frames=6).videos[0]) == 6


def test_whether_anything_is_given() -> None:
    assert not Given()
    assert Given(audio=[np.zeros(3)]).kinds == ("audio",)
