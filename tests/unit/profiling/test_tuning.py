"""Tuning: of the targets that pass, the fastest; of the others, why not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from coverage.rows import TARGETS
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, InputError
from crossfuse.profiling import tuning
from crossfuse.profiling.measure.sampling import Plan, Samples
from crossfuse.profiling.tuning import Candidate, TuneReport, TuneRequest, tune_bundle
from crossfuse.runtime.session import Session

QUICK = Plan(rounds=3, seconds=0.001, calls=1, warm_up_seconds=0.0)
MS = 1_000_000


def fake_times(monkeypatch: pytest.MonkeyPatch, **milliseconds: int) -> list[set[str]]:
    """Times by target; which were asked for."""
    asked: list[set[str]] = []

    def sample(calls: dict[str, object], *_: object, **__: object) -> dict[str, Samples]:
        asked.append(set(calls))
        for call in calls.values():
            assert callable(call)
            call()
        return {name: Samples(((milliseconds[name] * MS,),) * 3) for name in calls}

    monkeypatch.setattr(tuning, "sample", sample)
    return asked


def test_the_fastest_that_passes_is_chosen(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(openvino_bundle)
    asked = fake_times(monkeypatch, **{"ort-cpu": 5, "openvino": 2})
    said: list[str] = []
    report = tune_bundle(bundle, TuneRequest(), progress=said.append)
    assert (report.chosen, asked) == ("openvino", [{"ort-cpu", "openvino"}])
    first, second = report.candidates
    assert (first.target, first.precision) == ("openvino", bundle.target("openvino").precision)
    assert (first.seconds, first.ratios[0].value) == ((0.002,), 1.0)
    assert (second.seconds, second.ratios[0].value) == ((0.005,), 2.5)
    assert second.error is not None
    assert second.error < 1e-6
    assert second.cosine == pytest.approx(1.0, abs=1e-9)
    assert "openvino: parity" in said
    assert report.failure is None


def test_a_tolerance_leaves_targets_out(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 has errors of 1e-3 and more, fp32 of 1e-7."""
    bundle = open_bundle(openvino_bundle)
    if bundle.target("openvino").precision != "bf16":
        pytest.skip("this processor has no bf16")
    fake_times(monkeypatch, **{"ort-cpu": 5, "openvino": 2})
    report = tune_bundle(bundle, TuneRequest(tolerance=1e-5))
    assert report.chosen == "ort-cpu"
    left = report.candidates[1]
    assert (left.target, left.seconds, left.ratios) == ("openvino", (), ())
    assert left.reason.endswith("more than the tolerance of 1e-05")
    nothing = tune_bundle(bundle, TuneRequest(tolerance=0.0))
    assert nothing.chosen is None
    assert nothing.failure is not None
    assert "no target of the bundle passes here" in str(nothing.failure)
    assert "ort-cpu: its error is" in str(nothing.failure)


def test_the_geometric_mean_over_the_points_counts(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is twice as fast at one size, and four times as slow at the other."""
    times = iter([{"ort-cpu": 4, "openvino": 2}, {"ort-cpu": 1, "openvino": 4}])

    def sample(calls: dict[str, object], *_: object, **__: object) -> dict[str, Samples]:
        at = next(times)
        return {name: Samples(((at[name] * MS,),) * 3) for name in calls}

    monkeypatch.setattr(tuning, "sample", sample)
    request = TuneRequest(sweep={"batch": (1, 3)})
    report = tune_bundle(open_bundle(openvino_bundle), request)
    assert report.chosen == "ort-cpu"
    assert [point["batch"] for point in report.points] == [1, 3]
    assert [ratio.value for ratio in report.candidates[1].ratios] == [0.5, 4.0]


def test_what_fails_parity_or_can_not_run_has_its_reason(
    openvino_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(openvino_bundle)
    fake_times(monkeypatch, **{"ort-cpu": 5})
    with monkeypatch.context() as patch:
        patch.setattr("crossfuse.core.openvino.is_installed", lambda _: False)
        report = tune_bundle(bundle, TuneRequest())
    assert report.chosen == "ort-cpu"
    assert "needs OpenVINO, which is not installed" in report.candidates[1].reason
    monkeypatch.setattr(tuning, "check_session", _failing)
    (one,) = tune_bundle(bundle, TuneRequest(["ort-cpu"])).candidates
    assert one.reason == "fails parity: fused"


def _failing(*_: object) -> object:
    from crossfuse.parity.report import OutputParity, ParityReport

    bad = OutputParity(1.0, 1.0, 0.5, 1e-5, "floor of fp32", {}, True)
    return ParityReport("t", "p", "fp32", "float64", (), {"fused": bad})


def test_what_is_refused(openvino_bundle: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(openvino_bundle, tmp_path / "b"))
    (damaged / "query.openvino.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"query\.openvino\.onnx"):
        tune_bundle(open_bundle(damaged), TuneRequest())
    bundle = open_bundle(openvino_bundle)
    with pytest.raises(BundleError, match="no such target"):
        tune_bundle(bundle, TuneRequest(["ort-cuda"]))
    with pytest.raises(InputError, match="unknown dimension"):
        tune_bundle(bundle, TuneRequest(sweep={"bach": (1,)}))


@pytest.mark.parametrize(
    ("asked", "told"), [({}, 32), ({"new_tokens": 3}, 3), ({"new_tokens": 0}, 0)]
)
def test_what_generates_is_timed_by_tokens(
    asked: dict[str, int],
    told: int,
    shared_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As it is used: a target whose whole calls are fast may have slow steps."""
    done: list[str] = []

    def sample(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> object:
        for name in ("encode", "run"):
            real = getattr(Session, name)
            monkeypatch.setattr(
                Session, name, lambda *a, n=name, r=real, **k: done.append(n) or r(*a, **k)
            )
        for call in calls.values():
            call()
        return {name: Samples(((MS,),) * 3) for name in calls}

    monkeypatch.setattr(tuning, "sample", sample)
    bundle = shared_bundle("coverage/bart", TARGETS)
    report = tune_bundle(bundle, TuneRequest(["ort-cpu"], **asked))
    assert (report.chosen, report.new_tokens) == ("ort-cpu", told)
    assert done == (["encode"] if told else ["run"])


def test_a_sweep_is_of_whole_calls(
    shared_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_times(monkeypatch, **{"ort-cpu": 5})
    bundle = shared_bundle("coverage/bart", TARGETS)
    report = tune_bundle(bundle, TuneRequest(["ort-cpu"], sweep={"batch": (1, 2)}))
    assert (report.new_tokens, len(report.points)) == (0, 2)


def test_tokens_of_what_does_not_generate_are_refused(openvino_bundle: Path) -> None:
    with pytest.raises(InputError, match="has no step stage, so it generates no tokens"):
        tune_bundle(open_bundle(openvino_bundle), TuneRequest(new_tokens=8))


def test_a_report_has_json() -> None:
    one = Candidate("ort-cpu", "fp32", reason="not here")
    data = TuneReport("b", None, (), None, (one,)).to_json()
    assert data["candidates"][0]["reason"] == "not here"
    assert (data["chosen"], data["record"]) == (None, None)
