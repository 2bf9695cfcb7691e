"""How far from the machine's limit: the least time that a group of nodes could take, over the time
that it took.

Each node's least time is that of its work at the attainable rate of products, or of its bytes at
the attainable bandwidth, whichever is more; a group's is the sum, as nodes run one after another. A
node whose operands are in a cache may beat the bandwidth of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.profiling.explain.attribution import NodeTime
from crossfuse.profiling.explain.machine import Limits

__all__ = ["Attained", "attained"]


@dataclass(frozen=True)
class Attained(JsonData):
    """A group of nodes under the roof.

    Attributes:
        seconds: it took.
        least: it could take.
        flops, bytes: of its work.
    """

    __json__: ClassVar[Form] = Form(
        keys=("seconds", "least", "flops", "bytes", "fraction", "rate", "intensity")
    )

    seconds: float
    least: float
    flops: int
    bytes: int

    @property
    def fraction(self) -> float:
        """Least time over time taken."""
        return self.least / self.seconds if self.seconds else 0.0

    @property
    def rate(self) -> float:
        """Floating-point operations per second."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def intensity(self) -> float:
        """Floating-point operations per byte."""
        return self.flops / self.bytes if self.bytes else 0.0


def attained(nodes: Sequence[NodeTime], limits: Limits) -> Attained:
    """What a group attains."""
    return Attained(
        sum(node.seconds for node in nodes),
        sum(limits.seconds(node.flops, node.bytes) for node in nodes),
        sum(node.flops for node in nodes),
        sum(node.bytes for node in nodes),
    )
