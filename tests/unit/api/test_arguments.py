"""Arguments that public functions share."""

from __future__ import annotations

from pathlib import Path

import pytest

import crossfuse
from crossfuse import InputError
from crossfuse.api.arguments import paths, several, silent


def test_one_text_is_not_taken_for_its_letters() -> None:
    assert several("targets", ["a", "b"]) == ("a", "b")
    assert several("targets", (text for text in "ab")) == ("a", "b")
    with pytest.raises(
        InputError, match=r"takes several texts \(targets\): got 'onnx'.*\['onnx'\]"
    ):
        several("targets", "onnx")


@pytest.mark.parametrize(
    "argument", ["targets", "compute_capabilities", "profile_shapes", "context", "drop_outputs"]
)
def test_export_says_which_argument_it_was(argument: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"takes several texts \({argument}\)"):
        crossfuse.export("clip", tmp_path / "b", **{argument: "text"})


def test_examples_are_one_file_or_several_or_none() -> None:
    assert paths("a", None) == paths("a", ()) == paths("a", []) == ()
    one = (Path("a.npz"),)
    assert paths("a", "a.npz") == paths("a", Path("a.npz")) == paths("a", ["a.npz"]) == one
    assert paths("a", ["a.npz", Path("b")]) == (Path("a.npz"), Path("b"))


@pytest.mark.parametrize("given", [{"x": [1]}, [{"x": [1]}], 3, [None], [b"a.npz"]])
def test_what_is_no_path_is_told_by_its_argument(given: object) -> None:
    with pytest.raises(InputError, match=r"files are given by their paths \(example\)"):
        paths("example", given)  # type: ignore[arg-type]
    assert silent("anything") is None
