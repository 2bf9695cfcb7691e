"""A session against a reference set: passed, failed, or of another model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossfuse import runtime
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.errors import BundleError, InputError, ParityError
from crossfuse.parity.reference import ReferenceSet
from crossfuse.parity.session_check import check_session, reference_of, verify_bundle
from crossfuse.runtime import SessionOptions

NAME = "cross_modal_attention"


def test_a_bundle_passes_its_own_reference(zoo_bundle: Callable[[str], Bundle]) -> None:
    report = verify_bundle(zoo_bundle(NAME).path, "ort-cpu")
    assert report.passed
    assert (report.target, report.executed_on) == ("ort-cpu", "CPUExecutionProvider")
    on_cpu = SessionOptions(provider="CPUExecutionProvider")
    other = verify_bundle(zoo_bundle(NAME).path, "ort-cuda", options=on_cpu)
    assert other.executed_on == "CPUExecutionProvider (not the target's own)"


def changed(reference: ReferenceSet, **fields: Any) -> ReferenceSet:
    return replace(reference, points=tuple(replace(p, **fields) for p in reference.points))


def test_other_numbers_fail(zoo_bundle: Callable[[str], Bundle]) -> None:
    reference = reference_of(zoo_bundle(NAME))
    first = reference.points[0]
    wrong = replace(first, outputs={n: a * 1.01 for n, a in first.outputs.items()})
    report = verify_bundle(
        zoo_bundle(NAME).path,
        "ort-cpu",
        reference=replace(reference, points=(wrong, *reference.points[1:])),
    )
    assert not report.passed
    assert report.failing == (0,)


def test_references_of_another_model_are_refused(zoo_bundle: Callable[[str], Bundle]) -> None:
    reference = reference_of(zoo_bundle(NAME))
    with runtime.load(zoo_bundle(NAME).path, "ort-cpu") as session:
        with pytest.raises(InputError, match="another model: it has other inputs"):
            check_session(session, changed(reference, inputs={"x": np.ones(1)}), "fp32")
        with pytest.raises(InputError, match="another model: it has other outputs"):
            check_session(session, changed(reference, outputs={"x": np.ones(1)}), "fp32")
        with pytest.raises(InputError, match="reference set is empty"):
            check_session(session, replace(reference, points=()), "fp32")


def test_what_eager_takes_a_target_has_to_take(zoo_bundle: Callable[[str], Bundle]) -> None:
    """That it refuses the reference's inputs is a failed check, no bad input."""
    reference = reference_of(zoo_bundle(NAME))
    first = reference.points[0]
    flat = replace(first, inputs={n: a.reshape(-1) for n, a in first.inputs.items()})
    with (
        runtime.load(zoo_bundle(NAME).path, "ort-cpu") as session,
        pytest.raises(ParityError, match="fails on inputs that the eager model takes.*wrong rank"),
    ):
        check_session(session, replace(reference, points=(flat,)), "fp32")


def test_a_bundle_without_a_reference(bundle_copy: Path) -> None:
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text().replace('"reference": "reference.npz"', '"reference": null')
    manifest.write_text(text)
    with pytest.raises(BundleError, match="no reference set"):
        reference_of(open_bundle(bundle_copy))
