"""Open the ledger: match the graph's attention nodes with what the census saw in eager execution.

Per module, nodes and sightings are counted. Each node gets a row. Where a module computed more
attentions than it has nodes, the difference gets rows too, with the reason why it was not captured:
those that no pass can capture come first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir
from torch import nn

from crossfuse.core.ledger import Ledger, LedgerRow
from crossfuse.export.attention_kind import Dataflow
from crossfuse.export.capture.census import Sighting
from crossfuse.export.passes.base import Missed
from crossfuse.export.passes.name_sites import site_name
from crossfuse.graph.attention_node import AttentionNode, attentions
from crossfuse.graph.shapes import dim_of

__all__ = ["open_ledger", "where_joined"]


def where_joined(sightings: Sequence[Sighting], joined: Collection[str]) -> list[Sighting]:
    """Sightings, those in parts of a module that computes their attentions as fewer as its own.

    Args:
        sightings: the census.
        joined: paths of such modules.
    """
    return [
        replace(
            sighting,
            module=next(
                (path for path in joined if sighting.module.startswith(f"{path}.")),
                sighting.module,
            ),
        )
        for sighting in sightings
    ]


def open_ledger(
    model: ir.Model,
    module: nn.Module,
    sightings: Sequence[Sighting],
    missed: Iterable[Missed] = (),
    interfaced: Collection[str] = (),
    joined: Collection[str] = (),
) -> Ledger:
    """A row per attention of the eager model.

    Args:
        model: the fused graph, its sites named.
        module: the eager model.
        sightings: the census of it.
        missed: what passes did not match, per module in order.
        interfaced: paths of modules that called the operator through an interface of their library
            while traced.
        joined: paths of modules that computed their attentions as fewer while traced: what is
            captured there stands for all, unless a pass missed one.
    """
    first_names = _first_names(module)
    per_module = defaultdict[str, list[Sighting]](list)
    for sighting in sightings:
        per_module[sighting.module].append(sighting)
    captured = Counter[str]()
    rows = []
    flow = Dataflow(model)
    for attention in attentions(model.graph):
        path = first_names.get(attention.module, attention.module)
        seen = per_module[path]
        direct = captured[path] < len(seen) and seen[captured[path]].form == "operator"
        traced = "operator" if direct else "interface" if path in interfaced else "sdpa"
        rows.append(_captured_row(attention, flow, attention.captured or traced))
        captured[path] += 1
    reasons = defaultdict[str, list[str]](list)
    for miss in missed:
        reasons[first_names.get(miss.module, miss.module)].append(miss.reason)
    for path, seen in per_module.items():
        if path in joined and captured[path] and not reasons[path]:
            continue
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
            if reasons and not (sighting.returned or sighting.body) and sighting.normal
            else sighting.reason
        )
        yield LedgerRow(site_name(path, occurrence), "unknown", None, reasons={"capture": why})


def _captured_row(attention: AttentionNode, flow: Dataflow, captured: str) -> LedgerRow:
    query, key, value = attention.query, attention.key, attention.value
    return LedgerRow(
        site=attention.site,
        kind=flow.kind(attention),
        captured=captured,
        num_heads=attention.num_heads,
        kv_num_heads=attention.kv_num_heads,
        head_size=_head_size(query, attention.num_heads),
        value_size=_head_size(value, attention.kv_num_heads),
        query_inputs=flow.reaching(query),
        key_inputs=flow.reaching(key, value),
    )


def _head_size(operand: ir.Value, heads: int) -> int | None:
    width = dim_of(operand, 2)
    return width // heads if isinstance(width, int) else None
