"""Factories in modules and files: which text names one, and what is said where it names none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crossfuse import InputError, ModelSpec
from crossfuse.export.sources.factory import factory_spec, functions_in, is_factory, is_onnx

CODE = """
import torch, crossfuse

SIZE = 3

def make(size=SIZE):
    return crossfuse.ModelSpec(torch.nn.ReLU(), {"input": torch.ones(2, size)})

def wrong():
    return torch.nn.ReLU()

def needs(size):
    return make(size)
"""


@pytest.mark.parametrize("text", ["a:b", "a.b:c", "f.py:c", "f.py", "folder/f.py", "C:\\f.py:c"])
def test_what_names_a_factory(text: str) -> None:
    assert is_factory(text)
    assert not is_onnx(text)


@pytest.mark.parametrize("text", ["clip", "folder/name", "a.b.c", "m.onnx", ""])
def test_what_names_none(text: str) -> None:
    assert not is_factory(text)
    assert is_onnx(text) == (text == "m.onnx")


def test_a_file_and_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "factories_of_a_test.py"
    file.write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in (f"{file}:make", "factories_of_a_test:make"):
        spec = factory_spec(source)
        assert isinstance(spec, ModelSpec)
        assert tuple(spec.inputs["input"].shape) == (2, 3)
    sys.modules.pop("factories_of_a_test")
    assert functions_in(file) == ["make", "wrong"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "returned something else.*got ReLU"),
        ("needs", "the factory raised TypeError.*size"),
        ("SIZE", "names no function.*got 'SIZE'"),
        ("mkae", "Did you mean 'make'"),
        ("", "no function in it.*:make or .*:wrong"),
    ],
)
def test_what_a_file_has_not(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    with pytest.raises(InputError, match=message):
        factory_spec(f"{tmp_path / 'mine.py'}:{name}")


def test_many_functions_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("".join(f"def f{i}(): ...\n" for i in range(11)))
    with pytest.raises(InputError, match=r"f7, … \(11 in all\)"):
        factory_spec(f"{file}:")
    file.write_text("")
    with pytest.raises(InputError, match="FUNCTION"):
        factory_spec(f"{file}:")
