"""A recording module gives the probabilities of its attentions, and what it gave before."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse.core.tensors import PROBABILITIES
from crossfuse.errors import InputError
from crossfuse.export.capture.recorded_probabilities import Wanted, recording
from crossfuse.spec.results import named_outputs

HEADS, SIZE = 4, 3


class Net(nn.Module):
    """One attention, in one way, in a child called ``attn``."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.attn(q, k, v, mask)
        return result


class Sdpa(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask)


class AddedMask(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e30)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=SIZE**-0.5)


class Grouped(nn.Module):
    """Each pair of heads has its keys once."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k[:, ::2], v[:, ::2], mask, enable_gqa=True)


class Operator(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        flat = (t.transpose(1, 2).flatten(2) for t in (q, k, v))
        out = crossfuse.fused_attention(*flat, mask, num_heads=HEADS)
        return out.unflatten(2, (HEADS, SIZE)).transpose(1, 2)


class Written(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = (q @ k.mT * SIZE**-0.5).masked_fill(~mask, -torch.inf)
        return scores.softmax(-1) @ v


def named(result: object) -> dict[str, Tensor]:
    return named_outputs(result, ())


def expected(q: Tensor, k: Tensor, mask: Tensor, *, grouped: bool) -> Tensor:
    """From the mathematics, row by row."""
    keys = k[:, [0, 0, 2, 2]] if grouped else k
    scores = torch.einsum("bhld,bhsd->bhls", q, keys) / SIZE**0.5
    powers = scores.exp() * mask
    return powers / powers.sum(-1, keepdim=True)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"q": 5, "k": 7, "v": 7}
    made = {n: torch.randn(2, HEADS, s, SIZE, generator=generator) for n, s in sizes.items()}
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, :, :, 4:] = False
    return {name: t.double() for name, t in made.items()} | {"mask": mask}


@pytest.mark.parametrize("attn", [Sdpa, AddedMask, Grouped, Operator, Written])
@pytest.mark.parametrize("heads", [None, (0, 3), (2,)])
def test_probabilities_are_those_of_the_mathematics(
    attn: Callable[[], nn.Module], heads: tuple[int, ...] | None
) -> None:
    module, given = Net(attn()), inputs()
    wanted = Wanted("attn", 0, written_out=attn is Written, heads=heads)
    found = copy.deepcopy(recording(module, {"attn": wanted}, named))(**given)
    assert torch.equal(found["output"], module(**given))
    truth = expected(given["q"], given["k"], given["mask"], grouped=attn is Grouped)
    truth = truth if heads is None else truth[:, list(heads)]
    torch.testing.assert_close(found[PROBABILITIES + "attn"], truth)
    assert not hasattr(module, "_without_probabilities")


def test_rows_without_keys_have_no_probabilities() -> None:
    module, given = Net(Sdpa()), inputs()
    given["mask"][1, :, 2] = False
    found = recording(module, {"attn": Wanted("attn", 0, written_out=False)}, named)(**given)
    assert not found[PROBABILITIES + "attn"][1, :, 2].any()


def test_pytorchs_own_module() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    x, y = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    wanted = Wanted("", 0, written_out=False, heads=(2, 0))
    recorder = recording(module, {"(root)": wanted}, named)
    found = recorder(query=x, key=y, value=y, need_weights=False)
    truth = module(x, y, y, average_attn_weights=False)[1][:, [2, 0]]
    torch.testing.assert_close(found[PROBABILITIES + "(root)"], truth)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Wanted("attn", 0, False, (4,)), "a head .* doesn't exist: got 4, expected 0..3"),
        (Wanted("attn", 1, False), "no function that computes them was seen"),
    ],
)
def test_what_can_not_be_recorded(wanted: Wanted, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        recording(Net(Sdpa()), {"attn": wanted}, named)(**inputs())
