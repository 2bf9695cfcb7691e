"""Which nodes must stay in fp32 for parity to hold in fp16: as few as a bounded search finds.

First fp16 everywhere; then without the values that leave fp16's range on the calibration inputs;
then with the nodes that add most error kept, more and more of them, and at last the smallest share
that still passes. Attentions never stay: fused kernels want half floats, and compute in fp32
inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossfuse.errors import Advice, ParityError, Said
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.activation_stats import deviations, peaks
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.fewest import (
    MAX_TRIALS,
    AddedError,
    Progress,
    Trials,
    fewest,
    with_added,
)
from crossfuse.targets.precision.islands import node_key
from crossfuse.targets.precision.simulate import half_inputs, simulate

__all__ = ["BASE", "MAX_TRIALS", "overflowing", "search"]

BASE = "fp16"
"""What ``mixed`` computes in where it does not compute in fp32."""

_HEADROOM = 2.0
"""How far below fp16's largest number the calibration's largest value must stay."""

_FILL = 1e30
"""From here on a value is a mask's fill, which the cast clamps: kept in fp32 it would become
infinite on its way to fp16, and a row without keys another one."""

Points = Sequence[Mapping[str, NDArray[Any]]]


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
    trials = Trials(passes, progress, "mixed", "nodes asked to stay in fp32")
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
    enough = fewest(trials, keep, ranked)
    if enough is None:
        raise ParityError(
            "parity doesn't hold in mixed precision, even with all nodes but the attentions in "
            "fp32",
            got=f"{len(ranked) + len(keep)} nodes kept",
            do=Advice(
                "Build in bf16 or fp32, or look with {} for the first attention that differs",
                Said("`crossfuse verify --bisect`", "crossfuse.verify(..., bisect=True)"),
            ),
        )
    return with_added(keep, ranked[:enough])


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


def _ranked(model: ir.Model, keep: Mapping[str, str], points: Points) -> list[AddedError]:
    """Nodes by the error that each adds to its inputs', largest first."""
    candidate = cast_graph(model, BASE, keep=keep)
    errors = deviations(model, simulate(candidate.model, boundary=half_inputs(model)), points)
    found = []
    for node in model.graph:
        name = node_key(node)
        if name in candidate.kept or node.domain == DOMAIN or node.op_type == "Constant":
            continue
        added = _largest(errors, node.outputs) - _largest(errors, node.inputs)
        found.append(AddedError(name, added if np.isfinite(added) else 0.0))
    return sorted(found, key=lambda item: -item.error)


def _largest(errors: Mapping[str, float], values: Sequence[ir.Value | None]) -> float:
    return max((errors.get(v.name or "", 0.0) for v in values if v is not None), default=0.0)
