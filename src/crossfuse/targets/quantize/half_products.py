"""Products in bf16 in the graph, and what is between them; sums and norms in fp32.

An engine may be told to compute all floats of a graph in bf16, but for graphs of which some have to
stay in fp32, as those do that choose inside by what they compute. There the products of floats are
cast in the graph:

1. Attentions, convolutions and products with weights are in bf16, with the constants that follow
   them (their biases), but for those of integers and those that decide a choice.
2. So is every operator all of whose floats come from such nodes, and go to such nodes alone.
3. Norms, and so the sums that they are given, stay in fp32: the roundings of all layers would add
   up in these. So does all else; between products of integers a cast costs more than it saves.

What half precision keeps in fp32 by its own rules stays there as well.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from crossfuse.core.openvino_linears import WIDE_FLOATS
from crossfuse.graph.constants import is_constant
from crossfuse.graph.op_classes import is_onnx
from crossfuse.ops.contract import DOMAIN
from crossfuse.targets.precision.islands import computes_floats, node_key
from crossfuse.targets.precision.stages import StageGraphs, half_stages
from crossfuse.targets.quantize.layers import linear_layers
from crossfuse.targets.quantize.rules import deciding_nodes

__all__ = ["half_products"]

_HALF = "bf16"
_REST = "it is no product, and between none"
_NORMS = frozenset({"LayerNormalization", "GroupNormalization", "RMSNormalization"})
"""They are given sums over many layers, in which the roundings of all layers would add up."""


def half_products(graphs: Mapping[str, ir.Model]) -> StageGraphs:
    """Stages, in fp32 or quantised, with their products of floats in bf16 where they may be; stages
    all of whose floats may be stay as they are."""
    keep = {key: _REST for model in graphs.values() for key in _others(model)}
    cast = half_stages(graphs, _HALF, keep=keep).graphs
    return StageGraphs(
        {
            stage: model if WIDE_FLOATS in model.metadata_props else cast[stage]
            for stage, model in graphs.items()
        }
    )


def _others(model: ir.Model) -> list[str]:
    """Names of the nodes that are no such products, nor between any."""
    products = _products(model)
    half = products | _between(model.graph, products)
    return [node_key(node) for node in model.graph if node not in half]


def _products(model: ir.Model) -> set[ir.Node]:
    """Attentions and linear layers of floats by which nothing is chosen, with their biases."""
    deciding = deciding_nodes(model)
    layers = {layer.node for layer in linear_layers(model) if not layer.nested}
    attentions = {node for node in model.graph if node.domain == DOMAIN}
    layers = {node for node in layers if node not in deciding and not _of_integers(node)}
    return layers | attentions | {bias for node in layers for bias in _constants_behind(node)}


def _constants_behind(node: ir.Node) -> list[ir.Node]:
    """The sums and products with constants that follow one another behind a layer."""
    found: list[ir.Node] = []
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        user = next(iter(value.uses()))[0]
        others = [one for one in user.inputs if one is not None and one is not value]
        if not is_onnx(user, "Add", "Mul") or not others or not all(map(is_constant, others)):
            break
        found.append(user)
        value = user.outputs[0]
    return found


def _of_integers(node: ir.Node) -> bool:
    """Whether a product is given codes, which the engine joins with it."""
    producers = (None if value is None else value.producer() for value in node.inputs)
    return any(one is not None and is_onnx(one, "DequantizeLinear") for one in producers)


def _between(graph: ir.Graph, products: set[ir.Node]) -> set[ir.Node]:
    """What all is given floats of products, or of nodes that are, and gives them to such alone."""
    found = {
        node
        for node in graph
        if node not in products and computes_floats(node) and node.op_type not in _NORMS
    }
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
