"""Exceptions of others become one paragraph with the true cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfuse.core.foreign import blaming, cause_of, door, own, place_of
from crossfuse.errors import CheckError, Door, InputError, InternalError, PackageError


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\nb"), "ValueError: a b"),
        (KeyError("weights"), "KeyError: 'weights'"),
        (ValueError(), "ValueError"),
        (SilentError(), "SilentError"),
        (SystemExit("over"), "SystemExit: it ended the process with 'over'"),
        (RecursionError("deep"), "RecursionError: it calls itself without end"),
    ],
)
def test_causes(error: BaseException, text: str) -> None:
    assert cause_of(error) == text


def test_whose_line_it_was(tmp_path: Path) -> None:
    code = tmp_path / "model.py"
    code.write_text("def make():\n    return {}['weights']\n")
    scope: dict[str, object] = {}
    exec(compile(code.read_text(), str(code), "exec"), scope)
    with pytest.raises(InputError) as error, blaming("the factory raised", where="model.py:make"):
        scope["make"]()  # type: ignore[operator]
    text = str(error.value)
    assert "the factory raised KeyError: 'weights'" in text
    assert f"{code}, line 2" in text
    assert isinstance(error.value.__cause__, KeyError)
    assert place_of(error.value.__cause__) == f"{code}, line 2"


def test_interrupts_pass_and_our_errors_stay() -> None:
    with pytest.raises(KeyboardInterrupt), blaming("the factory raised"):
        raise KeyboardInterrupt
    with pytest.raises(CheckError, match="ours"), blaming("the factory raised"):
        raise CheckError("ours")


def test_what_an_exception_is_to_the_user() -> None:
    assert isinstance(own(MemoryError()), InputError)
    assert own(OSError(28, "No space left on device", "/x")).where == "/x"
    absent = own(ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir.passes"))
    assert isinstance(absent, PackageError)
    assert "pip install 'crossfuse[export]'" in str(absent)
    strange = own(ModuleNotFoundError("No module named 'fcntl'", name="fcntl"))
    assert isinstance(strange, InternalError), "no package of ours: nothing to install"
    told = strange.paragraph(Door.COMMAND_LINE)
    assert "CROSSFUSE_DEBUG=1" in told
    assert "pip install" not in told
    ours = CheckError("x")
    assert own(ours) is ours


def test_the_door() -> None:
    @door
    def enter(value: int) -> int:
        if value == 0:
            raise ZeroDivisionError("nothing")
        if value < 0:
            return len(value)  # type: ignore[arg-type]
        return value

    assert enter(3) == 3
    with pytest.raises(InternalError, match="ZeroDivisionError: nothing"):
        enter(0)
    with pytest.raises(InternalError, match="TypeError"):
        enter(-1)
    with pytest.raises(TypeError, match="missing"):
        enter()  # type: ignore[call-arg]
