"""Where crossfuse keeps what it may lose: engines and kernels that took long to build."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``$CROSSFUSE_CACHE``, or ``crossfuse`` in the user's cache folder."""
    chosen = os.environ.get("CROSSFUSE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "crossfuse"
