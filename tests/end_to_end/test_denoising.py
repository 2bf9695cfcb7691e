"""Denoising over a fixed context: K and V projections happen once per inference, not once per
step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

import crossfuse
from context_products import context_products
from crossfuse import runtime

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from denoising import STEPS, Config, denoise, spec

SMALL = Config(
    width=48, heads=4, context_width=40, context_tokens=9, action_tokens=5, action_size=6
)


@pytest.mark.parametrize(
    "config", [SMALL, pytest.param(Config(), marks=pytest.mark.slow)], ids=["small", "published"]
)
def test_projections_of_the_context_happen_once(tmp_path: Path, config: Config) -> None:
    head = spec(config)
    bundle = crossfuse.export(head, tmp_path / "split", quick=config is SMALL)
    assert bundle.ledger.counts("ort-cpu") == bundle.ledger.counts() == {"self": 8, "cross": 8}
    entry = bundle.manifest.targets["ort-cpu"]
    graphs = {stage: ir.load(bundle.path / file) for stage, file in entry.stages.items()}
    whole = ir.load(bundle.path / bundle.manifest.fused_graph)
    frontier = {tensor.name for tensor in bundle.manifest.stages["context"].outputs}
    per_step, once = (
        context_products(graphs["query"], frontier),
        context_products(graphs["context"], {"context"}),
    )
    # K and V of 8 layers, at each of 4 steps, without the split; once per inference with it: 24 of
    # 32 pairs are gone.
    assert (context_products(whole, {"context"}) * STEPS // 2, once // 2, per_step) == (32, 8, 0)
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((2, config.action_tokens, config.action_size), "f4")
    context = generator.standard_normal((2, config.context_tokens, config.context_width), "f4")
    double = head.module.double()

    def eager(actions: np.ndarray, time: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return double(
                *(torch.from_numpy(a.astype("f8")) for a in (actions, time, context))
            ).numpy()

    with runtime.load(bundle.path) as session:
        encoded = session.encode(context=context)
        got = denoise(lambda a, t: session.query(encoded, actions=a, time=t)["output"], noise)
    np.testing.assert_allclose(got, denoise(eager, noise.astype("f8")), atol=2e-5)
