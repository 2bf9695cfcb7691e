"""What a parity report says of one output, and of where a target leaves its tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form

__all__ = ["Divergence", "OutputParity"]


@dataclass(frozen=True)
class Divergence(JsonData):
    """Where a target leaves its tolerance, as a bisection found it.

    Attributes:
        site: the first attention beyond its tolerance, or None where only what comes after the last
            one is.
        module: the first module whose output is, at or before that attention; None where it is the
            attention itself.
        error, tolerance: largest error there, and what it may be.
        evaluations: how many times the target was executed.
    """

    __json__: ClassVar[Form] = Form(
        keys=("site", "module", "evaluations", "error", "tolerance"), gaps=frozenset({"error"})
    )

    site: str | None
    module: str | None
    error: float
    tolerance: float
    evaluations: int

    def sentence(self) -> str:
        """For people."""
        where = f"attention {self.site}" if self.site else "what follows the last attention"
        within = f"; the first module beyond it is {self.module}" if self.module else ""
        return (
            f"the first difference is in {where}{within} (error {self.error:.3g}, tolerance "
            f"{self.tolerance:.3g}), found in "
            f"{self.evaluations} evaluations"
        )


@dataclass(frozen=True)
class OutputParity:
    """One output's worst case over all points: the point that is furthest beyond, or nearest to,
    its tolerance.

    Attributes:
        max_abs: largest absolute error there (for integers, the fraction of differing elements).
        max_rel: largest error relative to the reference's largest magnitude at the same point, over
            all points.
        cosine: smallest cosine similarity with the reference, over all points.
        tolerance: what ``max_abs`` may be.
        tolerance_from: where that comes from.
        worst_at: the sizes there.
        finite: no NaN or infinity anywhere.
        relative_rms: in low precision, the largest RMS error relative to the reference's RMS, over
            all points; there ``tolerance`` is what it may be. None in other precisions.
        top1: in low precision, how often the largest number along the last axis is the reference's,
            over all points.
        misses: in low precision, what is beyond a limit, in words.
    """

    __json__: ClassVar[Form] = Form(
        keys=(
            "passed",
            "max_abs",
            "max_rel",
            "cosine",
            "tolerance",
            "tolerance_from",
            "worst_at",
            "finite",
            "relative_rms",
            "top1",
            "misses",
        ),
        gaps=frozenset({"max_abs", "max_rel", "cosine", "relative_rms"}),
        sparse=frozenset({"relative_rms", "top1", "misses"}),
    )

    max_abs: float
    max_rel: float
    cosine: float
    tolerance: float
    tolerance_from: str
    worst_at: Mapping[str, int]
    finite: bool
    relative_rms: float | None = None
    top1: float | None = None
    misses: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Within the tolerance, and finite."""
        if self.relative_rms is not None:
            return self.finite and not self.misses
        return self.finite and self.max_abs <= self.tolerance

    @property
    def fault(self) -> str:
        """Why it doesn't pass, in words."""
        if not self.finite:
            return "NaN or infinity"
        if self.misses:
            return ", ".join(self.misses)
        return f"error {self.max_abs:.3g} at {dict(self.worst_at)}"
