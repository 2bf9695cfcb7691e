"""What 8 bits stand for: codes of uint8 about a zero of their own, symmetric ones of int8, and the
floats of 8 bits (E4M3)."""

from __future__ import annotations

from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crossfuse.core.target import Target

__all__ = ["Codes", "codes_of"]


class Codes(Enum):
    """The numbers that what a layer is given is rounded to."""

    UINT8 = "uint8"
    INT8 = "int8"
    FP8 = "float8_e4m3fn"

    @property
    def symmetric(self) -> bool:
        """0 is the code of 0, and codes reach as far below it as above."""
        return self is not Codes.UINT8

    @property
    def top(self) -> float:
        """The largest code."""
        return {Codes.UINT8: 255.0, Codes.INT8: 127.0, Codes.FP8: 448.0}[self]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the codes."""
        found: np.dtype[Any] = np.dtype(
            ml_dtypes.float8_e4m3fn if self is Codes.FP8 else self.value
        )
        return found

    def rounded(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """The nearest codes of numbers in steps; those beyond the largest become it.

        Args:
            numbers: of a symmetric grid, in float64 or float32.
        """
        within = np.clip(numbers, -self.top, self.top)
        codes: NDArray[Any] = within if self is Codes.FP8 else np.rint(within)
        return codes.astype(self.dtype)


def codes_of(target: Target, precision: str) -> Codes:
    """What a target rounds activations to in a low precision."""
    if precision == "fp8":
        return Codes.FP8
    return Codes.INT8 if target.symmetric else Codes.UINT8
