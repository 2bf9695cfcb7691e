"""Commands that run out of memory: each says so in one paragraph, or does its work, and leaves the
bundle as it was."""

from __future__ import annotations

import os
import resource
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from campaigns.damage import Chance
from campaigns.forks import LONGEST, begun, waited
from campaigns.limits import content
from campaigns.operations import OLD_BUNDLE, Outcomes, copied
from crossfuse.bundle.store import open_bundle
from crossfuse.parity.session_check import smallest_inputs

MODEL = ("cross_modal_attention", "--size", "tiny", "--quick")
WORDS = ("memory", "alloc")
"""One of them is in what a command says that ran out of it."""


def short_memory(times: int, folder: Path, chance: Chance) -> Outcomes:
    """Commands that may take so many bytes of addresses more than they had at the start."""
    import onnxruntime  # noqa: F401 -- before the forks

    import crossfuse.api.export  # noqa: F401 -- before the forks

    place, scratch, log = folder / "b", folder / "tmp", folder / "stderr"
    scratch.mkdir()
    inputs = smallest_inputs(open_bundle(OLD_BUNDLE))
    assert inputs is not None
    np.savez(folder / "in.npz", **inputs)
    commands = {
        "verify": ["verify", str(place)],
        "run": ["run", str(place), "--input", str(folder / "in.npz")],
        "inspect": ["inspect", str(place)],
        "export": ["export", *MODEL, "-o", str(place), "--target", "ort-cpu"],
        "build": ["build", str(place), "--target", "onnx"],
    }
    found: Outcomes = Counter()
    for turn in range(times):
        copied(OLD_BUNDLE, place)
        before = content(place)
        name = list(commands)[turn % len(commands)]
        more = int(10 ** chance.uniform(5.5, 8.8))
        status = ended(begun(commands[name], scratch, lambda more=more: limited(more)))
        said = log.read_text()
        about = f"{name} with {more >> 10} KB: {status}: {said[-2000:]}"
        assert os.WIFEXITED(status), about
        assert os.WEXITSTATUS(status) in (0, 1, 2), about
        if os.WEXITSTATUS(status):
            assert "Traceback" not in said, about
            assert said.startswith("error: "), about
            assert "did not foresee" not in said, about
            assert any(word in said.lower() for word in WORDS), about
            assert content(place) == before, about
        else:
            content(place)
            open_bundle(place)
        found[f"{name}: {'did its work' if not status else 'refused'}"] += 1
    shutil.rmtree(scratch)
    log.unlink()
    return found


def limited(more: int) -> None:
    """In a child: so many bytes of addresses more than now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def ended(process: int) -> int:
    """A child's status."""
    for _ in waited(LONGEST):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
    raise AssertionError("a command that ran out of memory has no end")


CAMPAIGNS = (short_memory,)
