"""Fixtures: bundles that tests share, exported once per run for all of its test processes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Read when the library is imported: no test asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import crossfuse
from crossfuse.bundle.store import Bundle, open_bundle

TARGETS = ("onnx", "ort-cpu", "ort-cuda")
SLOW_SECONDS = 1800
"""The limit of a slow test; a quick one's is in pyproject.toml."""


def _has_gpu() -> bool:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return bool(
        cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
    if not _has_gpu():
        skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Several test processes share the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines built by tests don't enter the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CROSSFUSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        # What other test processes wrote, and what tests damage, is not tried in processes.
        patch.setenv("CROSSFUSE_TRUST_BUNDLES", "1")
        yield


@pytest.fixture(scope="session")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """``shared_bundle(name, targets, **options)``: what `crossfuse.export` makes of them.

    The name is the zoo's, or ``coverage/NAME`` of the coverage suite. Whoever asks first exports,
    in whatever test process; a test that changes the bundle copies it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "shared"
    folder.mkdir(exist_ok=True)
    opened: dict[str, Bundle] = {}

    def get(name: str, targets: tuple[str, ...] = ("ort-cpu",), **options: Any) -> Bundle:
        key = json.dumps([name, targets, options], sort_keys=True)
        if key not in opened:
            # By digest: a name of all options would be too long for a file.
            path = folder / hashlib.sha256(key.encode()).hexdigest()[:16] / Path(name).name
            with FileLock(f"{path.parent}.lock"):
                if not path.exists():
                    crossfuse.export(_source(name), path, targets, **options)
            opened[key] = open_bundle(path)
        return opened[key]

    return get


def _source(name: str) -> Any:
    if not name.startswith("coverage/"):
        return name
    from coverage.cases import CASES

    return CASES[name.removeprefix("coverage/")].make()


@pytest.fixture(scope="session")
def zoo_bundle(shared_bundle: Callable[..., Bundle]) -> Callable[[str], Bundle]:
    """``zoo_bundle(name)``: a tiny bundle with all targets; a test that changes it copies it."""
    return lambda name: shared_bundle(name, TARGETS, size="tiny", whole=True)


@pytest.fixture(scope="session")
def openvino_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split bundle with the targets ``ort-cpu``, ``onnx`` and ``openvino``, the last in bf16
    where this processor has it; a test that changes it copies it."""
    import shutil

    from crossfuse.core.openvino import openvino

    old = Path(__file__).parent / "data" / "bundle-0.1.0"
    path = Path(shutil.copytree(old, tmp_path_factory.mktemp("openvino") / "bundle"))
    has_bf16 = "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    crossfuse.build(path, "openvino", precision="bf16" if has_bf16 else "fp32")
    return path


@pytest.fixture
def bundle_copy(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> Path:
    """A copy of the tiny cross-modal bundle that a test may damage."""
    import shutil

    return Path(shutil.copytree(zoo_bundle("cross_modal_attention").path, tmp_path / "bundle"))
