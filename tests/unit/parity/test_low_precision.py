"""The policy of low precision: what passes, and above all what does not."""

from __future__ import annotations

import numpy as np
import pytest

from crossfuse.errors import ParityError
from crossfuse.parity.low_precision import BESIDE_A_METRIC, PLAIN, measured
from crossfuse.parity.output_parity import OutputParity
from crossfuse.parity.reference import ReferencePoint, ReferenceSet
from crossfuse.parity.report import compare

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((200, 12)) * 3


def noisy(truth: np.ndarray, relative: float) -> np.ndarray:
    noise = np.random.default_rng(1).standard_normal(truth.shape)
    return truth + relative * noise * np.sqrt(np.mean(truth**2))


def test_rounding_noise_passes_and_its_measures_are_right() -> None:
    got = noisy(LOGITS, 0.01)
    found = measured([(got, LOGITS)])
    error = got - LOGITS
    assert found.relative_rms == pytest.approx(
        np.linalg.norm(error) / np.linalg.norm(LOGITS), rel=1e-9
    )
    expected = np.sum(got * LOGITS) / np.linalg.norm(got) / np.linalg.norm(LOGITS)
    assert found.cosine == pytest.approx(expected, rel=1e-12)
    assert found.top1 == 1.0
    assert found.misses(PLAIN) == ()


@pytest.mark.parametrize(
    ("got", "missed"),
    [
        (noisy(LOGITS, 0.07), ["cosine", "relative RMS"]),
        (LOGITS * 1.06, ["relative RMS"]),
        (-LOGITS, ["cosine", "relative RMS", "top-1"]),
        (LOGITS[:-1], ["cosine", "relative RMS", "top-1"]),
        (np.full_like(LOGITS, np.nan), ["cosine", "relative RMS"]),
        (np.roll(LOGITS, 1, axis=-1), ["cosine", "relative RMS", "top-1"]),
    ],
)
def test_what_is_refused(got: np.ndarray, missed: list[str]) -> None:
    misses = measured([(got, LOGITS)]).misses(PLAIN)
    assert all(any(text.startswith(word) for text in misses) for word in missed), misses


def test_decisions_are_counted_and_ties_are_not() -> None:
    """Rows whose best number is overtaken, with a lead that is a decision and with one that is
    not."""
    truth, got = LOGITS.copy(), LOGITS.copy()
    for row in range(5):
        first, second = np.argsort(truth[row])[[-1, -2]]
        truth[row, second] = truth[row, first] - (0.5 if row < 2 else 0.001)
        got[row] = truth[row]
        got[row, second] = got[row, first] + 0.001
    assert measured([(got, truth)]).top1 == pytest.approx(1 - 2 / 200)
    assert measured([(got[2:], truth[2:])]).top1 == 1.0, "a lead of a thousandth is no decision"


def test_agreement_is_over_all_points_and_integers_count_by_element() -> None:
    codes = RNG.integers(0, 9, (100,))
    wrong = codes.copy()
    wrong[0] += 1
    assert measured([(wrong, codes)]).top1 == 0.99
    assert measured([(wrong[:50], codes[:50]), (codes, codes)]).top1 == pytest.approx(1 - 1 / 150)
    assert measured([(codes == 3, codes == 3)]).top1 == 1.0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_outputs_without_size_or_variation(value: float) -> None:
    truth = np.full((3, 1), value)
    assert measured([(truth, truth)]).misses(PLAIN) == ()
    assert measured([(truth + 1, truth)]).misses(PLAIN) != ()
    empty = np.zeros((0, 4))
    assert measured([(empty, empty)]).misses(PLAIN) == ()


def reference() -> ReferenceSet:
    return ReferenceSet(
        "float64",
        tuple(ReferencePoint({"n": i}, 0, {}, {"y": LOGITS}, {"y": 0.0}) for i in (1, 2)),
    )


def report_of(got: np.ndarray, limits: object = PLAIN):
    return compare(
        lambda _: {"y": got},
        reference(),
        target="ort-cpu",
        executed_on="here",
        precision="int8",
        limits=limits,
    )


def test_a_report_names_what_is_missed() -> None:
    assert report_of(noisy(LOGITS, 0.02)).passed, "far beyond what fp32 or fp16 may be off"
    report = report_of(noisy(LOGITS, 0.08))
    assert report.failing == (0, 1)
    with pytest.raises(ParityError, match=r"y \(cosine .* below 0.999, relative RMS .*mixed-int8"):
        report.require_passed()
    data = report.to_json()["outputs"]["y"]
    assert not data["passed"]
    assert data["relative_rms"] == pytest.approx(0.08, rel=0.05)
    assert report_of(noisy(LOGITS, 0.08), BESIDE_A_METRIC).passed
    assert not report_of(np.full_like(LOGITS, np.inf), BESIDE_A_METRIC).passed


def test_other_precisions_keep_their_json() -> None:
    plain = OutputParity(0.1, 0.1, 1.0, 1.0, "floor", {}, finite=True)
    assert plain.passed
    from crossfuse.core.json_codec import encode

    assert "relative_rms" not in encode(plain)
