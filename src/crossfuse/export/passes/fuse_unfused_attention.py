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
4. A subtracted maximum, limits at ±10⁴ or wider, and a check for NaN behind the softmax fall away.
5. Heads are the last batch axis of fixed size. Where keys and values lack it, they have fewer heads
   (grouped, multi-query). Where they lack all other batch axes they are one context for all
   queries.

It must not fire where the scores or the probabilities are used for something else as well, unless
that is another attention that fuses; where the softmax runs over another axis than the second
product; where scores are mixed, capped or cast to integers; or where keys or values are weights.
Each such softmax gives a reason.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.capture.to_onnx import module_path
from crossfuse.export.ledger_rows import Missed
from crossfuse.export.matching.attention_match import AttentionMatch, match_attention
from crossfuse.export.matching.axes import Axes, FactoredValue, all_factors, factors, size_of
from crossfuse.export.matching.axis_roles import axis_roles
from crossfuse.export.matching.layout_builder import LayoutBuilder
from crossfuse.export.matching.masks import PlacedTerm, join_terms, zero_rows
from crossfuse.export.matching.softmax_chain import (
    Mismatch,
    SoftmaxChain,
    active_values,
    find_softmax_chains,
)
from crossfuse.graph.metadata import CAPTURED
from crossfuse.ops.contract import DOMAIN, NAME, VERSION
from crossfuse.ops.onnx_schema import CALL

__all__ = ["fuse_handwritten"]

_FIRST_CALL = 1 << 20


class _Found(NamedTuple):
    """An attention that matches."""

    chain: SoftmaxChain
    match: AttentionMatch


def fuse_handwritten(model: ir.Model) -> tuple[ir.Model, bool, list[Missed]]:
    """Replace every chain that matches.

    Returns:
        the model, whether it changed, and the softmaxes that look like an attention's but did not
        match.
    """
    active = active_values(model.graph)
    missed: list[Missed] = []
    found: list[_Found] = []
    for node in model.graph:
        if node.op_type != "Softmax" or node.inputs[0] not in active:
            continue
        try:
            chains = find_softmax_chains(node, active)
            found += [_Found(chain, match_attention(chain)) for chain in chains]
        except Mismatch as mismatch:
            path = module_path(node) or next(
                (module_path(user) for user, _ in node.outputs[0].uses()), ""
            )
            missed.append(Missed(path, str(mismatch)))
    found, shared = _unshared(found)
    missed += shared
    position = {node: i for i, node in enumerate(model.graph)}
    calls = itertools.count(_FIRST_CALL)
    # The last one first: its operands may be the results of those before, which are replaced with
    # their uses.
    for chain, match in sorted(
        found, key=lambda item: position[item.chain.values.node], reverse=True
    ):
        _replace_shapes(model.graph, match)
        _replace(model.graph, chain, match, next(calls))
    if found:
        RemoveUnusedNodesPass()(model)
        model.opset_imports[DOMAIN] = VERSION
    return model, bool(found), missed


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
            user = _outside_use(item.chain, removed)
            if user is None:
                kept.append(item)
            else:
                reason = f"its scores or probabilities are also used by {user}"
                missed.append(Missed(module_path(item.chain.softmax), reason))
        if len(kept) == len(found):
            return kept, missed
        found = kept


def _outside_use(chain: SoftmaxChain, removed: set[ir.Node]) -> str | None:
    for node in chain.interior():
        for value in node.outputs:
            if value.is_graph_output():
                return "the model's outputs"
            for user, _ in value.uses():
                if user not in removed and user.op_type != "Shape":
                    return user.op_type
    return None


def _replace(graph: ir.Graph, chain: SoftmaxChain, match: AttentionMatch, call: int) -> None:
    builder = LayoutBuilder()
    roles = axis_roles(match)
    for operand in (match.query, match.key, match.value):
        builder.knows(operand.value, operand.axes)
    query = _multiplied(match, builder)
    terms = [PlacedTerm(term, builder, roles) for term in match.terms]
    rows, keys, size, value_size = match.rows, match.keys, match.size, match.value_size
    key_axes: Axes = (roles.contexts, keys, (*roles.kv_heads, *size))
    value_axes: Axes = (roles.contexts, keys, (*roles.kv_heads, *value_size))
    operands = [
        builder.arrange(query.value, query.axes, (roles.batch, rows, (*roles.heads, *size))),
        builder.arrange(match.key.value, match.key.axes, key_axes),
        builder.arrange(match.value.value, match.value.axes, value_axes),
    ]
    joined = join_terms(terms, operands[0], builder)
    if joined.counted is not None:
        operands[0] = zero_rows(operands[0], joined.counted, roles, size, builder)
    out_axes: Axes = (roles.batch, rows, (*roles.heads, *value_size))
    attributes: dict[str, int | float | str] = {
        "num_heads": size_of(roles.heads).factor,
        "kv_num_heads": size_of(roles.kv_heads).factor,
        "scale": match.scale,
        "causal": "none",
        CALL: call,
    }
    optional = [joined.mask, joined.bias]
    while optional and optional[-1] is None:
        optional.pop()
    fused = builder.tape.op(NAME, [*operands, *optional], attributes=attributes, domain=DOMAIN)
    old = chain.values.node.outputs[0]
    fused.type = old.type
    fused.shape = ir.Shape([size_of(axis).dim for axis in out_axes])
    node = fused.producer()
    assert node is not None
    result = builder.arrange(fused, out_axes, match.output)
    for new in builder.tape.nodes:
        new.metadata_props.update(chain.values.node.metadata_props)
    node.metadata_props[CAPTURED] = "pattern"
    graph.insert_before(chain.values.node, builder.tape.nodes)
    if result.shape is not None and old.shape is not None:
        result.shape = old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(chain.values.node, safe=True)


def _replace_shapes(graph: ir.Graph, match: AttentionMatch) -> None:
    """Read the sizes of scores off the operands: a ``Shape`` of the scores would keep them
    alive."""
    for scores in match.between:
        for node, _ in list(scores.value.uses()):
            if node.op_type != "Shape":
                continue
            builder = LayoutBuilder()
            for operand in (match.query, match.key):
                builder.knows(operand.value, operand.axes)
            start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
            sizes = builder.sizes(scores.axes[start:end])
            graph.insert_before(node, builder.tape.nodes)
            ir.convenience.replace_all_uses_with(node.outputs[0], sizes, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _multiplied(match: AttentionMatch, builder: LayoutBuilder) -> FactoredValue:
    """The queries with the tensors that multiply the scores."""
    value, axes = match.query.value, match.query.axes
    for multiplier in match.multipliers:
        factor = multiplier.operand
        flat, its_own = all_factors(axes), all_factors(factor.axes)
        extra = [f for f in factors(match.batch) if f in its_own and f not in flat]
        target: Axes = [[f] for f in (*extra, *flat)]
        value = builder.arrange(value, axes, target)
        axes = target
        other = builder.arrange(factor.value, factor.axes, target, expand=False)
        name = "Div" if multiplier.divides else "Mul"
        value = builder.op(name, [value, other], value, [size_of(axis).dim for axis in axes])
    return FactoredValue(value, axes)
