"""Attention written out as products around a softmax → ``FusedAttention``.

Rules:

1. A softmax whose input goes back to a product of queries and keys, and whose result goes on to a
   product with values, is an attention (`softmax_chain`). Axes may come in any order, be merged,
   split or moved on the way (`axes`, `attention_match`).
2. Numbers that multiply or divide the scores join in the scale; tensors that do, constant along the
   keys, multiply the queries.
3. What is added is a bias. A fill of −inf is a mask; a finite one is a bias of that size where
   hidden, in place of the biases before it. Where fills alone decide a row (they hide all its keys,
   or what they leave is biased lower), its queries become 0: the row then averages the values, or
   attends by the biases behind the fill, as in the original. That holds in every precision, as a
   fill that absorbs the scores would not: in fp16 none does.
4. Masks behind the softmax that hide what masks before it hide make rows without keys 0: they
   become a mask of the operator. Other gates multiply the values where they are the same for all
   rows, or the result where they are the same for all keys (`gates`).
5. A subtracted maximum, limits at ±10⁴ or wider, and a check for NaN behind the softmax fall away.
6. Heads are the last batch axis of fixed size. Where keys and values lack it, they have fewer heads
   (grouped, multi-query). Where they lack all other batch axes they are one context for all
   queries.
7. Columns that are joined to the scores are sinks (`sinks`): keys of zeros with a bias, whose
   values are 0 where their columns are cut off behind the softmax.

It must not fire where the scores or the probabilities are used for something else as well, unless
that is another attention that fuses; where the softmax runs over another axis than the second
product; where scores are mixed, capped or cast to integers; or where keys or values are weights.
Each such softmax gives a reason.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.matching.attention_match import AttentionMatch, match_attention
from crossfuse.export.matching.axes import Axes, FactoredValue, factors, size_of
from crossfuse.export.matching.axis_roles import axis_roles
from crossfuse.export.matching.combine import gated, multiplied
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.masks import PlacedTerm, join_terms, zero_rows
from crossfuse.export.matching.sink_rows import SinkRows
from crossfuse.export.matching.softmax_chain import (
    Mismatch,
    SoftmaxChain,
    active_values,
    find_softmax_chains,
)
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed
from crossfuse.graph.attention_node import AttentionAttributes, AttentionInputs, AttentionNode
from crossfuse.graph.metadata import BESIDE, module_path
from crossfuse.graph.op_classes import is_onnx
from crossfuse.ops.contract import DOMAIN, VERSION

__all__ = ["FuseUnfusedAttentionPass"]


class _Found(NamedTuple):
    """An attention that matches."""

    chain: SoftmaxChain
    match: AttentionMatch


class FuseUnfusedAttentionPass(FusionPass):
    """Softmaxes between two products → the one operator."""

    captures = True

    def call(self, model: ir.Model) -> FusionResult:
        """Replace every chain that matches; what looks like an attention's softmax and did not
        match is missed."""
        active = active_values(model.graph)
        missed: list[Missed] = []
        found: list[_Found] = []
        for node in model.graph:
            if not is_onnx(node, "Softmax") or node.inputs[0] not in active:
                continue
            if BESIDE in node.metadata_props:
                continue
            matches, reasons = _matches(node, active)
            found += matches
            path = module_path(node) or next(
                (module_path(user) for user, _ in node.outputs[0].uses()), ""
            )
            missed += [Missed(path, reason) for reason in reasons]
        found, shared = _unshared(found)
        position = {node: i for i, node in enumerate(model.graph)}
        # The last one first: its operands may be the results of those before, which are replaced
        # with their uses.
        for each in sorted(found, key=lambda f: position[f.chain.values.node], reverse=True):
            _replace_shapes(each.match)
            _replace(each)
        if found:
            RemoveUnusedNodesPass()(model)
            model.opset_imports[DOMAIN] = VERSION
        return FusionResult(model, bool(found), (*missed, *shared))


def _matches(softmax: ir.Node, active: set[ir.Value]) -> tuple[list[_Found], list[str]]:
    """The attentions that a softmax is the softmax of; where one of them does not match, none, and
    a reason for each."""
    try:
        chains = find_softmax_chains(softmax, active)
    except Mismatch as mismatch:
        return [], [str(mismatch)]
    found, reasons = [], []
    for chain in chains:
        try:
            found.append(_Found(chain, match_attention(chain)))
        except Mismatch as mismatch:
            reasons.append(str(mismatch))
    if not reasons:
        return found, []
    shared = f"its attention probabilities also weigh other values, and there {reasons[0]}"
    return [], [*reasons, *(shared for _ in found)]


def _unshared(
    found: list[_Found],
) -> tuple[list[_Found], list[Missed]]:
    """Leave out chains with a value inside that something else than a fused chain uses; repeat, as
    that may unfuse others."""
    missed: list[Missed] = []
    while True:
        removed = {node for chain, _ in found for node in (*chain.interior(), chain.values.node)}
        kept = []
        for item in found:
            used = _outside_use(item.chain, removed)
            if used is None:
                kept.append(item)
            else:
                missed.append(Missed(module_path(item.chain.softmax), used))
        if len(kept) == len(found):
            return kept, missed
        found = kept


def _outside_use(chain: SoftmaxChain, removed: set[ir.Node]) -> str | None:
    """What is said of a value inside that something else uses."""
    scored = [chain.scores, *(link.node for link in chain.before)]
    for node in dict.fromkeys([*scored, *chain.interior()]):
        what = "scores" if node in scored else "attention probabilities"
        for value in node.outputs:
            if value.is_graph_output():
                return f"its {what} are also used by the model's outputs"
            for user, _ in value.uses():
                if user not in removed and user.op_type != "Shape":
                    return f"its {what} are also used by {user.op_type}"
    return None


def _replace(found: _Found) -> None:
    match, node = found.match, found.chain.values.node
    layout = LayoutBuilder()
    for operand in (match.query, match.key, match.value):
        layout.knows(operand.value, operand.axes)
    # Gates may give the values axes that they lack, heads of their own, say.
    values = gated(match.value, match.value_gates, match.batch, layout)
    match = dataclasses.replace(match, value=values)
    roles = axis_roles(match)
    queries = multiplied(match.query, match.multipliers, match.batch, layout)
    rows, keys, size, value_size = match.rows, match.keys, match.size, match.value_size
    query_axes: Axes = (roles.batch, rows, (*roles.heads, *size))
    key_axes: Axes = (roles.contexts, keys, (*roles.kv_heads, *size))
    value_axes: Axes = (roles.contexts, match.weighed, (*roles.kv_heads, *value_size))
    query = layout.arrange(queries.value, queries.axes, query_axes)
    key = layout.arrange(match.key.value, match.key.axes, key_axes)
    value = layout.arrange(match.value.value, match.value.axes, value_axes)
    if match.sink is None:
        terms = [PlacedTerm(term, layout, roles) for term in match.terms]
    else:
        sinks = SinkRows(match.sink, roles, layout)
        key = sinks.beside(key)
        value = sinks.beside(value) if match.weighed == factors(keys) else value
        sinks.knows(key, key_axes)
        terms = sinks.terms(match.terms, query)
    joined = join_terms(terms, query, layout)
    if joined.counted is not None:
        query = zero_rows(query, joined.counted, roles, size, layout)
    fused = AttentionNode.emit(
        layout.build,
        AttentionInputs(query, key, value, joined.mask, joined.bias),
        AttentionAttributes(
            num_heads=size_of(roles.heads).factor,
            kv_num_heads=size_of(roles.kv_heads).factor,
            scale=match.scale,
        ),
        captured="pattern",
    ).output
    out_axes: Axes = (roles.batch, rows, (*roles.heads, *value_size))
    fused.type = node.outputs[0].type
    fused.shape = ir.Shape([size_of(axis).dim for axis in out_axes])
    result = gated(FactoredValue(fused, out_axes), match.result_gates, match.batch, layout)
    layout.build.replace(node, layout.arrange(result.value, result.axes, match.output))


def _replace_shapes(match: AttentionMatch) -> None:
    """Read the sizes of scores off the operands: a ``Shape`` of the scores would keep them
    alive."""
    for scores in match.between:
        for node, _ in list(scores.value.uses()):
            if node.op_type != "Shape":
                continue
            layout = LayoutBuilder()
            for operand in (match.query, match.key):
                layout.knows(operand.value, operand.axes)
            start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
            layout.build.replace(node, layout.sizes(scores.axes[start:end]))
