"""What a trace takes for granted about sizes: found while it runs, and tried at the sizes that the
dimensions allow.

PyTorch's tracer refuses a relation that it can't prove, true or not: that 2n − 1 is no multiple of
n, say. So relations are deferred, and proven here by their values.

Rules:

1. A relation that holds at every size tried is dropped.
2. One that fails at single sizes alone (``if n == 5``), that says that something is unequal (``if
n % 8``), or that PyTorch asks for inside an operator (how a tensor of one block lies in memory) is
dropped too, and the model is compared there with the eager one: at the smallest sizes, and at
examples that are made.
3. Any other is refused, with the dimension, the relation and the line of the user's code.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.jit import ScriptModule

from crossfuse.core.foreign import place_here
from crossfuse.core.tensors import Dim
from crossfuse.errors import Advice, InputError
from crossfuse.export.capture.relations import holding, multiples, numbers, of_a_remainder, reduced
from crossfuse.export.capture.traceable import replaced

__all__ = [
    "Guard",
    "GuardLog",
    "NotFreeError",
    "Tried",
    "drop_assertions",
    "tried",
    "watched_guards",
]

_FEW = 3
"""So many single sizes at which a relation fails are tried one by one."""

_ASKING = (
    *("torch.fx.experimental", "torch.utils._stats", "torch.utils._sympy", "torch._dynamo"),
    *("contextlib", "functools", "crossfuse.export.capture.guards", "sympy"),
)
"""Modules whose frames stand between a relation and whoever asks for it; so does ``torch`` itself,
where numbers are."""

_HEAD, _SPREAD, _MOST = 48, 12, 4096
_LARGE = 128
"""Sizes whose product is beyond this are not compared where others tell the same: an image of all
sizes at their ends would take the eager model hours."""


class NotFreeError(InputError):
    """A dimension is fixed, or narrower than its range.

    Attributes:
        narrower: dimension → the range in which the relation holds; None where that is one size.
    """

    narrower: Mapping[str, Dim | None]


@dataclass(frozen=True)
class Guard:
    """A relation between sizes, by the names of dimensions, and where the user's code asks for
    it."""

    expression: Any
    dims: Mapping[Any, str]
    place: str | None
    inside: bool = False

    @property
    def may_fail(self) -> bool:
        """At many sizes: it says that something is unequal, or is PyTorch's own."""
        import sympy  # type: ignore[import-untyped]

        found = self.expression
        # That a size is neither 0 nor 1 is what PyTorch asks on its way to a faster one.
        general = isinstance(found, sympy.GreaterThan) and found.rhs == 2
        ordered = (sympy.Unequality, sympy.StrictGreaterThan, sympy.StrictLessThan)
        if self.inside and general:
            return True
        return isinstance(found, ordered if self.inside else sympy.Unequality)

    def fails(self, ranges: Mapping[str, Dim]) -> list[dict[str, int]]:
        """Sizes of its dimensions, among those tried, at which it does not hold."""
        if any(self.dims.get(symbol) not in ranges for symbol in self._symbols):
            return []
        names = sorted({self.dims[symbol] for symbol in self._symbols})
        sizes = [_sizes(ranges[name], alone=len(names) == 1) for name in names]
        points = [dict(zip(names, point, strict=True)) for point in itertools.product(*sizes)]
        truths = self._truths(points)
        return [point for point, truth in zip(points, truths, strict=True) if not truth]

    def _truths(self, points: Sequence[Mapping[str, int]]) -> list[bool]:
        named = [{s: point[self.dims[s]] for s in self._symbols} for point in points]
        return holding(self.expression, named)

    @property
    def _symbols(self) -> Set[Any]:
        found: Set[Any] = self.expression.free_symbols
        return found

    @cached_property
    def multiples(self) -> Mapping[str, int]:
        """Dimensions that have to be multiples of a number, however the relation is written; any of
        them will do."""
        return {self.dims[symbol]: unit for symbol, unit in multiples(self.expression).items()}

    @property
    def is_multiple(self) -> bool:
        """The relation is that a size is a multiple, of a number or of another size."""
        several = len(self._symbols) != 1
        return bool(self.multiples) or (several and of_a_remainder(self.expression))

    @property
    def sizes(self) -> set[int]:
        """The size that a dimension has to have, where the relation is that it has one."""
        import sympy

        found = self.expression
        named = isinstance(found, sympy.Eq) and any(side.is_symbol for side in found.args)
        return self.constants if named else set()

    @property
    def constants(self) -> set[int]:
        """Whole numbers that sizes are related to."""
        return numbers(self.expression)

    def refusal(
        self, where: str, ranges: Mapping[str, Dim], module: nn.Module, do: Advice
    ) -> InputError:
        """The error of a model that doesn't take every size of its dimensions.

        Args:
            where: the model's name.
            ranges: of its dimensions.
            module: that was traced.
            do: what to do about a dimension that is not free.
        """
        parts = [name for name, part in module.named_modules() if isinstance(part, ScriptModule)]
        if parts:
            return InputError(
                "torch.export can't trace the model at every size: a part of it is TorchScript, "
                f"which computes with the sizes of the trace (it holds only where {self.text()})",
                where=f"{where}, {parts[0] or '(root)'}",
                do="Give the module as it was before torch.jit.script, torch.jit.trace or "
                "torch.jit.load",
            )
        names = sorted({self.dims[symbol] for symbol in self._symbols})
        dims = [ranges[name] for name in names]
        named = " and ".join(map(repr, names))
        error = NotFreeError(
            f"torch.export can't trace the model at every size of {named}: what its code does "
            f"holds only where {self.text()}{self._wanted()}",
            where=where if self.place is None else f"{where}; {self.place}",
            got=", ".join(f"{d.name} {d.min}..{'' if d.max is None else d.max}" for d in dims),
            do=do,
        )
        alone = len(dims) == 1
        error.narrower = {dim.name: self._narrower(dim) if alone else None for dim in dims}
        return error

    def _narrower(self, dim: Dim) -> Dim | None:
        """The longest range in which the relation holds, of a relation of one dimension."""
        sizes = _sizes(dim, alone=True)
        truths = self._truths([{dim.name: size} for size in sizes])
        pairs = itertools.groupby(zip(sizes, truths, strict=True), lambda pair: pair[1])
        runs = [[size for size, _ in run] for truth, run in pairs if truth]
        longest = max(runs, key=len, default=[])
        if len(longest) < 2:
            return None
        last = dim.max if longest[-1] == sizes[-1] else longest[-1]
        return Dim(dim.name, longest[0], last)

    def _wanted(self) -> str:
        """What the dimensions have to be multiples of, in words."""
        wanted = [f"{name!r} a multiple of {unit}" for name, unit in sorted(self.multiples.items())]
        return f", so it takes {' or '.join(wanted)}" if wanted else ""

    def text(self) -> str:
        """With the names of the dimensions."""
        import sympy
        from torch.utils._sympy.printers import PythonPrinter

        named = {
            symbol: sympy.Symbol(name, integer=True, positive=True)
            for symbol, name in self.dims.items()
        }
        found: str = PythonPrinter().doprint(self.expression.xreplace(named))
        return found


