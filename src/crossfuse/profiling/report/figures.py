"""Geometry of the report's figures: positions in percent of a plot, so that it fits any screen
while its text keeps its size.

Lines and areas are SVG paths in a box of 100 × 100 that is stretched; marks and labels are HTML at
the same percentages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Axis", "density", "linear_axis", "log_axis", "path", "percent_ticks", "short"]


@dataclass(frozen=True)
class Axis:
    """A scale from values to percent, with ticks.

    Attributes:
        low, high: ends.
        log: logarithmic.
        ticks: values and their labels.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Percent along the axis, kept within it."""
        low, high, here = (
            (math.log(v) for v in (self.low, self.high, max(value, 1e-300)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        return round(min(max(100 * (here - low) / (high - low), 0.0), 100.0), 3)


def linear_axis(low: float, high: float, most: int = 5) -> Axis:
    """Round steps of 1, 2 or 5 that cover the values."""
    span = max(high - low, abs(high) * 1e-3, 1e-12)
    raw = span / most
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis(
        first * step,
        last * step,
        False,
        tuple((i * step, short(i * step)) for i in range(first, last + 1)),
    )


def log_axis(low: float, high: float, most: int = 5) -> Axis:
    """Ticks at 1, 2 and 5 of every decade, or fewer where the values span many."""
    low, high = low * 0.93, high * 1.07
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= most:
            break
    while len(ticks) > most:
        ticks = ticks[::2]
    if len(ticks) < 2:
        ticks = [low * 1.02, high * 0.98]
    return Axis(low, high, True, tuple((t, short(t)) for t in ticks))


def path(points: Sequence[tuple[float, float]], *, closed: bool = False) -> str:
    """An SVG path through points in percent."""
    text = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
    return text + (" Z" if closed else "")


def density(values: Sequence[float], axis: Axis, bins: int = 160) -> str:
    """A filled curve of how often values occur along an axis; its height is 100 at the peak."""
    places = np.asarray([axis.at(v) for v in values])
    quartiles = np.quantile(places, [0.25, 0.75])
    spread = min(float(places.std()), float(quartiles[1] - quartiles[0]) / 1.34) or float(
        places.std()
    )
    width = max(0.9 * spread * len(places) ** -0.2, 0.35)
    grid = np.linspace(0, 100, bins + 1)
    heights = np.exp(-0.5 * ((grid[:, None] - places[None, :]) / width) ** 2).sum(axis=1)
    heights = 100 * heights / heights.max()
    shown = np.flatnonzero(heights > 0.3)
    first, last = max(shown[0] - 1, 0), min(shown[-1] + 1, bins)
    curve = [
        (round(float(x), 2), round(100 - float(y), 2)) for x, y in zip(grid, heights, strict=True)
    ][first : last + 1]
    return path([(curve[0][0], 100), *curve, (curve[-1][0], 100)], closed=True)


def short(value: float) -> str:
    """A number in three significant digits, without needless zeros or exponents of ten up to a
    billion."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        return f"{value:.2g}"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent_ticks(axis: Axis) -> list[tuple[float, str]]:
    """An axis's ticks in percent of it, with their labels."""
    return [(axis.at(value), label) for value, label in axis.ticks]
