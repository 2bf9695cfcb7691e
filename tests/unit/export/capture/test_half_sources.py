"""Modules in half precision, and modules that refuse float64: the same weights, in the precision
that was asked."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

import crossfuse
from coverage.cases import TEXT, VISION
from crossfuse import InputError, ModelSpec, huggingface_spec, runtime
from crossfuse.export.capture.half_sources import half_source, widened
from crossfuse.parity.eager_module import EagerModule

WIDTH, HEADS = 16, 2
DYNAMIC = {
    "x": {0: "batch:1:8", 1: "nx:1:16"},
    "y": {0: "batch", 1: "ny:1:16"},
    "mask": {0: "batch", 1: "ny"},
}


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Cross(nn.Module):
    """An attention over masked keys, with the mask's fill taken from the features' own dtype."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        fill = (1 - mask.to(x.dtype))[:, None, None, :] * torch.finfo(x.dtype).min
        found = F.scaled_dot_product_attention(
            heads(self.q(x)), heads(self.k(y)), heads(self.v(y)), attn_mask=fill
        )
        return self.o(found.transpose(1, 2).flatten(2))


class Mixed(Cross):
    """A body in fp16 around a norm in float32, as mixed checkpoints are written."""

    def __init__(self) -> None:
        super().__init__()
        self.half()
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("table", torch.linspace(0, 1, WIDTH, dtype=torch.float16))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x.float()).to(torch.float16) + self.table
        return super().forward(x, y.half(), mask) * torch.ones((), dtype=torch.float16)


def inputs(batch: int, nx: int, ny: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(batch, n, WIDTH, generator=g).to(dtype) for n in (nx, ny))
    mask = (torch.rand(batch, ny, generator=g) < 0.6).long()
    mask[:, 0] = 1
    return {"x": x, "y": y, "mask": mask}


def spec_of(module: nn.Module, dtype: torch.dtype = torch.float16, **more: Any) -> ModelSpec:
    return ModelSpec(module.eval(), inputs(2, 3, 5, 0, dtype), DYNAMIC, **more)


SOURCES: dict[str, tuple[Callable[[], nn.Module], torch.dtype]] = {
    "fp16": (lambda: Cross().half(), torch.float16),
    "bf16": (lambda: Cross().bfloat16(), torch.bfloat16),
    "mixed": (Mixed, torch.float16),
    "mixed, wide inputs": (Mixed, torch.float32),
}


@pytest.mark.parametrize("case", list(SOURCES))
def test_a_half_source_is_exported_with_its_weights_values(case: str, tmp_path: Path) -> None:
    """In fp32 its numbers are float64's of the same weights, far closer than half precision's
    own."""
    make, dtype = SOURCES[case]
    module = make()
    given = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bundle = crossfuse.export(spec_of(module, dtype, context=("y", "mask")), tmp_path / "b")
    assert all(torch.equal(given[name], value) for name, value in module.state_dict().items()), (
        "the user's module is left alone"
    )
    assert all(given[name].dtype == value.dtype for name, value in module.state_dict().items())
    parity = bundle.manifest.targets["ort-cpu"].parity
    assert parity is not None
    assert parity["reference_dtype"] == "float64"
    assert "computed here in float64" in parity["reference_reason"]
    truth = Truth(module)
    declared = {"float16": "float16", "bfloat16": "float32", "float32": "float32"}[
        str(dtype).removeprefix("torch.")
    ]
    with runtime.load(bundle.path) as session:
        assert {spec.name: spec.dtype for spec in session.inputs} == {
            "x": declared,
            "y": declared,
            "mask": "int64",
        }
        assert [spec.dtype for spec in session.outputs] == ["float32"]
        for sizes in ((1, 7, 4, 3), (3, 1, 11, 4)):
            feeds = inputs(*sizes, dtype)
            arrays = {
                k: v.numpy() if v.dtype == torch.int64 else v.float().numpy().astype(declared)
                for k, v in feeds.items()
            }
            np.testing.assert_allclose(session.run(**arrays)["output"], truth(**feeds), atol=2e-6)
    assert crossfuse.verify(bundle.path).passed


