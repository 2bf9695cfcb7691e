"""What is said of where inputs came from."""

from __future__ import annotations

from crossfuse.spec.input_origin import FIXED, FROM, origin_about, origin_words


def test_what_the_manifest_says_and_people_read() -> None:
    assert origin_about("yours") == {FROM: "yours"}
    about = origin_about("configuration", {"height": "the model refuses it"})
    assert origin_words(about) == [
        "Inputs from: configuration",
        "  height can't vary: the model refuses it",
    ]


def test_what_can_not_be_read_is_left_out() -> None:
    assert origin_words({FROM: 3, FIXED: "text"}) == []
