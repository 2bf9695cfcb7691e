"""Fixtures: bundles of the tiny zoo, exported once per test process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Read when the library is imported: no test asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import crossfuse
from crossfuse.bundle.store import Bundle

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
        yield


@pytest.fixture(scope="session")
def zoo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """``zoo_bundle(name)``: a tiny bundle with all targets; a test that changes it copies it."""
    made: dict[str, Bundle] = {}

    def get(name: str) -> Bundle:
        if name not in made:
            made[name] = crossfuse.export(
                name, tmp_path_factory.mktemp("zoo") / name, TARGETS, size="tiny", whole=True
            )
        return made[name]

    return get


@pytest.fixture
def bundle_copy(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> Path:
    """A copy of the tiny cross-modal bundle that a test may damage."""
    import shutil

    return Path(shutil.copytree(zoo_bundle("cross_modal_attention").path, tmp_path / "bundle"))