def _inside_operator() -> bool:
    """PyTorch's own code asks, and not a comparison in the module's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != "torch" and not name.startswith(_ASKING):
            return name.startswith("torch.") and name != "torch.export._trace"
        frame = frame.f_back
    return False


@dataclass
class GuardLog:
    """The relations that a trace asked for.

    Attributes:
        sizes: of the named dimensions in the inputs of the trace, by which symbols are known.
        guards: in their order, each once.
        dims: symbol → dimension.
    """

    sizes: Mapping[str, int]
    guards: list[Guard] = field(default_factory=list)
    dims: dict[Any, str] = field(default_factory=dict)

    def named(self, text: str) -> str:
        """A message of the tracer with dimensions in place of symbols."""
        names = {str(symbol): name for symbol, name in self.dims.items()}
        return re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), text)

    def note(self, expression: Any) -> None:
        """Remember a relation."""
        expression = reduced(expression)
        if all(guard.expression != expression for guard in self.guards):
            self.guards.append(Guard(expression, self.dims, place_here(), _inside_operator()))

    def know(self, symbol: Any, size: object) -> None:
        """Remember which dimension a symbol is: the one of this size."""
        names = [name for name, own in self.sizes.items() if type(size) is int and own == size]
        if len(names) == 1 and getattr(symbol, "is_symbol", False):
            self.dims.setdefault(symbol, names[0])


@dataclass(frozen=True)
class Tried:
    """What trying came to: sizes at which the model is to be compared, and what can't be had."""

    sizes: Sequence[Mapping[str, int]]
    refused: Guard | None


