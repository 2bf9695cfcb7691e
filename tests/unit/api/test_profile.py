"""`crossfuse.profile`: whose model the rivals are, and what is refused before measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import crossfuse
from crossfuse import InputError
from crossfuse.api.profile import profile
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.measure.sampling import Plan

OLD = Path(__file__).parents[2] / "data" / "bundle-0.1.0"
FAST: dict[str, Any] = {"plan": Plan(3, 0.001), "cold_starts": 0, "trace": False}


def test_it_is_the_public_function() -> None:
    assert crossfuse.profile is profile


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"against": "eager"}, r"takes several texts \(against\)"),
        ({"against": ["egaer"]}, "Did you mean 'eager'"),
        ({"sweep": {"btach": [1]}}, "Did you mean 'batch'"),
        ({"against": ["eager"], "source": "cilp"}, "Did you mean 'clip'"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        profile(OLD, **arguments, **FAST)


def test_rivals_are_the_bundles_model_or_the_callers() -> None:
    """The error of another model's outputs is no rounding error; the bundle's own seed is known."""
    errors = {}
    for seed, source in (
        (0, None),
        (0, "cross_modal_attention"),
        (9, zoo_spec("cross_modal_attention", "tiny", 9)),
    ):
        report = profile(OLD, against=["eager"], source=source, **FAST)
        (row,) = [row for row in report.rows if row.name == "eager"]
        errors.setdefault(seed, []).append(row.error)
    assert all(error < 1e-5 for error in errors[0])
    assert errors[9][0] > 0.01


def test_without_rivals_no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from crossfuse.api import sources

    def fail(*_: object) -> None:
        raise AssertionError("a source was asked for")

    monkeypatch.setattr(sources, "kind_of", fail)
    assert {row.name for row in profile(OLD, **FAST).rows} >= {"crossfuse", "crossfuse query"}
