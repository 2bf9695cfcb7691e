"""OpenVINO is imported in one place, without its telemetry, and its absence is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crossfuse
from crossfuse.core import openvino as module
from crossfuse.core.openvino import openvino, require_openvino
from crossfuse.errors import BundleError, PackageError


def test_it_is_imported_without_telemetry() -> None:
    """In a process of its own, where a telemetry that were imported would be seen."""
    code = (
        "import sys\nfrom crossfuse.core.openvino import openvino\n"
        "assert openvino().Core\n"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')])"
    )
    env = os.environ | {"PYTHONPATH": str(Path(crossfuse.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_the_users_own_telemetry_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    assert openvino().Core
    assert sys.modules["openvino_telemetry"] is theirs


def test_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    require_openvino("the test")
    monkeypatch.setattr(module, "is_installed", lambda _: False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    advice = r"pip install 'crossfuse\[openvino\]'"
    with pytest.raises(PackageError, match=f"the test needs OpenVINO.*{advice}"):
        require_openvino("the test")
    with pytest.raises(BundleError, match="needs OpenVINO"):
        require_openvino("the test", BundleError)
    with pytest.raises(BundleError, match=advice):
        openvino()