class Truth:
    """The module's formula in float64, with the same weights."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).double()

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor) -> np.ndarray[Any, Any]:
        x, y = x.double(), y.double()
        if isinstance(self.module, Mixed):
            x = self.module.norm(x) + self.module.table
        with torch.no_grad():
            return Cross.forward(self.module, x, y, mask).numpy()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_half_source_in_half_precision(precision: str, tmp_path: Path) -> None:
    bundle = crossfuse.export(
        spec_of(Cross().half(), context=("y", "mask")), tmp_path / "b", precision=precision
    )
    truth = Truth(Cross().half())
    feeds = inputs(3, 4, 6, 9, torch.float16)
    with runtime.load(bundle.path) as session:
        got = session.run(**{k: v.numpy() for k, v in feeds.items()})["output"]
    np.testing.assert_allclose(got, truth(**feeds), atol={"fp16": 2e-3, "bf16": 1e-2}[precision])


def test_a_half_model_of_transformers_is_traced_as_any_other(tmp_path: Path) -> None:
    """Its library's patches and its attention interface reach the copy that is traced."""
    torch.manual_seed(0)
    model = (
        hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
        .half()
        .eval()
    )
    bundle = crossfuse.export(huggingface_spec(model), tmp_path / "b")
    assert {row.captured for row in bundle.ledger} == {"interface"}
    assert bundle.manifest.source["dtype"] == "float16"
    assert next(model.parameters()).dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "ort-cuda", "tensorrt-rtx"])
def test_a_half_source_on_other_targets(target: str, tmp_path: Path) -> None:
    more = {"compute_capabilities": ["8.9"]} if target == "tensorrt-rtx" else {}
    bundle = crossfuse.export(
        spec_of(Cross().half(), context=("y", "mask")), tmp_path / "b", [target], **more
    )
    assert bundle.manifest.targets[target].parity["passed"]


def test_float32_is_left_as_it_is() -> None:
    spec = spec_of(Cross(), torch.float32)
    assert widened(spec) is spec
    assert half_source(spec.module) is None
    wide = widened(spec_of(Cross().half()))
    assert widened(wide) is wide


def test_half_that_insists_on_half_is_refused() -> None:
    class Insists(Cross):
        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            assert x.dtype == torch.float16, "half only"
            return super().forward(x, y, mask)

    with pytest.raises(
        InputError,
        match="in half precision and does not run in float32: AssertionError: half "
        "only.*precision=",
    ):
        widened(spec_of(Insists().half()))


def test_half_that_cannot_be_copied_is_refused() -> None:
    module = Cross().half()
    module.lock = threading.Lock()
    with pytest.raises(
        InputError, match=r"no copy of it can be made in float32: TypeError.*Call module.float\(\)"
    ):
        widened(spec_of(module))


# Modules that refuse float64


class Unhappy(Exception):  # noqa: N818 -- as libraries name theirs
    """Says nothing."""

    def __str__(self) -> str:
        return ""


def asserting(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
    if kwargs["x"].dtype not in (torch.float32, torch.float16):
        raise AssertionError("features must be float")


def unhappy(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
    if kwargs["x"].dtype == torch.float64:
        raise Unhappy


def large_only(module: nn.Module, args: Any, kwargs: dict[str, Tensor]) -> None:
    if kwargs["x"].dtype == torch.float64 and len(kwargs["x"]) > 2:
        raise KeyError("float64")


class NoDouble(Cross):
    def double(self) -> NoDouble:  # type: ignore[override]
        raise NotImplementedError("no float64 here")


class NoCopy(Cross):
    def __deepcopy__(self, memo: Any) -> NoCopy:
        raise RuntimeError("there is one of me")


def locked() -> nn.Module:
    module = Cross()
    module.lock = threading.Lock()
    return module


def hooked(hook: Callable[..., None]) -> nn.Module:
    module = Cross()
    module.register_forward_pre_hook(hook, with_kwargs=True)
    return module


REFUSING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an assertion": (
        lambda: hooked(asserting),
        "does not run in float64: AssertionError: features must be float",
    ),
    "a silent exception": (lambda: hooked(unhappy), "does not run in float64: Unhappy$"),
    "larger inputs": (lambda: hooked(large_only), "does not run in float64: KeyError"),
    "a lock": (locked, "can't be copied to float64: TypeError"),
    "a copy": (NoCopy, "can't be copied to float64: RuntimeError: there is one of me"),
    "double()": (NoDouble, "can't be copied to float64: NotImplementedError: no float64 here"),
}


