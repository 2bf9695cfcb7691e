"""A graph of ONNX Runtime's own operators, expanded and executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from crossfuse.export.sources.onnx_file.load import load_onnx
from graphs_for_tests import run_model
from onnx_building import Graph


def expanded(g: Graph, folder: Path, opset: int = 17) -> ir.Model:
    """As a source reads it."""
    return load_onnx(Path(g.save(folder / "m.onnx", opset)))


def computed(g: Graph, folder: Path, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of the expanded graph, which holds none of those operators any more."""
    model = expanded(g, folder)
    assert not [node for node in model.graph if node.domain == "com.microsoft"]
    return run_model(model, dict(feeds))[0]
