"""Options of a session, checked when they are given."""

from __future__ import annotations

from typing import Any

import pytest

from crossfuse.errors import InputError
from crossfuse.runtime.options import SessionOptions


@pytest.mark.parametrize("name", ["threads", "inter_op_threads", "lanes"])
def test_counts_are_whole_numbers_from_one(name: str) -> None:
    assert getattr(SessionOptions(**{name: 3}), name) == 3
    for wrong in (0, -1):
        with pytest.raises(InputError, match=rf"out of range \({name}\): got {wrong}"):
            SessionOptions(**{name: wrong})
    for wrong in (1.5, "2", True):
        with pytest.raises(InputError, match=rf"no whole number \({name}\)"):
            SessionOptions(**{name: wrong})


@pytest.mark.parametrize(
    ("given", "device"),
    [
        ({}, 0),
        ({"device_id": 2}, 2),
        ({"provider_options": {"device_id": "3"}}, 3),
        ({"device_id": 3, "provider_options": {"device_id": "3"}}, 3),
        ({"provider_options": {"use_tf32": "1"}}, 0),
    ],
)
def test_the_gpu_may_be_told_in_two_places(given: dict[str, Any], device: int) -> None:
    assert SessionOptions(**given).device == device


@pytest.mark.parametrize(
    "given",
    [
        {"device_id": -1},
        {"provider_options": {"device_id": "1.5"}},
        {"provider_options": {"device_id": "-1"}},
        {"device_id": 1, "provider_options": {"device_id": "0"}},
    ],
)
def test_the_gpu_is_one(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="a GPU's number, told once"):
        SessionOptions(**given)


def test_the_engines_configuration_takes_what_is_known() -> None:
    SessionOptions(config={"session.set_denormal_as_zero": "1"})
    for name in ("session.set_denormals_as_zero", "ep.context_file_path", "anything"):
        with pytest.raises(InputError, match="no such entry"):
            SessionOptions(config={name: "1"})
    with pytest.raises(InputError, match="is no text"):
        SessionOptions(config={"session.set_denormal_as_zero": 1})  # type: ignore[dict-item]
