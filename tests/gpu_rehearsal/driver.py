"""The stand-in for CUDA's driver: compiling it, and controlling it from inside a process that runs
on it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Control", "build_driver", "environment_on", "missing_for_driver"]

_SOURCE = Path(__file__).parent / "driver_cuda.c"
_CALLBACK = ctypes.CFUNCTYPE(None)


def missing_for_driver() -> str | None:
    """Why the driver can't be rehearsed here, or None."""
    if not sys.platform.startswith("linux"):
        return "the driver's stand-in is made for Linux"
    if shutil.which("cc") is None:
        return "there is no C compiler (cc) on this machine"
    return None if find_spec("cuda") is not None else "cuda-core is not installed"


def build_driver(folder: Path) -> None:
    """Compile ``libcuda.so.1`` into a folder, which goes into ``LD_LIBRARY_PATH`` of a process of
    its own.

    Raises:
        RuntimeError: the compiler refuses it.
    """
    command = [
        "cc",
        "-w",
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        folder / "libcuda.so.1",
        _SOURCE,
        "-Wl,-soname,libcuda.so.1",
    ]
    done = subprocess.run(
        [*command, "-lpthread", "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the driver's stand-in can't be compiled: {done.stderr}")


def environment_on(*folders: Path, **variables: str) -> dict[str, str]:
    """Environment of a process that finds the stand-ins in these folders first."""
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([*map(str, folders), os.environ.get("LD_LIBRARY_PATH", "")])
    # Beside a PyTorch that was built for CUDA stand NVIDIA's own libraries, which are opened by
    # their paths.
    first = sorted(str(library) for folder in folders for library in folder.glob("*.so*"))
    python = os.pathsep.join([str(tests), *(p for p in sys.path if p)])
    return (
        os.environ
        | {
            "LD_LIBRARY_PATH": path,
            "LD_PRELOAD": os.pathsep.join(first),
            "PYTHONPATH": python,
            "OMP_NUM_THREADS": "1",
        }
        | variables
    )


class Control:
    """The loaded stand-in's own functions."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._kept: list[object] = []

    def calls(self, name: str) -> int:
        """How often a function of the driver was called."""
        return int(self._cuda.rehearsal_calls(name.encode()))

    @contextmanager
    def failing(self, name: str, code: int, *, after: int = 0, times: int = 1) -> Iterator[None]:
        """So many calls of a function fail, after some that work; -1 for all of them."""
        self._cuda.rehearsal_fail(name.encode(), code, after, times)
        try:
            yield
        finally:
            self._cuda.rehearsal_heal()

    @contextmanager
    def broken(self, code: int) -> Iterator[None]:
        """Everything that waits fails, as after an illegal address."""
        self._cuda.rehearsal_break(code)
        try:
            yield
        finally:
            self._cuda.rehearsal_heal()

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """A kernel: runs when the stream gets there, each time where it is captured."""
        call = _CALLBACK(work)
        self._kept.append(call)
        self._cuda.rehearsal_enqueue(ctypes.c_void_p(stream), call)

    def is_capturing(self, stream: int) -> bool:
        """Whether a stream captures."""
        status = ctypes.c_int(0)
        self._cuda.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(status))
        return status.value != 0

    def pending(self, stream: int) -> int:
        """Operations that wait in a stream."""
        return int(self._cuda.rehearsal_pending(ctypes.c_void_p(stream)))
