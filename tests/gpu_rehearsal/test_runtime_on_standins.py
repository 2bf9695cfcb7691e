"""The runtime's GPU half with the real cuda-core and ONNX Runtime's own CUDA provider, over
stand-ins for CUDA's libraries.

`driver_checks.py` and `ort_checks.py` run in processes of their own, in which the loader finds the
stand-ins.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coverage.table import TARGETS
from crossfuse.bundle.store import Bundle
from gpu_rehearsal.driver import build_driver, environment_on, missing_for_driver

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def bundles(
    zoo_bundle: Callable[[str], Bundle], shared_bundle: Callable[..., Bundle]
) -> dict[str, Path]:
    """A whole bundle, one with a batch of contexts, and one that decodes."""
    return {
        "whole": zoo_bundle("cross_modal_attention").path,
        "split": shared_bundle("qformer", ("ort-cpu", "ort-cuda"), size="tiny").path,
        "decode": shared_bundle("coverage/bart", TARGETS).path,
    }


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reason = missing_for_driver()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("driver")
    build_driver(folder)
    return folder


@pytest.fixture(scope="module")
def provider_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    standins = pytest.importorskip(
        "gpu_rehearsal.build_standins", reason="the provider's stand-ins are not here"
    )
    reason = standins.missing_for_provider()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("provider")
    standins.build_provider_standins(folder)
    return Path(folder)


def run_checks(file: str, libraries: list[Path], bundles: dict[str, Path], folder: Path) -> None:
    variables = {f"REHEARSAL_{name.upper()}": str(path) for name, path in bundles.items()}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        str(HERE / file),
    ]
    environment = environment_on(
        *libraries, CROSSFUSE_CACHE=str(folder), CUDA_STANDIN_COUNT="2", **variables
    )
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_on_a_driver_that_only_waits(
    driver: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """cuda-core and the stand-in for TensorRT."""
    run_checks("driver_checks.py", [driver], bundles, tmp_path)


def test_on_the_cuda_provider(
    driver: Path, provider_libraries: Path, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """ONNX Runtime's own CUDA provider."""
    run_checks("ort_checks.py", [driver, provider_libraries], bundles, tmp_path)
