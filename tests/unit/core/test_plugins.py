"""Registries: what a package offers is imported when it is asked for, and fails alone."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from crossfuse.core.plugins import Registry, is_installed, resolve
from crossfuse.errors import InputError


def accept(name: str, given: object, package: str) -> str:
    if not isinstance(given, str):
        raise InputError("what is offered is no text", got=repr(given))
    return f"{given} of {package or 'nobody'}"


def registry(points: Sequence[EntryPoint] = ()) -> Registry[str]:
    return Registry("text", "group", {"own": "built in"}, accept, offered=lambda: points)


class Offer(EntryPoint):
    """An entry point of a package of that name."""

    def __init__(self, name: str, value: str, package: str) -> None:
        super().__init__(name, value, "group")
        vars(self)["dist"] = type("Package", (), {"name": package})()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "crossfuse_test_offers"
    (tmp_path / f"{name}.py").write_text("GOOD = 'good'\nNUMBER = 3\n")
    (tmp_path / f"{name}_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    for loaded in (name, f"{name}_broken"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    return name


def test_registering_again_changes_nothing_and_a_clash_is_refused() -> None:
    texts = registry()
    for _ in range(2):
        texts.register("more", "text")
    assert texts["more"] == "text of nobody"
    assert list(texts) == ["own", "more"]
    with pytest.raises(
        InputError, match=r"another text of this name is registered already.*'more'"
    ):
        texts.register("more", "another")
    with pytest.raises(InputError, match=r"another text of this name is built in.*'own'"):
        texts.register("own", "another")
    texts.register("own", "built in")
    with pytest.raises(InputError, match="what is offered is no text: got 3"):
        texts.register("third", 3)
    assert (texts["own"], texts["more"], len(texts)) == ("built in", "text of nobody", 2)


def test_offers_are_imported_when_they_are_asked_for(module: str) -> None:
    texts = registry(
        [
            Offer("good", f"{module}:GOOD", "first"),
            Offer("wrong", f"{module}:NUMBER", "second"),
            Offer("broken", f"{module}_broken:TEXT", "third"),
        ]
    )
    assert list(texts) == ["own", "good", "wrong", "broken"]
    assert "broken" in texts
    assert texts["own"] == "built in"
    assert texts.get("nothing") is None
    assert module not in sys.modules
    assert texts["good"] == "good of first"
    with pytest.raises(
        InputError, match=r"text 'wrong' of package second can't be loaded.*no text"
    ):
        texts["wrong"]
    with pytest.raises(
        InputError,
        match=rf"'broken' of package third.*ModuleNotFoundError.*no_such_module_at_all.*{module}",
    ):
        texts["broken"]
    assert texts["good"] == "good of first"


def test_two_with_one_name_are_refused_by_their_packages(module: str) -> None:
    good = f"{module}:GOOD"
    texts = registry([Offer("good", good, "first"), Offer("good", good, "second")])
    with pytest.raises(
        InputError, match="package first and package second both offer the text 'good'"
    ):
        texts["good"]
    once = registry([Offer("good", good, "first"), Offer("good", good, "first")])
    assert once["good"] == "good of first"

    offered = registry([Offer("good", good, "first")])
    offered.register("good", "good")  # as a package may do when it is imported
    assert offered["good"] == "good of first"
    other = registry([Offer("good", good, "first")])
    other.register("good", "mine")
    with pytest.raises(InputError, match="one was registered, and package first offers another"):
        other["good"]


def test_nobody_replaces_what_is_built_in(module: str, caplog: pytest.LogCaptureFixture) -> None:
    texts = registry([Offer("own", f"{module}:GOOD", "first")])
    with caplog.at_level(logging.WARNING, logger="crossfuse.core.plugins"):
        assert list(texts) == ["own"]
    assert texts["own"] == "built in"
    assert "'own' of package first is not used" in caplog.text


def test_threads_register_one(module: str) -> None:
    texts = registry()
    refused: list[InputError] = []

    def register(i: int) -> None:
        try:
            texts.register("one", str(i))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=register, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7
    assert len(texts) == 2


def test_functions_are_found_by_place(module: str) -> None:
    assert resolve("math:floor", "it")(2.5) == 2
    assert resolve("pathlib:Path.cwd", "it")() == Path.cwd()
    assert resolve(len, "it") is len
    for place, cause in (
        ("math:nothing", "AttributeError"),
        ("no_such_module_at_all:f", "ModuleNotFoundError"),
        (f"{module}:NUMBER", "the lowering is no function: got 3"),
        ("math", "AttributeError|ValueError"),
    ):
        with pytest.raises(InputError, match=f"the lowering.*{cause}|{cause}"):
            resolve(place, "the lowering")


def test_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_stubs").mkdir()
    (tmp_path / "only_stubs" / "__init__.pyi").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("numpy")
    assert not is_installed("only_stubs")
    assert not is_installed("no_such_module_at_all")
    assert not is_installed("no_such_module_at_all.part")
    monkeypatch.setitem(sys.modules, "numpy_stand_in", None)
    assert not is_installed("numpy_stand_in")
