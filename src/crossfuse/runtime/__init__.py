"""Run bundles with NumPy and one engine; PyTorch and ONNX are never imported.

from crossfuse import runtime

with runtime.load("bundle/") as session:
    outputs = session.run(pixel_values=pixels, input_ids=ids)
"""

from crossfuse.runtime.engines import best_target
from crossfuse.runtime.options import SessionOptions
from crossfuse.runtime.session import Binding, Session, load

__all__ = ["Binding", "Session", "SessionOptions", "best_target", "load"]
