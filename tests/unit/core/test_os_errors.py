"""What the system refused: its reason, and help where there is some."""

from __future__ import annotations

import errno
import os

import pytest

from crossfuse.core.foreign import own
from crossfuse.core.os_errors import cause_in_memory, help_for, is_out_of_memory, reason_of


def of(number: int) -> OSError:
    return OSError(number, os.strerror(number), "there")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "can be written"),
        (errno.EACCES, "may write to"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "disk failed"),
    ],
)
def test_help(number: int, said: str) -> None:
    assert said in str(help_for(of(number), writing=True))


def test_a_file_that_can_not_be_read_is_not_to_be_written_elsewhere() -> None:
    assert help_for(of(errno.EACCES)) is None
    assert help_for(of(errno.EROFS)) is None
    assert help_for(of(errno.ENOENT), writing=True) is None
    assert help_for(ValueError("x"), writing=True) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        of(errno.ENOMEM),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 4"),
        ImportError("libx.so: cannot allocate memory in static TLS block", name="onnxruntime"),
        RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"),
        ImportError("libx.so: failed to map segment from shared object", name="numpy"),
    ],
)
def test_memory_that_ran_out_is_told_whoever_noticed(error: Exception) -> None:
    assert is_out_of_memory(error)
    said = str(own(error))
    assert "memory" in said
    assert "smaller sizes" in said
    assert not is_out_of_memory(ValueError("the memory of the model"))


def test_of_exceptions_that_tell_of_memory_the_first_one_is_told() -> None:
    """NumPy puts a page of advice before what the system said."""
    first = ImportError("libx.so: failed to map segment from shared object")
    last = ImportError(f"IMPORTANT: PLEASE READ THIS\nOriginal error was: {first}")
    last.__cause__ = first
    assert cause_in_memory(last) is first
    wrapped = ValueError("the graph can't be written")
    wrapped.__cause__ = MemoryError()
    assert cause_in_memory(wrapped) is wrapped.__cause__
    assert cause_in_memory(ValueError("x")) is None
    said = str(own(last))
    assert "failed to map segment" in said
    assert "IMPORTANT" not in said


def test_reasons_have_no_numbers() -> None:
    assert reason_of(of(errno.ENOSPC)) == "No space left on device"
    assert reason_of(OSError("odd")) == "odd"
    assert reason_of(OSError()) == "OSError"


def test_whatever_opens_files_says_what_to_do_about_limits() -> None:
    assert str(own(of(errno.EMFILE))) == (
        "Too many open files (there). Let the process open more files: `ulimit -n` says how many "
        "it may."
    )
    assert "Make room" in str(own(of(errno.ENOSPC)))
