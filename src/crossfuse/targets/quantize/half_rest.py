"""What is no product of 8 bits in half precision, for engines that take their types from the graph.

Rounding to codes stays in fp32: the step of small numbers has no reciprocal in fp16, and engines
multiply by that. Layers that are computed beside what fp16 holds stay in fp32 with all nodes that
they are written with, since a cast between a product and its codes would take the codes apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from crossfuse.core.target import Target
from crossfuse.targets.precision.islands import node_key
from crossfuse.targets.precision.mixed_search import BASE
from crossfuse.targets.precision.stages import StageGraphs, half_stages
from crossfuse.targets.quantize.symmetric_products import CODES, parts_of

__all__ = ["half_rest"]

_ROUNDS = "it rounds to codes"


def half_rest(
    graphs: Mapping[str, ir.Model],
    target: Target,
    wide: Mapping[str, str],
    own: Collection[str],
) -> StageGraphs:
    """Stages with symmetric products, the rest of them in fp16.

    Args:
        graphs: quantised, in fp32.
        target: that they are for.
        wide: names of nodes of the fused graph that stay in fp32 → why.
        own: names of the fused graph's nodes; others are not told of.
    """
    keep = {part: why for key, why in wide.items() for part in parts_of(key)}
    keep |= {
        node_key(node): _ROUNDS
        for graph in graphs.values()
        for node in graph.graph
        if node.op_type == "QuantizeLinear" and node_key(node).endswith(CODES)
    }
    found = half_stages(graphs, BASE, keep=keep, half_handover=target.hands_over_half)
    kept = {name: why for name, why in found.kept.items() if name in own}
    return StageGraphs(found.graphs, kept, found.boundary)
