"""ONNX Runtime is imported in one place, quietly, and its absence is told."""

from __future__ import annotations

import os
import sys

import pytest

from crossfuse.core import onnx_runtime
from crossfuse.core.onnx_runtime import has_onnxruntime, onnxruntime, require_onnxruntime
from crossfuse.errors import BundleError, PackageError


def test_it_is_imported_without_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert has_onnxruntime()
    require_onnxruntime("the test")
    assert onnxruntime().InferenceSession
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0", "the user's word counts"


def test_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda _: False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    advice = r"pip install 'crossfuse\[cpu\]', or 'crossfuse\[gpu\]' for NVIDIA GPUs"
    with pytest.raises(PackageError, match=f"the test needs ONNX Runtime.*{advice}"):
        require_onnxruntime("the test")
    with pytest.raises(BundleError, match="needs ONNX Runtime"):
        require_onnxruntime("the test", BundleError)
    with pytest.raises(BundleError, match=advice):
        onnxruntime()
