"""The collector of garbage: what it passes over, and that it is afterwards what it was."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from pathlib import Path

import pytest

from crossfuse.core.garbage import imported, old_objects_kept, uncollected


class Circle:
    def __init__(self) -> None:
        self.own = self


def test_new_garbage_is_freed_and_old_objects_are_set_apart() -> None:
    before = gc.get_freeze_count()
    assert before < 1000, "Python 3.12 has some hundred itself"
    old = Circle()
    with old_objects_kept() as keep:
        assert not any(item is old for item in gc.get_objects())
        new = Circle()
        gone = weakref.ref(new)
        del new
        gc.collect()
        assert gone() is None
        kept = Circle()
        keep()
        assert not any(item is kept for item in gc.get_objects())
    assert gc.get_freeze_count() <= before
    assert any(item is old for item in gc.get_objects())


def test_what_somebody_set_apart_stays_so() -> None:
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        with old_objects_kept() as keep:
            keep()
            assert gc.get_freeze_count() <= count
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_it_collects_as_before(enabled: bool) -> None:
    try:
        (gc.enable if enabled else gc.disable)()
        with contextlib.suppress(ValueError), uncollected():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


def test_modules_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quite_new.py").write_text("import gc\nCOLLECTS = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    imported("quite_new")
    assert sys.modules["quite_new"].COLLECTS is False
    assert gc.isenabled()
