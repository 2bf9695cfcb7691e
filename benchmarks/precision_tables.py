"""What `precisions.py` measured, as the tables and the plot of docs/precision.md.

    python benchmarks/precision_tables.py

Prints Markdown and writes docs/assets/precisions.svg, from benchmarks/results/precisions/.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import suite

from crossfuse.profiling.measure.statistics import paired_ratio

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "precisions"
PLOT = HERE.parent / "docs" / "assets" / "precisions.svg"
FIRST = "ort-cpu fp32"
OURS = ("ort-cpu int8", "openvino bf16", "openvino int8")
RIVALS = ("openvino", "openvino-int8", "ort-int8", "eager-bf16", "openvino-f32")
COLORS = ("#1f6feb", "#8250df", "#d1242f")
RIVAL_COLORS = ("#8250df", "#d1242f", "#1f6feb", "#9a6700", "#57606a")

Row = Mapping[str, Any]
Rows = Mapping[str, Row]


def results() -> dict[str, Rows]:
    """``name, batch`` → way → what was measured, a search's result under the name of what was
    asked; marked where it is the processor time of one thread."""
    found = {}
    for name in suite.CASES:
        for batch in suite.BATCHES:
            files = [RESULTS / f"{name}-{batch}{kind}.json" for kind in ("", ".one-thread")]
            file = next((one for one in files if one.exists()), None)
            if file is not None:
                ways = json.loads(file.read_text())["ways"]
                mark = "" if file is files[0] else " †"
                found[f"{name}, {batch}{mark}"] = {
                    way.replace("mixed-int8", "int8"): {**row, "mixed": "mixed" in way}
                    for way, row in ways.items()
                }
    return found


def geometric(values: Iterable[float]) -> float:
    """The geometric mean."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def ratio(rows: Rows, way: str, over: str) -> tuple[float, float, float]:
    """A way's time over another's, round by round."""
    found = paired_ratio(rows[way]["rounds_ms"], rows[over]["rounds_ms"])
    return found.value, found.low, found.high