@contextmanager
def watched_guards(
    sizes: Mapping[str, int], ranges: Mapping[str, Dim], *, own_proofs: bool
) -> Iterator[GuardLog]:
    """Every relation that the tracer asks for inside.

    Args:
        sizes: of the named dimensions in the inputs of the trace.
        ranges: that the dimensions may have.
        own_proofs: the tracer's, which may fail although a relation holds; without them it is
            asked only where trying finds something to refuse.
    """
    # Imported here, as they are slow to import, and what only runs models needs none of them.
    from torch._export import non_strict_utils
    from torch.export import _trace
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    log = GuardLog(sizes)
    solve = non_strict_utils.produce_guards_and_solve_constraints

    def solve_constraints(*args: Any, **kwargs: Any) -> None:
        if own_proofs or tried(log, ranges).refused is not None:
            solve(*args, **kwargs)

    create, note = ShapeEnv.create_symbol, ShapeEnv._log_guard

    def create_symbol(self: Any, val: Any, *args: Any, **kwargs: Any) -> Any:
        symbol = create(self, val, *args, **kwargs)
        log.know(symbol, val)
        return symbol

    def log_guard(self: Any, prefix: str, g: Any, forcing_spec: bool) -> None:
        log.note(g)
        note(self, prefix, g, forcing_spec)

    with (
        replaced(ShapeEnv, "create_symbol", create_symbol),
        replaced(ShapeEnv, "_log_guard", log_guard),
        replaced(_trace, "produce_guards_and_solve_constraints", solve_constraints),
    ):
        yield log


def tried(log: GuardLog, ranges: Mapping[str, Dim]) -> Tried:
    """Try every relation at the sizes that the dimensions allow."""
    sizes: list[Mapping[str, int]] = []
    for guard in log.guards:
        failing = guard.fails(ranges)
        if len(failing) > _FEW and not guard.may_fail:
            return Tried(sizes, guard)
        for point in failing if len(failing) <= _FEW else _some(failing):
            if point not in sizes:
                sizes.append(point)
    least = [{name: dim.min for name, dim in ranges.items()}]
    return Tried(
        [point for point in sizes if not any(_within(point, ends) for ends in least)], None
    )


def _some(points: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    """The first, the middle and the last of the points that are no large inputs; where all are, the
    smallest."""
    small = [point for point in points if math.prod(point.values()) <= _LARGE]
    small = small or [min(points, key=lambda point: math.prod(point.values()))]
    return [small[i] for i in (0, len(small) // 2, -1)]


def _within(point: Mapping[str, int], sizes: Mapping[str, int]) -> bool:
    return all(sizes[name] == size for name, size in point.items())


def _sizes(dim: Dim, *, alone: bool) -> list[int]:
    """All sizes of a narrow range; of a wide one those at its ends, and some between."""
    end = dim.max if dim.max is not None else dim.min + _MOST
    head, spread = (_HEAD, _SPREAD) if alone else (_SPREAD, _FEW)
    if end - dim.min <= 2 * head:
        return list(range(dim.min, end + 1))
    between = range(dim.min + head, end - head, max(1, (end - dim.min) // spread))
    return sorted({*range(dim.min, dim.min + head), *between, *range(end - head // 2, end + 1)})


def drop_assertions(program: ExportedProgram) -> None:
    """Take the deferred relations out of the program: what remains of them has been tried."""
    for node in list(program.graph.nodes):
        if node.target in (
            torch.ops.aten._assert_scalar.default,
            torch.ops.aten.sym_constrain_range_for_size.default,
        ):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
