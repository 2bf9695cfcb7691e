"""A profile of a bundle, as short as it gets: which rows there are, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import crossfuse
from crossfuse.bundle.store import Bundle
from crossfuse.core.tensors import CONTEXTS
from crossfuse.errors import BundleError, InputError
from crossfuse.models.registry import zoo_spec
from crossfuse.profiling.measure.sampling import Plan, Samples
from crossfuse.profiling.report.report import LatencyReport, Row
from crossfuse.profiling.run import ProfileRequest, _break_even, _difference, profile_bundle

QUICK = Plan(rounds=1, seconds=0.001, calls=1, warm_up_seconds=0.0)
NAME = "cross_modal_attention"


@pytest.fixture(scope="module")
def split(shared_bundle: Callable[..., Bundle]) -> Bundle:
    return shared_bundle(NAME, size="tiny")


def profiled(bundle: Bundle, said: list[str] | None = None, **request: object) -> LatencyReport:
    asked = {"plan": QUICK, "cold_starts": 0, "trace": False} | request
    return profile_bundle(
        bundle.path,
        "ort-cpu",
        ProfileRequest(**asked),  # type: ignore[arg-type]
        spec=zoo_spec(NAME, "tiny"),
        progress=(said if said is not None else []).append,
    )


def test_stages_and_baselines_are_rows_at_every_point(split: Bundle) -> None:
    said: list[str] = []
    report = profiled(split, said, against=("eager", "eager-fp16"), sweep={"batch": (1, 3)})
    assert [point["batch"] for point in report.points] == [1, 3]
    assert all(point[CONTEXTS] == point["batch"] for point in report.points)
    for point in report.points:
        rows = {row.name: row for row in report.at(point)}
        assert list(rows) == [
            "crossfuse",
            "crossfuse encode",
            "crossfuse query",
            "eager",
            "eager-fp16",
        ]
        assert rows["eager"].error is not None
        assert rows["eager"].error < 1e-5
        for name in ("crossfuse", "eager"):
            assert 0 < (rows[name].reference_error or 0) < 1e-6, "against float64"
        assert rows["crossfuse encode"].reference_error is None
        assert rows["eager"].ratio is not None
        assert rows["eager-fp16"].failure == "eager-fp16 is a baseline on GPUs: got cpu."
        assert rows["crossfuse"].machine, "fixed work ran in the same rounds"
        assert rows["crossfuse"].ratio is None
    assert any("eager at batch=3" in text for text in said)
    assert (report.stages, report.load, report.cold_start) == ((), (), None)
    assert report.parity is not None
    assert len(report.ledger) == len(split.ledger)


def test_callers_and_arrivals_are_asked_for(split: Bundle) -> None:
    report = profiled(split, callers=(2,), rates=(200.0,), load_seconds=0.05)
    assert [(result.kind, result.level) for result in report.load] == [
        ("closed", 2),
        ("open", 200.0),
    ]


def test_what_can_not_be_profiled(split: Bundle, bundle_copy: Path) -> None:
    with pytest.raises(InputError, match="unknown dimension"):
        profiled(split, sweep={"bach": (1,)})
    manifest = bundle_copy / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace('"reference": "reference.npz"', '"reference": null')
    )
    with pytest.raises(BundleError, match="no inputs to profile with"):
        profiled(crossfuse.open_bundle(bundle_copy))


def row(name: str, milliseconds: float) -> Row:
    return Row(name, {"batch": 1}, Samples(((int(milliseconds * 1e6),) * 5,)))


@pytest.mark.parametrize(
    ("encode", "query", "whole", "pays"), [(6, 2, 8, 1.0), (6, 2, 4, 3.0), (6, 8, 8, None)]
)
def test_encoding_once_pays_from_some_number_of_queries(
    encode: float, query: float, whole: float, pays: float | None
) -> None:
    """n queries cost n·whole together, or encode + n·query."""
    rows = [row("crossfuse", whole), row("crossfuse encode", encode), row("crossfuse query", query)]
    assert _break_even(rows, {"batch": 1}) == (None if pays is None else pytest.approx(pays))
    assert _break_even(rows[:1], {"batch": 1}) is None


def test_differences_are_relative_to_the_output() -> None:
    expected = {"y": np.array([100.0, -200.0]), "n": np.array([1, 2])}
    assert _difference({"y": np.array([100.0, -201.0])}, expected) == pytest.approx(1 / 200)
    assert _difference({"other": np.ones(2)}, expected) is None
    assert _difference({"y": np.ones(3)}, expected) == float("inf")
