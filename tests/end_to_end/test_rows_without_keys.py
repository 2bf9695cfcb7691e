"""Rows and samples in which every key is hidden, by fills and biases in any order, are as in eager:
averages, mostly.

All forms are outputs of one module, on the same queries, keys and masks; the truth is the module in
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import FusionError, ModelSpec, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.ops.reference import attention_reference
from crossfuse.runtime.options import SessionOptions
from crossfuse.targets.cuda.lowering import lower_ort_cuda
from crossfuse.targets.lowering import Lowered
from crossfuse.targets.onnxruntime import lower_ort_cpu
from crossfuse.targets.portable import lower_portable
from crossfuse.targets.tensorrt.lowering import lower_tensorrt
from graphs_for_tests import Case, run_model

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE
LOW = torch.finfo(torch.float32).min
INF = torch.inf

Form = Callable[["Forms", Tensor, Tensor, Tensor, Tensor], Tensor]
"""(module, scores, padded ``[B, 1, 1, S]``, later ``[L, S]``, bias ``[H, L, S]``) → scores before
the softmax; True hides."""

FORMS: dict[str, Form] = {
    "one_fill": lambda m, s, pad, late, bias: s.masked_fill(pad, -1e4),
    "one_large_fill": lambda m, s, pad, late, bias: (20 * s).masked_fill(pad, -1e8),
    "lowest_fill": lambda m, s, pad, late, bias: s.masked_fill(pad, LOW),
    "two_fills": lambda m, s, pad, late, bias: s.masked_fill(late, -1e4).masked_fill(pad, -1e4),
    "two_different_fills": lambda m, s, pad, late, bias: s.masked_fill(late, -1e4).masked_fill(
        pad, -2e4
    ),
    "fills_of_two_sizes": lambda m, s, pad, late, bias: s.masked_fill(pad, LOW).masked_fill(
        late, -1e4
    ),
    "bias_then_fill": lambda m, s, pad, late, bias: (s + bias).masked_fill(pad, -1e4),
    "fill_then_bias": lambda m, s, pad, late, bias: s.masked_fill(pad, -1e4) + bias,
    "fill_bias_fill": lambda m, s, pad, late, bias: (s.masked_fill(late, -1e4) + bias).masked_fill(
        pad, -3e4
    ),
    "fill_then_learned_bias": lambda m, s, pad, late, bias: (
        s.masked_fill(pad, -1e4) + m.table[:, : s.shape[2], : s.shape[3]]
    ),
    "where_not_hidden": lambda m, s, pad, late, bias: torch.where(~(pad | late), s, -1e4),
    "where_hidden": lambda m, s, pad, late, bias: torch.where(
        pad | late, torch.tensor(-1e5, dtype=s.dtype), s
    ),
    "multiplied": lambda m, s, pad, late, bias: s + (1 - (~pad).to(s.dtype)) * -1e4,
    "multiplied_the_other_way": lambda m, s, pad, late, bias: s + ((~pad).to(s.dtype) - 1) * 1e4,
    "infinite_then_finite": lambda m, s, pad, late, bias: s.masked_fill(late, -INF).masked_fill(
        pad, -1e4
    ),
    "finite_then_infinite": lambda m, s, pad, late, bias: s.masked_fill(pad, -1e4).masked_fill(
        late, -INF
    ),
    "fill_before_the_scale": lambda m, s, pad, late, bias: s.masked_fill(pad, -1e5) / 4,
    "fill_then_additive_lowest": lambda m, s, pad, late, bias: (
        s.masked_fill(late, -1e4) + torch.zeros_like(pad, dtype=s.dtype).masked_fill(pad, LOW)
    ),
    "two_additive": lambda m, s, pad, late, bias: (
        s
        + torch.zeros_like(late, dtype=s.dtype).masked_fill(late, -1e4)
        + torch.zeros_like(pad, dtype=s.dtype).masked_fill(pad, -1e4)
    ),
    "limited_below": lambda m, s, pad, late, bias: s.masked_fill(pad, -INF).clamp(min=-5e4),
    "limited_both_ways": lambda m, s, pad, late, bias: s.masked_fill(pad, -INF).clamp(-5e4, 5e4),
}


class Forms(nn.Module):
    def __init__(self, forms: dict[str, Form]) -> None:
        super().__init__()
        self.forms = forms
        self.projections = nn.ModuleDict({name: nn.Linear(WIDTH, 3 * WIDTH) for name in forms})
        self.table = nn.Parameter(torch.randn(HEADS, 24, 24))
        self.register_buffer("first_head", torch.arange(HEADS)[:, None, None] == 0)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor, bias: Tensor) -> dict[str, Tensor]:
        pad = (mask == 0)[:, None, None]
        late = torch.arange(y.shape[1]) > torch.arange(x.shape[1])[:, None]
        outputs = {}
        for name, form in self.forms.items():
            (wq, wk, wv), (bq, bk, bv) = (
                t.chunk(3) for t in (self.projections[name].weight, self.projections[name].bias)
            )
            projected = ((x, wq, bq), (y, wk, bk), (y, wv, bv))
            q, k, v = (
                F.linear(*args).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for args in projected
            )
            scores = form(self, q @ k.mT / 2, pad, late, bias)
            outputs[name] = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return outputs


def spec_of(forms: dict[str, Form]) -> ModelSpec:
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(2, 3, WIDTH),
        "y": torch.randn(2, 5, WIDTH),
        "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
        "bias": torch.randn(HEADS, 3, 5),
    }
    axes = {
        "x": {0: "batch:1:8", 1: "rows:1:16"},
        "y": {0: "batch", 1: "keys:1:16"},
        "mask": {0: "batch", 1: "keys"},
        "bias": {1: "rows", 2: "keys"},
    }
    return ModelSpec(Forms(forms).eval(), inputs, axes)


def points() -> Iterator[dict[str, Tensor]]:
    """Padding on either side, with holes, over whole samples; one row, one key, other sizes."""
    for seed, (rows, mask) in enumerate(
        [
            (6, [[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]),
            (4, [[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1], [0, 1, 0, 0, 0, 0]]),
            (1, [[1, 1, 0], [0, 0, 0]]),
            (5, [[0]]),
            (7, [[0, 0, 0, 0, 1]]),
        ]
    ):
        made = torch.Generator().manual_seed(seed)
        batch, keys = len(mask), len(mask[0])
        yield {
            "x": 2 * torch.randn(batch, rows, WIDTH, generator=made),
            "y": 2 * torch.randn(batch, keys, WIDTH, generator=made),
            "mask": torch.tensor(mask),
            "bias": 2 * torch.randn(HEADS, rows, keys, generator=made),
        }


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, ModelSpec]:
    spec = spec_of(FORMS)
    path = tmp_path_factory.mktemp("rows") / "bundle"
    return crossfuse.export(spec, path, ["onnx", "ort-cpu", "ort-cuda"]), spec


@pytest.mark.parametrize("target", ["onnx", "ort-cpu", "ort-cuda"])
def test_rows_without_keys_are_as_in_eager(exported: tuple[Bundle, ModelSpec], target: str) -> None:
    bundle, spec = exported
    assert len([row for row in bundle.ledger if row.fused[target]]) == len(FORMS)
    wrong = []
    with runtime.load(
        bundle.path, target, SessionOptions(provider="CPUExecutionProvider")
    ) as session:
        for i, inputs in enumerate(points()):
            got = session.run(**{name: value.numpy() for name, value in inputs.items()})
            with torch.no_grad():
                single = spec.module(**inputs)
                truth = spec.module.double()(
                    **{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
                )
                spec.module.float()
            for name, value in truth.items():
                assert (
                    value.isfinite().all()
                    or "infinite" in name
                    or name == "fill_then_additive_lowest"
                )
                finite = value.isfinite().numpy()
                # What is added to scores, and not put in their place, costs eager its digits too.
                bar = 2e-5 + 4 * np.nan_to_num((single[name].double() - value).abs().numpy()).max()
                error = np.abs(got[name] - value.numpy())[finite].max(initial=0)
                if not error <= bar:
                    wrong.append(f"{name} at point {i}: {error:.1e}, at most {bar:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "form",
    [
        lambda m, s, pad, late, bias: (
            s.masked_fill(late, -1e4) + torch.where(pad, -1e4, 0.0).to(s.dtype)
        ),
        lambda m, s, pad, late, bias: (s + (1 - (~pad).to(s.dtype)) * -1e9).masked_fill(late, -1e9),
        lambda m, s, pad, late, bias: s.masked_fill(pad, -2e4) * 0.02,
        lambda m, s, pad, late, bias: torch.where(
            m.first_head, s.masked_fill(late, -1e9), s.masked_fill(pad, -1e9)
        ),
    ],
    ids=[
        "fill_and_equal_bias",
        "equal_bias_and_fill",
        "fill_scaled_up_to_the_scores",
        "fills_that_differ_by_head",
    ],
)
def test_what_would_mix_scores_and_fills_is_refused_by_its_site(form: Form, tmp_path: Path) -> None:
    with pytest.raises(
        FusionError,
        match=r"1 of 1 attentions did not fuse.*replaced by (-\d.*|other values) where masked",
    ):
        crossfuse.export(spec_of({"form": form}), tmp_path / "b")


@pytest.mark.parametrize(
    "lower",
    [lower_portable, lower_ort_cpu, lower_ort_cuda, partial(lower_tensorrt, executable=True)],
)
@pytest.mark.parametrize("fan_out", [1, 2])
def test_the_lowest_number_is_a_bias_like_any_other(
    lower: Callable[..., Lowered], fan_out: int
) -> None:
    """A row of it averages its values; beside −inf, which removes keys, those that are left."""
    case = Case(bias=True, mask_heads=True, fan_out=fan_out, mask_batch="q")
    inputs = case.inputs()
    inputs["query"] *= 5
    inputs["bias"][0, :, 1:3] = LOW
    inputs["bias"][0, 0, 2, :3] = -np.inf
    truth = attention_reference(**inputs, **case.attributes)
    (got,) = run_model(lower(case.model()).model, inputs)
    np.testing.assert_allclose(got, truth, atol=3e-6)


def test_a_position_bias_is_filled_as_the_library_fills_it(tmp_path: Path) -> None:
    """T5 with a sample without any key, and one with holes."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 30,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 16,
        "num_heads": 2,
        "num_layers": 1,
        "num_decoder_layers": 1,
    }
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "t5")
    bundle = crossfuse.export(f"hf:{tmp_path / 't5'}", tmp_path / "b", whole=True)
    inputs = {
        "input_ids": torch.randint(0, 30, (3, 6)),
        "attention_mask": torch.tensor([[1] * 6, [0] * 6, [0, 0, 1, 1, 0, 1]]),
        "decoder_input_ids": torch.randint(0, 30, (3, 4)),
    }
    with torch.no_grad():
        truth = model.double()(**inputs).logits.numpy()
    with runtime.load(bundle.path) as session:
        np.testing.assert_allclose(
            session.run(**{n: v.numpy() for n, v in inputs.items()})["logits"], truth, atol=3e-5
        )
