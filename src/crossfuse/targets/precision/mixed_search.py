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
from crossfuse.targets.precision.cast import cast_graph, node_key
from crossfuse.targets.precision.simulate import half_inputs, simulate

__all__ = ["BASE", "MAX_TRIALS", "overflowing", "search"]

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


def search(
    model: ir.Model,
    points: Points,
    passes: Callable[[Mapping[str, str]], bool],
    *,
    step: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Nodes to keep in fp32 → why.

    Args:
        model: the fused graph, whole.
        points: calibration inputs.
        passes: whether parity holds with these nodes kept.
        step: told what is tried.

    Raises:
        ParityError: it doesn't hold with every node but the attentions kept.
    """
    trials = 0

    def holds(keep: Mapping[str, str]) -> bool:
        nonlocal trials
        trials += 1
        step(
            f"mixed: trial {trials} of at most {MAX_TRIALS}: {len(keep)} nodes asked to stay in "
            "fp32"
        )
        return passes(keep)

    if holds({}):
        return {}
    step("mixed: ranges of activations")
    islands = cast_graph(model, BASE).kept
    keep = {
        node: why
        for node, why in overflowing(model, peaks(model, points)).items()
        if node not in islands
    }
    if keep and holds(keep):
        return keep
    step("mixed: which nodes add the error")
    ranked = _ranked(model, keep, points)
    lowest, enough = 0, 0
    for share in _SHARES:
        count = max(1, round(share * len(ranked)))
        if holds(_with(keep, ranked[:count])):
            enough = count
            break
        lowest = count
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
        middle = (lowest + enough) // 2
        if middle <= lowest:
            break
        if holds(_with(keep, ranked[:middle])):
            enough = middle
        else:
            lowest = middle
    return _with(keep, ranked[:enough])


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


def _ranked(model: ir.Model, keep: Mapping[str, str], points: Points) -> list[tuple[str, float]]:
    """Nodes by the error that each adds to its inputs', largest first."""
    candidate = cast_graph(model, BASE, keep=keep)
    errors = deviations(model, simulate(candidate.model, boundary=half_inputs(model)), points)
    found = []
    for node in model.graph:
        name = node_key(node)
        if name in candidate.kept or node.domain == DOMAIN or node.op_type == "Constant":
            continue
        given = max(
            (errors.get(v.name or "", 0.0) for v in node.inputs if v is not None), default=0.0
        )
        added = max((errors.get(v.name or "", 0.0) for v in node.outputs), default=0.0) - given
        found.append((name, added if np.isfinite(added) else 0.0))
    found.sort(key=lambda pair: -pair[1])
    return found


def _with(keep: Mapping[str, str], more: Sequence[tuple[str, float]]) -> dict[str, str]:
    return {**keep, **{name: f"it adds a relative error of {added:.2g}" for name, added in more}}
