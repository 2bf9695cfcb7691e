"""Indices outside a table are refused by name, before the engine sees them, wherever PyTorch
refuses them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec, runtime
from crossfuse.bundle.manifest import Manifest
from crossfuse.bundle.store import Bundle, open_bundle
from crossfuse.core.tensors import Dim, TensorSpec
from crossfuse.export.capture.indices import index_ranges
from crossfuse.export.capture.trace import capture
from crossfuse.runtime.input_checks import InputChecker
from crossfuse.serve.request_engine import Request, RequestEngine

ROWS = 7


class Tables(nn.Module):
    """One way of looking up per input."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 4)
        self.small = nn.Embedding(5, 4)
        self.weight = nn.Parameter(torch.randn(ROWS, 4))

    def forward(
        self,
        plain: Tensor,
        shifted: Tensor,
        narrow: Tensor,
        twice: Tensor,
        counted: Tensor,
        padded: Tensor,
        part: Tensor,
        selected: Tensor,
        gathered: Tensor,
        classes: Tensor,
        limited: Tensor,
        joined: Tensor,
    ) -> dict[str, Tensor]:
        found = {
            "plain": self.table(plain),
            "shifted": self.table((shifted + 2).flatten()),
            "narrow": self.table(narrow.long().unsqueeze(0)),
            "twice": self.table(twice) + self.small(twice),
            "counted": self.weight[counted],
            "padded": self.table(torch.where(padded == -100, 0, padded))
            * (padded != -100)[..., None],
            "part": self.table(part[:, 1:]),
            "selected": self.weight.index_select(0, selected),
            "gathered": self.weight.gather(1, gathered),
            "classes": F.one_hot(classes, 6).float() @ self.weight[:6],
            "limited": self.table(limited.clamp(0, ROWS - 1)),
            "joined": self.table(torch.cat([joined, joined + 1], 1)),
        }
        return {f"of_{name}": value for name, value in found.items()}


def ids(*shape: int, high: int = 4) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


INPUTS = {
    "plain": ids(2, 3),
    "shifted": ids(2, 3),
    "narrow": ids(2, 3).int(),
    "twice": ids(2, 3),
    "counted": ids(4),
    "padded": ids(2, 3),
    "part": ids(2, 3),
    "selected": ids(4),
    "gathered": ids(ROWS, 2),
    "classes": ids(2, 3),
    "limited": ids(2, 3),
    "joined": ids(2, 3),
}
RANGES = {
    "plain": (0, 6),
    "shifted": (-2, 4),
    "narrow": (0, 6),
    "twice": (0, 4),
    "selected": (0, 6),
    "gathered": (0, 3),
    "classes": (0, 5),
    "joined": (0, 5),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, nn.Module]:
    torch.manual_seed(0)
    module = Tables().eval()
    spec = ModelSpec(module, INPUTS, {"plain": {0: "batch:1:8", 1: "length:1:9"}})
    return crossfuse.export(spec, tmp_path_factory.mktemp("tables") / "b"), module


def test_ranges_are_those_of_the_tables(tables: tuple[Bundle, nn.Module]) -> None:
    found = {
        spec.name: spec.range
        for spec in tables[0].manifest.stages["model"].inputs
        if spec.range is not None
    }
    assert found == RANGES


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("index", [-100, -3, -2, -1, 4, 5, 6, 7, 2**31 - 1])
def test_an_index_is_refused_where_pytorch_refuses_it(
    tables: tuple[Bundle, nn.Module], name: str, index: int
) -> None:
    bundle, module = tables
    changed = INPUTS[name].clone()
    changed[..., -1] = index
    inputs = {**INPUTS, name: changed}
    try:
        with torch.no_grad():
            truth = module(**inputs)
    except (IndexError, RuntimeError):
        truth = None
    feeds = {key: value.numpy() for key, value in inputs.items()}
    with runtime.load(bundle.path) as session:
        if truth is not None:
            np.testing.assert_allclose(
                session.run(**feeds)[f"of_{name}"], truth[f"of_{name}"].numpy(), atol=1e-6
            )
        elif name in RANGES:
            with pytest.raises(
                InputError, match=rf"{name}\[.*got {index}\b.*at least .* and at most "
            ):
                session.run(**feeds)
            with pytest.raises(InputError, match=name):
                session.bind(**feeds)
        # Negative ones that the model makes itself, or takes from a part of an input, are not told
        # apart.
        elif index >= 0:
            with pytest.raises(InputError):
                session.run(**feeds)


