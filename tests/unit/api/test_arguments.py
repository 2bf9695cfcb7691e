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
    assert paths(None) == paths(()) == paths([]) == ()
    assert paths("a.npz") == paths(Path("a.npz")) == paths(["a.npz"]) == (Path("a.npz"),)
    assert paths(["a.npz", Path("b")]) == (Path("a.npz"), Path("b"))
    assert silent("anything") is None
