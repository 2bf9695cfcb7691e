"""What is said of where inputs came from."""

from __future__ import annotations

from crossfuse.spec.input_origin import FIXED, FROM, UNREAD, origin_about, origin_words


def test_what_the_manifest_says_and_people_read() -> None:
    assert origin_about("yours") == {FROM: "yours"}
    about = origin_about("configuration", {"height": "the model refuses it"})
    assert origin_words(about) == [
        "Inputs from: configuration",
        "  height can't vary: the model refuses it",
    ]


def test_what_can_not_be_read_is_left_out() -> None:
    assert origin_words({FROM: 3, FIXED: "text", UNREAD: 1}) == []


def test_what_no_result_depends_on_is_named() -> None:
    (line,) = origin_words({UNREAD: ["pixel_values"]})
    assert line.startswith("No result depends on pixel_values")
