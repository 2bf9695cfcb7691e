"""Which nodes of a graph in half precision stay in fp32, and why: its islands, as a list of rules.

A *node rule* looks at one node: `NODE_RULES` are asked in order, and the first that fires gives the
reason. A *graph rule* looks at what nodes take and give, knowing the islands so far: `GRAPH_RULES`
run one after the other, each on what those before it left. A node without a reason computes in half
precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from crossfuse.ops.contract import DOMAIN

__all__ = [
    "GRAPH_RULES",
    "NODE_RULES",
    "IslandOptions",
    "asked_to_stay",
    "computes_floats",
    "decides_a_choice",
    "find_islands",
    "gives_floats",
    "has_a_body",
    "lacks_a_bf16_kernel",
    "loses_too_much",
    "makes_indices",
    "node_key",
    "of_an_unknown_domain",
    "takes_an_fp32_result",
]

_log = logging.getLogger(__name__)

_SENSITIVE = frozenset(
    {
        *("Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Softmax", "LogSoftmax", "Sin", "Cos"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"),
        *("ReduceLogSumExp", "ReduceProd", "CumSum", "Range", "Einsum", "TopK", "GridSample"),
        *("RandomNormalLike", "RandomUniformLike"),
        *("InstanceNormalization", "BatchNormalization"),
    }
)
"""Reductions and transcendental functions, with which norms and softmaxes are written."""

_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Clip", "Neg"})
_DOMAINS = ("", DOMAIN, "com.microsoft")
_CHOICES = ("ArgMax", "ArgMin")
_INDICES = "its results become integers"


@dataclass(frozen=True)
class IslandOptions:
    """What a caller says about islands.

    Attributes:
        keep: names of nodes that stay in fp32 → why.
        without_kernel: operators of ONNX that the target has no kernel for in this precision.
        known: nodes that stay in fp32 whatever the rules say → why.
    """

    keep: Mapping[str, str] = field(default_factory=dict)
    without_kernel: Collection[str] = ()
    known: Mapping[ir.Node, str] = field(default_factory=dict)


Islands = Mapping[ir.Node, str]
"""Nodes that stay in fp32 → why."""

NodeRule = Callable[[ir.Node, IslandOptions], str | None]
GraphRule = Callable[[Sequence[ir.Node], Islands], Islands]


def find_islands(nodes: Sequence[ir.Node], options: IslandOptions) -> dict[ir.Node, str]:
    """The islands among a graph's nodes.

    Args:
        nodes: of the whole graph, in its order.
        options: what the caller says about islands.

    Returns:
        node → why it stays.
    """
    islands = dict(options.known)
    for node in nodes:
        if node in islands or node.op_type == "Constant" or not computes_floats(node):
            continue
        reasons = (rule(node, options) for rule in NODE_RULES)
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            islands[node] = reason
    for graph_rule in GRAPH_RULES:
        found = graph_rule(nodes, islands)
        islands |= {node: reason for node, reason in found.items() if node not in islands}
    _log.debug("%d of %d nodes stay in fp32", len(islands), len(nodes))
    return islands


def asked_to_stay(node: ir.Node, options: IslandOptions) -> str | None:
    """The caller asked for it, by name."""
    return options.keep.get(node_key(node))


def has_a_body(node: ir.Node, _: IslandOptions) -> str | None:
    """``If``, ``Loop`` and ``Scan``: the types inside their bodies are not changed."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    bodies = any(attribute.type in kinds for attribute in node.attributes.values())
    return "it has a body of its own" if bodies else None


def of_an_unknown_domain(node: ir.Node, _: IslandOptions) -> str | None:
    """An operator of somebody else's, which may not take half floats."""
    if node.domain in _DOMAINS:
        return None
    return f"the operator {node.domain}.{node.op_type} is not known to take half floats"


def lacks_a_bf16_kernel(node: ir.Node, options: IslandOptions) -> str | None:
    """The target would have to compute it elsewhere, or not at all."""
    if node.domain or node.op_type not in options.without_kernel:
        return None
    return f"the target has no bf16 kernel for {node.op_type}"


