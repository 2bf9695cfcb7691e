"""`crossfuse.tune`: measures, records, and sessions follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import crossfuse
from crossfuse import InputError, runtime
from crossfuse.api.tune import forget_tuned, tune
from crossfuse.profiling.measure.sampling import Plan

FAST = Plan(3, 0.001, 1, 0.0)


def test_what_it_finds_is_what_sessions_take(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path))
    assert crossfuse.tune is tune
    report = tune(openvino_bundle, plan=FAST)
    assert report.bundle == str(openvino_bundle)
    assert report.chosen in ("ort-cpu", "openvino")
    assert {one.target for one in report.candidates} == {"ort-cpu", "openvino"}
    assert report.record is not None
    assert json.loads(Path(report.record).read_text())["target"] == report.chosen
    with runtime.load(openvino_bundle) as session:
        assert session.target == report.chosen
    only = tune(openvino_bundle, ["openvino"], plan=FAST)
    assert only.chosen == "openvino"
    with runtime.load(openvino_bundle) as session:
        assert session.target == "openvino", "the last word counts"
    nothing = tune(openvino_bundle, ["openvino"], tolerance=0, plan=FAST)
    assert (nothing.chosen, nothing.record) == (None, None)
    assert forget_tuned(openvino_bundle)
    assert not forget_tuned(openvino_bundle)


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_is_a_number(tolerance: float, openvino_bundle: Path) -> None:
    with pytest.raises(InputError, match="a tolerance is a number from 0 on"):
        tune(openvino_bundle, tolerance=tolerance)


@pytest.mark.parametrize("count", [-1, 2.5, "8"])
def test_tokens_are_counted(count: object, openvino_bundle: Path) -> None:
    with pytest.raises(InputError, match="new tokens are counted from 0 on"):
        tune(openvino_bundle, new_tokens=count)  # type: ignore[arg-type]


def test_a_cache_that_can_not_be_written_is_told(
    openvino_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"the choice can't be recorded.*CROSSFUSE_CACHE"):
        tune(openvino_bundle, ["ort-cpu"], plan=FAST)
