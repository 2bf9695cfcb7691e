"""Biases that hide keys with numbers beyond half precision's range mean in fp16 and bf16 what they mean in float64.

All forms are outputs of one module, on the same inputs; the truth is the module in float64. What a half-precision target computes
is run in fp32 with rounding, in the form of each target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import ModelSpec
from crossfuse.build.files import load_graph
from crossfuse.build.precision.cast import cast_graph
from crossfuse.build.precision.choose import half_stages
from crossfuse.build.run import opened, run_once
from crossfuse.build.targets import TARGETS, rehearsal, rehearse_stages
from crossfuse.bundle.store import Bundle
from crossfuse.operator.reference import attention_reference
from graphs_for_tests import Case

HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE
LOW = torch.finfo(torch.float32).min
HALVES = ["fp16", "bf16"]
LOWERED = ["ort-cpu", "ort-cuda", "tensorrt-rtx"]
ALLOWED = {"fp16": 1.5e-2, "bf16": 1.2e-1}
"""About five units in the last place of outputs around 3; what a wrong meaning changes is of the order of 1."""

Form = Callable[["Forms", Tensor, Tensor, Tensor, Tensor], Tensor]
"""(module, hidden keys ``[B, 1, 1, S]``, later ones ``[L, S]``, both as the scores' type, an additive mask) → a bias."""

FORMS: dict[str, Form] = {
    "selected": lambda m, pad, late, given: torch.where(pad > 0, LOW, 0.0).to(pad.dtype),
    "multiplied": lambda m, pad, late, given: (1.0 - (1.0 - pad)) * LOW,
    "filled": lambda m, pad, late, given: torch.zeros_like(pad).masked_fill(pad > 0, LOW),
    "padded_or_late": lambda m, pad, late, given: torch.where((pad + late) > 0, LOW, 0.0).to(pad.dtype),
    "padded_plus_late": lambda m, pad, late, given: pad * LOW + late * LOW,
    "by_head": lambda m, pad, late, given: pad * m.first_head * LOW,
    "beside_positions": lambda m, pad, late, given: pad * LOW + m.table[:, : late.shape[0], : late.shape[1]],
    "from_outside": lambda m, pad, late, given: given,
    "from_outside_and_late": lambda m, pad, late, given: given + late * LOW,
    "a_billion": lambda m, pad, late, given: pad * -1e9,
    "a_billion_twice": lambda m, pad, late, given: pad * -1e9 + late * -1e9,
    "the_lowest_and_a_billion": lambda m, pad, late, given: torch.maximum(pad * LOW + late * -1e9, torch.tensor(LOW)),
    "ten_thousand": lambda m, pad, late, given: pad * -1e4,
    "fp16s_own_lowest": lambda m, pad, late, given: pad * -65504.0,
    "fp16s_own_lowest_twice": lambda m, pad, late, given: pad * -65504.0 + late * -65504.0,
}


class Forms(nn.Module):
    """Each form written out, and as a call of PyTorch's attention; and beside a mask that removes keys."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        super().__init__()
        self.forms = forms
        self.projections = nn.ModuleDict({name: nn.Linear(WIDTH, 3 * WIDTH) for name in forms})
        self.table = nn.Parameter(torch.randn(HEADS, 24, 24))
        self.register_buffer("first_head", (torch.arange(HEADS)[:, None, None] == 0).float())

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, given: Tensor) -> dict[str, Tensor]:
        pad = (1 - mask)[:, None, None].to(x.dtype)
        late = (torch.arange(y.shape[1]) > torch.arange(x.shape[1])[:, None]).to(x.dtype)
        outputs = {}
        for name, form in self.forms.items():
            (wq, wk, wv), (bq, bk, bv) = (t.chunk(3) for t in (self.projections[name].weight, self.projections[name].bias))
            projected = ((x, wq, bq), (y, wk, bk), (y, wv, bv))
            q, k, v = (F.linear(*args).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for args in projected)
            scores, bias = q @ k.mT / 4, form(self, pad, late, given)
            outputs[name] = ((scores + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
            removed = (scores + bias).masked_fill(late > 0, -torch.inf)
            outputs[f"{name}_beside_removed"] = (removed.softmax(-1) @ v).transpose(1, 2).flatten(2)
            if name != "beside_positions":
                full = bias.expand(x.shape[0], -1, x.shape[1], -1)
                outputs[f"{name}_called"] = F.scaled_dot_product_attention(q, k, v, full).transpose(1, 2).flatten(2)
        return outputs


def spec_of(forms: Mapping[str, Form], context: tuple[str, ...] = ()) -> ModelSpec:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {
        "x": torch.randn(2, 3, WIDTH),
        "y": torch.randn(2, 5, WIDTH),
        "mask": mask,
        "given": (1 - mask)[:, None, None] * LOW,
    }
    axes = {"x": {0: "batch:1:8", 1: "rows:1:16"}, "y": {0: "batch", 1: "keys:1:16"}, "mask": {0: "batch", 1: "keys"},
            "given": {0: "batch", 3: "keys"}}  # fmt: skip
    return ModelSpec(Forms(forms).eval(), inputs, axes, context=context)


def points() -> Iterator[dict[str, Tensor]]:
    """Padding on either side, with holes, over whole samples; other sizes than the example's."""
    for seed, (rows, mask) in enumerate(
        [
            (6, [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
            (4, [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
            (1, [[1, 1, 0], [0, 0, 0]]),
            (5, [[0, 0, 0, 0, 0, 0, 0, 0]]),
        ]
    ):
        made = torch.Generator().manual_seed(seed)
        shown = torch.tensor(mask)
        batch, keys = shown.shape
        yield {
            "x": 3 * torch.randn(batch, rows, WIDTH, generator=made),
            "y": torch.randn(batch, keys, WIDTH, generator=made),
            "mask": shown,
            "given": (1 - shown)[:, None, None] * LOW,
        }


def truth_of(spec: ModelSpec, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.no_grad():
        found = spec.module.double()(**{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()})
        spec.module.float()
    return {name: value.numpy() for name, value in found.items()}


def wrong(got: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], precision: str, where: object) -> list[str]:
    errors = {name: float(np.abs(got[name] - value).max()) for name, value in truth.items()}
    return [f"{name} {where}: {error:.2g}" for name, error in errors.items() if not error <= ALLOWED[precision]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ModelSpec]:
    spec = spec_of(FORMS)
    return crossfuse.export(spec, tmp_path_factory.mktemp("wide") / "bundle", ["onnx"]), spec


@pytest.mark.parametrize("target", LOWERED)
@pytest.mark.parametrize("precision", HALVES)
def test_hidden_rows_are_as_in_float64(exported: tuple[Bundle, ModelSpec], target: str, precision: str) -> None:
    bundle, spec = exported
    fused = load_graph(bundle, bundle.manifest.fused_graph)
    model = rehearsal(cast_graph(fused, precision).model, TARGETS[target])
    names = [value.name for value in model.graph.outputs]
    found = []
    with opened(model) as run:
        for i, inputs in enumerate(points()):
            got = dict(zip(names, run({n: v.numpy() for n, v in inputs.items()}), strict=True))
            found += wrong(got, truth_of(spec, inputs), precision, f"at point {i}")
    assert not found, "\n".join(found)
