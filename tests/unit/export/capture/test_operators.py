"""Operators at the ends of their range: what a graph computes is no worse than what PyTorch
computes in float32.

An exporter translates or decomposes an operator into simpler ones, an engine optimizes and executes
those, and each may overflow, cancel, or round where the original does not. The table holds
operators by the form of their inputs; each form is one graph. The truth is PyTorch in float64 on
the same (float32) numbers. An element passes within a few units in the last place of the truth, or
within a small multiple of the error that PyTorch makes in float32; NaN and infinities are where
PyTorch has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.errors import InputError
from crossfuse.export.capture.operators import stable_translations
from crossfuse.export.fuse import fuse
from crossfuse.runtime.onnxruntime_stage import OrtStage
from crossfuse.runtime.options import SessionOptions
from crossfuse.targets.graph_files import save_graph
from crossfuse.targets.onnxruntime import lower_ort_cpu
from crossfuse.targets.portable import lower_portable

INF, NAN = math.inf, math.nan
MAX, TINY = float(torch.finfo(torch.float32).max), float(torch.finfo(torch.float32).tiny)

_MAGNITUDES = [
    1e-30,
    1e-20,
    1e-12,
    1e-8,
    1e-6,
    1e-4,
    1e-3,
    0.02,
    0.1,
    0.3,
    0.4999,
    0.5,
    0.7,
    0.99,
    1.0,
    1.0001,
    1.3,
    1.5,
    2.0,
    2.5,
    3.0,
    3.7,
    4.5,
    5.5,
    7.0,
    9.0,
    10.0,
    13.0,
    16.5,
    18.0,
    19.9,
    20.1,
    25.0,
    40.0,
    60.0,
    80.0,
]
_FAR = [
    86.0,
    88.0,
    89.0,
    95.0,
    103.0,
    127.5,
    130.0,
    200.0,
    1e3,
    12345.5,
    1e5,
    8388607.5,
    1e8,
    1e15,
    1e19,
    1e25,
    1e30,
    MAX,
]


def line(magnitudes: list[float], *, special: bool = True) -> Tensor:
    """Both signs of each, zeros of both signs, and what is no number."""
    ends = [INF, -INF, NAN] if special else []
    return torch.tensor([-m for m in reversed(magnitudes)] + [-0.0, 0.0, *magnitudes, *ends])


X = line(_MAGNITUDES + _FAR)
NEAR = line(_MAGNITUDES)
PAIRS = torch.cartesian_prod(
    *[
        torch.tensor(
            [
                -INF,
                -1e30,
                -200.0,
                -3.5,
                -1.0,
                -0.3,
                -0.0,
                0.0,
                1e-20,
                0.3,
                1.0,
                2.0,
                3.5,
                200.0,
                1e30,
                INF,
                NAN,
            ]
        )
    ]
    * 2
)
WHOLE = torch.cartesian_prod(
    *[torch.tensor([-(2**62), -(2**40) - 1, -7, -3, -2, -1, 1, 2, 3, 7, 2**40 + 1, 2**62])] * 2
)
ROWS = torch.stack(
    [
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 7.0, 2.0, -1.0]),
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 7.0, 2.0, -1.0]) * 1e25,
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 7.0, 2.0, -1.0]) * 1e-25,
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 7.0, 2.0, -1.0]) + 4096.0,
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.25, 7.0, 2.0, -1.0]) * 1e-4 + 300.0,
        torch.tensor([-1e4, -1e4, -1e4, -1e4, -1e4, -1e4, -1e4, -1e4]),
        torch.tensor([100.0, -100.0, 88.0, 89.0, -300.0, 0.0, 1e4, 1e4]),
        torch.tensor([-INF, 3.0, -INF, 2.0, -1e30, -1e30, -INF, 0.0]),
        torch.zeros(8),
        torch.tensor([2.0, 2.0, 1.0, 1.0, 3.0, 3.0, 3.0, 0.0]),
    ]
)
FINITE = ROWS[torch.isfinite(ROWS).all(-1)]
LABELS = torch.tensor([3, 1, 0, 6, 6, 2, 1, 5, 4, 7])

Function = Callable[..., Tensor]
TABLE: dict[str, tuple[dict[str, Tensor], dict[str, Function]]] = {}

TABLE["one"] = (
    {"x": X},
    {
        "logsigmoid": F.logsigmoid,
        "log_of_sigmoid": lambda x: torch.sigmoid(x).log(),
        "quotient_of_sigmoids": lambda x: (
            torch.sigmoid(x.clamp(-40, 40)) / torch.sigmoid(x.clamp(-40, 40) + 1)
        ),
        "sigmoids_to_the_power": lambda x: (torch.sigmoid(x)[None] * 0.5) ** 0.25,
        "softplus": F.softplus,
        "softplus_beta": lambda x: F.softplus(x, beta=3.0),
        "softplus_threshold": lambda x: F.softplus(x, beta=0.5, threshold=5.0),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "expm1": torch.expm1,
        "exp": torch.exp,
        "exp2": torch.exp2,
        "silu": F.silu,
        "mish": F.mish,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "elu": F.elu,
        "elu_alpha": lambda x: F.elu(x, 0.3),
        "selu": F.selu,
        "celu": lambda x: F.celu(x, 1.7),
        "tanhshrink": F.tanhshrink,
        "softsign": F.softsign,
        "softshrink": F.softshrink,
        "hardshrink": F.hardshrink,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "hardtanh": F.hardtanh,
        "relu6": F.relu6,
        "leaky_relu": F.leaky_relu,
        "sinh": torch.sinh,
        "cosh": torch.cosh,
        "asinh": torch.asinh,
        "atan": torch.atan,
        "erf": torch.erf,
        "erfc": torch.erfc,
        "ndtr": torch.special.ndtr,
        "log_ndtr": torch.special.log_ndtr,
        "square": torch.square,
        "abs": torch.abs,
        "neg": torch.neg,
        "sign": torch.sign,
        "sgn": torch.sgn,
        "signbit": torch.signbit,
        "reciprocal": torch.reciprocal,
        "round": torch.round,
        "round_decimals": lambda x: torch.round(x, decimals=2),
        "trunc": torch.trunc,
        "frac": torch.frac,
        "floor": torch.floor,
        "ceil": torch.ceil,
        "clamp": lambda x: x.clamp(-2.0, 3.0),
        "clamp_min": lambda x: x.clamp(min=0.5),
        "relu": torch.relu,
        "nan_to_num": torch.nan_to_num,
        "nan_to_num_given": lambda x: torch.nan_to_num(x, nan=7.0, posinf=8.0, neginf=-9.0),
        "isnan": torch.isnan,
        "isinf": torch.isinf,
        "isfinite": torch.isfinite,
        "isposinf": torch.isposinf,
        "isneginf": torch.isneginf,
        "logical_not": torch.logical_not,
        "angle": torch.angle,
        "sinc": torch.special.sinc,
        "threshold": lambda x: F.threshold(x, 0.1, 20.0),
        "heaviside": lambda x: torch.heaviside(x, torch.tensor([0.5], dtype=x.dtype)),
        "masked_fill": lambda x: x.masked_fill(x > 2, -INF),
        "glu": lambda x: F.glu(torch.stack([x, x], -1), -1),
        "pow_2": lambda x: x**2,
        "pow_3": lambda x: x**3,
        "pow_-1": lambda x: x**-1,
        "pow_-2": lambda x: x**-2,
        "exponent": lambda x: 2.0**x,
        "rsub": lambda x: 1 - x,
        "exp_minus_1": lambda x: x.exp() - 1,
    },
)

TABLE["angles"] = (
    {"x": NEAR},
    {
        "sin": torch.sin,
        "cos": torch.cos,
        "tan": torch.tan,
        "logit_eps": lambda x: torch.logit(x, eps=1e-6),
    },
)

TABLE["positive"] = (
    {"x": X.abs()},
    {
        "log": torch.log,
        "log2": torch.log2,
        "log10": torch.log10,
        "log1p": torch.log1p,
        "log1p_of_exp": lambda x: torch.log1p(torch.exp(-x)),
        "sqrt": torch.sqrt,
        "rsqrt": torch.rsqrt,
        "pow_half": lambda x: x**0.5,
        "pow_-half": lambda x: x**-0.5,
        "pow_fraction": lambda x: x**0.3,
        "entr": torch.special.entr,
        "acosh": lambda x: torch.acosh(1 + x),
    },
)

UNIT = line([1e-20, 1e-8, 1e-4, 0.1, 0.5, 0.9, 0.999999, 1.0], special=False)
TABLE["unit"] = (
    {"x": UNIT},
    {
        "asin": torch.asin,
        "acos": torch.acos,
        "atanh": torch.atanh,
        "log1p_unit": torch.log1p,
        "logit": lambda x: torch.logit(x.abs()),
    },
)

TABLE["two"] = (
    {"x": PAIRS[:, 0].contiguous(), "y": PAIRS[:, 1].contiguous()},
    {
        "add": torch.add,
        "div": torch.div,
        "div_floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
        "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
        "floor_divide": torch.floor_divide,
        "remainder": torch.remainder,
        "fmod": torch.fmod,
        "pow": torch.pow,
        "atan2": torch.atan2,
        "logaddexp": torch.logaddexp,
        "logaddexp2": torch.logaddexp2,
        "hypot": torch.hypot,
        "xlogy": lambda x, y: torch.xlogy(x, y.abs()),
        "xlog1py": lambda x, y: torch.special.xlog1py(x, y.abs()),
        "maximum": torch.maximum,
        "minimum": torch.minimum,
        "where": lambda x, y: torch.where(x > y, x, y),
        "eq": torch.eq,
        "ne": torch.ne,
        "le": torch.le,
        "lerp": lambda x, y: torch.lerp(x, y, 0.25),
        "addcdiv": lambda x, y: torch.addcdiv(x, y, y + 1, value=0.5),
        "clamp_tensor": lambda x, y: torch.clamp(x, min=y),
        "bce_logits": lambda x, y: F.binary_cross_entropy_with_logits(
            x, y.abs().clamp(max=1.0), reduction="none"
        ),
        "prelu": lambda x, y: F.prelu(x, torch.full((1,), 0.3, dtype=x.dtype)),
        "logical_and": torch.logical_and,
        "huber": lambda x, y: F.huber_loss(x, y, reduction="none"),
        "smooth_l1": lambda x, y: F.smooth_l1_loss(x, y, reduction="none"),
    },
)

TABLE["whole"] = (
    {"x": WHOLE[:, 0].contiguous(), "y": WHOLE[:, 1].contiguous()},
    {
        "int_floor_divide": torch.floor_divide,
        "int_div_floor": lambda a, b: torch.div(a, b, rounding_mode="floor"),
        "int_div_trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        "int_remainder": torch.remainder,
        "int_fmod": torch.fmod,
        "int_by_scalar": lambda a, b: a // 7,
        "int_by_negative": lambda a, b: a // -7,
        "int_modulo": lambda a, b: a % -7,
        "int_mul": lambda a, b: a * b,
        "int_add": lambda a, b: a + b,
        "int_true_div": lambda a, b: a / b,
        "int_to_32": lambda a, b: a.to(torch.int32),
        "int_abs": lambda a, b: a.abs(),
        "int_sign": lambda a, b: a.sign(),
        "int_square": lambda a, b: a**2,
        "int_clamp": lambda a, b: a.clamp(-5, 5),
        "int_sum": lambda a, b: a.sum(),
        "int_cumsum": lambda a, b: a.cumsum(0),
        "int_max": lambda a, b: torch.maximum(a, b),
        "int_and": lambda a, b: a & b,
        "int_xor": lambda a, b: a ^ b,
        "int_not": lambda a, b: ~a,
        "int_shift_left": lambda a, b: a << 3,
        "int_shift_right": lambda a, b: a >> 3,
        "int_compare": lambda a, b: a < b,
        "int_mean": lambda a, b: (a % 1000).float().mean(),
    },
)

TABLE["rows"] = (
    {"x": ROWS},
    {
        "softmax": lambda x: x.softmax(-1),
        "log_softmax": lambda x: x.log_softmax(-1),
        "log_of_softmax": lambda x: x.softmax(-1).clamp(min=1e-30).log(),
        "normalised_sigmoids": lambda x: (
            torch.sigmoid(x - 30) / torch.sigmoid(x - 30).sum(-1, keepdim=True)
        ),
        "softmin": lambda x: F.softmin(x, -1),
        "logsumexp": lambda x: x.logsumexp(-1),
        "logsumexp_keep": lambda x: x.logsumexp((0, 1), keepdim=True),
        "logcumsumexp": lambda x: torch.logcumsumexp(x, -1),
        "cumsum": lambda x: x.cumsum(-1),
        "prod": lambda x: x.prod(-1),
        "amax": lambda x: x.amax(-1),
        "amin": lambda x: x.amin(-1),
        "argmax": lambda x: x.argmax(-1),
        "argmin": lambda x: x.argmin(-1),
        "max_index": lambda x: x.max(-1).indices,
        "sort": lambda x: x.sort(dim=-1).values,
        "topk": lambda x: x.topk(3, -1).values,
        "bucketize": lambda x: torch.bucketize(
            x, torch.tensor([-2.0, 0.5, 2.0, 3.0], dtype=x.dtype)
        ),
        "bucketize_right": lambda x: torch.bucketize(
            x, torch.tensor([-2.0, 0.5, 2.0, 3.0], dtype=x.dtype), right=True
        ),
        "diff": lambda x: torch.diff(x, dim=-1),
        "cross_entropy": lambda x: F.cross_entropy(x, LABELS, reduction="none"),
        "kl_div": lambda x: F.kl_div(
            x.log_softmax(-1), torch.full_like(x, 1 / 8), reduction="none"
        ).sum(-1),
    },
)

TABLE["norms"] = (
    {"x": FINITE},
    {
        "normalize": lambda x: F.normalize(x, dim=-1),
        "normalize_1": lambda x: F.normalize(x, p=1.0, dim=-1),
        "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
        "vector_norm_1": lambda x: torch.linalg.vector_norm(x, 1, dim=-1),
        "vector_norm_3": lambda x: torch.linalg.vector_norm(x, 3, dim=-1),
        "vector_norm_inf": lambda x: torch.linalg.vector_norm(x, INF, dim=-1),
        "vector_norm_0": lambda x: torch.linalg.vector_norm(x, 0, dim=-1),
        "norm": lambda x: x.norm(dim=-1, keepdim=True),
        "norm_all": lambda x: torch.linalg.vector_norm(x[:1]),
        "cosine_similarity": lambda x: F.cosine_similarity(x, x.roll(1, -1) + 0 * x, dim=-1),
        "cosine_similarity_near": lambda x: F.cosine_similarity(
            x[:1] * 1e-3, x[:1] * 1e3 + 1, dim=-1
        ),
        "pairwise_distance": lambda x: F.pairwise_distance(x[:1], x[3:4]),
        "layer_norm": lambda x: F.layer_norm(x, (8,)),
        "layer_norm_1e-12": lambda x: F.layer_norm(x, (8,), eps=1e-12),
        "layer_norm_affine": lambda x: F.layer_norm(
            x, (8,), torch.arange(8).to(x.dtype), torch.ones(8).to(x.dtype)
        ),
        "rms_norm": lambda x: F.rms_norm(x, (8,)),
        "rms_norm_eps": lambda x: F.rms_norm(x, (8,), eps=1e-6),
        "rms_norm_written": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        "layer_norm_written": lambda x: (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        ),
        "group_norm": lambda x: F.group_norm(x, 2),
        "group_norm_3d": lambda x: F.group_norm(x[:, :, None] + torch.arange(3, dtype=x.dtype), 4),
        "instance_norm": lambda x: F.instance_norm(x[:, None]),
        "batch_norm": lambda x: F.batch_norm(
            x, torch.full((8,), 299.0).to(x), torch.full((8,), 1e-7).to(x)
        ),
        "var": lambda x: x.var(-1),
        "var_biased": lambda x: x.var(-1, unbiased=False),
        "std": lambda x: x[3:].std(-1),
        "std_mean": lambda x: torch.std_mean(x[3:], -1)[0],
        "mean_of_row": lambda x: x.mean(-1),
        "sum_of_row": lambda x: x.sum(-1),
        "renormalised": lambda x: x / x.abs().amax(-1, keepdim=True).clamp(min=1e-12),
        "local_response_norm": lambda x: F.local_response_norm(x[:, :, None], 3),
        "avg_pool": lambda x: F.avg_pool1d(x[:, None], 3, 2, 1),
        "avg_pool_inside": lambda x: F.avg_pool1d(x[:, None], 3, 2, 1, count_include_pad=False),
        "max_pool": lambda x: F.max_pool1d(x[:, None], 3, 2, 1),
        "adaptive_pool": lambda x: F.adaptive_avg_pool1d(x[:, None], 3),
    },
)


ABSOLUTE = dict.fromkeys(
    ("elu", "elu_alpha", "selu", "celu", "tanhshrink", "gelu_tanh", "silu", "glu"), 1e-6
)
"""Activations that kernels compute to float32's resolution at 1, which is what they are added
to."""

RELATIVE = {
    "erfc": 2e-5,
    "var": 1e-3,
    "var_biased": 1e-3,
    "std": 1e-3,
    "std_mean": 1e-3,
    "batch_norm": 2e-5,
}
"""What depends on the condition: x² in an exponent, deviations of a few units in the last place of
the mean."""


class Table(nn.Module):
    """All functions of a form, on the same inputs."""

    def __init__(self, functions: dict[str, Function]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        given = (x,) if y is None else (x, y)
        return {name: function(*given) for name, function in self.functions.items()}


def worst(
    got: np.ndarray, eager: np.ndarray, truth: np.ndarray, floor: float, loss: float
) -> tuple[bool, str]:
    """Whether a result passes, and where it is worst."""
    if truth.dtype.kind in "biu":
        wrong = np.flatnonzero(got != truth)
        return not wrong.size, f"{wrong.size} differ, first at {wrong[:1]}"
    limit = float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        rounded = truth.astype(np.float32).astype(np.float64)
        got, eager = got.astype(np.float64), eager.astype(np.float64)
        bar = (
            max(32 * np.finfo(np.float32).eps, loss) * np.abs(truth)
            + 4 * np.abs(eager - truth)
            + floor
        )
        same = (
            (got == rounded)
            | (np.isnan(got) & np.isnan(rounded))
            | (got == eager)
            | (np.isnan(got) & np.isnan(eager))
        )
        lost = np.isfinite(truth) & ~np.isfinite(eager)
        near = lost | np.isfinite(got) & np.isfinite(truth) & (np.abs(got - truth) <= bar)
        # Beyond float32's range an infinity and its largest numbers are both as good as can be.
        near |= (
            (np.abs(truth) > 0.9999 * limit)
            & (np.abs(got) > 0.999 * limit)
            & (np.sign(got) == np.sign(truth))
        )
    wrong = np.flatnonzero(~(same | near))
    show = ", ".join(
        f"[{i}] got {got.flat[i]:.6g}, eager {eager.flat[i]:.6g}, truth {truth.flat[i]:.6g}"
        for i in wrong[:4]
    )
    return not wrong.size, f"{wrong.size} of {truth.size} wrong: {show}"


LOWERINGS = {"onnx": lower_portable, "ort-cpu": lower_ort_cpu}


@pytest.mark.parametrize("form", TABLE)
def test_no_operator_loses_its_range(form: str, tmp_path: Path) -> None:
    inputs, functions = TABLE[form]
    module = Table(functions)
    eager = module(**inputs)
    truth = module(**{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    graph = fuse(ModelSpec(module, inputs)).model
    failed = []
    for target, lower in LOWERINGS.items():
        path = tmp_path / f"{target}.onnx"
        save_graph(lower(graph).model, path, path.with_suffix(".bin"))
        stage = OrtStage(path, "CPUExecutionProvider", SessionOptions(threads=1))
        got = dict(
            zip(
                stage.boundary[1],
                stage.run({k: v.numpy() for k, v in inputs.items() if k in stage.boundary[0]}),
                strict=True,
            )
        )
        for name in functions:
            passed, how = worst(
                got[name],
                eager[name].numpy(),
                truth[name].numpy(),
                ABSOLUTE.get(name, TINY),
                RELATIVE.get(name, 0.0),
            )
            if not passed:
                failed.append(f"{target} {name}: {how}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("name", ["special.i0", "lgamma", "erfinv"])
def test_what_has_no_translation_is_refused_by_name(name: str) -> None:
    function: Function = torch.special.i0 if name == "special.i0" else getattr(torch, name)
    with pytest.raises(
        InputError,
        match=r"has no translation of .*" + {"erfinv": "erf_?inv"}.get(name, name[-2:]),
    ):
        fuse(ModelSpec(Table({"out": function}), {"x": NEAR}))


def test_gates_keep_the_kernel() -> None:
    """Where small values don't matter, a sigmoid stays one operator."""
    gates: dict[str, Function] = {
        "silu": F.silu,
        "gated": lambda x: torch.sigmoid(x) * x + 1,
        "mixed": lambda x: (torch.sigmoid(x)[None] @ torch.ones(len(x), 2)).log_softmax(-1),
    }
    graph = fuse(ModelSpec(Table(gates), {"x": NEAR})).model.graph
    assert [node.op_type for node in graph].count("Sigmoid") == 1
    assert "Reciprocal" not in [node.op_type for node in graph]


