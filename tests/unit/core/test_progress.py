"""Progress is a function of a text."""

from __future__ import annotations

from crossfuse.core.progress import Progress, silent


def test_a_listener_and_nobody() -> None:
    heard: list[str] = []

    def work(progress: Progress = silent) -> None:
        progress("half")

    work(heard.append)
    work()
    assert heard == ["half"]
