"""Libraries that build engines."""

from __future__ import annotations

from crossfuse.core.engine_library import EngineLibrary
from crossfuse.core.target import TARGETS


def test_the_library_that_builds_is_the_best_that_executes() -> None:
    assert EngineLibrary("a", ("a-cu",)).runtimes == ("a",)
    assert EngineLibrary("a", ("a-cu",), lean_module="b").runtimes == ("a", "b")


def test_fp8_is_multiplied_from_ada_on() -> None:
    for target in TARGETS.values():
        assert target.engine is None or target.engine.fp8_from == (8, 9)