@pytest.mark.parametrize("length", [4, 5, 6, 7])
def test_sizes_are_divided_as_python_divides(length: int, tmp_path: Path) -> None:
    """A division that rounds up passes through negative sizes."""

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {
                "up": x[0] + torch.arange(-(-x.shape[0] // 2)),
                "down": x[0] + torch.arange((3 - x.shape[0]) // 2 + 9),
            }

    graph = fuse(ModelSpec(Halved(), {"x": torch.randn(5)}, {"x": {0: "n:4:9"}})).model
    x = torch.randn(length)
    path = tmp_path / "model.onnx"
    save_graph(lower_portable(graph).model, path, path.with_suffix(".bin"))
    got = OrtStage(path, "CPUExecutionProvider", SessionOptions(threads=1)).run({"x": x.numpy()})
    for value, truth in zip(got, Halved()(x).values(), strict=True):
        np.testing.assert_allclose(value, truth.numpy())


def test_the_table_is_what_the_graph_is_translated_by() -> None:
    """The exporter's own forms, which lose their range, are in no graph."""

    class Ends(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": F.logsigmoid(x), "b": x.expm1(), "c": x.hypot(x + 1)}

    spec = ModelSpec(Ends().eval(), {"x": torch.randn(3, 2)}, {"x": {0: "n"}})
    operators = {node.op_type for node in fuse(spec).model.graph}
    assert {"Softplus", "Tanh", "Max"} <= operators
    assert not {"Sigmoid", "Pow"} & operators
    aten = torch.ops.aten
    table = stable_translations()
    assert {aten.log_sigmoid.default, aten.expm1.default, aten.hypot.default} <= set(table)
