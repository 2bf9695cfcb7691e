"""Models that are random, or that change as they run, are refused with the reason; those that only
look so are not."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import crossfuse
from crossfuse import InputError, ModelSpec
from crossfuse.parity.repeatable import require_repeatable

Forward = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """A linear layer, and what a case makes of its result."""

    def __init__(self, then: Forward, part: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.part = part or nn.Identity()
        self.then = then
        self.generator = torch.Generator().manual_seed(5)
        self.register_buffer("state", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.linear(x))


class Dropping(nn.Module):
    """Stochastic depth: the layer is left out now and then."""

    def __init__(self, draw: Callable[[], float], rate: float) -> None:
        super().__init__()
        self.draw, self.rate = draw, rate

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draw() < self.rate else x * 2


def spec_of(module: nn.Module) -> ModelSpec:
    return ModelSpec(
        module,
        {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))},
        {"x": {0: "batch:1:8"}},
    )


def part(net: Net, x: Tensor) -> Tensor:
    result: Tensor = net.part(x)
    return result


TRAINING: dict[str, tuple[nn.Module, str]] = {
    "dropout": (
        nn.Dropout(0.1),
        r"part: bernoulli_.*differs by.*Call .eval\(\).*training mode: part \(Dropout\)",
    ),
    "rare dropout": (nn.Dropout(1e-4), r"part: bernoulli_.*Call .eval\(\)"),
    "dropout of channels": (nn.Dropout1d(0.5), r"part: bernoulli_.*part \(Dropout1d\)"),
    "alpha dropout": (nn.AlphaDropout(0.2), "AlphaDropout"),
    "rrelu": (nn.RReLU(), r"part: rrelu_with_noise.*part \(RReLU\)"),
    "in a list of layers": (
        nn.Sequential(nn.ReLU(), nn.Dropout(0.1)),
        r"part\.1: bernoulli_.*part\.1 \(Dropout\)",
    ),
    "attention": (
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True),
        r"part\.dropout1: bernoulli_",
    ),
    "recurrent": (nn.LSTM(8, 8, 2, dropout=0.3), r"part: (bernoulli_|lstm)"),
    "statistics": (
        nn.BatchNorm1d(8),
        r"in training mode: running it changes its own tensors.*part\.running_mean.*BatchNorm1d",
    ),
    "statistics of instances": (
        nn.InstanceNorm1d(4, track_running_stats=True),
        "changes its own tensors.*part.running_mean",
    ),
    "power iteration": (
        nn.utils.spectral_norm(nn.Linear(8, 8)),
        "changes its own tensors|depend on more than its inputs",
    ),
}


@pytest.mark.parametrize("case", list(TRAINING))
def test_training_mode_is_refused_by_name(case: str) -> None:
    module, message = TRAINING[case]
    net = Net(lambda net, x: out[0] if isinstance(out := net.part(x), tuple) else out, module)
    net.train()
    with pytest.raises(InputError, match=message):
        require_repeatable(spec_of(net))
    assert module.training, "the user's module stays as it was"
    require_repeatable(spec_of(net.eval()))


RANDOM: dict[str, tuple[Forward, str]] = {
    "functional dropout": (
        lambda net, x: F.dropout(x, 0.1, training=True),
        "the model: bernoulli_",
    ),
    "attention's dropout": (
        lambda net, x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.1),
        "bernoulli_",
    ),
    "noise": (lambda net, x: x + torch.randn_like(x), "the model: randn_like"),
    "small noise": (lambda net, x: x + 1e-4 * torch.rand(x.shape), "the model: rand"),
    "a normal": (lambda net, x: torch.normal(x, 1.0), "the model: normal"),
    "a sample": (lambda net, x: torch.multinomial(x.softmax(-1), 1), "the model: multinomial"),
    "a distribution": (
        lambda net, x: torch.distributions.Normal(x, 1.0).sample(),
        "the model: normal",
    ),
    "bernoulli": (
        lambda net, x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        "the model: bernoulli",
    ),
    "gumbel": (lambda net, x: F.gumbel_softmax(x, hard=True), "the model: exponential_"),
    "order": (lambda net, x: x[:, torch.randperm(8)], "the model: randperm"),
    "crop": (lambda net, x: x.roll(int(torch.randint(0, 8, ())), 1), "the model: randint"),
    "a generator": (
        lambda net, x: x + torch.rand(x.shape, generator=net.generator),
        "the model: rand",
    ),
    "NumPy": (lambda net, x: x * float(np.random.rand()), "NumPy's random"),
    "Python": (lambda net, x: x * random.random(), "Python's random"),
    "only some rows": (lambda net, x: torch.where(torch.rand(4, 1) < 0.5, x, 0), "the model: rand"),
}


@pytest.mark.parametrize("case", list(RANDOM))
def test_noise_in_evaluation_mode_is_refused_by_operator(case: str) -> None:
    then, operator = RANDOM[case]
    with pytest.raises(
        InputError,
        match=f"the model is random.*{operator}.*Take out what draws, or make its numbers an input",
    ):
        require_repeatable(spec_of(Net(then).eval()))


DEPTH: dict[str, Callable[[], float]] = {
    "PyTorch": lambda: float(torch.rand(())),
    "Python": random.random,
    "NumPy": lambda: float(np.random.rand()),
}


@pytest.mark.parametrize("source", list(DEPTH))
@pytest.mark.parametrize("rate", [0.02, 0.98])
def test_rare_events_are_found(source: str, rate: float) -> None:
    """Two runs would mostly agree."""
    with pytest.raises(InputError, match="the model is random"):
        require_repeatable(spec_of(Net(part, Dropping(DEPTH[source], rate)).eval()))


def own_seed(net: Net, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return x + torch.randn_like(x)


def own_generator(net: Net, x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(3))


def unused(net: Net, x: Tensor) -> Tensor:
    torch.rand(3), random.random(), np.random.rand()
    return x


def without_effect(net: Net, x: Tensor) -> Tensor:
    """As libraries do that draw before they ask whether they train."""
    dropped = torch.rand(()) < 0.5
    return x * 2 if net.training and bool(dropped) else x


def counting(net: Net, x: Tensor) -> Tensor:
    net.calls += 1
    return x


def cached(net: Net, x: Tensor) -> Tensor:
    net.register_buffer("table", torch.arange(8.0))
    return x + net.table


FINE: dict[str, tuple[Forward, nn.Module | None]] = {
    "seeded inside": (own_seed, None),
    "its own generator": (own_generator, None),
    "draws that go nowhere": (unused, None),
    "draws without effect": (without_effect, None),
    "no dropout at all": (lambda net, x: F.dropout(x, 0.0, training=True), None),
    "attention": (lambda net, x: F.scaled_dot_product_attention(x[None], x[None], x[None]), None),
    "an order of sums": (
        lambda net, x: x[:, p] @ net.linear.weight[p] if len(p := torch.randperm(8)) else x,
        None,
    ),
    "certain draws": (
        lambda net, x: x * torch.bernoulli(torch.ones(8)) * torch.zeros(8).bernoulli_(1.0),
        None,
    ),
    "an impossible event": (lambda net, x: x if float(torch.rand(())) < 1 else -x, None),
    "calls are counted": (counting, None),
    "a table is cached": (cached, None),
    "not a number": (lambda net, x: torch.where(x > 0, x, float("nan")), None),
}


@pytest.mark.parametrize("case", list(FINE))
def test_what_only_looks_random_passes(case: str) -> None:
    then, module = FINE[case]
    require_repeatable(spec_of(Net(then, module).eval()))


def test_training_mode_without_consequence_passes() -> None:
    """Nothing here behaves otherwise in training."""
    require_repeatable(spec_of(Net(part, nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(8))).train()))


def test_a_state_that_reaches_the_outputs_is_refused() -> None:
    def average(net: Net, x: Tensor) -> Tensor:
        net.state.mul_(0.5).add_(x.mean(0))
        return x + net.state

    net = Net(average).eval()
    with pytest.raises(
        InputError,
        match=r"depend on more than its inputs.*a state that changes at each run \(state\)",
    ):
        require_repeatable(spec_of(net))
    assert net.state.count_nonzero() == 0, "the user's state is as it was"


def test_last_bits_are_not_randomness() -> None:
    """As sums in threads are, which come in another order each time."""
    signs = iter(range(1000))

    def jitter(net: Net, x: Tensor) -> Tensor:
        return x * (1 + (-1) ** next(signs) * 1e-7)

    require_repeatable(spec_of(Net(jitter).eval()))

    def large(net: Net, x: Tensor) -> Tensor:
        return x * (1 + (-1) ** next(signs) * 0.1)

    with pytest.raises(InputError, match="no random operator was seen"):
        require_repeatable(spec_of(Net(large).eval()))


@pytest.fixture
def generators() -> Iterator[None]:
    """The global generators must be left alone."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    yield
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])


@pytest.mark.usefixtures("generators")
def test_generators_are_left_as_they_were() -> None:
    net = Net(RANDOM["a generator"][0]).eval()
    before = net.generator.get_state()
    with pytest.raises(InputError):
        require_repeatable(spec_of(net))
    assert torch.equal(net.generator.get_state(), before)
    net = Net(part, nn.BatchNorm1d(8)).train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError):
        require_repeatable(spec_of(net))
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_exports_and_fresh_references_are_refused(tmp_path: Path) -> None:
    net = Net(part, nn.Dropout(0.5))
    crossfuse.export(spec_of(net.eval()), tmp_path / "b")
    with pytest.raises(InputError, match=r"the model is random.*Call .eval\(\)"):
        crossfuse.verify(tmp_path / "b", source=spec_of(net.train()))
    with pytest.raises(InputError, match=r"the model is random.*Call .eval\(\)"):
        crossfuse.export(spec_of(net), tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_model_that_cannot_run_is_left_to_its_own_error() -> None:
    def broken(net: Net, x: Tensor) -> Tensor:
        raise KeyError("weights")

    require_repeatable(spec_of(Net(broken).eval()))
