"""What a context stage hands over for the queries: keys and values with rows behind the last one
where a mask meets them.

Masked attention has a fused kernel only for a multiple of 4 keys (`kernels`). Padding keys and
values with the queries would copy them at every call; the context stage does it once. It must not
happen where

1. anything but attentions takes the tensor, or takes it as something else than keys and values,
2. one of these attentions has neither mask nor bias, whose last axis tells how many keys there
   are, or
3. only one of an attention's keys and values comes from the context stage as it is.

Masks that are proven to keep the first keys of each context need no padding: the queries count what
they keep.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from crossfuse.graph.attention_node import AttentionNode, attentions, role_at
from crossfuse.graph.shapes import dim_of
from crossfuse.targets.cuda.lowering import KEYS_PADDED_TO, Handed, needs_padded_keys
from crossfuse.targets.cuda.prefix import is_prefix, masks_keys
from crossfuse.targets.fan_out import LoweringBuilder, Site

__all__ = ["pad_contexts"]

_CONTEXT = "context"


def pad_contexts(graphs: Mapping[str, ir.Model]) -> tuple[dict[str, ir.Model], Handed]:
    """Pad what the context stage hands over.

    Args:
        graphs: stages, fused, in the target's precision; left as they are.

    Returns:
        copies of the stages that changed, and what is known of the tensors.
    """
    made = dict(graphs)
    others = [stage for stage in graphs if stage != _CONTEXT]
    if _CONTEXT not in graphs:
        return made, Handed()
    prefixes = frozenset(v.name or "" for v in graphs[_CONTEXT].graph.outputs if is_prefix(v))
    names = frozenset(v.name or "" for v in graphs[_CONTEXT].graph.outputs)
    given = [names - _refused(graphs[stage].graph, names, prefixes) for stage in others]
    used = (
        frozenset(v.name or "" for stage in others for v in graphs[stage].graph.inputs if v.uses())
        & names
    )
    padded = used.intersection(*given)
    while True:
        split = {n for stage in others for n in _halves(graphs[stage].graph, padded)}
        if not split:
            break
        padded -= split
    if not padded:
        return made, Handed(padded, prefixes)
    for stage in others:
        made[stage] = graphs[stage].clone()
        for value in made[stage].graph.inputs:
            if value.name in padded:
                _lengthen(value)
    made[_CONTEXT] = graphs[_CONTEXT].clone()
    _pad_outputs(made[_CONTEXT].graph, padded)
    return made, Handed(padded, prefixes)


def _refused(graph: ir.Graph, names: frozenset[str], prefixes: frozenset[str]) -> set[str]:
    """Inputs that rules 1 and 2 leave out."""
    refused = set()
    for value in graph.inputs:
        if value.name not in names:
            continue
        rank = None if value.shape is None else len(value.shape)
        fine = rank == 3 and not value.is_graph_output() and value.dtype is not None
        if not (fine and all(_takes_padded(*use, prefixes) for use in value.uses())):
            refused.add(value.name or "")
    return refused


def _takes_padded(node: ir.Node, place: int, prefixes: frozenset[str]) -> bool:
    """A use as keys or values of an attention whose mask or bias tells how many keys there are."""
    if role_at(node, place) not in ("key", "value"):
        return False
    site = Site.of(AttentionNode(node))
    counted = site.mask is not None or site.bias is not None
    return counted and not _is_counted(site, prefixes) and needs_padded_keys(site)


def _is_counted(site: Site, prefixes: frozenset[str]) -> bool:
    """Its mask becomes lengths."""
    return (
        masks_keys(site)
        and site.mask is not None
        and (site.mask.name in prefixes or is_prefix(site.mask))
    )


def _halves(graph: ir.Graph, padded: frozenset[str]) -> set[str]:
    """Padded keys of values that are not, or the other way round."""
    found = set()
    for attention in attentions(graph):
        both = {attention.key, attention.value}
        pair = {v.name or "" for v in both if v.is_graph_input() and v.name in padded}
        if pair and len(pair) != len(both):
            found |= pair
    return found


def _lengthen(value: ir.Value) -> None:
    assert value.shape is not None
    keys = dim_of(value, 1)
    size: int | str | None = None
    if isinstance(keys, int):
        size = -(-keys // KEYS_PADDED_TO) * KEYS_PADDED_TO
    elif keys is not None:
        size = f"{KEYS_PADDED_TO}*(({keys} + {KEYS_PADDED_TO - 1})//{KEYS_PADDED_TO})"
    value.shape = ir.Shape([value.shape[0], size, value.shape[2]])


def _pad_outputs(graph: ir.Graph, padded: frozenset[str]) -> None:
    builders: dict[ir.DataType, LoweringBuilder] = {}
    for i, value in enumerate(graph.outputs):
        if value.name not in padded:
            continue
        dtype = value.dtype
        assert dtype is not None
        build = builders.setdefault(dtype, LoweringBuilder(np.dtype(dtype.numpy())))
        longer = build.longer(value, 1, build.rest(value, 1, KEYS_PADDED_TO), 0)
        build.append_to(graph)
        name, value.name = value.name, f"{value.name}.unpadded"
        longer.name, longer.type, longer.shape = name, value.type, value.shape
        _lengthen(longer)
        graph.outputs[i] = longer
