"""The fusion ledger: one row per attention of the model, and what became of it in each target."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from crossfuse.core.fusion_help import advice
from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form, OneOf
from crossfuse.errors import FusionError

__all__ = ["KINDS", "Ledger", "LedgerRow"]

KINDS = ("self", "cross", "unknown")


@dataclass(frozen=True)
class LedgerRow(JsonData):
    """One attention of the model.

    Attributes:
        site: PyTorch module path; ``#2`` and up tell apart several attentions of one module, in
            order of execution.
        kind: ``self`` or ``cross`` by dataflow; ``unknown`` where it was not captured.
        captured: how: ``operator`` or ``sdpa`` called by the model, ``interface`` of its library,
            ``pattern`` of written-out products, or None.
        num_heads, kv_num_heads, head_size, value_size: None where not captured.
        query_inputs, key_inputs: the model inputs that reach the queries, and the keys and values.
        fused: target → kernel, or None where it did not fuse.
        reasons: target (or ``capture``) → why it did not fuse.
        probabilities: whether they are computed a second time beside the fused operator, for an
            output.
    """

    __json__: ClassVar[Form] = Form(
        required=frozenset({"query_inputs", "key_inputs", "fused", "reasons"}),
        sparse=frozenset({"probabilities"}),
    )

    site: str
    kind: Annotated[str, OneOf(KINDS)]
    captured: str | None
    num_heads: int | None = None
    kv_num_heads: int | None = None
    head_size: int | None = None
    value_size: int | None = None
    query_inputs: tuple[str, ...] = ()
    key_inputs: tuple[str, ...] = ()
    fused: Mapping[str, str | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    probabilities: bool = False


@dataclass(frozen=True)
class Ledger(Sequence[LedgerRow]):
    """All rows, in order of execution as far as captured; attentions that no pass captured come
    last."""

    __json__: ClassVar[Form] = Form(whole="rows")

    rows: tuple[LedgerRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LedgerRow]:
        return iter(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def with_target(
        self, target: str, kernels: Mapping[str, str], reasons: Mapping[str, str]
    ) -> Ledger:
        """The ledger with one target's column: site → kernel, and site → reason for those without
        one."""
        rows = []
        for row in self.rows:
            kernel = kernels.get(row.site)
            why = dict(row.reasons)
            why.pop(target, None)
            if kernel is None and "capture" not in why:
                why[target] = reasons.get(
                    row.site, "the target's graph has no fused operator for it"
                )
            rows.append(replace(row, fused={**row.fused, target: kernel}, reasons=why))
        return Ledger(tuple(rows))

    def with_probabilities(self, sites: Collection[str]) -> Ledger:
        """The ledger in which these sites' probabilities are kept."""
        rows = (replace(row, probabilities=row.site in sites) for row in self.rows)
        return Ledger(tuple(rows))

    def counts(self, target: str | None = None) -> dict[str, int]:
        """Attentions by kind; with a target, only those fused there."""
        rows: Iterable[LedgerRow] = self.rows
        if target is not None:
            rows = [row for row in rows if row.fused.get(target)]
        found = dict.fromkeys(KINDS, 0)
        for row in rows:
            found[row.kind] += 1
        return {kind: n for kind, n in found.items() if n}

    def unfused(self, targets: Iterable[str]) -> list[str]:
        """What is not fused in one of the targets: one line per cause, with the attentions that it
        concerns."""
        found: dict[str, list[str]] = {}
        targets = tuple(targets)
        for row in self.rows:
            if "capture" in row.reasons:
                found.setdefault(row.reasons["capture"], []).append(row.site)
                continue
            for target in targets:
                if not row.fused.get(target):
                    reason = row.reasons.get(target, "no fused operator")
                    found.setdefault(f"in {target}: {reason}", []).append(row.site)
        return [
            f"{_sites(sites)}{' ' if why.startswith('in ') else ': '}{why}"
            for why, sites in found.items()
        ]

    def require_fused(self, targets: Iterable[str], source: str = "spec") -> None:
        """Raise :class:`FusionError` naming all that is not fused in one of the targets, by
        reason, with what helps against each.

        Args:
            targets: names.
            source: the manifest's word for the source's kind, whose terms the advice speaks in.
        """
        targets = tuple(targets)
        lines = self.unfused(targets)
        if lines:
            count = sum(
                "capture" in row.reasons or any(not row.fused.get(t) for t in targets)
                for row in self.rows
            )
            raise FusionError(
                f"{count} of {len(self.rows)} attentions did not fuse: {'; '.join(lines)}",
                do=advice(lines, source),
            )


def _sites(sites: Sequence[str]) -> str:
    """Names of attentions; those that differ by a layer's number alone are one: ``18 ×
    decoder.layers.*.cross_attn``."""
    alike: dict[str, list[str]] = {}
    for site in sites:
        alike.setdefault(re.sub(r"\d+", "*", site), []).append(site)
    return ", ".join(
        f"{len(same)} × {name}" if len(same) > 1 else same[0] for name, same in alike.items()
    )
