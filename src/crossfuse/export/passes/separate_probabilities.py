"""Probabilities that are used for more than the product with the values are computed twice: so
one softmax is an attention's alone and fuses, and the other serves what else is made of them.

Rules:

1. In the modules that are named, a softmax of scores whose result comes to a product with values
   and to something else is written a second time, with all that lies between it and the product of
   queries and keys, and with what lies between it and the other use.

It must not touch a softmax whose result has one use alone, nor one of other modules: that costs a
second product of queries and keys, which has to be asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from crossfuse.export.matching.softmax_chain import active_values
from crossfuse.export.passes.base import FusionPass, FusionResult
from crossfuse.graph.metadata import BESIDE, module_path
from crossfuse.graph.op_classes import LAYOUT_OPS, is_onnx

__all__ = ["SeparateProbabilitiesPass"]

_MOVES = LAYOUT_OPS | {"Cast", "Identity", "Dropout", "Expand", "Slice"}
_BEHIND = _MOVES | {"Where", "Mul", "Div", "IsNaN"}
"""Operators that may lie between the softmax and the product with values."""

_BEFORE = (
    _MOVES
    | {"Add", "Sub", "Mul", "Div", "Where", "Clip", "Max", "Min", "ReduceMax"}
    | {*("Concat", "Pad")}
)
"""Operators that may lie between the product of queries and keys and the softmax."""


class SeparateProbabilitiesPass(FusionPass):
    """A second softmax for what else is made of probabilities.

    Args:
        modules: paths of the modules that keep them.
    """

    def __init__(self, modules: Collection[str]) -> None:
        self.modules = modules

    def call(self, model: ir.Model) -> FusionResult:
        """Write in place."""
        modified = False
        active = active_values(model.graph) if self.modules else set()
        for node in list(model.graph):
            if is_onnx(node, "Softmax") and BESIDE not in node.metadata_props and self._asked(node):
                modified |= _Separation(model.graph, node, active).write()
        return FusionResult(model, modified)

    def _asked(self, node: ir.Node) -> bool:
        users = [module_path(user) for user, _ in node.outputs[0].uses()]
        return bool({module_path(node) or next(iter(users), "")} & set(self.modules))


class _Separation:
    """One softmax, the nodes behind it up to products with values, and those before it."""

    def __init__(self, graph: ir.Graph, softmax: ir.Node, active: set[ir.Value]) -> None:
        self.graph, self.softmax, self.active = graph, softmax, active
        self.products: set[ir.Node] = set()
        self.behind: set[ir.Node] = set()
        self.before: set[ir.Node] = set()

    def write(self) -> bool:
        """Copy what is used otherwise too; False where nothing is, or no product is found."""
        source = self.softmax.inputs[0]
        if not self._leads_to_product(self.softmax) or not self._comes_from_product(source):
            return False
        others = [(out, uses) for out, uses in self._other_uses() if uses or out.is_graph_output()]
        if not others:
            return False
        copies: dict[ir.Value, ir.Value] = {}
        for node in [node for node in self.graph if node in self.before | self.behind]:
            made = _copied(node, copies)
            copies.update(zip(node.outputs, made.outputs, strict=True))
            self.graph.insert_after(node, made)
        for out, uses in others:
            for user, place in uses:
                user.replace_input_with(place, copies[out])
            _give_output(self.graph, out, copies[out])
        return True

    def _leads_to_product(self, node: ir.Node) -> bool:
        """Collect the nodes from the softmax on that come to a product with values."""
        found = False
        for out in node.outputs:
            for user, place in out.uses():
                if is_onnx(user, "MatMul") and user.inputs[1 - place] in self.active:
                    self.products.add(user)
                    found = True
                elif is_onnx(user, *_BEHIND):
                    found |= user in self.behind or self._leads_to_product(user)
        if found:
            self.behind.add(node)
        return found

    def _comes_from_product(self, value: ir.Value | None) -> bool:
        """Collect the nodes from the product of queries and keys to a value."""
        node = value.producer() if value is not None else None
        if node is None or node in self.before:
            return node is not None
        if is_onnx(node, "MatMul"):
            found = all(v in self.active for v in node.inputs)
        elif is_onnx(node, *_BEFORE):
            # All of them: each may lead to nodes of its own.
            several = [self._comes_from_product(value) for value in node.inputs]
            found = any(several)
        else:
            found = False
        if found:
            self.before.add(node)
        return found

    def _other_uses(self) -> Iterator[tuple[ir.Value, list[tuple[ir.Node, int]]]]:
        """The values from the softmax on, with the uses that don't come to a product."""
        own = self.behind | self.products
        for node in self.behind:
            for out in node.outputs:
                uses = [(user, place) for user, place in out.uses() if user not in own]
                yield out, [use for use in uses if use[0].op_type != "Shape"]


def _copied(node: ir.Node, copies: dict[ir.Value, ir.Value]) -> ir.Node:
    """The node again, over copies of what it reads where there are any."""
    inputs = [copies.get(v, v) if v is not None else None for v in node.inputs]
    made = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        node.attributes.values(),
        overload=node.overload,
        num_outputs=len(node.outputs),
        metadata_props={**node.metadata_props, BESIDE: "probabilities"},
    )
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.type, new.shape = old.type, old.shape
    return made


def _give_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """An output of the graph, with its name, becomes another value."""
    if old.is_graph_output():
        name, old.name = old.name, None
        graph.outputs[:] = [new if out is old else out for out in graph.outputs]
        new.name = name
