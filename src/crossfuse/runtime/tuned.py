"""Which of a bundle's targets is the fastest on this machine, as `crossfuse tune` found it.

What was found holds for one machine and one content of a bundle, so it is no part of the bundle: it
is a record in the user's cache, named by a digest of both. A session that is not told its target
takes the recorded one. A record of another machine, of other versions of the engines, or of a
bundle that was built again since, is another record and is not found.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.core.files import user_cache, write_whole
from crossfuse.core.json_codec import json_text
from crossfuse.core.processes import cpu_limit
from crossfuse.runtime.backends import best_target, runs_here
from crossfuse.runtime.driver import gpu_count

if TYPE_CHECKING:
    from crossfuse.bundle.manifest import Manifest
    from crossfuse.bundle.store import Bundle

__all__ = ["chosen_target", "forget", "machine", "processor", "remember", "tuned_target"]

_ENGINES = (
    *("crossfuse", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)
_LONGEST = 1 << 20


def chosen_target(bundle: Bundle) -> str:
    """The target that a session takes where none is named: the one that was measured to be the
    fastest here, else the best that runs here.

    Raises:
        BundleError: none can run here.
    """
    return tuned_target(bundle.manifest) or best_target(bundle.targets)


def tuned_target(manifest: Manifest) -> str | None:
    """The target that was recorded for this machine, if there is a record, and it runs here."""
    folder = _folder()
    if not folder.is_dir():
        return None
    with suppress(OSError, ValueError, TypeError, KeyError):
        with _place(manifest).open("rb") as file:
            name = json.loads(file.read(_LONGEST))["target"]
        if name in manifest.targets and runs_here(name):
            return str(name)
    return None


def remember(manifest: Manifest, target: str, about: Mapping[str, Any]) -> Path:
    """Record a target as the fastest here.

    Args:
        manifest: of the bundle.
        target: its name.
        about: what was measured, for people.

    Returns:
        the record's file.

    Raises:
        OSError: the cache can't be written.
    """
    place = _place(manifest)
    place.parent.mkdir(parents=True, exist_ok=True)
    record = {"target": target, "bundle": manifest.name, "machine": machine(), "measured": about}
    write_whole(place, json_text(record, indent=1) + "\n")
    return place


def forget(manifest: Manifest) -> bool:
    """Remove the record of this bundle on this machine; whether there was one."""
    try:
        _place(manifest).unlink()
    except OSError:
        return False
    return True


def machine() -> dict[str, Any]:
    """What decides which target is the fastest: the processor, how much of it this process may use,
    GPUs, and versions of the engines."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": cpu_limit() or cores,
        "gpus": gpu_count(),
    }
    for package in _ENGINES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _folder() -> Path:
    return user_cache() / "tuned"


def _place(manifest: Manifest) -> Path:
    text = manifest.dumps() + json_text(machine(), sort_keys=True)
    return _folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
