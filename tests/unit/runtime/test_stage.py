"""Every engine has what a session asks of it."""

from __future__ import annotations

import inspect

import pytest

from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.stage import Stage
from crossfuse.runtime.tensorrt_stage import TrtStage

ASKED = [
    name for name, value in vars(Stage).items() if inspect.isfunction(value) and name[0] != "_"
]


def test_the_protocol_asks_for_what_sessions_call() -> None:
    assert {"run", "run_mixed", "run_on_device", "bind", "run_bound", "close"} <= set(ASKED)


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("engine", [OrtStage, TrtStage])
def test_engines_answer_it(engine: type, name: str) -> None:
    """The same parameters in the same order, so that a session may call either."""
    own = inspect.signature(getattr(engine, name)).parameters
    assert list(own) == list(inspect.signature(getattr(Stage, name)).parameters)
