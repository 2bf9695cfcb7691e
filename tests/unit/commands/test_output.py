"""Results on stdout, all else on stderr; nothing but JSON where JSON was asked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crossfuse.commands.output import Output, styled


def test_json_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    with output.progress() as progress:
        progress("working")
    output.result({"a": np.float32(1.5), "b": "é\x1b"}, lambda: output.line("for people"))
    got = capsys.readouterr()
    assert json.loads(got.out) == {"a": 1.5, "b": "é\x1b"}
    assert "\x1b" not in got.out
    assert got.err == ""
    with pytest.raises(ValueError):
        output.result({"a": float("nan")}, lambda: None)


def test_people_get_lines_and_progress_beside(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    with output.progress() as progress:
        progress("working [red]")
    output.result({"a": 1}, lambda: output.line("x" * 200))
    output.heading("a ", styled("b", "bold"))
    output.warning("careful")
    output.error("wrong")
    got = capsys.readouterr()
    assert got.out == "x" * 200 + "\na b\n"
    assert got.err == "· working [red]\nwarning: careful\nerror: wrong\n"


def test_redirected_output_is_wide_enough_for_tables() -> None:
    assert Output(as_json=False).console.width >= 132
