"""A stage that a test's own function computes, on the host, with the promises of `Stage`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crossfuse.bundle.manifest import StageSpec
from crossfuse.core.tensors import names_of

Arrays = Mapping[str, Any]


class StubStage:
    """Runs a function of named arrays that gives the outputs in the boundary's order."""

    provider = "stub"
    on_device = False
    device = 0

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        compute: Callable[[Arrays], Sequence[np.ndarray]],
    ) -> None:
        self.boundary = (tuple(inputs), tuple(outputs))
        self.compute = compute
        self.runs = 0

    def run(self, feeds: Arrays) -> list[Any]:
        assert set(feeds) == set(self.boundary[0]), (
            "a stage is given its inputs, no more and no less"
        )
        self.runs += 1
        return [np.asarray(array) for array in self.compute(feeds)]

    run_mixed = run_on_device = run

    def run_into(self, feeds: Arrays, kept: Mapping[str, np.ndarray]) -> list[Any]:
        made = dict(zip(self.boundary[1], self.run(feeds), strict=True))
        for name, array in kept.items():
            array[...] = made[name]
        return list((made | kept).values())

    def bind(self, feeds: Arrays, outputs: Sequence[np.ndarray]) -> Any:
        return feeds, list(outputs)

    def run_bound(self, binding: Any) -> None:
        feeds, outputs = binding
        for kept, made in zip(outputs, self.run(feeds), strict=True):
            kept[...] = made

    def close(self) -> None:
        pass


def stub_engines(
    stages: Mapping[str, StageSpec],
    compute: Mapping[str, Callable[[Arrays], Sequence[np.ndarray]]],
) -> dict[str, StubStage]:
    """One for each stage, by its function."""
    return {
        name: StubStage(names_of(stage.inputs), names_of(stage.outputs), compute[name])
        for name, stage in stages.items()
    }
