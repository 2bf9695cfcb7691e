"""Probabilities beside the fused operator: what is asked for, what it takes, and their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec, runtime
from crossfuse.export.capture.census import Sighting
from crossfuse.export.keep_probabilities import kept_probabilities, with_probabilities
from crossfuse.export.split.step_outputs import NoStepsError
from equal_to_eager import worst_errors

WIDTH, HEADS = 16, 4


def heads(t: Tensor) -> Tensor:
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Written out or called, with its probabilities or without."""

    def __init__(self, gives: Callable[[Tensor], Tensor] | None, *, written: bool) -> None:
        super().__init__()
        self.gives, self.written = gives, written
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        q, k, v = heads(self.q(x)), heads(self.k(y)), heads(self.v(y))
        shown = mask[:, None, None] > 0
        if not self.written:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=shown)
            return out.transpose(1, 2).flatten(2), None
        weights = (q @ k.mT / 2).masked_fill(~shown, -1e9).softmax(-1)
        given = None if self.gives is None else self.gives(weights)
        return (weights @ v).transpose(1, 2).flatten(2), given


class Net(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if isinstance(self.attn, nn.MultiheadAttention):
            out, given = self.attn(x, y, y, key_padding_mask=mask == 0, need_weights=True)
        else:
            out, given = self.attn(x, y, mask)
        return {"out": x + out} | ({} if given is None else {"given": given})


def inputs(batch: int, length: int, keys: int, *shown: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {
        "x": torch.randn(batch, length, WIDTH, generator=generator),
        "y": torch.randn(batch, keys, WIDTH, generator=generator),
        "mask": (torch.arange(keys) < torch.tensor(shown)[:, None]).long(),
    }


def spec_of(attn: nn.Module, *keep: str) -> ModelSpec:
    dynamic = {
        "x": {0: "batch:1:8", 1: "length:1:64"},
        "y": {0: "batch", 1: "keys:1:64"},
        "mask": {0: "batch", 1: "keys"},
    }
    module = Net(attn).eval()
    return ModelSpec(module, inputs(2, 3, 5, 5, 2), dynamic, keep_probabilities=keep)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("atn", "there is no attention .*: got 'atn', .* Did you mean 'attn'"),
        ("attn:", "can't be read: got 'attn:'"),
        ("attn:a", "can't be read"),
        (":1", "can't be read"),
        ("given:0", "heads can be chosen only of probabilities that the model doesn't return"),
    ],
)
def test_what_can_not_be_asked_for(asked: str, reason: str) -> None:
    sightings = [Sighting("attn", "sdpa"), Sighting("given", "products", ("softmax",), used=True)]
    with pytest.raises(InputError, match=reason):
        kept_probabilities(spec_of(Attention(None, written=False), asked), sightings)


def test_a_site_is_asked_for_in_one_way() -> None:
    spec = spec_of(Attention(None, written=False), "attn", "attn:1")
    with pytest.raises(
        InputError, match=r"asked for twice, of other heads \(attn\): got attn, attn:1"
    ):
        kept_probabilities(spec, [Sighting("attn", "sdpa")])
    again = spec_of(Attention(None, written=False), "attn:1", "attn:1")
    assert kept_probabilities(again, [Sighting("attn", "sdpa")]).sites == ("attn",)


def test_sites_are_told_apart() -> None:
    sightings = [
        Sighting("attn", "sdpa"),
        Sighting("attn", "products", ("softmax",), returned=True),
    ]
    spec = spec_of(Attention(None, written=False), "attn#2")
    kept = kept_probabilities(spec, sightings)
    assert (kept.sites, kept.modules) == (("attn#2",), ("attn",))
    assert kept.spec.module is spec.module, "the model gives them by itself"
    assert kept_probabilities(spec_of(Attention(None, written=False)), sightings).sites == ()


