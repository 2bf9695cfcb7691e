"""Products that stay floats beside integer ones, in bf16, where not all floats of a graph may be.

An engine may be told to compute all floats of a graph in bf16, but for graphs that choose inside by
what they compute. There the products of floats are cast in the graph, as is what stands between two
of them:

1. Attentions, convolutions and products with weights are in bf16, but for those of integers and
   those that decide a choice.
2. So is every operator all of whose floats come from such nodes, and go to such nodes alone.
3. All else stays in fp32: between products of integers a cast costs more than it saves.

What half precision keeps in fp32 by its own rules stays there as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.graph.constants import is_constant
from crossfuse.graph.op_classes import is_onnx
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.cast import cast_graph
from crossfuse.targets.precision.islands import computes_floats, node_key
from crossfuse.targets.precision.stages import StageGraphs
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rules import deciding_nodes

__all__ = ["half_products"]

_HALF = "bf16"
_REST = "it is no product, and between none"


def half_products(graphs: Mapping[str, ir.Model]) -> StageGraphs:
    """Quantised stages, with their products of floats in bf16 where they may be; stages whose
    floats may all be stay as they are."""
    return StageGraphs(
        {
            stage: model if WIDE_FLOATS in model.metadata_props else _cast(model)
            for stage, model in graphs.items()
        }
    )


def _cast(model: ir.Model) -> ir.Model:
    products = _products(model)
    half = products | _between(model.graph, products)
    keep = {node_key(node): _REST for node in model.graph if node not in half}
    return cast_graph(model, _HALF, keep=keep).model


def _products(model: ir.Model) -> set[ir.Node]:
    """Attentions and linear layers of floats by which nothing is chosen."""
    deciding = deciding_nodes(model)
    layers = {layer.node for layer in linear_layers(model) if not layer.nested}
    attentions = {node for node in model.graph if node.domain == DOMAIN}
    return {
        node for node in layers | attentions if node not in deciding and not _of_integers(node)
    }


def _of_integers(node: ir.Node) -> bool:
    """Whether a product is given codes, which the engine joins with it."""
    producers = (None if value is None else value.producer() for value in node.inputs)
    return any(one is not None and is_onnx(one, "DequantizeLinear") for one in producers)


def _between(graph: ir.Graph, products: set[ir.Node]) -> set[ir.Node]:
    """What all is given floats of products, or of nodes that are, and gives them to such alone."""
    found = {node for node in graph if node not in products and computes_floats(node)}
    while True:
        inside = products | found
        left = {node for node in found if _fed_by(node, inside) and _feeds(node, inside)}
        if left == found:
            return found
        found = left


def _fed_by(node: ir.Node, inside: set[ir.Node]) -> bool:
    floats = [
        value
        for value in node.inputs
        if value is not None and value.dtype == ir.DataType.FLOAT and not is_constant(value)
    ]
    return bool(floats) and all(value.producer() in inside for value in floats)


def _feeds(node: ir.Node, inside: set[ir.Node]) -> bool:
    uses = [user for output in node.outputs for user, _ in output.uses()]
    outside = any(output.is_graph_output() for output in node.outputs)
    return bool(uses) and not outside and all(user in inside for user in uses)
