"""Open the ledger: match the graph's attention nodes with what the census saw in eager execution.

Per module, nodes and sightings are counted. Each node gets a row. Where a module computed more
attentions than it has nodes, the difference gets rows too, with the reason why it was not captured:
those that no pass can capture come first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from torch import nn

from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.export.attention_kind import Dataflow
from crossfuse.export.capture.census import Sighting
from crossfuse.export.capture.to_onnx import module_path
from crossfuse.export.passes.sites import site_name
from crossfuse.graph.metadata import CAPTURED, attention_nodes

__all__ = ["Missed", "open_ledger"]


@dataclass(frozen=True)
class Missed:
    """An attention that a pass did not match: the path of its module, and why."""

    module: str
    reason: str


def open_ledger(
    model: ir.Model,
    module: nn.Module,
    sightings: Sequence[Sighting],
    missed: Iterable[Missed] = (),
    interfaced: Collection[str] = (),
) -> Ledger:
    """A row per attention of the eager model.

    Args:
        model: the fused graph, its sites named.
        module: the eager model.
        sightings: the census of it.
        missed: what passes did not match, per module in order.
        interfaced: paths of modules that called the operator through an interface of their library
            while traced.
    """
    first_names = _first_names(module)
    per_module = defaultdict[str, list[Sighting]](list)
    for sighting in sightings:
        per_module[sighting.module].append(sighting)
    captured = Counter[str]()
    rows = []
    flow = Dataflow(model)
    for node in attention_nodes(model.graph):
        path = module_path(node)
        path = first_names.get(path, path)
        seen = per_module[path]
        direct = captured[path] < len(seen) and seen[captured[path]].form == "operator"
        traced = "operator" if direct else "interface" if path in interfaced else "sdpa"
        rows.append(_captured_row(node, flow, node.metadata_props.get(CAPTURED, traced)))
        captured[path] += 1
    reasons = defaultdict[str, list[str]](list)
    for miss in missed:
        reasons[first_names.get(miss.module, miss.module)].append(miss.reason)
    for path, seen in per_module.items():
        rows += _missed_rows(path, seen, captured[path], reasons[path])
    return Ledger(tuple(rows))


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every path of every module → its first path: a module registered twice is seen under one name
    by the census."""
    first = {m: name for name, m in module.named_modules()}
    return {name: first[m] for name, m in module.named_modules(remove_duplicate=False)}


def _missed_rows(
    path: str, seen: Sequence[Sighting], captured: int, reasons: list[str]
) -> Iterator[LedgerRow]:
    """Rows for a module's attentions that have no node."""
    by_hand_first = sorted(range(len(seen)), key=lambda i: (seen[i].form != "products", i))
    missed = sorted(by_hand_first[: max(len(seen) - captured, 0)])
    for occurrence, index in enumerate(missed, start=captured + 1):
        sighting = seen[index]
        why = (
            reasons.pop(0)
            if reasons and not sighting.returned and sighting.normal
            else sighting.reason
        )
        yield LedgerRow(site_name(path, occurrence), "unknown", None, reasons={"capture": why})


def _captured_row(node: ir.Node, flow: Dataflow, captured: str) -> LedgerRow:
    heads, kv_heads = (
        int(node.attributes[name].as_int()) for name in ("num_heads", "kv_num_heads")
    )
    query, key, value = node.inputs[:3]

    def head_size(tensor: ir.Value | None, count: int) -> int | None:
        width = None if tensor is None or tensor.shape is None else tensor.shape[2]
        return width // count if isinstance(width, int) else None

    return LedgerRow(
        site=node.name or "",
        kind=flow.kind(node),
        captured=captured,
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=head_size(query, heads),
        value_size=head_size(value, kv_heads),
        query_inputs=flow.reaching(query),
        key_inputs=flow.reaching(key, value),
    )
