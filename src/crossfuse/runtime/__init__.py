"""Run bundles with NumPy and one engine; PyTorch and ONNX are never imported.

from crossfuse import runtime

with runtime.load("bundle/") as session:
    outputs = session.run(pixel_values=pixels, input_ids=ids)

    context = session.encode(pixel_values=pixels)         # split bundles: once
    scores = session.query(context, input_ids=questions)  # many times, many queries per context

    outputs = session.run({"self": a, "context": b})      # one mapping takes names of any kind
"""

from crossfuse.runtime.backends import best_target
from crossfuse.runtime.binding import Binding
from crossfuse.runtime.context import Context
from crossfuse.runtime.context_cache import ContextCache
from crossfuse.runtime.decoding import DecodingState
from crossfuse.runtime.generation import Generated, GenerationSettings, Streamed, generate
from crossfuse.runtime.generation.engine import GenerationEngine
from crossfuse.runtime.generation.ticket import Ticket, Token
from crossfuse.runtime.load import load
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.processing import Processor, load_processor
from crossfuse.runtime.processing.asked import Asked, asked
from crossfuse.runtime.session import Session
from crossfuse.runtime.slots import Slots
from crossfuse.runtime.speech import (
    Segment,
    Transcript,
    Word,
    transcribe,
    transcribe_several,
)

__all__ = [
    "Asked",
    "Binding",
    "Context",
    "ContextCache",
    "DecodingState",
    "Generated",
    "GenerationEngine",
    "GenerationSettings",
    "Processor",
    "Segment",
    "Session",
    "SessionOptions",
    "Slots",
    "Streamed",
    "Ticket",
    "Token",
    "Transcript",
    "Word",
    "asked",
    "best_target",
    "generate",
    "load",
    "load_processor",
    "transcribe",
    "transcribe_several",
]