def loses_too_much(node: ir.Node, _: IslandOptions) -> str | None:
    """Reductions and transcendental functions, with which norms and softmaxes are written.

    Operators that compute in fp32 inside (``LayerNormalization``, attention) are none of these.
    """
    sensitive = node.op_type in _SENSITIVE and gives_floats(node)
    return f"{node.op_type} loses too much in half precision" if sensitive else None


def decides_a_choice(nodes: Sequence[ir.Node], _: Islands) -> Islands:
    """An ``ArgMax`` or ``ArgMin`` before any attention, and what it chooses by: a rounding error
    there is another choice, as of a quantizer's code."""
    found: dict[ir.Node, str] = {}
    for choice in nodes:
        if choice.op_type in _CHOICES and not choice.domain:
            for node in _deciding(choice):
                reason = f"an {choice.op_type} inside the model chooses by it"
                found.setdefault(node, reason)
    return found


def makes_indices(nodes: Sequence[ir.Node], islands: Islands) -> Islands:
    """Arithmetic whose results all become integers, such as buckets of positions."""
    found: dict[ir.Node, str] = {}
    for node in reversed(nodes):
        if node not in islands and _all_become_integers(node, found):
            found[node] = _INDICES
    return found


def takes_an_fp32_result(nodes: Sequence[ir.Node], islands: Islands) -> Islands:
    """Arithmetic directly behind a reduction or function in fp32: an epsilon of 1e-6 is no half
    float."""
    found: dict[ir.Node, str] = {}
    for node in nodes:
        if node in islands or node.op_type not in _ARITHMETIC:
            continue
        source = _sensitive_source(node, islands)
        if source is not None:
            found[node] = f"it takes the result of a {source.op_type} in fp32"
    return found


NODE_RULES: tuple[NodeRule, ...] = (
    asked_to_stay,
    has_a_body,
    of_an_unknown_domain,
    lacks_a_bf16_kernel,
    loses_too_much,
)
"""Asked in order; the first that fires gives a node's reason."""

GRAPH_RULES: tuple[GraphRule, ...] = (decides_a_choice, makes_indices, takes_an_fp32_result)
"""Run in order; each sees the islands of those before."""


def node_key(node: ir.Node) -> str:
    """How a node is named in lists of islands: its name in the fused graph."""
    return node.name or node.outputs[0].name or ""


def gives_floats(node: ir.Node) -> bool:
    """Whether a result is of the fp32 graph's own type."""
    return any(output.dtype == ir.DataType.FLOAT for output in node.outputs)


def computes_floats(node: ir.Node) -> bool:
    """Whether floats of the fp32 graph's own type go in or out; what only moves integers is left
    alone."""
    return gives_floats(node) or any(
        value is not None and value.dtype == ir.DataType.FLOAT for value in node.inputs
    )


def _deciding(choice: ir.Node) -> list[ir.Node]:
    """A discrete choice, and the nodes whose floats it depends on; none where an attention is among
    them."""
    seen: dict[ir.Node, None] = {choice: None}
    pending = [choice]
    while pending:
        for value in pending.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is None or producer in seen or producer.op_type == "Constant":
                continue
            if producer.domain == DOMAIN:
                return []
            seen[producer] = None
            pending.append(producer)
    return [node for node in seen if computes_floats(node)]


def _all_become_integers(node: ir.Node, indices: Collection[ir.Node]) -> bool:
    """Its floats all end as integers: they are cast, or go to nodes of which that holds."""
    if node.op_type == "Constant" or not gives_floats(node):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    users = [user for output in node.outputs for user, _ in output.uses()]
    return bool(users) and all(user in indices or _casts_to_integers(user) for user in users)


def _casts_to_integers(node: ir.Node) -> bool:
    return node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()).is_integer()


def _sensitive_source(node: ir.Node, islands: Islands) -> ir.Node | None:
    """The first reduction or function in fp32 that a node takes floats of."""
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if value is None or producer is None or value.dtype != ir.DataType.FLOAT:
            continue
        if producer in islands and producer.op_type in _SENSITIVE:
            return producer
    return None
