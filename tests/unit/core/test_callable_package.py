"""A package that is a function, too: called, asked for its parameters, shown by `help`."""

from __future__ import annotations

import inspect
import pydoc
import sys
from pathlib import Path

import pytest

import crossfuse
from crossfuse.core.callable_package import make_callable

CODE = '''
def both(first, second: "int" = 3, *, third: str = "x") -> "list[int]":
    """Add up.

    Args:
        first: a number.
    """
    return [first, second, third]
'''


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package ``callable_parent.both`` whose function is in another module."""
    folder = tmp_path / "callable_parent"
    (folder / "both").mkdir(parents=True)
    (folder / "__init__.py").write_text('__callables__ = {"both": "callable_parent.home"}\n')
    (folder / "home.py").write_text(CODE)
    (folder / "both" / "__init__.py").write_text('"""The package."""\n')
    (folder / "both" / "inner.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    importlib.import_module("callable_parent.both")
    make_callable("callable_parent.both")
    yield "callable_parent.both"
    for name in [name for name in sys.modules if name.startswith("callable_parent")]:
        del sys.modules[name]


def test_a_package_is_called_and_goes_on_being_one(parent: str) -> None:
    import importlib

    package = sys.modules[parent]
    assert package(1, third="y") == [1, 3, "y"]
    assert importlib.import_module(f"{parent}.inner").VALUE == 7
    assert sys.modules["callable_parent"].both(5) == [5, 3, "x"]
    assert list(inspect.signature(package).parameters) == ["first", "second", "third"]
    with pytest.raises(TypeError, match="fourth"):
        package(1, fourth=2)


def test_help_shows_the_function(parent: str) -> None:
    text = pydoc.plain(pydoc.render_doc(sys.modules[parent]))
    call = """
    callable_parent.both(
        first,
        second: int = 3,
        *,
        third: str = 'x',
    ) -> list[int]
"""
    assert f"{parent} - Add up." in text
    assert call in text
    assert "first: a number." in text


@pytest.mark.parametrize("name", ["export", "build", "verify", "profile"])
def test_help_of_the_public_functions_shows_every_parameter(name: str) -> None:
    function = getattr(crossfuse, name)
    text = pydoc.plain(pydoc.render_doc(function))
    parameters = inspect.signature(function).parameters
    assert len(parameters) > 9
    for parameter in parameters.values():
        assert f"{parameter.name}: " in text
    assert "<function" not in text, "no default shows as an address"
    assert "Raises:" in text
