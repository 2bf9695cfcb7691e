"""Which operators draw, in which module, and what forcing them does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crossfuse.export.capture.module_paths import module_stack
from crossfuse.parity.draws import HIGH, LOW, DrawWatch, Force, Generators, bytes_of


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Drop(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 1 - self.p))


def watched(
    module: nn.Module, x: Tensor, force: Force | None = None
) -> tuple[Tensor, DrawWatch, Generators]:
    generators = Generators()
    with torch.no_grad(), module_stack(module) as stack:
        watch = DrawWatch(stack, generators, force)
        with watch:
            return module(x), watch, generators


def test_draws_are_told_by_operator_and_module() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Noise(), nn.Sequential(Drop(0.5)))
    _, watch, _ = watched(model, torch.ones(2, 3))
    assert [(draw.operator, draw.module) for draw in watch.draws] == [
        ("randn_like", "1"),
        ("bernoulli", "2.0"),
    ]


@pytest.mark.parametrize(("train", "p", "draws"), [(True, 0.5, 1), (True, 0.0, 0), (False, 0.5, 0)])
def test_dropout_draws_in_training_alone(train: bool, p: float, draws: int) -> None:
    model = nn.Dropout(p).train(train)
    _, watch, _ = watched(model, torch.ones(100))
    assert len(watch.draws) == draws


def test_a_draw_that_is_seeded_inside_has_one_state() -> None:
    """Draws whose generator is in the same state are the same ones."""

    class Seeded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(3, generator=torch.Generator().manual_seed(5))

    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(watched(nn.Sequential(Seeded(), Noise()), torch.ones(3))[1].draws)
    (inside, free), (again, other) = states
    assert inside.state == again.state
    assert free.state != other.state


@pytest.mark.parametrize(("end", "value"), [(LOW, 0.0), (HIGH, 1.0)])
def test_decisions_are_forced_to_an_end(end: str, value: float) -> None:
    out, _, _ = watched(Drop(0.5), torch.ones(1000), Force(end, frozenset()))
    assert torch.equal(out, torch.full((1000,), value))


def test_certain_decisions_and_seeded_ones_are_not_forced() -> None:
    out, _, _ = watched(Drop(0.0), torch.ones(10), Force(LOW, frozenset()))
    assert torch.equal(out, torch.ones(10)), "what is certain can't go the other way"
    torch.manual_seed(0)
    free = watched(Drop(0.5), torch.ones(50))[0]
    torch.manual_seed(0)
    seeded = watched(Drop(0.5), torch.ones(50), Force(HIGH, frozenset({0})))[0]
    assert torch.equal(free, seeded)


def test_uniform_draws_stay_in_their_range() -> None:
    class Uniform(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.empty(4).uniform_(2, 6)

    low = watched(Uniform(), torch.zeros(4), Force(LOW, frozenset()))[0]
    high = watched(Uniform(), torch.zeros(4), Force(HIGH, frozenset()))[0]
    assert torch.equal(low, torch.full((4,), 2.0))
    assert bool((high < 6).all())
    assert bool((high > 5.9999).all())


def test_generators_are_put_back_as_they_were() -> None:
    own = torch.Generator().manual_seed(3)

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(2, generator=own) + torch.rand(2, generator=own)

    first, _, generators = watched(Own(), torch.zeros(2))
    assert len(generators.states) == 1, "one generator, however often it draws"
    assert not torch.equal(first, watched(Own(), torch.zeros(2))[0])
    generators.restore()
    assert torch.equal(first, watched(Own(), torch.zeros(2))[0])


def test_bytes_are_what_lies_in_memory() -> None:
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert bytes_of(tensor.T) == bytes_of(tensor.T.contiguous()) != bytes_of(tensor)
    assert bytes_of(torch.zeros(0, 3)) == b""
    assert bytes_of(torch.tensor(-0.0)) != bytes_of(torch.tensor(0.0))
