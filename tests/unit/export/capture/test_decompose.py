"""Operators decomposed one by one: the program still computes what the module does, and nothing to
decompose is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossfuse.export.capture import decompose as decomposing
from crossfuse.export.capture.decompose import decompose, decompose_locally

ATEN = torch.ops.aten
TABLE = {
    ATEN.rsub.Scalar: lambda x, other, alpha=1: -alpha * x + other,
    ATEN.silu.default: lambda x: x * torch.sigmoid(x),
}


def casts(x: Tensor) -> object:
    return {
        "same": x.to(torch.float32),
        "double": x.to(torch.float64).float() * 2,
        "input": x,
        "like": x.to(x),
    }


def layouts(x: Tensor) -> object:
    y = x.unflatten(-1, (4, -1)).transpose(1, 2)
    return (
        y.contiguous().view(y.shape[0], -1),
        y.flatten(2),
        y.reshape(-1, 3),
        y.transpose(1, 2).contiguous(),
    )


def owned_mutation(x: Tensor) -> object:
    y = x * 2
    y += x.mean()
    z = x.exp()
    z.mul_(3)
    return y + z


def functions(x: Tensor) -> object:
    return 1 - x, F.silu(x), F.dropout(x, 0.5, training=False), x.square(), torch.diff(x, dim=1)


def several_results(x: Tensor) -> object:
    first, second = x.chunk(2, -1)
    return (
        first & second
        if x.dtype == torch.bool
        else (first, torch.where(second > 0, second, 0).to(torch.int64))
    )


def twice(x: Tensor) -> object:
    y = x.square()
    return y, y, y.contiguous(), y.reshape(y.shape)


def elements(x: Tensor) -> object:
    return x.sum() / x.numel() + F.group_norm(x.transpose(1, 2), 3).mean()


def writes_into_a_view(x: Tensor) -> object:
    y = x * 2
    y[:, 0] = 5.0
    y.transpose(0, 1).add_(1)
    return y


def writes_into_what_is_seen(x: Tensor) -> object:
    y = x * 2
    z = y.view(-1)
    z.add_(1)
    return y


WHOLE = (writes_into_what_is_seen,)
PLAIN = (
    casts,
    layouts,
    owned_mutation,
    functions,
    several_results,
    twice,
    elements,
    writes_into_a_view,
)


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def traced(module: nn.Module) -> torch.export.ExportedProgram:
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=3, max=64)
    return torch.export.export(
        module, (torch.randn(3, 5, 12),), dynamic_shapes=({0: batch, 1: length},)
    )


@pytest.mark.parametrize("function", [*PLAIN, *WHOLE], ids=lambda f: f.__name__)
def test_decomposed_programs_compute_the_same(function: Callable[[Tensor], object]) -> None:
    module = Net(function)
    program = traced(module)
    done = decompose(program, TABLE)
    assert (done is program) == (function in PLAIN)
    for shape in ((3, 5, 12), (2, 7, 12), (4, 4, 12)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(done.module()(x.clone()), module(x.clone()), rtol=0, atol=1e-6)
    known = [n.name for n in done.graph.output_node().args[0] if isinstance(n, torch.fx.Node)]
    assert list(done.graph_signature.user_outputs) == known
    kept = torch.export.default_decompositions()
    for node in done.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert node.target not in TABLE
            assert not node.target._schema.is_mutable
            assert node.target in kept or not node.target._can_decompose(), node


def test_strides_of_a_replacement_reach_what_follows() -> None:
    """The body's result is laid out otherwise than the operator's, so a ``contiguous`` behind it
    copies."""

    def attend(x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*(x.unflatten(-1, (3, 4)).transpose(1, 2),) * 3)
        return y.transpose(1, 2).contiguous().view(x.shape)

    def written(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    module = Net(attend)
    done = decompose(traced(module), {ATEN.scaled_dot_product_attention.default: written})
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(done.module()(x), module(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "behind",
    [
        lambda y: F.pad(y, (0, 0, 1, 1), value=-1.0),
        lambda y: F.pad(y.unflatten(-1, (2, 2)), (0, 0, 0, 0, 0, 0, 1, 1)),
    ],
)
def test_sizes_stay_symbols_behind_a_replacement(behind: Callable[[Tensor], Tensor]) -> None:
    def attend(x: Tensor) -> Tensor:
        return behind(
            F.scaled_dot_product_attention(*(x.unflatten(-1, (3, 4)).transpose(1, 2),) * 3)
        )

    def written(q: Tensor, k: Tensor, v: Tensor, *_: object, **__: object) -> Tensor:
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v

    module = Net(attend)
    before = traced(module)
    symbols = [str(n.meta["val"].shape) for n in before.graph.output_node().args[0]]
    done = decompose(before, {ATEN.scaled_dot_product_attention.default: written})
    assert [str(n.meta["val"].shape) for n in done.graph.output_node().args[0]] == symbols
    x = torch.randn(4, 7, 12)
    torch.testing.assert_close(done.module()(x), module(x), rtol=0, atol=1e-6)


def test_an_operator_may_stay() -> None:
    def attend(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    done = decompose(
        traced(Net(attend)),
        {ATEN.scaled_dot_product_attention.default: lambda *_, **__: NotImplemented},
    )
    assert ATEN.scaled_dot_product_attention.default in [node.target for node in done.graph.nodes]


def test_nodes_keep_their_module() -> None:
    program = decompose(traced(nn.Sequential(Net(lambda x: 1 - x))), TABLE)
    (node,) = [n for n in program.graph.nodes if n.target is ATEN.add.Tensor]
    assert any("0" in path for path, _ in node.meta["nn_module_stack"].values())


class Turned(nn.Module):
    """Complex numbers with an axis more."""

    def forward(self, x: Tensor) -> Tensor:
        turns = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(turns[:, None] * turns[:, :, None]).flatten(3)


def test_an_axis_of_complex_numbers_is_a_view() -> None:
    x = torch.randn(2, 3, 4)
    program = torch.export.export(Turned(), (x,), strict=False)
    decompose_locally(program)
    program = program.run_decompositions({})
    targets = [n.target for n in program.graph.nodes]
    assert torch.ops.aten.unsqueeze.default not in targets
    assert torch.allclose(program.module()(x), Turned()(x))


class Gates(nn.Module):
    """Cells in a loop, layers alike, and composites alike beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.lstm = nn.GRUCell(12, 12), nn.LSTMCell(12, 12)

    def forward(self, x: Tensor) -> object:
        state, other = x[:, 0], (x[:, 0], x[:, 1])
        for _ in range(3):
            state = self.cell(F.silu(x[:, 1]), state)
            other = self.lstm(F.silu(state), other)
        halves = [part.unflatten(-1, (3, 2)).flatten(1) for part in x.chunk(2, -1)]
        return state, *other, halves[0] - halves[1]