@pytest.mark.parametrize("case", list(REFUSING))
def test_modules_that_refuse_float64_have_a_float32_reference(case: str) -> None:
    make, reason = REFUSING[case]
    module = make()
    eager = EagerModule(spec_of(module, torch.float32), inputs(2, 3, 5, 0, torch.float32))
    feeds = inputs(3, 4, 6, 1, torch.float32)
    results = eager.run(feeds)
    assert eager.dtype == "float32"
    assert re.search(reason, eager.reason)
    truth = (
        Cross()
        .double()(*(t.double() if t.is_floating_point() else t for t in feeds.values()))
        .detach()
        .numpy()
    )
    np.testing.assert_allclose(results.truth["output"], truth, atol=1e-6)
    with torch.no_grad():
        assert np.array_equal(results.single["output"], module(**feeds).numpy())
    assert np.abs(results.single["output"] - results.truth["output"]).max() > 0, (
        "float32's own error is known"
    )


def test_attributes_that_are_tensors_come_along() -> None:
    """Tables outside the state, and results of parameters, which can't be copied as they are."""

    class Tables(Cross):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.eye(WIDTH)
            self.computed = self.q.weight * 2
            self.several = [torch.eye(WIDTH), 3]

        def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x @ self.plain @ self.computed @ self.several[0], y, mask)

    eager = EagerModule(spec_of(Tables(), torch.float32), inputs(2, 3, 5, 0, torch.float32))
    assert (eager.dtype, eager.reason) == ("float64", "")


def test_the_report_says_why_the_reference_is_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = crossfuse.export(spec_of(hooked(asserting), torch.float32), tmp_path / "b")
    report = crossfuse.verify(bundle.path)
    assert report.passed
    assert report.reference_dtype == "float32"
    assert (
        report.reference_reason
        == "the module does not run in float64: AssertionError: features must be float"
    )
    assert report.to_json()["reference_reason"] == report.reference_reason
    from crossfuse.cli import main

    with pytest.raises(SystemExit):
        main(["verify", str(bundle.path)])
    assert report.reference_reason in capsys.readouterr().out


# Fast paths


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        return self.encoder(y, src_key_padding_mask=mask == 0)


def test_fast_paths_are_off_in_the_reference(tmp_path: Path) -> None:
    """On them, padded positions come out as zeros, and rows beyond the longest text are cut off."""
    given = inputs(2, 1, 5, 0, torch.float32)
    spec = ModelSpec(
        Encoder().eval(),
        {"y": given["y"], "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])},
        {"y": DYNAMIC["y"], "mask": DYNAMIC["mask"]},
    )
    truth = Encoder().double().train()  # dropout apart, training mode is the layers' own formula
    for part in truth.modules():
        if isinstance(part, nn.Dropout | nn.MultiheadAttention):
            part.eval()
    results = EagerModule(spec, spec.inputs).run(spec.inputs)
    expected = truth(spec.inputs["y"].double(), spec.inputs["mask"]).detach().numpy()
    np.testing.assert_allclose(results.truth["output"], expected, atol=1e-12)
    np.testing.assert_allclose(results.single["output"], expected, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled(), "only for a while"
    bundle = crossfuse.export(spec, tmp_path / "b")
    with runtime.load(bundle.path) as session:
        got = session.run(**{name: tensor.numpy() for name, tensor in spec.inputs.items()})
    np.testing.assert_allclose(got["output"], expected, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled()
