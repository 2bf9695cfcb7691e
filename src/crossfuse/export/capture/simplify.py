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
from typing import Any, NamedTuple

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassManager, PassResult, Sequential, common
from onnxscript import optimizer, rewriter

from crossfuse.export.capture.remembered_inference import remembered_inference

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
    every: Any = rewriter.pattern.RewriteRuleSet(rules)
    every.rules = [_PlacedRules(rules)]
    rewrite = rewriter.RewritePass(every)
    once = [
        _FoldConstantsPass(),
        rewrite,
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    ]
    passes = Sequential(
        common.InlinePass(),
        PassManager(once, steps=_ROUNDS, early_stop=True),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(size_limit=_MOST_ELEMENTS),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )
    with remembered_inference():
        passes(model)


class _FoldConstantsPass(InPlacePass):
    """onnxscript's folding of constants, with shapes inferred node by node, of nodes alike once."""

    def call(self, model: ir.Model) -> PassResult:
        return optimizer.fold_constants_ir(model, onnx_shape_inference=True)


class _PlacedRules:
    """All rules as one, which tries at a node those that end with its operator; afterwards it is
    the rule that matched."""

    def __init__(self, rules: Sequence[Any]) -> None:
        self._rules = rules
        self._matched = rules[0]
        ends = [_end_of(rule) for rule in rules]
        pairs = [*zip(rules, ends, strict=True)]
        self._several = {id(rule) for rule, end in pairs if end.several}
        self._anywhere = [rule for rule, end in pairs if end.operator is None]
        self._placed = {
            operator: [rule for rule, end in pairs if end.operator in (None, operator)]
            for operator in {end.operator for end in ends}
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matched, name)

    def graph_pre_visitor(self) -> None:
        """What the rules do before a graph."""
        for rule in self._rules:
            if rule.graph_pre_visitor:
                rule.graph_pre_visitor()

    def graph_post_visitor(self) -> None:
        """What the rules do behind a graph."""
        for rule in self._rules:
            if rule.graph_post_visitor:
                rule.graph_post_visitor()

    def try_rewrite(self, model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        """What the first rule that matches puts in the place of a node; None where none does."""
        for rule in self._placed.get(node.op_type, self._anywhere):
            if id(rule) in self._several and not _beside_another(node):
                continue
            found = rule.try_rewrite(model, graph, node, **options)
            if found is not None:
                self._matched = rule
                return found
        return None


class _End(NamedTuple):
    """The last operator of a rule, None where that can't be read, and whether it ends in several
    nodes."""

    operator: str | None
    several: bool


def _end_of(rule: Any) -> _End:
    ends: Sequence[Any] = getattr(getattr(rule, "_target_pattern", None), "output_nodes", ())
    known = [end.op_identifier() for end in ends]
    if not known or known[0] is None:
        return _End(None, several=False)
    return _End(known[0][1], len(known) > 1)


def _beside_another(node: ir.Node) -> bool:
    """Another node of this operator reads this one's first input."""
    source = node.inputs[0] if node.inputs else None
    return source is not None and any(
        user is not node and user.op_type == node.op_type for user in source.consumers()
    )
