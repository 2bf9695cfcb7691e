"""Which nodes must stay in fp32 for parity to hold in fp16: as few as a bounded search finds.

First fp16 everywhere; then without the values that leave fp16's range on the calibration inputs;
then with the nodes that add most error kept, more and more of them, and at last the smallest share
that still passes. Attentions never stay: fused kernels want half floats, and compute in fp32
inside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.errors import Advice, ParityError, Said
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.activation_stats import deviations, peaks
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.islands import node_key
from crossfuse.targets.precision.simulate import half_inputs, simulate

__all__ = ["BASE", "MAX_TRIALS", "overflowing", "search"]

_log = logging.getLogger(__name__)

BASE = "fp16"
"""What ``mixed`` computes in where it does not compute in fp32."""

MAX_TRIALS = 12
"""The most candidates that a search evaluates."""

_HEADROOM = 2.0
"""How far below fp16's largest number the calibration's largest value must stay."""

_FILL = 1e30
"""From here on a value is a mask's fill, which the cast clamps: kept in fp32 it would become
infinite on its way to fp16, and a row without keys another one."""

_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
_REFINEMENTS = 4

Points = Sequence[Mapping[str, NDArray[Any]]]
Progress = Callable[[str], None]


class _AddedError(NamedTuple):
    """A node, and how much its results err beyond what it is given, relative to their size."""

    node: str
    error: float


@dataclass
class _Trials:
    """Candidates tried, counted and told."""

    passes: Callable[[Mapping[str, str]], bool]
    progress: Progress
    count: int = 0

    def holds(self, keep: Mapping[str, str]) -> bool:
        """Whether parity holds with these nodes kept."""
        self.count += 1
        self.progress(
            f"mixed: trial {self.count} of at most {MAX_TRIALS}: {len(keep)} nodes asked to stay "
            "in fp32"
        )
        held = self.passes(keep)
        _log.debug("parity %s with %d nodes in fp32", "holds" if held else "fails", len(keep))
        return held


def search(
    model: ir.Model,
    points: Points,
    passes: Callable[[Mapping[str, str]], bool],
    *,
    progress: Progress = lambda _: None,
) -> dict[str, str]:
    """Nodes to keep in fp32 → why.

    Args:
        model: the fused graph, whole.
        points: calibration inputs.
        passes: whether parity holds with these nodes kept.
        progress: told what is tried.

    Raises:
        ParityError: it doesn't hold with every node but the attentions kept.
    """
    trials = _Trials(passes, progress)
    if trials.holds({}):
        return {}
    progress("mixed: ranges of activations")
    islands = cast_graph(model, BASE).kept
    beyond = overflowing(model, peaks(model, points))
    keep = {node: why for node, why in beyond.items() if node not in islands}
    if keep and trials.holds(keep):
        return keep
    progress("mixed: which nodes add the error")
    ranked = _ranked(model, keep, points)
    return _with(keep, ranked[: _fewest(trials, keep, ranked)])


def _fewest(trials: _Trials, keep: Mapping[str, str], ranked: Sequence[_AddedError]) -> int:
    """How many of the ranked nodes parity needs: a share that passes, then made smaller.

    Raises:
        ParityError: all of them are not enough.
    """
    too_few, enough = 0, 0
    for share in _SHARES:
        count = max(1, round(share * len(ranked)))
        if trials.holds(_with(keep, ranked[:count])):
            enough = count
            break
        too_few = count
    if not enough:
        raise ParityError(
            "parity doesn't hold in mixed precision, even with all nodes but the attentions in "
            "fp32",
            got=f"{len(ranked) + len(keep)} nodes kept",
            do=Advice(
                "Build in bf16 or fp32, or look with {} for the first attention that differs",
                Said("`crossfuse verify --bisect`", "crossfuse.verify(..., bisect=True)"),
            ),
        )
    for _ in range(_REFINEMENTS):
        middle = (too_few + enough) // 2
        if middle <= too_few:
            break
        if trials.holds(_with(keep, ranked[:middle])):
            enough = middle
        else:
            too_few = middle
    return enough


def overflowing(model: ir.Model, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes that give, or take, a value beyond what fp16 holds → why they stay."""
    limit = float(np.finfo(np.float16).max) / _HEADROOM
    beyond = {name for name, peak in largest.items() if limit < peak < _FILL}
    keep: dict[str, str] = {}
    for node in model.graph:
        if node.domain == DOMAIN:
            continue
        for value in (*node.outputs, *node.inputs):
            if value is not None and value.name in beyond:
                verb = "gives" if value.producer() is node else "takes"
                keep[node_key(node)] = (
                    f"it {verb} {value.name}, which reaches {largest[value.name]:.3g} (fp16 ends "
                    "at 65504)"
                )
                break
    return keep


def _ranked(model: ir.Model, keep: Mapping[str, str], points: Points) -> list[_AddedError]:
    """Nodes by the error that each adds to its inputs', largest first."""
    candidate = cast_graph(model, BASE, keep=keep)
    errors = deviations(model, simulate(candidate.model, boundary=half_inputs(model)), points)
    found = []
    for node in model.graph:
        name = node_key(node)
        if name in candidate.kept or node.domain == DOMAIN or node.op_type == "Constant":
            continue
        added = _largest(errors, node.outputs) - _largest(errors, node.inputs)
        found.append(_AddedError(name, added if np.isfinite(added) else 0.0))
    return sorted(found, key=lambda item: -item.error)


def _largest(errors: Mapping[str, float], values: Sequence[ir.Value | None]) -> float:
    return max((errors.get(v.name or "", 0.0) for v in values if v is not None), default=0.0)


def _with(keep: Mapping[str, str], more: Sequence[_AddedError]) -> dict[str, str]:
    reasons = {name: f"it adds a relative error of {error:.2g}" for name, error in more}
    return {**keep, **reasons}
