"""What the command line prints: rich tables for people, JSON for machines, progress on long
steps."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crossfuse.bundle.manifest import Manifest, TargetEntry
from crossfuse.bundle.store import Bundle
from crossfuse.core.checkpoint_weights import weights_words
from crossfuse.core.dimensions import size_at
from crossfuse.core.json_codec import json_text
from crossfuse.core.ledger import Ledger
from crossfuse.core.tensors import CONTEXTS
from crossfuse.core.terminal import shown
from crossfuse.parity.reference import EAGER
from crossfuse.parity.report import ParityReport
from crossfuse.parity.shape_points import EXAMPLE
from crossfuse.profiling.explain.attribution import group
from crossfuse.profiling.explain.roofline import attained
from crossfuse.profiling.report.compare import Change
from crossfuse.profiling.report.report import LatencyReport
from crossfuse.profiling.report.summary_text import common_sizes, milliseconds, sizes_text

__all__ = ["Output"]

_MOST_REASONS = 8


class _Console(Console):
    """The one way to a terminal. Every string is plain text, shown: no markup and no control
    character in it has an effect.

    What has a style is a `Text`, made by `_styled`.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Called by rich for each string that is printed or stands in a table."""
        return super().render_str(
            shown(text), **options | {"markup": False, "emoji": False, "highlight": False}
        )

    def on_broken_pipe(self) -> None:
        """Raise the error again, in whose handling this is called: the caller knows what a closed
        pipe means."""
        raise


class Output:
    """One command's output: results go to stdout, progress and errors to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console = _Console()
        if not self.console.is_terminal:
            # Redirected output has no width of its own; tables of sites need this much.
            self.console.width = max(self.console.width, 132)
        self.errors = _Console(stderr=True)

    def result(self, data: Any, render: Callable[[], None]) -> None:
        """Print a result: ``data`` as JSON, or what ``render`` prints."""
        if self.as_json:
            sys.stdout.write(json_text(data, indent=1) + "\n")
        else:
            render()
        sys.stdout.flush()

    @contextmanager
    def progress(self) -> Iterator[Callable[[str], None]]:
        """A function that shows what a long command is doing; a spinner on terminals, lines
        elsewhere, nothing for JSON."""
        if self.as_json:
            yield lambda _: None
        elif self.errors.is_terminal:
            with self.errors.status(
                "starting", spinner="dots" if self.errors.encoding.startswith("utf") else "line"
            ) as status:
                yield lambda text: status.update(_styled(text))
        else:
            yield lambda text: self.errors.print(f"· {text}")

    def error(self, paragraph: str) -> None:
        """An error in one paragraph, on stderr; with ``--json`` also there, beside the object on
        stdout."""
        self.errors.print(_styled("error:", "bold red"), paragraph, soft_wrap=True)

    def warning(self, paragraph: str) -> None:
        """A warning in one paragraph, on stderr."""
        self.errors.print(_styled("warning:", "bold yellow"), paragraph, soft_wrap=True)

    def line(self, text: str) -> None:
        """A line of text."""
        self.console.print(text, soft_wrap=True)

    def heading(self, *parts: str | Text) -> None:
        """A line above a table; a table's own title would wrap to the table's width."""
        line = Text(style="bold")
        for part in parts:
            line.append_text(part if isinstance(part, Text) else _styled(part))
        self.console.print(line, soft_wrap=True)

    def ledger(self, ledger: Ledger, targets: tuple[str, ...]) -> None:
        """The ledger as a table, with reasons below it."""
        self.heading(f"Fusion ledger: {_ledger_sentence(ledger, targets)}")
        table = Table()
        for column in ("site", "kind", "heads", "from", *targets):
            table.add_column(column, overflow="fold", no_wrap=column == "site")
        for row in ledger:
            heads = "?" if row.num_heads is None else f"{row.num_heads}×{row.head_size}"
            cells = [row.fused.get(t) or _styled("not fused", "bold red") for t in targets]
            table.add_row(
                row.site,
                row.kind,
                heads,
                row.captured or _styled("not captured", "bold red"),
                *cells,
            )
        self.console.print(table)
        for text in ledger.unfused(targets):
            self.warning(text)

    def parity(self, report: ParityReport | dict[str, Any]) -> None:
        """A parity report as a table."""
        data = report if isinstance(report, dict) else report.to_json()
        verdict = (
            _styled("passed", "bold green") if data["passed"] else _styled("failed", "bold red")
        )
        self.heading(
            f"Parity of {data['target']} on {data['executed_on']}: ",
            verdict,
            f" at {_points_text(data)}, against {data.get('computed_by', EAGER)} in "
            f"{data['reference_dtype']}",
        )
        if data.get("reference_reason"):
            self.line(f"The reference: {data['reference_reason']}")
        table = Table()
        for column in ("output", "max abs", "max rel", "cosine", "tolerance", "from"):
            table.add_column(column, justify="left" if column in ("output", "from") else "right")
        for name, o in data["outputs"].items():
            numbers = ("∞" if o[k] is None else f"{o[k]:.3g}" for k in ("max_abs", "max_rel"))
            cosine = "–" if o["cosine"] is None else f"{o['cosine']:.9f}"
            style = "" if o["passed"] else "bold red"
            table.add_row(
                name, *numbers, cosine, f"{o['tolerance']:.3g}", o["tolerance_from"], style=style
            )
        self.console.print(table)
        for note in data.get("notes", ()):
            self.line(str(note))
        fault = None if isinstance(report, dict) else report.fault
        if fault is not None:
            self.warning(fault.sentence())

    def target(self, name: str, entry: TargetEntry) -> None:
        """Precision and engine of a target, where there is something to say."""
        if entry.precision != "fp32":
            reasons = Counter(entry.kept.values())
            self.line(f"{name} computes in {entry.precision}; {len(entry.kept)} nodes stay in fp32")
            for why, count in reasons.most_common(_MOST_REASONS):
                self.line(f"  {count} × {why}")
            if len(reasons) > _MOST_REASONS:
                self.line(f"  … and {len(reasons) - _MOST_REASONS} more reasons (--json)")
        if entry.engine is not None:
            engine = entry.engine
            gpus = ", ".join(engine.compute_capabilities) or "the GPU that it was built on"
            self.line(
                f"{name}: engine of {engine.library} {engine.version} for compute capability {gpus}"
            )
            for profile in engine.profiles:
                self.line(
                    "  profile "
                    + ", ".join(
                        f"{dim}={':'.join(map(str, sizes))}" for dim, sizes in profile.items()
                    )
                )

    def latency(self, report: LatencyReport) -> None:
        """A latency report: a table of rows, and lines for the rest."""
        common, swept = common_sizes(report.points)
        self.heading(
            f"Latency of {report.target} ({report.precision}) on {report.provider}, "
            f"{sizes_text(common)}"
        )
        table = Table()
        columns = ["p50", "95% interval", "p90", "p99"]
        if any(row.ratio is not None for row in report.rows):
            columns += ["× crossfuse", "95% interval", "error"]
        for column in (*(["at"] if any(swept) else []), "what", *columns):
            table.add_column(
                column, justify="left" if column in ("at", "what") else "right", no_wrap=True
            )
        for point, own in zip(report.points, swept, strict=True):
            for i, row in enumerate(report.at(point)):
                where = [] if not any(swept) else [sizes_text(own) if i == 0 else ""]
                summary = row.summary
                if summary is None:
                    table.add_row(*where, row.name, _styled("failed", "red"))
                    continue
                cells = [
                    f"{milliseconds(summary.median.value)}{' *' if row.samples and row.samples.unstable else ''}"
                ]
                cells.append(
                    f"{milliseconds(summary.median.low)} to {milliseconds(summary.median.high)}"
                )
                cells += [milliseconds(value) for value in (summary.p90, summary.p99)]
                ratio = row.ratio
                cells += (
                    ["", ""]
                    if ratio is None
                    else [f"{ratio.value:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}"]
                )
                cells.append("" if row.error is None else f"{row.error:.1e}")
                table.add_row(*where, row.name, *cells[: len(columns)])
            table.add_section()
        self.console.print(table)
        if any(row.samples and row.samples.unstable for row in report.rows):
            self.line("* some rounds were unstable; more were run, and none was dropped")
        for row in report.rows:
            if row.failure is not None:
                self.warning(f"{row.name} at {sizes_text(row.sizes)} did not run: {row.failure}")
        for stage in report.stages:
            shares = [
                (kind, sum(n.seconds for n in nodes) / stage.seconds)
                for kind, nodes in group(stage.nodes, "kind")
            ]
            text = ", ".join(f"{kind} {share:.0%}" for kind, share in shares if share >= 0.01)
            roof = (
                ""
                if report.limits is None
                else f"; {attained(stage.nodes, report.limits).fraction:.0%} of the roofline"
            )
            self.line(f"{stage.stage}: {milliseconds(stage.seconds)}, of it {text}{roof}")
        for result in report.load:
            what = (
                f"{result.level:g} callers"
                if result.kind == "closed"
                else f"{result.level:g} arrivals per second"
            )
            median, last = (milliseconds(result.percentile(q)) for q in (0.5, 0.99))
            self.line(
                f"{what}: {result.throughput:.3g} answers per second, p50 {median}, p99 {last}"
            )
        if report.break_even is not None:
            self.line(f"encoding a context once pays from {report.break_even:.1f} queries on")
        cold = report.cold_start
        if cold is not None:
            phases = (
                ("process", cold.process),
                ("import", cold.imports),
                ("load", cold.load),
                ("first result", cold.first_result),
            )
            self.line(
                f"cold start: {milliseconds(cold.total)} "
                f"({', '.join(f'{name} {milliseconds(s)}' for name, s in phases)}), "
                f"peak {cold.peak_bytes / 1e6:.0f} MB, medians of {cold.runs} processes"
            )

    def changes(self, changes: Sequence[Change]) -> None:
        """Changes between two reports as a table."""
        table = Table()
        for column in ("what", "sizes", "after / before", "95% interval", "machine", ""):
            table.add_column(column)
        for change in changes:
            sizes = ", ".join(f"{name}={size}" for name, size in change.sizes.items())
            ratio = change.ratio
            machine = "–" if change.machine is None else f"{change.machine:.3f}"
            verdict = _styled(change.verdict, "bold red" if change.regressed else "")
            table.add_row(
                change.name,
                sizes,
                f"{ratio.value:.3f}",
                f"{ratio.low:.3f} to {ratio.high:.3f}",
                machine,
                verdict,
            )
        self.console.print(table)
        self.line(
            "Ratios of least times; 'machine' is that of fixed work, which is taken out as far as "
            "a model may feel it."
        )

    def boundary(self, bundle: Bundle) -> None:
        """Inputs, outputs and files of a bundle."""
        manifest = bundle.manifest
        about = ", ".join(f"{k} {v}" for k, v in manifest.source.items() if not isinstance(v, list))
        self.line(f"{manifest.name} ({about}), written by {manifest.created_by}")
        table = Table()
        for column in ("stage", "", "name", "dtype", "shape"):
            table.add_column(column)
        for stage, spec in manifest.stages.items():
            for kind, tensors in (("in", spec.inputs), ("out", spec.outputs)):
                for t in tensors:
                    table.add_row(stage, kind, t.name, t.dtype, f"[{', '.join(map(str, t.shape))}]")
        self.console.print(table)
        self.weights(manifest)
        if "context" in manifest.stages:
            self.split(manifest)
            self._frontier(manifest)
        if manifest.dims:
            self.line("Dimensions: " + ", ".join(map(str, manifest.dims.values())))
        self.heading("Files")
        files = Table()
        files.add_column("file")
        files.add_column("MB", justify="right")
        files.add_column("used by")
        for name, entry in manifest.files.items():
            users = [
                t for t, e in manifest.targets.items() if name in (*e.files, *e.stages.values())
            ]
            files.add_row(name, f"{entry.size / 1e6:.2f}", ", ".join(users) or "build, verify")
        self.console.print(files)

    def weights(self, manifest: Manifest) -> None:
        """Warnings of weights that a checkpoint lacked, or had too many."""
        for text in weights_words(manifest.source):
            self.warning(text)

    def split(self, manifest: Manifest) -> None:
        """What is computed once, and what per query, in two lines."""
        work = "; ".join(f"{name} {_flops(stage.flops)}" for name, stage in manifest.stages.items())
        self.heading(
            f"Context split: {work} (at "
            f"{', '.join(f'{k}={v}' for k, v in manifest.example.items())})"
        )
        once, again = (manifest.stages[name].flops for name in ("context", "query"))
        share = (
            f"{once / (once + again):.0%} of the work is done once per context"
            if once is not None and again
            else "The split"
        )
        sites = sum(spec.name.endswith(".key") for spec in manifest.stages["context"].outputs)
        if sites:
            self.line(f"{share}; so are the keys and values of {sites} attentions over it")
        else:
            self.line(
                f"{share}; but no attention's keys and values: the modalities meet before the "
                "first one, or not at all"
            )

    def _frontier(self, manifest: Manifest) -> None:
        """What is kept between the stages."""
        sizes = manifest.example
        table = Table()
        table.add_column("kept per context", overflow="fold")
        table.add_column("shape")
        table.add_column("kB", justify="right")
        total = 0.0
        contexts = sizes.get(CONTEXTS, 1)
        for spec in manifest.stages["context"].outputs:
            known = [size_at(size, sizes) for size in spec.shape]
            count = (
                math.prod(size for size in known if size is not None)
                if None not in known
                else math.nan
            )
            kilobytes = count * np.dtype(spec.dtype).itemsize / 1e3 / contexts
            total += kilobytes
            table.add_row(spec.name, f"[{', '.join(map(str, spec.shape))}]", f"{kilobytes:.1f}")
        table.add_row("all", "", f"{total:.1f}", style="bold")
        self.console.print(table)


def _flops(count: int | None) -> str:
    return "unknown FLOP" if count is None else f"{count / 1e9:.3g} GFLOP"


def _ledger_sentence(ledger: Ledger, targets: tuple[str, ...]) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in ledger.counts().items()) or "none"
    fused = ", ".join(f"{sum(ledger.counts(t).values())} fused in {t}" for t in targets)
    return (
        f"{len(ledger)} attentions ({kinds}); {fused}"
        if targets
        else f"{len(ledger)} attentions ({kinds})"
    )


def _styled(text: str, style: str = "") -> Text:
    """Text with a style, shown as all other."""
    return Text(shown(text), style=style)


def _points_text(parity: dict[str, Any]) -> str:
    own = list(parity.get("kinds", ())).count(EXAMPLE)
    count = len(parity["points"])
    return f"{count} point{'s' if count != 1 else ''}" + (f", {own} of them given" if own else "")