class Decoder(nn.Module):
    """Tokens that attend to those before them, and to an image by an attention of any form."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn
        self.words = nn.Embedding(20, WIDTH)
        self.read = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, ids: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.words(ids)
        query, key, value = map(heads, self.read(x).chunk(3, -1))
        own = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + own.transpose(1, 2).flatten(2)
        shown = torch.ones(image.shape[:2], dtype=torch.long)
        if isinstance(self.attn, nn.MultiheadAttention):
            seen, given = self.attn(x, image, image, need_weights=True)
        else:
            seen, given = self.attn(x, image, shown)
        return {"out": x + seen} | ({} if given is None else {"given": given})


def decoder_spec(attn: nn.Module, *keep: str) -> ModelSpec:
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "ids": torch.randint(0, 20, (2, 5), generator=generator),
        "image": torch.randn(2, 7, WIDTH, generator=generator),
    }
    dynamic = {"ids": {0: "batch:1:8", 1: "tokens:1:12"}, "image": {0: "batch"}}
    return ModelSpec(
        Decoder(attn).eval(), inputs, dynamic, context=("image",), decode="ids",
        keep_probabilities=keep,
    )  # fmt: skip


def check_steps(path: Path, spec: ModelSpec) -> None:
    """Outputs of prompts and of steps are those of whole sequences, their tokens second."""
    truth = with_probabilities(spec)
    ids, image = spec.inputs["ids"], spec.inputs["image"]
    with torch.no_grad():
        whole = truth.outputs_of(truth.module(**spec.inputs))
    with runtime.load(path) as session:
        made = {one.name for one in session.stages["step"].outputs}
        assert set(whole) <= made
        axes = {one.name: one.shape.index("tokens") for one in session.stages["query"].outputs}
        expected = {n: array.movedim(axes[n], 1).numpy() for n, array in whole.items()}
        state = session.start(session.encode(image=image.numpy()), prompt=ids[:, :3].numpy())
        pieces = [{n: np.array(array) for n, array in state.outputs.items()}]
        for at in (3, 4):
            outputs = session.step(state, ids[:, at].numpy())
            pieces.append({n: np.array(array) for n, array in outputs.items()})
    for name, array in expected.items():
        found = np.concatenate([one[name] for one in pieces], 1)
        np.testing.assert_allclose(found, array, atol=1e-5, err_msg=name)


def test_steps_give_them_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    attn = Attention(None, written=False)
    spec = decoder_spec(attn)
    bundle = crossfuse.export(spec, tmp_path / "b", keep_probabilities=["attn:3,1"], quick=True)
    assert {row.site: row.probabilities for row in bundle.ledger} == {"(root)": False, "attn": True}
    check_steps(tmp_path / "b", replace(spec, keep_probabilities=("attn:3,1",)))


def test_an_attention_over_the_tokens_has_no_steps() -> None:
    """Each token adds a column to its probabilities: where steps were asked for that is an error,
    else they are left out."""
    from crossfuse.api.export import _stages
    from crossfuse.export.fuse import fuse

    spec = decoder_spec(Attention(None, written=False), "(root)")
    graph = fuse(spec)
    with pytest.raises(NoStepsError, match=r"a column for each token so far .*probabilities"):
        _stages(graph, False, str)
    possible = replace(graph, spec=replace(graph.spec, decode_where_possible=True))
    assert "step" not in _stages(possible, False, str).graphs


def test_a_further_output() -> None:
    spec = with_probabilities(spec_of(Attention(None, written=False), "attn:3,1"))
    given = inputs(2, 3, 5, 5, 2)
    found = spec.module(**given)
    assert list(found) == ["out", "probabilities.attn"]
    assert found["probabilities.attn"].shape == (2, 2, 3, 5)
    assert torch.equal(found["out"], spec_of(spec.module.attn).module(**given)["out"])


FORMS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "all heads": (lambda: Attention(lambda p: p, written=True), "attn"),
    "two heads": (lambda: Attention(lambda p: p[:, [0, 2]], written=True), "attn"),
    "largest": (lambda: Attention(lambda p: p.amax((1, 2)), written=True), "attn"),
    "not returned": (lambda: Attention(None, written=True), "attn"),
    "called": (lambda: Attention(None, written=False), "attn"),
    "heads of a call": (lambda: Attention(None, written=False), "attn:0,3"),
    "module": (lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), "attn"),
}


def test_outputs_of_all_tokens_have_no_steps(tmp_path: Path) -> None:
    """A maximum over the tokens is nothing that a step could give."""
    make, asked = FORMS["largest"]
    with pytest.raises(NoStepsError, match="an output is of all tokens together") as caught:
        crossfuse.export(decoder_spec(make()), tmp_path / "b", keep_probabilities=[asked])
    assert "given" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMS if name != "largest"])
def test_steps_of_any_form(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    make, asked = FORMS[name]
    spec = decoder_spec(make())
    crossfuse.export(spec, tmp_path / "b", keep_probabilities=[asked])
    check_steps(tmp_path / "b", replace(spec, keep_probabilities=(asked,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FORMS))
def test_fused_with_its_probabilities(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    make, asked = FORMS[name]
    spec = spec_of(make())
    bundle = crossfuse.export(spec, tmp_path / "b", keep_probabilities=[asked])
    (row,) = bundle.ledger
    assert (row.site, bool(row.fused["ort-cpu"]), row.probabilities) == ("attn", True, True)
    points = [inputs(1, 7, 4, 2), inputs(3, 1, 11, 11, 3, 6), inputs(2, 9, 20, 1, 13)]
    assert max(worst_errors(tmp_path / "b", spec.module, points).values()) < 1e-5
    truth = with_probabilities(spec_of(spec.module.attn, asked)).module
    assert max(worst_errors(tmp_path / "b", truth, points).values()) < 1e-5
    with runtime.load(tmp_path / "b") as session:
        assert {s.name for s in session.outputs} == set(truth(**points[0]))
    assert crossfuse.verify(tmp_path / "b", source=spec).passed
