"""What commands show of a bundle: its ledger, parity, targets, boundary, files and split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from crossfuse.bundle.manifest import Manifest, TargetEntry
from crossfuse.bundle.store import Bundle
from crossfuse.commands.linear_table import show_linears
from crossfuse.commands.output import Output, styled
from crossfuse.core.checkpoint_weights import weights_words
from crossfuse.core.dimensions import size_at
from crossfuse.core.ledger import Ledger
from crossfuse.core.linear_ledger import in_words
from crossfuse.core.target import LOW_PRECISIONS
from crossfuse.core.tensors import CONTEXTS
from crossfuse.core.text import listed
from crossfuse.parity.reference import EAGER
from crossfuse.parity.report import ParityReport
from crossfuse.parity.shape_points import EXAMPLE
from crossfuse.spec.input_origin import FROM, origin_words

__all__ = [
    "show_boundary",
    "show_built",
    "show_bundle",
    "show_kept_context",
    "show_ledger",
    "show_parity",
    "show_prefix",
    "show_split",
    "show_target",
    "show_weights",
    "show_with_queries",
]

_MOST_REASONS = 8
_MOST_NAMES = 4


def show_built(output: Output, bundle: Bundle) -> None:
    """A bundle that was just written: what is to be proud of, or to be known."""
    manifest = bundle.manifest
    show_ledger(output, bundle.ledger, bundle.targets)
    if "context" in manifest.stages:
        show_split(output, manifest)
    show_prefix(output, manifest)
    show_with_queries(output, manifest)
    _show_targets(output, manifest)
    _show_quick(output, manifest)
    output.line(f"bundle written to {bundle.path}")
    show_weights(output, manifest)


def show_bundle(output: Output, bundle: Bundle) -> None:
    """All of a bundle."""
    show_boundary(output, bundle)
    show_ledger(output, bundle.ledger, bundle.targets)
    _show_targets(output, bundle.manifest)
    _show_quick(output, bundle.manifest)


def _show_quick(output: Output, manifest: Manifest) -> None:
    if manifest.quick:
        output.warning("checked at few points (--quick): export it without before you ship it")


def _show_targets(output: Output, manifest: Manifest) -> None:
    for name, entry in manifest.targets.items():
        show_target(output, name, entry)
        if entry.parity is not None:
            show_parity(output, dict(entry.parity))


def show_ledger(output: Output, ledger: Ledger, targets: Sequence[str]) -> None:
    """The ledger as a table, with reasons below it."""
    output.heading(f"Fusion ledger: {_ledger_sentence(ledger, targets)}")
    table = Table()
    for column in ("site", "kind", "heads", "from", *targets):
        table.add_column(column, overflow="fold", no_wrap=column == "site")
    for row in ledger:
        heads = "?" if row.num_heads is None else f"{row.num_heads}×{row.head_size}"
        captured = row.captured or styled("not captured", "bold red")
        if row.probabilities:
            captured = f"{captured}, probabilities kept"
        cells = [row.fused.get(t) or styled("not fused", "bold red") for t in targets]
        table.add_row(row.site, row.kind, heads, captured, *cells)
    output.console.print(table)
    if calls := _calls_text(ledger):
        output.line(calls)
    for text in ledger.unfused(targets):
        output.warning(text)


def show_parity(output: Output, report: ParityReport | dict[str, Any]) -> None:
    """A parity report, or what a manifest keeps of one, as a table."""
    data = report if isinstance(report, dict) else report.to_json()
    passed = data["passed"]
    output.heading(
        f"Parity of {data['target']} on {data['executed_on']}: ",
        styled("passed", "bold green") if passed else styled("failed", "bold red"),
        f" at {_points_text(data)}, against {data.get('computed_by', EAGER)} in "
        f"{data['reference_dtype']}",
    )
    if data.get("reference_reason"):
        output.line(f"The reference: {data['reference_reason']}")
    table = Table()
    for column in ("output", "max abs", "max rel", "cosine", "tolerance", "from"):
        table.add_column(column, justify="left" if column in ("output", "from") else "right")
    for name, found in data["outputs"].items():
        table.add_row(name, *_parity_cells(found), style="" if found["passed"] else "bold red")
    output.console.print(table)
    if data.get("metric"):
        metric = data["metric"]
        output.line(
            f"{metric['name']}: {metric['value']:.6g}, {metric['fp32']:.6g} in fp32, may drop by "
            f"{metric['max_drop']:g}"
        )
    for note in data.get("notes", ()):
        output.line(str(note))
    divergence = None if isinstance(report, dict) else report.fault
    if divergence is not None:
        output.warning(divergence.sentence())


def _parity_cells(found: dict[str, Any]) -> tuple[str, ...]:
    numbers = ("∞" if found[key] is None else f"{found[key]:.3g}" for key in ("max_abs", "max_rel"))
    cosine = "–" if found["cosine"] is None else f"{found['cosine']:.9f}"
    cause = found["tolerance_from"]
    if found.get("relative_rms") is not None:
        cause = f"{cause}: got {found['relative_rms']:.3g}, {found['top1']:.2%}"
    return (*numbers, cosine, f"{found['tolerance']:.3g}", cause)


def _points_text(parity: dict[str, Any]) -> str:
    own = list(parity.get("kinds", ())).count(EXAMPLE)
    count = len(parity["points"])
    return f"{count} point{'s' if count != 1 else ''}" + (f", {own} of them given" if own else "")


def show_target(output: Output, name: str, entry: TargetEntry) -> None:
    """Precision and engine of a target, where there is something to say."""
    if entry.precision in LOW_PRECISIONS:
        chosen = f", chosen on {entry.calibration}" if entry.calibration else ""
        output.line(f"{name} computes in {entry.precision}{chosen}")
        show_linears(output, entry.linears)
    elif entry.precision != "fp32":
        reasons = Counter(entry.kept.values())
        output.line(f"{name} computes in {entry.precision}; {len(entry.kept)} nodes stay in fp32")
        for why, count in reasons.most_common(_MOST_REASONS):
            output.line(f"  {count} × {why}")
        if len(reasons) > _MOST_REASONS:
            output.line(f"  … and {len(reasons) - _MOST_REASONS} more reasons (--json)")
    if entry.linears and entry.precision not in LOW_PRECISIONS:
        output.line(f"{name}: {in_words(entry.linears)}")
    engine = entry.engine
    if engine is None:
        return
    gpus = ", ".join(engine.compute_capabilities) or "the GPU that it was built on"
    output.line(
        f"{name}: engine of {engine.library} {engine.version} for compute capability {gpus}"
    )
    for profile in engine.profiles:
        sizes = (f"{dim}={':'.join(map(str, triple))}" for dim, triple in profile.items())
        output.line(f"  profile {', '.join(sizes)}")


def show_boundary(output: Output, bundle: Bundle) -> None:
    """Source, inputs, outputs, dimensions and files of a bundle."""
    manifest = bundle.manifest
    about = ", ".join(
        f"{key} {value}"
        for key, value in manifest.source.items()
        if isinstance(value, str | int) and key != FROM
    )
    output.line(f"{manifest.name} ({about}), written by {manifest.created_by}")
    for text in (*_asked(manifest), *origin_words(manifest.source)):
        output.line(text)
    table = Table()
    for column in ("stage", "", "name", "dtype", "shape"):
        table.add_column(column)
    for stage, spec in manifest.stages.items():
        for kind, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                table.add_row(stage, kind, tensor.name, tensor.dtype, _shape_text(tensor.shape))
    output.console.print(table)
    show_weights(output, manifest)
    if "context" in manifest.stages:
        show_split(output, manifest)
        show_kept_context(output, manifest)
    show_prefix(output, manifest)
    show_with_queries(output, manifest)
    if manifest.dims:
        output.line("Dimensions: " + ", ".join(map(str, manifest.dims.values())))
    _show_files(output, manifest)


def _asked(manifest: Manifest) -> list[str]:
    """What the export was told beside its source, and what it made of the boundary, in lines."""
    source = manifest.source
    axes = [
        f"{name}:{axis}={dim}"
        for name, asked in source.get("dynamic", {}).items()
        for axis, dim in asked.items()
    ]
    parts = (
        ("context", source.get("context", ())),
        ("dynamic axes", axes),
        ("dropped outputs", source.get("drop_outputs", ())),
        ("probabilities of", source.get("keep_probabilities", ())),
    )
    lines = [f"exported with {what} {', '.join(names)}" for what, names in parts if names]
    fixed = [f"{name} = {value!r}" for name, value in (source.get("constants") or {}).items()]
    if fixed:
        lines.append(f"part of what was exported: {', '.join(fixed)}")
    renamed = [f"{own} as {name}" for own, name in (source.get("renamed_outputs") or {}).items()]
    if renamed:
        lines.append(f"outputs that have an input's name in the model: {', '.join(renamed)}")
    return lines


def _show_files(output: Output, manifest: Manifest) -> None:
    output.heading("Files")
    files = Table()
    files.add_column("file")
    files.add_column("MB", justify="right")
    files.add_column("used by")
    for name, entry in manifest.files.items():
        users = [t for t, e in manifest.targets.items() if name in (*e.files, *e.stages.values())]
        files.add_row(name, f"{entry.size / 1e6:.2f}", ", ".join(users) or "build, verify")
    output.console.print(files)


def show_weights(output: Output, manifest: Manifest) -> None:
    """Warnings of weights that a checkpoint lacked, or had too many."""
    for text in weights_words(manifest.source):
        output.warning(text)


def show_split(output: Output, manifest: Manifest) -> None:
    """What is computed once, and what per query, in two lines."""
    work = "; ".join(f"{name} {_flops(stage.flops)}" for name, stage in manifest.stages.items())
    sizes = ", ".join(f"{dim}={size}" for dim, size in manifest.example.items())
    output.heading(f"Context split: {work} (at {sizes})")
    once, again = (manifest.stages[name].flops for name in ("context", "query"))
    share = (
        f"{once / (once + again):.0%} of the work is done once per context"
        if once is not None and again
        else "The split"
    )
    sites = sum(spec.name.endswith(".key") for spec in manifest.stages["context"].outputs)
    output.line(
        f"{share}; so are the keys and values of {sites} attentions over it"
        if sites
        else f"{share}; but no attention's keys and values: the modalities meet before the first "
        "one, or not at all"
    )


def show_kept_context(output: Output, manifest: Manifest) -> None:
    """What is kept between the stages, per context."""
    sizes = manifest.example
    table = Table()
    table.add_column("kept per context", overflow="fold")
    table.add_column("shape")
    table.add_column("kB", justify="right")
    total = 0.0
    for spec in manifest.stages["context"].outputs:
        kilobytes = _count(spec.shape, sizes) * np.dtype(spec.dtype).itemsize / 1e3
        kilobytes /= sizes.get(CONTEXTS, 1)
        total += kilobytes
        table.add_row(spec.name, _shape_text(spec.shape), f"{kilobytes:.1f}")
    table.add_row("all", "", f"{total:.1f}", style="bold")
    output.console.print(table)


def show_prefix(output: Output, manifest: Manifest) -> None:
    """Whether keys and values of the context's tokens in front of the queries' are computed
    once."""
    found = manifest.prefix
    if found is None:
        return
    if found.attentions:
        sites = listed(found.attentions, _MOST_NAMES)
        output.line(
            f"prefix reuse: of the context's {found.rows} tokens in front of the queries', the "
            f"keys and values of {len(found.attentions)} attentions are computed once ({sites})"
        )
    else:
        output.line(
            "no prefix reuse: keys and values of the context's tokens among those of the queries "
            f"are computed with each query, and what is made of the context before once. "
            f"{found.reason}"
        )


def show_with_queries(output: Output, manifest: Manifest) -> None:
    """What of the context is computed with the queries, and why."""
    if not manifest.with_queries:
        return
    if "context" not in manifest.stages:
        output.line("not split: nothing worth keeping is computed from the context alone")
    by_reason: dict[str, list[str]] = {}
    for name, reason in manifest.with_queries.items():
        by_reason.setdefault(reason, []).append(name)
    output.line("computed with the queries, though of the context alone:")
    for reason, names in list(by_reason.items())[:_MOST_REASONS]:
        output.line(f"  {listed(names, _MOST_NAMES)}: {reason}")
    if len(by_reason) > _MOST_REASONS:
        output.line(f"  … and {len(by_reason) - _MOST_REASONS} more reasons (--json)")


def _count(shape: Sequence[int | str], sizes: Any) -> float:
    """How many numbers a tensor has; NaN where a size is not known."""
    known = [size_at(size, sizes) for size in shape]
    return math.prod(size if size is not None else math.nan for size in known)


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _flops(count: int | None) -> str:
    return "unknown FLOP" if count is None else f"{count / 1e9:.3g} GFLOP"


def _calls_text(ledger: Ledger) -> str:
    """Which modules have several attentions, as in a loop; they are told apart by #2, #3, …."""
    counts = Counter(row.site.partition("#")[0] for row in ledger)
    several = [f"{site} × {count}" for site, count in counts.most_common() if count > 1]
    more = f", … and {len(several) - _MOST_REASONS} more" if len(several) > _MOST_REASONS else ""
    return f"By call: {', '.join(several[:_MOST_REASONS])}{more}" if several else ""


def _ledger_sentence(ledger: Ledger, targets: Sequence[str]) -> str:
    kinds = ", ".join(f"{n} {kind}" for kind, n in ledger.counts().items()) or "none"
    fused = ", ".join(f"{sum(ledger.counts(t).values())} fused in {t}" for t in targets)
    return f"{len(ledger)} attentions ({kinds})" + (f"; {fused}" if targets else "")
