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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crossfuse.core.files import locked, sha256_of, user_cache
from crossfuse.core.os_errors import reason_of

__all__ = ["engine_key", "from_cache"]

_LOG = logging.getLogger(__name__)


def engine_key(graph: Path, weights: Mapping[str, Path], settings: Mapping[str, Any]) -> str:
    """A digest of the graph, its weight files and all settings (shapes, versions, compute
    capabilities, options)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, file in [("graph", graph), *sorted(weights.items())]:
        digest.update(f"\0{name}\0".encode() + sha256_of(file).encode())
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
    entry = folder / key
    with _alone(folder, key) as cached:
        known = _read(entry) if cached else None
        if known is not None:
            _LOG.debug("engine %s comes from %s", key, folder)
            shutil.copyfile(entry / "plan", plan)
            return known, True
        about = make(plan)
        if about is not None and cached:
            _write(entry, plan, about)
        return about, False


@contextmanager
def _alone(folder: Path, key: str) -> Iterator[bool]:
    """Nobody else has the entry meanwhile; False, and no cache, where it can't be written."""
    cached = True
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / f"{key}.lock"))
        except OSError as error:
            _LOG.warning("engines are not kept in %s: %s", folder, reason_of(error))
            cached = False
        yield cached


def _read(entry: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((entry / "entry.json").read_text())
        if about["sha256"] == sha256_of(entry / "plan"):
            kept: dict[str, Any] = about["about"]
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _write(entry: Path, plan: Path, about: dict[str, Any]) -> None:
    """Written aside and renamed, so that a killed build leaves no half entry; to be called alone.
    A cache that can't take it has none."""
    aside = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        shutil.copyfile(plan, aside / "plan")
        (aside / "entry.json").write_text(json.dumps({"sha256": sha256_of(plan), "about": about}))
        aside.replace(entry)
    except OSError as error:
        _LOG.warning("the engine is not kept in %s: %s", entry.parent, reason_of(error))
        shutil.rmtree(aside, ignore_errors=True)
