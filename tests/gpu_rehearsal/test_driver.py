"""The runtime's GPU half on a stand-in for CUDA's driver, with the real cuda-core: `driver_checks.py` in its own process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import crossfuse
from coverage.cases import CASES
from crossfuse.bundle.store import Bundle
from gpu_rehearsal.driver import build_driver, environment_on, missing_for_driver

CHECKS = Path(__file__).parent / "driver_checks.py"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = missing_for_driver()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder)
    return folder


def test_on_the_driver_s_stand_in(driver: Path, zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundles = {
        "whole": zoo_bundle("cross_modal_attention").path,
        "split": crossfuse.export("qformer", tmp_path / "split", ["ort-cpu"], size="tiny").path,
        "decode": crossfuse.export(CASES["bart"].make(), tmp_path / "decode", ["ort-cpu"]).path,
    }
    variables = {f"REHEARSAL_{name.upper()}": str(path) for name, path in bundles.items()}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(CHECKS)]
    environment = environment_on(driver, CROSSFUSE_CACHE=str(tmp_path / "cache"), **variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
