"""What a bundle computes, against the eager module in float64 at sizes of one's own choice."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crossfuse import runtime
from crossfuse.spec.results import named_outputs


def worst_errors(
    bundle: Path,
    module: nn.Module,
    points: Iterable[Mapping[str, Tensor]],
    dtype: torch.dtype = torch.float64,
) -> dict[str, float]:
    """The largest absolute error of every output that the module has, over all points.

    Args:
        bundle: for the CPU.
        module: in float32.
        points: inputs.
        dtype: of the truth; float32 for a module that does not run in float64.
    """
    truth = copy.deepcopy(module).to(dtype)
    found: dict[str, float] = {}
    with runtime.load(bundle) as session:
        for inputs in points:
            wide = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
            with torch.no_grad():
                expected = named_outputs(truth(**wide), ())
            got = session.run({name: tensor.numpy() for name, tensor in inputs.items()})
            for name, tensor in expected.items():
                assert got[name].shape == tuple(tensor.shape)
                assert np.isfinite(got[name]).all()
                error = float(np.abs(got[name] - tensor.numpy()).max())
                found[name] = max(found.get(name, 0.0), error)
    return found
