"""Generation with NumPy alone: settings, processors of scores, samples, beams, and the loop over a
session's steps."""

from crossfuse.runtime.generation.loop import generate
from crossfuse.runtime.generation.results import Generated, Streamed
from crossfuse.runtime.generation.settings import GenerationSettings

__all__ = ["Generated", "GenerationSettings", "Streamed", "generate"]
