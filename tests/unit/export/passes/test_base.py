"""Lists of passes: what they change and miss, and how a failure is told."""

from __future__ import annotations

import logging

import onnx_ir as ir
import pytest

from crossfuse.errors import InputError, InternalError
from crossfuse.export.passes.base import (
    FusionPass,
    FusionResult,
    Missed,
    ProgramResult,
    pass_name,
    run_passes,
    run_program_passes,
)
from onnx_building import Graph
from small_graphs import model_of


def model() -> ir.Model:
    g = Graph()
    g.op("Neg", g.input("x", ["B"]), outputs=["y"])
    g.output("y", ["B"])
    return model_of(g)


class NoteRunPass(FusionPass):
    """Changes nothing but a note."""

    def __init__(self, modified: bool = False, missed: tuple[Missed, ...] = ()) -> None:
        self.modified, self.missed = modified, missed

    def call(self, model: ir.Model) -> FusionResult:
        model.metadata_props["run"] = model.metadata_props.get("run", "") + "."
        return FusionResult(model, self.modified, self.missed)


class CapturePass(NoteRunPass):
    captures = True


class BreaksPass(FusionPass):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def call(self, model: ir.Model) -> FusionResult:
        raise self.error


class PromisePass(NoteRunPass):
    """Breaks its own postcondition."""

    def ensures(self, model: ir.Model) -> None:
        assert "promised" in model.metadata_props, "nothing promised"


@pytest.mark.parametrize("changes", [(False, False), (True, False), (False, True)])
def test_all_run_in_order(changes: tuple[bool, bool]) -> None:
    graph = model()
    result = run_passes(graph, [NoteRunPass(changed) for changed in changes])
    assert result.model is graph
    assert result.modified == any(changes)
    assert graph.metadata_props["run"] == ".."


def test_only_what_captures_gives_reasons_to_the_ledger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "crossfuse.export.passes")
    aside, attention = Missed("a", "another use"), Missed("", "no keys")
    result = run_passes(model(), [NoteRunPass(missed=(aside,)), CapturePass(missed=(attention,))])
    assert result.missed == (attention,)
    assert "note_run left a alone: another use" in caplog.text
    assert "capture left (root) alone: no keys" in caplog.text


def test_a_failure_names_the_pass_and_those_before() -> None:
    passes = [NoteRunPass(), CapturePass(), BreaksPass(KeyError("lost")), NoteRunPass()]
    with pytest.raises(InputError) as caught:
        run_passes(model(), passes)
    text = str(caught.value)
    assert "the pass breaks failed: KeyError: 'lost' (after note_run, capture)" in text
    assert __name__ in text  # it is not crossfuse's own
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_broken_promise_is_a_failure() -> None:
    with pytest.raises(InputError, match="the pass promise failed: PostconditionError"):
        run_passes(model(), [PromisePass()])


def test_crossfuses_own_failures_are_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BreaksPass, "__module__", "crossfuse.export.passes.breaks")
    with pytest.raises(InternalError, match=r"the pass breaks failed: ValueError.*the first pass"):
        run_passes(model(), [BreaksPass(ValueError("x"))])


def test_errors_on_purpose_pass_as_they_are() -> None:
    error = InputError("the model is wrong")
    with pytest.raises(InputError) as caught:
        run_passes(model(), [BreaksPass(error)])
    assert caught.value is error


def test_a_plain_pass_of_onnx_ir_runs_too() -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    result = run_passes(model(), [RemoveUnusedNodesPass()])
    assert (result.modified, result.missed) == (False, ())


def test_names() -> None:
    assert NoteRunPass().name == pass_name(NoteRunPass()) == "note_run"
    assert pass_name(BreaksPass(ValueError())) == "breaks"


def test_passes_over_programs_chain() -> None:
    class Counting:
        def __call__(self, program: int) -> ProgramResult:
            return ProgramResult(program + 1, program == 1, (Missed("", str(program)),))

    result = run_program_passes(0, [Counting(), Counting()])  # type: ignore[arg-type]
    assert result == ProgramResult(2, True, (Missed("", "0"), Missed("", "1")))