def test_a_request_to_a_server_is_refused_and_others_are_answered(
    tables: tuple[Bundle, nn.Module],
) -> None:
    feeds = {key: value.numpy() for key, value in INPUTS.items()}
    with runtime.load(tables[0].path) as session:
        bad = {**feeds, "plain": np.full((2, 3), -1)}
        answers = RequestEngine(session).answer([Request(feeds), Request(bad), Request(feeds)])
        truth = session.run(**feeds)
    assert isinstance(answers[1], InputError)
    assert "plain" in str(answers[1])
    for answer in (answers[0], answers[2]):
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["of_plain"], truth["of_plain"])


def test_bundles_of_before_load_and_bad_ranges_do_not(
    tables: tuple[Bundle, nn.Module], tmp_path: Path
) -> None:
    text = tables[0].manifest.dumps()
    assert Manifest.loads(text, "here") == tables[0].manifest
    data = json.loads(text)
    for tensor in data["stages"]["model"]["inputs"]:
        tensor.pop("range", None)
    old = Manifest.loads(json.dumps(data), "here")
    assert [
        dataclasses.replace(spec, range=None) for spec in tables[0].manifest.stages["model"].inputs
    ] == list(old.stages["model"].inputs)
    for bad in ([0], [1, 0], ["0", 3], [True, 3], "0:3", [0, 1.5]):
        data["stages"]["model"]["inputs"][0]["range"] = bad
        with pytest.raises(crossfuse.BundleError, match="range"):
            Manifest.loads(json.dumps(data), "here")
    folder = Path(shutil.copytree(tables[0].path, tmp_path / "old"))
    assert open_bundle(folder).manifest.stages["model"].inputs[0].range == (0, 6)


class Decoder(nn.Module):
    """Ids, with learned positions, over a context of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.sources = (
            nn.Embedding(11, 8),
            nn.Embedding(6, 8),
            nn.Embedding(5, 8),
        )

    def forward(self, source: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        memory = self.sources(source)
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        x = (
            x
            + F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[
                :, 0
            ]
        )
        return {
            "logits": F.scaled_dot_product_attention(x[:, None], memory[:, None], memory[:, None])[
                :, 0
            ]
        }


def test_every_stage_refuses(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(
        Decoder().eval(),
        {"source": ids(2, 4), "tokens": ids(2, 3)},
        {"source": {0: "batch:1:4", 1: "keys:1:9"}, "tokens": {0: "batch", 1: "length:1:6"}},
        ("source",),
        decode="tokens",
    )
    with runtime.load(crossfuse.export(spec, tmp_path / "b").path) as session:
        source, tokens = ids(2, 4).numpy(), ids(2, 3).numpy()
        with pytest.raises(InputError, match=r"source\[0, 0\].*got -1"):
            session.encode(source=source - 1 - source[0, 0])
        context = session.encode(source=source)
        with pytest.raises(InputError, match=r"tokens\[.*got 11.*at most 10"):
            session.query(context, tokens=np.where(tokens == tokens.max(), 11, tokens))
        state = session.start(context)
        with pytest.raises(InputError, match=r"tokens\[1\].*got -1"):
            session.step(state, np.array([3, -1]))
        assert state.position == 0
        session.step(state, np.array([3, 10]))


def test_a_table_of_dynamic_size_has_a_lower_end_alone() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
            return x.index_select(1, chosen)

    spec = ModelSpec(Chosen(), {"x": torch.randn(2, 5), "chosen": ids(3)}, {"x": {1: "length:2:9"}})
    program, spec = capture(spec)
    assert index_ranges(program, spec) == {"chosen": (0, None)}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
@pytest.mark.parametrize("ends", [(0, 6), (-2, 4), (3, 9), (0, 40000), (0, None), (-200, 100)])
def test_every_type_of_index_is_checked(dtype: str, ends: tuple[int, int | None]) -> None:
    spec = TensorSpec("ids", dtype, ("n", 2), ends)
    check = InputChecker((spec,), {"n": Dim("n")})
    for index in (-128, -3, -2, -1, 0, 2, 3, 4, 5, 6, 7, 9, 10, 100, 101, 127, 200, 255, 40001):
        if not np.iinfo(dtype).min <= index <= np.iinfo(dtype).max:
            continue
        inside = ends[0] <= index and (ends[1] is None or index <= ends[1])
        array = np.full((3, 2), max(ends[0], 0), dtype=dtype)
        array[1, 1] = index
        for given in (array, np.asfortranarray(array), array[::-1]):
            if inside:
                check({"ids": given})
            else:
                with pytest.raises(InputError, match=rf"ids\[1, 1\].*got {index}\b"):
                    check({"ids": given})
