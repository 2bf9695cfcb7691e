"""The runtime's session over the CUDA provider on stand-ins: it opens, runs at several sizes, and
asks cuDNN for fast plans."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from crossfuse.bundle.store import Bundle
from gpu_rehearsal.provider import Provider

PROGRAM = """
import json, sys
import numpy as np
from crossfuse import runtime

with runtime.load(sys.argv[1], "ort-cuda") as session:
    shapes = []
    for batch in (1, 3, 1):
        feeds = {}
        for spec in session.inputs:
            sizes = [d if isinstance(d, int) else 5 for d in spec.shape[1:]]
            shape = [batch, *sizes]
            feeds[spec.name] = np.zeros(shape, spec.dtype)
        shapes.append({name: list(array.shape) for name, array in session.run(**feeds).items()})
print(json.dumps([session.provider, shapes]))
"""


def test_a_session_runs_on_the_provider(
    provider: Provider, zoo_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """CLIP, whose images go through a convolution; each new shape is planned by cuDNN's fast
    heuristics (mode A)."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    told = provider.python(program, zoo_bundle("clip").path, CUDNN_STANDIN_TRACE="1")
    (line,) = [line for line in told.splitlines() if line.startswith("[")]
    engine, shapes = json.loads(line)
    assert engine == "CUDAExecutionProvider"
    assert [next(iter(outputs.values()))[0] for outputs in shapes] == [1, 3, 1]
    modes = re.findall(r"set 200 of \d+: 1 of type 8, first (\d+)", told)
    assert modes, "no convolution was planned"
    assert set(modes) == {"3"}
