"""Engines kept between builds, by everything that they depend on.

An entry is a folder with the plan and ``entry.json``: what the worker said about the engine, and
the plan's SHA-256. A damaged entry is dropped and built again. A lock per entry makes concurrent
builders of the same engine wait for the first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from crossfuse.core.folders import user_cache

__all__ = ["engine_key", "from_cache"]

_LOG = logging.getLogger(__name__)
_BLOCK = 1 << 20


def engine_key(graph: Path, weights: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
    """A digest of the graph, its weight files and all settings (shapes, versions, compute
    capabilities, options)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, file in [("graph", graph), *sorted(weights.items())]:
        digest.update(f"\0{name}\0".encode() + _sha256(file).encode())
    return digest.hexdigest()


def from_cache(
    key: str, plan: Path, make: Callable[[Path], dict[str, Any] | None]
) -> tuple[dict[str, Any] | None, bool]:
    """Put an engine at ``plan``: the cached one, or what ``make`` builds there.

    Args:
        key: of the engine.
        plan: where it goes.
        make: builds it at a path and says what is to be remembered about it, or None where it
            failed.

    Returns:
        what is remembered, and whether it came from the cache.
    """
    folder = user_cache() / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    entry = folder / key
    with FileLock(folder / f"{key}.lock"):
        known = _read(entry)
        if known is not None:
            _LOG.debug("engine %s comes from %s", key, folder)
            shutil.copyfile(entry / "plan", plan)
            return known, True
        about = make(plan)
        if about is not None:
            _write(entry, plan, about)
        return about, False


def _read(entry: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((entry / "entry.json").read_text())
        if about["sha256"] == _sha256(entry / "plan"):
            kept: dict[str, Any] = about["about"]
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _write(entry: Path, plan: Path, about: dict[str, Any]) -> None:
    """Written aside and renamed, so that a killed build leaves no half entry."""
    aside = Path(tempfile.mkdtemp(dir=entry.parent))
    shutil.copyfile(plan, aside / "plan")
    (aside / "entry.json").write_text(json.dumps({"sha256": _sha256(plan), "about": about}))
    aside.replace(entry)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
