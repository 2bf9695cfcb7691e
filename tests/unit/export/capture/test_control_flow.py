"""``cond``, ``scan`` and ``while_loop`` with and around attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.traced_for_tests import WIDTH, Block, exported_equal, spec_of
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import crossfuse
from crossfuse import InputError
from crossfuse.export.capture.control_flow import both_branches, scans_as_steps

Run = Callable[["Flow", Tensor, Tensor], Tensor]


class Flow(nn.Module):
    def __init__(self, run: Run) -> None:
        super().__init__()
        self.attention, self.other = Block(), nn.Linear(WIDTH, WIDTH)
        self.run = run

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(self, x, y)


def chosen(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x, y: s.attention(x, y), lambda x, _: s.other(x), (x, y))


def chosen_before(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    return s.attention(torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,)), y)


def stepped(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    steps = torch.stack([x, 2 * x, x + 1])
    return scan(lambda c, t: (s.attention(c, y) + t, c + 1), x, steps)[0]


def summed(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    return s.attention(
        torch.cat(
            [
                scan(lambda c, t: (c + t, c * t), x[:, 0], y[:, :1].transpose(0, 1))[1][0][:, None],
                x,
            ],
            1,
        )[:, 1:],
        y,
    )


def looped_before(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    start = (torch.tensor(0), x)
    return s.attention(while_loop(lambda i, _: i < 3, lambda i, z: (i + 1, z * 2), start)[1], y)


def looped(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    start = (torch.tensor(0), x)
    return while_loop(lambda i, _: i < 3, lambda i, z: (i + 1, s.attention(z, y)), start)[1]


def test_steps_and_branches_give_what_pytorch_gives() -> None:
    xs = torch.arange(6.0).reshape(3, 2)
    with scans_as_steps():
        carry, sums = scan(lambda c, x: (c + x, (c + x).clone()), torch.zeros(2), xs)
    assert torch.equal(sums, xs.cumsum(0))
    assert torch.equal(carry, xs.sum(0))
    with both_branches():
        for pred in (True, False):
            got = torch.cond(torch.tensor(pred), lambda x: x + 1, lambda x: x - 1, (xs,))
            assert torch.equal(got, xs + 1 if pred else xs - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "fused"),
    [(chosen, 1), (chosen_before, 1), (stepped, 3), (summed, 1), (looped_before, 1)],
)
def test_attention_in_and_behind_them_is_fused(run: Run, fused: int, tmp_path: Path) -> None:
    exported_equal(spec_of(Flow(run)), tmp_path / "b", fused=fused)


def scanned(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    """Over as many steps as there are keys."""
    return scan(lambda c, t: (s.attention(c, y) + t[:, None], c + 1), x, y.transpose(0, 1))[0]


def chosen_by_attention(s: Flow, x: Tensor, y: Tensor) -> Tensor:
    """The attention decides whether the loop goes on."""

    def more(i: Tensor, z: Tensor) -> Tensor:
        return (i < 3) & (s.attention(z, y).sum() < 1e6)

    start = (torch.tensor(0), x)
    return s.other(while_loop(more, lambda i, z: (i + 1, z * 2), start)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (looped, "in a function that while_loop runs.*attention"),
        (chosen_by_attention, "in a function that while_loop runs.*attention"),
        # In eager execution its steps are run one by one.
        (scanned, "can't translate the function that scan runs"),
    ],
)
def test_a_loops_attention_is_refused_with_the_reason(
    run: Run, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=reason):
        crossfuse.export(spec_of(Flow(run)), tmp_path / "b")
