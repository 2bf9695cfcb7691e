"""Engines between builds: the key holds all that they depend on, and damage means a new build."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from crossfuse.targets.tensorrt.engine_cache import engine_key, from_cache
from system_limits import at_most


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFUSE_CACHE", str(tmp_path / "cache"))


class Maker:
    """Counts its builds; each makes another plan."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, plan: Path) -> dict[str, Any] | None:
        self.count += 1
        plan.write_bytes(b"plan %d" % self.count)
        return {"layers": [self.count]}


def test_the_key_changes_with_whatever_an_engine_depends_on(tmp_path: Path) -> None:
    graph, weights = tmp_path / "g.onnx", tmp_path / "w.bin"
    graph.write_bytes(b"graph")
    weights.write_bytes(b"weights")
    settings = {"version": "1", "options": {"level": 3}}
    keys = {engine_key(graph, {"w.bin": weights}, settings)}
    assert engine_key(graph, {"w.bin": weights}, dict(reversed(settings.items()))) in keys
    keys.add(engine_key(graph, {}, settings))
    keys.add(engine_key(graph, {"other.bin": weights}, settings))
    keys.add(engine_key(graph, {"w.bin": weights}, {**settings, "version": "2"}))
    keys.add(engine_key(graph, {"w.bin": weights}, {**settings, "options": {"level": 4}}))
    weights.write_bytes(b"weightz")
    keys.add(engine_key(graph, {"w.bin": weights}, settings))
    graph.write_bytes(b"grapg")
    keys.add(engine_key(graph, {"w.bin": weights}, settings))
    assert len(keys) == 7


def test_the_second_asks_nobody(tmp_path: Path) -> None:
    make = Maker()
    assert from_cache("key", tmp_path / "first", make) == ({"layers": [1]}, False)
    assert from_cache("key", tmp_path / "second", make) == ({"layers": [1]}, True)
    assert (tmp_path / "second").read_bytes() == b"plan 1"
    assert from_cache("other", tmp_path / "third", make) == ({"layers": [2]}, False)


@pytest.mark.parametrize("damage", ["plan", "entry", "no plan", "another's"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    make = Maker()
    from_cache("key", tmp_path / "plan", make)
    entry = tmp_path / "cache" / "engines" / "key"
    if damage == "plan":
        (entry / "plan").write_bytes(b"plan 9")
    elif damage == "entry":
        (entry / "entry.json").write_text("{")
    elif damage == "no plan":
        (entry / "plan").unlink()
    else:
        (entry / "entry.json").write_text(json.dumps([1]))
    assert from_cache("key", tmp_path / "plan", make) == ({"layers": [2]}, False)
    assert from_cache("key", tmp_path / "plan", make) == ({"layers": [2]}, True)


def test_what_failed_is_not_kept(tmp_path: Path) -> None:
    def refuses(plan: Path) -> None:
        return None

    def raises(plan: Path) -> None:
        plan.write_bytes(b"half")
        raise OSError("no room")

    assert from_cache("key", tmp_path / "plan", refuses) == (None, False)
    with pytest.raises(OSError, match="no room"):
        from_cache("key", tmp_path / "plan", raises)
    assert from_cache("key", tmp_path / "plan", Maker()) == ({"layers": [1]}, False)


def test_who_comes_second_waits(tmp_path: Path) -> None:
    make, begun, go_on = Maker(), threading.Event(), threading.Event()

    def slowly(plan: Path) -> dict[str, Any] | None:
        begun.set()
        assert go_on.wait(30)
        return make(plan)

    results: list[Any] = []
    first = threading.Thread(
        target=lambda: results.append(from_cache("key", tmp_path / "a", slowly))
    )
    second = threading.Thread(
        target=lambda: results.append(from_cache("key", tmp_path / "b", make))
    )
    first.start()
    assert begun.wait(30)
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    for thread in (first, second):
        thread.join(30)
    assert sorted(cached for _, cached in results) == [False, True]
    assert make.count == 1


def test_a_cache_that_can_not_be_written_costs_a_build_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where the folder would be")
    make = Maker()
    for turn in (1, 2):
        assert from_cache("key", tmp_path / "plan", make) == ({"layers": [turn]}, False)
        assert (tmp_path / "plan").read_bytes() == b"plan %d" % turn


def test_a_full_cache_keeps_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    make = Maker()
    with at_most(resource.RLIMIT_FSIZE, 50):
        assert from_cache("key", tmp_path / "plan", make) == ({"layers": [1]}, False)
    folder = tmp_path / "cache" / "engines"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    (folder / "key.partial").mkdir()
    (folder / "key.partial" / "plan").write_text("of a killed build")
    assert from_cache("key", tmp_path / "plan", make) == ({"layers": [2]}, False)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["key"]
