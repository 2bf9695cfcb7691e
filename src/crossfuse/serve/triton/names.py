"""Names in a model of Triton's that generates, which its configuration and its program share."""

from __future__ import annotations

__all__ = ["STREAM", "TEXT", "TEXT_OUT"]

TEXT = "text_input"
"""The input that stands for ids, in words."""

TEXT_OUT = "text_output"
"""The text of the tokens of a response."""

STREAM = "stream"
"""The parameter by which tokens come as they are generated, and not all in one response."""
