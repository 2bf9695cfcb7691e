"""The user's own metric as the gate of a low-precision build: what the outputs are for, on data
that the user has.

A metric is a function ``metric(run, data)`` → a number, larger is better. ``run(inputs)`` gives the
outputs by name, as arrays, for a mapping of arrays; ``run.session`` is the open session, for those
that generate. ``data`` is a list of mappings of arrays, one per NPZ file: the model's inputs, and
whatever else the files hold (labels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.foreign import blaming
from crossfuse.core.json_codec import JsonData
from crossfuse.core.json_form import Form
from crossfuse.errors import InputError
from crossfuse.runtime.session import Session

__all__ = ["Metric", "MetricOutcome", "Run", "metric_name"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class MetricOutcome(JsonData):
    """What a metric says of a build.

    Attributes:
        name: of the metric.
        fp32: its value for the same target in fp32.
        value: for the build.
        max_drop: how far that may be below.
    """

    __json__: ClassVar[Form] = Form(keys=("passed", "name", "fp32", "value", "max_drop"))

    name: str
    fp32: float
    value: float
    max_drop: float

    @property
    def passed(self) -> bool:
        """It drops no more than it may."""
        return self.fp32 - self.value <= self.max_drop

    @property
    def words(self) -> str:
        """For people."""
        return (
            f"{self.name} is {self.value:.6g}, {self.fp32:.6g} in fp32 (may drop by "
            f"{self.max_drop:g})"
        )


class Run:
    """A session as a metric calls it.

    Attributes:
        session: the open session.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in session.inputs}

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """Outputs by name; arrays that are no inputs of the model are left out."""
        given = {
            name: np.asarray(inputs[name]).astype(dtype, copy=False)
            for name, dtype in self._dtypes.items()
            if name in inputs
        }
        outputs: dict[str, Any] = self.session.run(given)
        return outputs


@dataclass(frozen=True)
class Metric:
    """A metric, what it is asked on, and what it says of fp32.

    Attributes:
        name: for people, without the folder that it is in.
        function: the user's.
        data: sets of arrays.
        max_drop: how far a build may be below fp32.
        fp32: the value there; NaN before it is known.
    """

    name: str
    function: Callable[[Run, Sequence[Arrays]], float]
    data: tuple[Arrays, ...]
    max_drop: float
    fp32: float = math.nan

    def value(self, session: Session) -> float:
        """What it says of a session.

        Raises:
            InputError: it raises, or gives no finite number.
        """
        with blaming("the metric raised", where=self.name):
            number = float(self.function(Run(session), list(self.data)))
        if not math.isfinite(number):
            raise InputError("the metric gives no number", where=self.name, got=number)
        return number

    def judge(self, session: Session) -> MetricOutcome:
        """What it says of a build's session."""
        return MetricOutcome(self.name, self.fp32, self.value(session), self.max_drop)


def metric_name(text: str) -> str:
    """``accuracy.py:top1`` of ``folder/accuracy.py:top1``: no manifest holds the caller's paths."""
    where, _, function = text.rpartition(":")
    return f"{Path(where).name}:{function}"
