"""Operators of ``com.microsoft`` → operators of ONNX.

Rules:

1. What `attention`, `operators` and `quantized` know is replaced, in the graph and in the bodies
   within it. As some ranks are known only behind what was replaced before, shapes are inferred
   between rounds.
2. ``LayerNormalization`` and ``SimplifiedLayerNormalization``, which ONNX Runtime writes into
   ONNX's domain at opsets that lack them, belong to ``com.microsoft`` (`own_strays`).
3. Anything else stays where ONNX Runtime's CPU provider can run it.

It must not take in an attention with a cache, a packed batch, or quantised as a whole: these are
refused, all in one message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from crossfuse.errors import InputError
from crossfuse.export.sources.onnx_file.microsoft.attention import ATTENTIONS, UNTAKEN
from crossfuse.export.sources.onnx_file.microsoft.emit import (
    DOMAIN,
    NotYetError,
    Operator,
    UntakenError,
)
from crossfuse.export.sources.onnx_file.microsoft.operators import OPERATORS
from crossfuse.export.sources.onnx_file.microsoft.quantized import QUANTIZED

__all__ = [
    "ATTENTION_OPSET",
    "UNDEFINED_ROWS",
    "expand_microsoft",
    "has_microsoft",
    "needs_attention_opset",
    "own_strays",
]

ATTENTION_OPSET = 23
"""ONNX's opset that the expansions of attentions, and of quantizers of 16 and 4 bits, are in."""

UNDEFINED_ROWS = {"GroupQueryAttention"}
"""Operators whose rows behind the end of a sample hold whatever was in memory."""

_EXPANSIONS = {**OPERATORS, **QUANTIZED, **ATTENTIONS}
_STRAYS = {"LayerNormalization": 17, "SimplifiedLayerNormalization": 1 << 30}
_MACHINE = "com.microsoft.nchwc"
_DO = "Give the file as it was exported, before ONNX Runtime's optimizer changed it"


def own_strays(model: ir.Model, opset: int) -> bool:
    """Give operators that ONNX lacks at this opset the domain that they are from.

    Returns:
        whether there was one.
    """
    strays = [
        n
        for n in model.graph.all_nodes()
        if n.domain in ("", "ai.onnx") and opset < _STRAYS.get(n.op_type, 0)
    ]
    for node in strays:
        node.domain = DOMAIN
    if strays:
        model.graph.opset_imports[DOMAIN] = 1
    return bool(strays)


def has_microsoft(model: ir.Model) -> bool:
    """Some operator is ONNX Runtime's own."""
    return any(node.domain.startswith(DOMAIN) for node in model.graph.all_nodes())


def needs_attention_opset(model: ir.Model) -> bool:
    """An expansion is in a newer opset than the exported graphs."""
    return any(node.op_type in (ATTENTIONS.keys() | QUANTIZED.keys()) for node in _nodes(model))


def expand_microsoft(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace in place; returns the model and whether it changed.

    Raises:
        InputError: operators that can't be taken in.
    """
    modified = False
    while True:
        ShapeInferencePass(data_prop=True)(model)
        waiting, refused, replaced = _round(model)
        modified |= replaced
        if not replaced or refused:
            break
    for node in waiting:
        refused.append((node, "the shape of its inputs is unknown"))
    for node in _nodes(model):
        if node.op_type in UNTAKEN:
            refused.append((node, UNTAKEN[node.op_type]))
    machine = Counter(n.op_type for n in model.graph.all_nodes() if n.domain == _MACHINE)
    if refused or machine:
        parts = [_group(op, why, names) for (op, why), names in _grouped(refused).items()]
        parts += [
            f"{op} of {_MACHINE}, which is laid out for one machine ({count} times)"
            for op, count in machine.items()
        ]
        raise InputError(
            "the file holds operators of ONNX Runtime's own that can't be taken in",
            got="; ".join(parts),
            do=_DO,
        )
    return model, modified


def _grouped(refused: list[tuple[ir.Node, str]]) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for node, why in refused:
        found.setdefault((node.op_type, why), []).append(node.name or "")
    return found


def _group(op: str, why: str, names: list[str]) -> str:
    first = next((name for name in names if name), "")
    where = f" at {first}" if first else ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{op}{where}{more} ({why})"


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph.all_nodes() if node.domain == DOMAIN)


def _round(model: ir.Model) -> tuple[list[ir.Node], list[tuple[ir.Node, str]], bool]:
    """Replace what can be replaced now: nodes that wait for a shape, those refused, and whether any
    was replaced."""
    waiting: list[ir.Node] = []
    refused: list[tuple[ir.Node, str]] = []
    replaced = False
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain != DOMAIN or node.op_type not in _EXPANSIONS:
                continue
            of = Operator(node)
            try:
                results = _EXPANSIONS[node.op_type](of)
            except NotYetError:
                waiting.append(node)
            except UntakenError as reason:
                refused.append((node, str(reason)))
            else:
                _replace(graph, of, results)
                replaced = True
    return waiting, refused, replaced


def _replace(graph: ir.Graph, of: Operator, results: list[ir.Value | None]) -> None:
    node = of.node
    for new in of.nodes:
        new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, of.nodes)
    for old, result in zip(node.outputs, results, strict=False):
        if result is None:
            continue
        if result.producer() not in of.nodes:
            result = _identity(graph, node, result)
        result.type = old.type if old.type is not None else result.type
        result.shape = old.shape if old.shape is not None else result.shape
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        result.name = name
    graph.remove(node, safe=True)


def _identity(graph: ir.Graph, node: ir.Node, value: ir.Value) -> ir.Value:
    copy = ir.node("Identity", [value])
    graph.insert_before(node, [copy])
    return copy.outputs[0]
