"""Fixtures: bundles that tests share, exported once per run for all of its test processes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Read when the library is imported: no test asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

import crossfuse
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.profiling.explain import machine
from crossfuse.profiling.measure import sampling

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


@pytest.fixture(autouse=True)
def _measured_briefly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick tests ask what a profile holds, and not how fast this machine is: one window warms a
    callable up, and one run tells what the machine attains.

    (Until two windows agree on a busy machine takes seconds for each callable. `test_measure` has
    warm-ups by a clock of its own.)
    """
    if request.node.get_closest_marker("slow"):
        return
    whole = sampling.warm_up

    def warm_up(
        call: sampling.Call, plan: sampling.Plan, clock: sampling.Clock = time.perf_counter_ns
    ) -> int:
        brief = replace(plan, warm_up_seconds=0.0) if clock is time.perf_counter_ns else plan
        return whole(call, brief, clock)

    monkeypatch.setattr(sampling, "warm_up", warm_up)
    monkeypatch.setattr(machine, "_SECONDS", 0.0)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``shared_folder(name, make)``: a folder that ``make`` fills, in whatever test process asks
    for it first; a test that changes it copies it."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    base.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder = base / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                unfinished = folder.with_name(f"{name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return get


@pytest.fixture(scope="session")
def shared_bundle(shared_folder: Callable[..., Path]) -> Callable[..., Bundle]:
    """``shared_bundle(name, targets, **options)``: what `crossfuse.export` makes of them.

    The name is the zoo's, or ``coverage/NAME`` of the coverage suite. Whoever asks first exports,
    in whatever test process; a test that changes the bundle copies it.
    """
    opened: dict[str, Bundle] = {}

    def get(name: str, targets: tuple[str, ...] = ("ort-cpu",), **options: Any) -> Bundle:
        key = json.dumps([name, targets, options], sort_keys=True)
        if key not in opened:
            own = Path(name).name

            def make(folder: Path) -> None:
                crossfuse.export(_source(name), folder / own, targets, **options)

            # By digest: a name of all options would be too long for a file.
            digest = hashlib.sha256(key.encode()).hexdigest()[:16]
            opened[key] = open_bundle(shared_folder(digest, make) / own)
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
def openvino_bundle(shared_folder: Callable[..., Path]) -> Path:
    """A split bundle with the targets ``ort-cpu``, ``onnx`` and ``openvino``, the last in bf16
    where this processor has it; a test that changes it copies it."""

    def make(folder: Path) -> None:
        from crossfuse.core.openvino import openvino

        shutil.copytree(Path(__file__).parent / "data" / "bundle-0.1.0", folder / "bundle")
        has_bf16 = "BF16" in openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        crossfuse.build(folder / "bundle", "openvino", precision="bf16" if has_bf16 else "fp32")

    return shared_folder("openvino", make) / "bundle"


@pytest.fixture
def bundle_copy(zoo_bundle: Callable[[str], Bundle], tmp_path: Path) -> Path:
    """A copy of the tiny cross-modal bundle that a test may damage."""
    return Path(shutil.copytree(zoo_bundle("cross_modal_attention").path, tmp_path / "bundle"))
