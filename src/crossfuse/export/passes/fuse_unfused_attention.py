"""Attention written out as products around a softmax → ``FusedAttention``.

Rules:

1. A softmax whose input goes back to a product of queries and keys, and whose result goes on to a
   product with values, is an attention (`chains`). Axes may come in any order, be merged, split or
   moved on the way (`axes`, `readings`).
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

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from crossfuse.export.capture.to_onnx import module_path
from crossfuse.export.ledger_rows import Missed
from crossfuse.export.matching.attention_match import Operand, Reading, read_chain
from crossfuse.export.matching.axes import Axes, Size, leaves, size_of
from crossfuse.export.matching.layout_builder import Arranger
from crossfuse.export.matching.masks import Mask, Roles, combined, zeroed
from crossfuse.export.matching.softmax_chain import Chain, Mismatch, active_values, find_chains
from crossfuse.graph.metadata import CAPTURED
from crossfuse.ops.contract import DOMAIN, NAME, VERSION
from crossfuse.ops.onnx_schema import CALL

__all__ = ["fuse_handwritten"]

_FIRST_CALL = 1 << 20


def fuse_handwritten(model: ir.Model) -> tuple[ir.Model, bool, list[Missed]]:
    """Replace every chain that matches.

    Returns:
        the model, whether it changed, and the softmaxes that look like an attention's but did not
        match.
    """
    active = active_values(model.graph)
    missed: list[Missed] = []
    found: list[tuple[Chain, Reading]] = []
    for node in model.graph:
        if node.op_type != "Softmax" or node.inputs[0] not in active:
            continue
        try:
            found += [(chain, read_chain(chain)) for chain in find_chains(node, active)]
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
    for chain, reading in sorted(
        found, key=lambda item: position[item[0].values.node], reverse=True
    ):
        _replace_shapes(model.graph, reading)
        _replace(model.graph, chain, reading, next(calls))
    if found:
        RemoveUnusedNodesPass()(model)
        model.opset_imports[DOMAIN] = VERSION
    return model, bool(found), missed


def _unshared(
    found: list[tuple[Chain, Reading]],
) -> tuple[list[tuple[Chain, Reading]], list[Missed]]:
    """Leave out chains with a value inside that something else than a fused chain uses; repeat, as
    that may unfuse others."""
    missed: list[Missed] = []
    while True:
        gone = {node for chain, _ in found for node in (*chain.interior(), chain.values.node)}
        kept = []
        for chain, reading in found:
            user = _outside_use(chain, gone)
            if user is None:
                kept.append((chain, reading))
            else:
                missed.append(
                    Missed(
                        module_path(chain.softmax),
                        f"its scores or probabilities are also used by {user}",
                    )
                )
        if len(kept) == len(found):
            return kept, missed
        found = kept


def _outside_use(chain: Chain, gone: set[ir.Node]) -> str | None:
    for node in chain.interior():
        for value in node.outputs:
            if value.is_graph_output():
                return "the model's outputs"
            for user, _ in value.uses():
                if user not in gone and user.op_type != "Shape":
                    return user.op_type
    return None


def _replace(graph: ir.Graph, chain: Chain, reading: Reading, call: int) -> None:
    arranger = Arranger()
    roles = _roles(reading)
    for operand in (reading.query, reading.key, reading.value):
        arranger.knows(operand.value, operand.axes)
    query = _multiplied(reading, arranger)
    terms = [Mask(term, arranger, roles) for term in reading.terms]
    rows, keys, size = reading.rows, reading.keys, reading.size
    operands = [
        arranger.arrange(query.value, query.axes, [roles.batch, rows, [*roles.heads, *size]]),
        arranger.arrange(
            reading.key.value, reading.key.axes, [roles.contexts, keys, [*roles.kv_heads, *size]]
        ),
        arranger.arrange(
            reading.value.value,
            reading.value.axes,
            [roles.contexts, keys, [*roles.kv_heads, *reading.value_size]],
        ),
    ]
    mask, bias, kept = combined(terms, operands[0], arranger)
    if kept is not None:
        operands[0] = zeroed(operands[0], kept, roles, reading, arranger)
    out_axes: Axes = [roles.batch, rows, [*roles.heads, *reading.value_size]]
    attributes: dict[str, int | float | str] = {
        "num_heads": size_of(roles.heads).factor,
        "kv_num_heads": size_of(roles.kv_heads).factor,
        "scale": reading.scale,
        "causal": "none",
        CALL: call,
    }
    optional = [mask, bias]
    while optional and optional[-1] is None:
        optional.pop()
    fused = arranger.tape.op(NAME, [*operands, *optional], attributes=attributes, domain=DOMAIN)
    old = chain.values.node.outputs[0]
    fused.type = old.type
    fused.shape = ir.Shape([size_of(leaves(axis)).dim for axis in out_axes])
    node = fused.producer()
    assert node is not None
    result = arranger.arrange(fused, out_axes, reading.output)
    for new in arranger.tape.nodes:
        new.metadata_props.update(chain.values.node.metadata_props)
    node.metadata_props[CAPTURED] = "pattern"
    graph.insert_before(chain.values.node, arranger.tape.nodes)
    if result.shape is not None and old.shape is not None:
        result.shape = old.shape
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(chain.values.node, safe=True)


def _replace_shapes(graph: ir.Graph, reading: Reading) -> None:
    """Read the sizes of scores off the operands: a ``Shape`` of the scores would keep them
    alive."""
    for value, axes in reading.states:
        for node, _ in list(value.uses()):
            if node.op_type != "Shape":
                continue
            arranger = Arranger()
            for operand in (reading.query, reading.key):
                arranger.knows(operand.value, operand.axes)
            start, end = (node.attributes.get_int(name, None) for name in ("start", "end"))
            sizes = arranger.sizes(axes[start:end])
            graph.insert_before(node, arranger.tape.nodes)
            ir.convenience.replace_all_uses_with(node.outputs[0], sizes, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _roles(reading: Reading) -> Roles:
    if len(reading.batch) == 1:
        _split_heads(reading)
    batch = leaves(reading.batch)
    held = {
        leaf
        for operand in (reading.key, reading.value)
        for axis in operand.axes
        for leaf in leaves(axis)
    }
    static = [atom for atom in batch if atom.size.static is not None]
    heads = static[-1:]
    if heads and heads[0] not in held and len(static) > 1 and static[-2] in held:
        heads = static[-2:]
    kv_heads = [atom for atom in heads if atom in held]
    rest = [atom for atom in batch if atom not in heads]
    contexts = rest if any(atom in held for atom in rest) else []
    return Roles(rest, heads, kv_heads, contexts, leaves(reading.rows), leaves(reading.keys))


def _split_heads(reading: Reading) -> None:
    """Find the heads in a merged batch: where the queries' features were split into heads further
    up."""
    (merged,), size = reading.batch, size_of(leaves(reading.size)).static
    node = reading.query.value.producer()
    while (
        size
        and node is not None
        and node.op_type in ("Reshape", "Transpose", "Mul", "Div", "Identity", "Unsqueeze")
    ):
        source = node.inputs[0]
        shape = source.shape if source is not None else None
        width = shape[-1] if shape is not None and len(shape) else None
        if (
            node.op_type == "Reshape"
            and isinstance(width, int)
            and width > size
            and width % size == 0
        ):
            heads = Size(width // size)
            rest = merged.size.over(heads)
            if rest is not None and rest != Size():
                merged.split(rest, heads)
            return
        node = source.producer() if source is not None else None


def _multiplied(reading: Reading, arranger: Arranger) -> Operand:
    """The queries with the tensors that multiply the scores."""
    value, axes = reading.query.value, reading.query.axes
    for operand, divides in reading.multipliers:
        held = {leaf for axis in operand.axes for leaf in leaves(axis)}
        flat = [leaf for axis in axes for leaf in leaves(axis)]
        extra = [leaf for leaf in leaves(reading.batch) if leaf in held and leaf not in flat]
        target: Axes = [[leaf] for leaf in (*extra, *flat)]
        value = arranger.arrange(value, axes, target)
        axes = target
        factor = arranger.arrange(operand.value, operand.axes, target, expand=False)
        value = arranger.op(
            "Div" if divides else "Mul", [value, factor], value, [size_of(a).dim for a in axes]
        )
    return Operand(value, axes)