def test_calls_alike_share_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Gates().eval()
    shared, alone = traced(module), traced(module)
    bodies: list[object] = []
    trace = decomposing._trace

    def watched(*args: Any) -> Any:
        bodies.append(args)
        return trace(*args)

    monkeypatch.setattr(decomposing, "_trace", watched)
    shared = decompose(shared, TABLE)
    few = len(bodies)
    monkeypatch.setattr(decomposing, "likeness", lambda *_: None)
    alone = decompose(alone, TABLE)
    assert few < len(bodies) - few
    assert [n.format_node() for n in shared.graph.nodes] == [
        n.format_node() for n in alone.graph.nodes
    ]
    assert [str(n.meta.get("val")) for n in shared.graph.nodes] == [
        str(n.meta.get("val")) for n in alone.graph.nodes
    ]
    values = [n.meta["val"] for n in shared.graph.nodes if isinstance(n.meta.get("val"), Tensor)]
    assert len({id(value) for value in values}) == len(values)
    x = torch.randn(2, 6, 12)
    for ours, theirs in zip(shared.module()(x), module(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class Choices(nn.Module):
    """Two calls that a trace can't tell apart, whose sizes depend on what they are given."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        (first,), (second,) = torch.where(x[:, 0, 0] > 0), torch.where(x[:, 0, 1] > 0)
        return x[first], x[second], x[x[:, 0, 0] > 0], x[x[:, 0, 1] > 0]


def test_sizes_that_depend_on_content_are_each_call_s_own() -> None:
    done = decompose(traced(Choices()), TABLE)
    sizes = [str(n.meta["val"].shape[0]) for n in done.graph.output_node().args[0]]
    assert len(set(sizes)) == 4
    x = torch.tensor([[1.0, -1.0], [1.0, 1.0], [1.0, -1.0]]).repeat(1, 6).view(3, 6, 2)
    x = torch.cat([x] * 6, -1)
    ours, theirs = done.module()(x), Choices()(x)
    assert [len(rows) for rows in ours] == [len(rows) for rows in theirs] == [3, 1, 3, 1]


class Repeated(nn.Module):
    """As often as another axis is long, in every axis and without one; and a fixed number."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        n = x.shape[1]
        along = [x.repeat_interleave(n, axis) for axis in (0, 1, -1)]
        return (*along, torch.arange(n).repeat_interleave(n), x.repeat_interleave(2, 1))


def test_repeated_as_often_as_a_size_says() -> None:
    x = torch.randn(2, 3, 4)
    axes = {"x": {0: torch.export.Dim("b"), 1: torch.export.Dim("n")}}
    program = torch.export.export(
        Repeated(),
        (x,),
        dynamic_shapes=axes,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    decompose_locally(program)
    program = program.run_decompositions({})
    repeats = [n for n in program.graph.nodes if n.target is ATEN.repeat_interleave.self_int]
    assert [node.args[1] for node in repeats] == [2]
    other = torch.randn(3, 5, 4)
    for ours, theirs in zip(program.module()(other), Repeated()(other), strict=True):
        assert torch.equal(ours, theirs)
