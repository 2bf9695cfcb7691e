"""What a pass over the graph is, what it says about what it left alone, and how a list of passes
runs.

A pass rewrites a model in place. Its result says whether it changed anything, and what it *missed*:
places that look like its own and aren't, each with the reason. A pass that makes attention nodes
``captures``; what such a pass missed is the reason in the ledger why an attention was not fused.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassBase, PassResult

from crossfuse.core.foreign import cause_of
from crossfuse.errors import CrossfuseError, InputError, InternalError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = [
    "FusionPass",
    "FusionResult",
    "Missed",
    "ProgramPass",
    "ProgramResult",
    "pass_name",
    "run_passes",
    "run_program_passes",
]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missed:
    """A place that a pass did not match: the path of its module, and why."""

    module: str
    reason: str


@dataclass
class FusionResult(PassResult):
    """A pass's result: the model, whether it changed, and what did not match."""

    missed: tuple[Missed, ...] = ()


class FusionPass(InPlacePass):
    """A pass over the exported graph, named after its class: ``AbsorbScalesPass`` is
    ``absorb_scales``.

    Attributes:
        captures: it makes ``FusedAttention`` nodes.
        after, before: the name of the pass that it follows or precedes, for passes that other
            packages register; one of the two.
    """

    captures: ClassVar[bool] = False
    after: ClassVar[str | None] = None
    before: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """Its name in the list of passes."""
        return pass_name(self)

    @abstractmethod
    def call(self, model: ir.Model) -> FusionResult:
        """Rewrite the model in place."""


@dataclass(frozen=True)
class ProgramResult:
    """What a pass over an exported program made of it, and the calls that did not match."""

    program: ExportedProgram
    modified: bool
    missed: tuple[Missed, ...] = ()


class ProgramPass(Protocol):
    """A pass over PyTorch's exported program, which comes before the graph."""

    def __call__(self, program: ExportedProgram) -> ProgramResult:
        """Rewrite; the program given may be changed too."""


def pass_name(given: object) -> str:
    """The name of a pass: its class in small letters, without the ``Pass`` at the end."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(given).__name__.removesuffix("Pass")).lower()


def run_passes(model: ir.Model, passes: Sequence[PassBase]) -> FusionResult:
    """Run passes one after the other.

    Returns:
        the model, whether any pass changed it, and what those that capture attentions missed.

    Raises:
        InternalError: a pass of crossfuse fails, or (InputError) one of another package; the error
            names it, and the passes that ran before.
    """
    modified = False
    missed: list[Missed] = []
    done: list[str] = []
    for each in passes:
        name = pass_name(each)
        try:
            result = each(model)
        except (CrossfuseError, MemoryError):
            raise
        except Exception as error:
            raise _failed(each, done, error) from error
        model, modified = result.model, modified or result.modified
        found: tuple[Missed, ...] = getattr(result, "missed", ())
        _log(name, result.modified, found)
        if getattr(each, "captures", False):
            missed += found
        done.append(name)
    return FusionResult(model, modified, tuple(missed))


def run_program_passes(program: ExportedProgram, passes: Sequence[ProgramPass]) -> ProgramResult:
    """Run passes over a program one after the other; what they missed comes together."""
    modified = False
    missed: tuple[Missed, ...] = ()
    for each in passes:
        result = each(program)
        _log(pass_name(each), result.modified, result.missed)
        program, modified = result.program, modified or result.modified
        missed += result.missed
    return ProgramResult(program, modified, missed)


def _failed(given: PassBase, done: Sequence[str], error: Exception) -> CrossfuseError:
    module = type(given).__module__
    what = f"the pass {pass_name(given)} failed: {cause_of(error)}"
    where = f"after {', '.join(done)}" if done else "the first pass"
    if module.partition(".")[0] == "crossfuse":
        return InternalError(what, where=where, do="Please report it")
    return InputError(what, where=where, do=f"The pass is {module}'s: report it there")


def _log(name: str, modified: bool, missed: Sequence[Missed]) -> None:
    _LOG.debug("%s: %s", name, "changed the graph" if modified else "nothing to do")
    for miss in missed:
        _LOG.debug("%s left %s alone: %s", name, miss.module or "(root)", miss.reason)
