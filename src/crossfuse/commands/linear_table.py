"""What commands show of the ledger of linear layers."""

from __future__ import annotations

from rich.table import Table

from crossfuse.commands.output import Output
from crossfuse.core.linear_ledger import FLOATS, LinearLedger, in_words, kept_in

__all__ = ["show_linears"]

_MOST_LAYERS = 24


def show_linears(output: Output, ledger: LinearLedger) -> None:
    """What linear layers became, in one line, and those that stay in floats as a table."""
    output.heading(in_words(ledger))
    types = [dtype for dtype in FLOATS if any(kept_in(dtype) in row.became for row in ledger)]
    if not types:
        return
    kept = [row for row in ledger if any(kept_in(dtype) in row.became for dtype in types)]
    where = " or ".join(types)
    table = Table()
    for column in (f"in {where}", "weights", "reason", "error in int8", "ms saved in int8"):
        table.add_column(column, overflow="fold", no_wrap=column == f"in {where}")
    for row in kept[:_MOST_LAYERS]:
        error = "" if row.error is None else f"{row.error:.2g}"
        saved = "" if row.seconds is None else f"{row.seconds * 1e3:.3g}"
        table.add_row(row.site, "×".join(map(str, row.shape)), row.reason, error, saved)
    output.console.print(table)
    if len(kept) > _MOST_LAYERS:
        output.line(f"… and {len(kept) - _MOST_LAYERS} more layers in {where} (--json)")
