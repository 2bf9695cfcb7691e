"""How large the numbers are that a bias is made of.

A bias on scores may hide keys: with −inf, with the lowest number of its type, or with −10⁴. Whether
it can is read off the constants behind it; what comes from outside may hold any number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from crossfuse.graph.op_classes import BOUNDED_OPS

__all__ = ["Magnitudes", "magnitudes_behind"]


@dataclass(frozen=True)
class Magnitudes:
    """Numbers behind a value.

    Attributes:
        largest: the largest absolute number of each floating constant.
        outside: floating numbers also come from an input of the graph.
    """

    largest: frozenset[float]
    outside: bool

    def reach(self, limit: float) -> bool:
        """A number of this magnitude or a larger one may be among them."""
        return self.outside or any(number >= limit for number in self.largest)


def magnitudes_behind(value: ir.Value) -> Magnitudes:
    """Walk from a value back to constants and inputs; products, norms and comparisons end the way,
    as what they make is not large."""
    largest: set[float] = set()
    outside = False
    seen, pending = {value}, [value]
    while pending:
        current = pending.pop()
        tensor, node = ir.convenience.get_const_tensor(current), current.producer()
        if tensor is not None:
            if tensor.dtype.is_floating_point() and tensor.size > 0:
                numbers = np.abs(tensor.numpy().astype(np.float64)).reshape(-1)
                largest.add(float(np.fmax.reduce(numbers)))
        elif node is None:
            outside |= current.dtype is None or current.dtype.is_floating_point()
        elif node.op_type not in BOUNDED_OPS:
            found = [v for v in node.inputs if v is not None and v not in seen]
            seen.update(found)
            pending += found
    return Magnitudes(frozenset(largest), outside)
