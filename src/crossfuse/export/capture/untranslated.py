"""The operator that PyTorch's ONNX exporter could not translate, and the user's line that calls it.

The exporter's error names an operator of PyTorch's inner decompositions (``prims.bessel_i0``), and
hides the node behind several causes. The node is found in the frames of those causes; it remembers
the operator that it was made of, and the lines of code that were running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from crossfuse.core.foreign import is_users

__all__ = ["Untranslated", "untranslated"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)')


@dataclass(frozen=True)
class Untranslated:
    """An operator without a translation.

    Attributes:
        operator: as PyTorch calls it: ``aten.special_i0``.
        place: the user's file and line that calls it, with the code there; None where unknown.
    """

    operator: str
    place: str | None


def untranslated(error: BaseException) -> Untranslated | None:
    """What the exporter's error is about; None where it is about no operator's node.

    Args:
        error: that ``torch.onnx.export`` raised, with its causes and tracebacks.
    """
    node = next(_nodes(error), None)
    if node is None:
        return None
    original = node.meta.get("original_aten") or node.target
    name = re.sub(r"\.default$", "", str(original))
    return Untranslated(name, _place(str(node.meta.get("stack_trace") or "")))


def _nodes(error: BaseException) -> Iterator[torch.fx.Node]:
    """Nodes that were being translated when errors were raised, the first cause's first."""
    if error.__cause__ is not None:
        yield from _nodes(error.__cause__)
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        node = frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            yield node


def _place(trace: str) -> str | None:
    """The innermost line of a stack that is the user's own."""
    found = None
    for file, line, code in _FRAME.findall(trace):
        if is_users(file):
            found = f"{file}, line {line}" + (f": {code.strip()}" if code.strip() else "")
    return found
