"""Names of settings of generation that an export adds to a model's own, and sessions read."""

from __future__ import annotations

__all__ = ["ALIGNMENT_OUTPUTS", "MEDIAN_WIDTH"]

ALIGNMENT_OUTPUTS = "alignment_outputs"
"""Where the heads that follow a sound come out: pairs of an output of the step stage and a head."""

MEDIAN_WIDTH = "median_filter_width"
"""Over how many places their scores are smoothed."""
