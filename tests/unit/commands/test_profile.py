"""`crossfuse profile`: what its lists become, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfuse import InputError
from crossfuse.commands.profile import complete_against, profile

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"


def test_the_last_name_of_a_list_is_completed() -> None:
    assert "eager" in complete_against("")
    names = ["openvino", "openvino-f32", "openvino-int8"]
    assert complete_against("open") == names
    assert complete_against("eager,openvino-f") == ["eager,openvino-f32"]
    assert "eager,eager" not in complete_against("eager,")
    assert "eager,onnx" in complete_against("eager,")
    assert complete_against("eager,nothing") == []


@pytest.mark.parametrize("text", ["a", "0", "-1", "1,x", "1;2"])
@pytest.mark.parametrize("option", ["callers", "rates"])
def test_lists_of_numbers(option: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"list of numbers can't be read \(--{option}\)"):
        profile(OLD, **{option: text}, cold_starts=0, rounds=3, seconds=0.001)


def test_what_to_profile_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what to profile is not given"):
        profile()
    with pytest.raises(InputError, match="is a folder"):
        profile(OLD, out=tmp_path)
    with pytest.raises(InputError, match="no such baseline"):
        profile(OLD, against="egaer")
