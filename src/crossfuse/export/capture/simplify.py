"""The translated graph simplified as PyTorch's exporter does it, in time that grows with the graph.

The exporter optimizes with onnxscript's rules, and tries each of them at each node. One of them,
of two slices side by side, looks through the whole graph each time: nine tenths of the translation
of a graph of some thousand nodes. Here the same passes run with the same rules, each tried only
where its last operator is.

1. A rule is tried at nodes of its last operator; one whose operator can't be read, at all nodes.
2. A rule that ends in several nodes is tried only where another node of that operator reads the
   same value.
3. Constants that folding made anew at each call of a module (a weight transposed) become one.
4. Where onnxscript holds its rules elsewhere, its own optimizer runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassManager, PassResult, Sequential, common
from onnxscript import optimizer, rewriter

__all__ = ["simplify"]

_ROUNDS = 2
"""How often folding and rewriting are repeated, as in onnxscript."""

_MOST_ELEMENTS = 2**16
"""Constants up to this size are merged where they are equal; folding makes none beyond it."""


def simplify(model: ir.Model) -> None:
    """Fold constants, apply onnxscript's rules, merge what is equal; in place."""
    rules = getattr(rewriter, "_DEFAULT_REWRITE_RULES", None)
    if rules is None:
        optimizer.optimize_ir(model)
        return
    rewrite = rewriter.RewritePass(rewriter.pattern.RewriteRuleSet([_placed(r) for r in rules]))
    once = [
        _FoldConstantsPass(),
        rewrite,
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    Sequential(
        common.InlinePass(),
        PassManager(once, steps=_ROUNDS, early_stop=True),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(size_limit=_MOST_ELEMENTS),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


class _FoldConstantsPass(InPlacePass):
    """onnxscript's folding of constants, with shapes inferred node by node."""

    def call(self, model: ir.Model) -> PassResult:
        return optimizer.fold_constants_ir(model, onnx_shape_inference=True)


class _PlacedRule:
    """A rule that is tried at one operator alone; in all else it is the rule itself."""

    def __init__(self, rule: Any, operator: str, *, several: bool) -> None:
        self._rule = rule
        self._operator = operator
        self._several = several

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """What the rule puts in the place of a node; None where it does not match."""
        if node.op_type != self._operator or (self._several and not _beside_another(node)):
            return None
        return self._rule.try_rewrite(model, graph, node, **options)


def _placed(rule: Any) -> Any:
    """The rule, tried only where its last operator is."""
    ends: Sequence[Any] = getattr(getattr(rule, "_target_pattern", None), "output_nodes", ())
    known = [end.op_identifier() for end in ends]
    if not known or known[0] is None:
        return rule
    return _PlacedRule(rule, known[0][1], several=len(known) > 1)


def _beside_another(node: ir.Node) -> bool:
    """Another node of this operator reads this one's first input."""
    source = node.inputs[0] if node.inputs else None
    return source is not None and any(
        user is not node and user.op_type == node.op_type for user in source.consumers()
    )
