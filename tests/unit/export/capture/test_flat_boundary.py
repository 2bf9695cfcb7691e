"""A module is traced with tensors by name, and is afterwards what it was."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossfuse import ModelSpec
from crossfuse.export.capture.flat_boundary import flat_boundary, parameter_names


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, batch: dict[str, Any], gain: float) -> dict[str, Any]:
        x = self.inner(batch["x"][0]) * gain
        return {"y": [x, None], "rows": x.shape[0], "batch.m": batch["m"]}


def hooked() -> Scaled:
    """A module whose hooks see, and change, arguments and result as its user knows them."""
    module = Scaled()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        batch = kwargs["batch"]
        return args, {**kwargs, "batch": {**batch, "x": [batch["x"][0] * 2]}}

    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(lambda _, __, out: {**out, "more": out["y"][0] + 1})
    return module


def spec(module: nn.Module) -> ModelSpec:
    inputs = {"batch": {"x": [torch.randn(2, 3)], "m": torch.ones(2)}, "gain": 3.0}
    return ModelSpec(module.eval(), inputs, {"batch.x.0": {0: "n"}, "batch.m": {0: "n"}})


@pytest.mark.parametrize("make", [Scaled, hooked])
def test_flat_inside_and_as_it_was_afterwards(make: Any) -> None:
    own = spec(make())
    module = own.module
    state = dict(vars(module))
    expected = own.outputs_of(own.call(own.inputs))
    with flat_boundary(own) as names:
        assert names == {"batch.x.0": "batch_x_0", "batch.m": "batch_m"}
        size = torch.export.Dim("n", max=9)
        program = torch.export.export(
            module,
            (),
            {names[name]: tensor for name, tensor in own.inputs.items()},
            dynamic_shapes={parameter: {0: size} for parameter in names.values()},
            strict=False,
        )
    assert vars(module) == state
    assert list(expected)[:3] == ["y_0", "rows", "batch.m_out"]
    x, m = torch.randn(5, 3), torch.zeros(5)
    found = program.module()(batch_x_0=x, batch_m=m)
    for got, want in zip(found, own.run({"batch.x.0": x, "batch.m": m}).values(), strict=True):
        assert torch.equal(got, want)
    stacks = [n.meta["nn_module_stack"] for n in program.graph.nodes if n.name == "linear"]
    assert [path for stack in stacks for path, _ in stack.values()] == ["", "inner"]


def test_a_module_that_fails_is_put_back() -> None:
    class Failing(Scaled):
        def forward(self, batch: dict[str, Any], gain: float) -> Tensor:
            raise ValueError(gain)

    own = spec(Failing())
    state = dict(vars(own.module))
    with pytest.raises(ValueError, match="3"), flat_boundary(own):
        own.module(**{"batch_x_0": torch.ones(2, 3), "batch_m": torch.ones(2)})
    assert vars(own.module) == state


def test_hooks_of_the_trace_run_around_the_flat_forward() -> None:
    own = spec(hooked())
    seen: list[Any] = []
    with flat_boundary(own):
        handle = own.module.register_forward_hook(lambda *about: seen.append(about[-1]))
        own.module(batch_x_0=torch.ones(2, 3), batch_m=torch.ones(2))
        handle.remove()
    (flat,) = seen
    assert [tuple(t.shape) for t in flat] == [(2, 3), (), (2,), (2, 3)]


def test_parameters_are_identifiers_each_once() -> None:
    names = parameter_names(dict.fromkeys(["a.b", "a_b", "0", "a-b", "x", "class", "class.x"]))
    assert names["a_b"] == "a_b"
    assert names["x"] == "x"
    assert len({*names.values()}) == len(names)
    assert all(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names.values())
