"""Python's collector of garbage, kept from looking again and again at what stays.

A collection looks at all objects that there are. Libraries and a traced program are about a
million, and tracing makes so many new ones that the collector looks often: a tenth to a seventh of
an export's time.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["imported", "old_objects_kept", "uncollected"]

_OF_PYTHON = 1000
"""Python 3.12 has some hundred objects set apart when it starts; others' freezes are larger."""


@contextmanager
def old_objects_kept() -> Iterator[Callable[[], None]]:
    """While this lasts, only objects made since are looked at, and freed where nothing needs them.

    Nothing happens where somebody set objects apart already.

    Yields:
        a function that takes what is there by now for old, too.
    """
    if gc.get_freeze_count() > _OF_PYTHON:
        yield lambda: None
        return
    gc.freeze()
    try:
        yield gc.freeze
    finally:
        gc.unfreeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """While this lasts, nothing is collected; for work that leaves little garbage in circles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def imported(*names: str) -> None:
    """Import modules, which leave no garbage, without collecting it."""
    with uncollected():
        for name in names:
            importlib.import_module(name)
