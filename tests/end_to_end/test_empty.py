"""Dimensions whose ranges begin at 0: what holds nothing is exported, checked and answered as the
eager model answers it, or refused for what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import crossfuse
from crossfuse import CrossfuseError, InputError, ModelSpec, ParityError, runtime
from crossfuse.bundle.store import Bundle
from crossfuse.serve.request_engine import Request, RequestEngine

WIDTH, HEADS = 16, 2


class Cross(nn.Module):
    """Text attends to an image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = nn.Linear(12, WIDTH), nn.Linear(12, WIDTH)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        query, key, value = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x in (self.query(text), self.key(image), self.value(image))
        )
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return text + self.out(found.transpose(1, 2).flatten(2))


class Words(Cross):
    """The same of token ids; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, WIDTH)

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        states = super().forward(self.table(ids), image)
        return states, states.argmax(-1)


class Pooled(Cross):
    """A mean over the text: of no words there is none."""

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return super().forward(text, image).mean(1)


def inputs(name: str = "text", batch: int = 2, length: int = 5, keys: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch + length + keys)
    text = (
        torch.randint(0, 30, (batch, length), generator=generator)
        if name == "ids"
        else torch.randn(batch, length, WIDTH, generator=generator)
    )
    return {name: text, "image": torch.randn(batch, keys, 12, generator=generator)}


def spec_of(
    module: nn.Module, batch: str, length: str, keys: str, name: str = "text", **more: Any
) -> ModelSpec:
    dynamic = {name: {0: batch, 1: length}, "image": {0: batch, 1: keys}}
    return ModelSpec(module.eval(), inputs=inputs(name), dynamic=dynamic, **more)


def exported(spec: ModelSpec, folder: Path, *targets: str) -> Bundle:
    return crossfuse.export(spec, folder / "bundle", targets=list(targets or ["ort-cpu"]))


def check(session: runtime.Session, module: nn.Module, given: dict[str, Tensor]) -> None:
    """A session's answer is the eager model's, in shape, dtype and numbers."""
    with torch.no_grad():
        found = module(**given)
    expected = found if isinstance(found, tuple) else (found,)
    got = session.run({name: tensor.numpy() for name, tensor in given.items()})
    for array, tensor in zip(got.values(), expected, strict=True):
        assert (array.shape, array.dtype) == (tensor.shape, tensor.numpy().dtype)
        np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5)


def test_an_empty_batch_and_an_empty_text(tmp_path: Path) -> None:
    module = Words()
    spec = spec_of(module, "batch:0:8", "length:0:16", "keys", name="ids")
    bundle = exported(spec, tmp_path)
    assert bundle.manifest.dims["batch"].min == 0
    with runtime.load(bundle.path) as session:
        for batch, length in ((0, 5), (2, 0), (0, 0), (1, 1), (3, 4)):
            check(session, module, inputs("ids", batch, length))
        with pytest.raises(InputError, match="outside its range"):
            session.run({n: t.numpy() for n, t in inputs("ids", 2, 5, 0).items()})
        (answer,) = RequestEngine(session).answer(
            [Request({n: t.numpy() for n, t in inputs("ids", 0).items()})]
        )
        assert isinstance(answer, dict)
        assert answer["output_0"].shape == (0, 5, WIDTH)


@pytest.mark.slow
def test_empty_contexts(tmp_path: Path) -> None:
    """No contexts, no queries; queries of no words for contexts that are there."""
    module = Cross()
    spec = spec_of(module, "batch:0:8", "length:0:16", "keys:1:9", context=("image",))
    bundle = exported(spec, tmp_path)
    with runtime.load(bundle.path) as session:
        for batch, length in ((0, 5), (2, 0), (0, 0), (3, 4)):
            check(session, module, inputs("text", batch, length))
        none = session.encode(image=inputs("text", 0)["image"].numpy())
        assert none.count == 0
        (found,) = session.query(none, text=np.zeros((0, 5, WIDTH), np.float32)).values()
        assert found.shape == (0, 5, WIDTH)
        with pytest.raises(InputError, match="no multiple of the number of contexts"):
            session.query(none, text=np.zeros((2, 5, WIDTH), np.float32))
        engine = RequestEngine(session)
        whole = {n: t.numpy() for n, t in inputs().items()}
        engine.prove_merging(whole)
        empty = {n: t.numpy() for n, t in inputs("text", 0).items()}
        first, second, third = engine.answer([Request(empty), Request(whole), Request(empty)])
        assert isinstance(first, dict)
        assert isinstance(second, dict)
        assert isinstance(third, dict)
        np.testing.assert_allclose(
            next(iter(second.values())), module(**inputs()).detach().numpy(), atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_attention_to_nothing_is_refused_or_right(tmp_path: Path, target: str) -> None:
    """Whether a target's attention takes no keys at all is the target's; what passes is right."""
    module = Cross()
    spec = spec_of(module, "batch:0:8", "length:0:16", "keys:0:9")
    try:
        bundle = exported(spec, tmp_path, target)
    except ParityError as refusal:
        said = str(refusal)
    else:
        with runtime.load(bundle.path) as session:
            check(session, module, inputs("text", 2, 5, 0))
        return
    assert "image [2, 0, 12]" in said
    assert "begin at 1" in said


@pytest.mark.slow
def test_a_mean_of_nothing_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(CrossfuseError, match=r"(?i)nan|not defined|finite"):
        exported(spec_of(Pooled(), "batch", "length:0:16", "keys"), tmp_path)