def times(measured: Mapping[str, Rows]) -> list[str]:
    """Each way's share of the time of our fp32."""
    columns = [*OURS, *(f"rival {name}" for name in RIVALS)]
    heads = [column.removeprefix("rival ") for column in columns]
    lines = [f"| model, batch | fp32 ms | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    shares: dict[str, list[float]] = {column: [] for column in columns}
    for name, rows in measured.items():
        cells = []
        for column in columns:
            cells.append("–")
            if column in rows:
                value, low, high = ratio(rows, column, FIRST)
                shares[column].append(value)
                mixed = " mixed" if rows[column]["mixed"] else ""
                cells[-1] = f"{value:.2f} ({low:.2f} to {high:.2f}){mixed}"
        lines.append(f"| {name} | {rows[FIRST]['median_ms']:.4g} | {' | '.join(cells)} |")
    means = [f"{geometric(v):.2f}" if v else "–" for v in shares.values()]
    return [*lines, f"| geometric mean | | {' | '.join(means)} |"]


def errors(measured: Mapping[str, Rows]) -> list[str]:
    """Each way's worst relative RMS error and top-1 agreement."""
    columns = [*OURS, *(f"rival {name}" for name in RIVALS)]
    heads = [column.removeprefix("rival ") for column in columns]
    lines = [f"| model, batch | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name, rows in measured.items():
        cells = [
            f"{rows[c]['relative_rms']:.1e}, {rows[c]['top1']:.1%}" if c in rows else "–"
            for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def best(rows: Rows) -> tuple[str, str]:
    """The fastest of ours that has a cosine of 0.999 and agrees in 99%, and the fastest rival with
    the same or a smaller error."""
    good = [
        way
        for way, row in rows.items()
        if not way.startswith("rival") and row["cosine"] >= 0.999 and row["top1"] >= 0.99
    ]
    ours = min(good, key=lambda way: rows[way]["median_ms"])
    error = rows[ours]["relative_rms"]
    as_good = [w for w in rows if w.startswith("rival") and rows[w]["relative_rms"] <= error]
    return ours, min(as_good, key=lambda way: rows[way]["median_ms"])


def comparison(measured: Mapping[str, Rows]) -> list[str]:
    """Per row: our int8 over our fp32, the best of ours and of the rivals, and bf16 beside bf16."""
    lines = [
        "| model, batch | int8 / fp32 of ort-cpu | fastest of ours | fastest rival as exact "
        "| rival / ours | our bf16 / OpenVINO's |",
        "|---|---|---|---|---|---|",
    ]
    int8, leads, half = [], [], []
    for name, rows in measured.items():
        int8.append(ratio(rows, "ort-cpu int8", FIRST)[0])
        ours, rival = best(rows)
        value, low, high = ratio(rows, rival, ours)
        leads.append(value)
        bf16, under, over = ratio(rows, "openvino bf16", "rival openvino")
        half.append(bf16)
        lines.append(
            f"| {name} | {int8[-1]:.2f} | {ours} | {rival.removeprefix('rival ')} | "
            f"{value:.2f} ({low:.2f} to {high:.2f}) | {bf16:.2f} ({under:.2f} to {over:.2f}) |"
        )
    lines.append(
        f"| geometric mean | {geometric(int8):.2f} | | | {geometric(leads):.2f} | "
        f"{geometric(half):.2f} |"
    )
    return lines


def plot(measured: Mapping[str, Rows]) -> str:
    """SVG: share of fp32's time across, relative RMS error upwards, both logarithmic; a dot per
    model and batch, ours filled, others' rings."""
    ways = [*zip(OURS, COLORS, strict=True)]
    ways += [*zip((f"rival {r}" for r in RIVALS), RIVAL_COLORS, strict=True)]
    dots = [
        (way, color, name, row["ratio"][0], max(row["relative_rms"], 1e-7))
        for way, color in ways
        for name, rows in measured.items()
        for row in [rows.get(way)]
        if row is not None
    ]
    left, top, width, height = 70, 20, 620, 360
    x0, x1 = math.log10(0.05), math.log10(2)
    y0, y1 = -7.0, 0.0

    def at(share: float, error: float) -> tuple[float, float]:
        across = (math.log10(share) - x0) / (x1 - x0)
        up = (math.log10(error) - y0) / (y1 - y0)
        return left + width * min(max(across, 0), 1), top + height * (1 - min(max(up, 0), 1))

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 450" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="Time and error by precision">',
        '<rect width="900" height="450" fill="#ffffff"/>',
    ]
    for share in (0.05, 0.1, 0.2, 0.5, 1, 2):
        x, _ = at(share, 1)
        parts.append(f'<path d="M{x:.1f} {top}V{top + height}" stroke="#d0d7de"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{share:g}</text>'
        )
    for power in range(-7, 1):
        _, y = at(1, 10.0**power)
        parts.append(f'<path d="M{left} {y:.1f}H{left + width}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>')
    parts.append(
        f'<text x="{left + width / 2}" y="{top + height + 42}" text-anchor="middle">'
        "time, as a share of ort-cpu in fp32</text>"
    )
    parts.append(
        f'<text transform="translate(18 {top + height / 2}) rotate(-90)" text-anchor="middle">'
        "relative RMS error</text>"
    )
    for way, color, name, share, error in dots:
        x, y = at(share, error)
        said = escape(f"{way}: {name}: {share:.2f} of the time, error {error:.1e}")
        parts.append(circle(x, y, color, filled=not way.startswith("rival"), title=said))
    for i, (way, color) in enumerate(ways):
        y = top + 14 + 22 * i
        filled = not way.startswith("rival")
        parts.append(circle(left + width + 24, y - 4, color, filled=filled, title=""))
        parts.append(f'<text x="{left + width + 36}" y="{y}">{escape(way)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def circle(x: float, y: float, color: str, *, filled: bool, title: str) -> str:
    """A dot or a ring, with a text that browsers show beside the pointer."""
    look = f'fill="{color}"' if filled else f'fill="none" stroke="{color}" stroke-width="1.6"'
    inside = f"<title>{title}</title>" if title else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {look}>{inside}</circle>'


def main() -> None:
    """Print the tables, write the plot."""
    measured = results()
    for lines in (comparison(measured), times(measured), errors(measured)):
        print("\n".join(lines), end="\n\n")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    PLOT.write_text(plot(measured))


if __name__ == "__main__":
    main()
