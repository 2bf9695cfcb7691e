"""Branches on values of inputs: the general way is traced, the other one compared."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from crossfuse import InputError, ModelSpec
from crossfuse.export.capture.assumed_branches import Assumptions
from crossfuse.export.capture.trace import capture


class Shortcut(nn.Module):
    """What is hidden counts nothing; without anything hidden it takes the short way."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        assert (mask >= 0).all(), "no mask"
        if not mask.bool().all():
            x = x * mask
        return x.sum(1)


class Always(nn.Module):
    """One way in every sample."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if (x < 1e6).any():
            return (x * mask).sum(1)
        return x.sum(1) * 2


def spec_of(module: nn.Module, padded: bool = True) -> ModelSpec:
    mask = torch.ones(2, 4).long()
    if padded:
        mask[1, 2:] = 0
    inputs = {"x": torch.randn(2, 4), "mask": mask}
    axes = {0: "batch", 1: "length"}
    return ModelSpec(module.eval(), inputs, {"x": axes, "mask": axes})


@pytest.mark.parametrize("padded", [True, False])
def test_both_ways_are_among_what_is_compared(padded: bool) -> None:
    module = Shortcut()
    program, spec = capture(spec_of(module, padded))
    for sample in (spec.inputs, *spec.examples):
        made = program.module()(**sample)[0]
        assert torch.allclose(made, module(**sample), atol=1e-6)
    full = [bool(sample["mask"].bool().all()) for sample in (spec.inputs, *spec.examples)]
    assert True in full


def test_a_way_that_nobody_takes_is_refused() -> None:
    with pytest.raises(InputError) as raised:
        capture(spec_of(Always()))
    text = str(raised.value)
    assert "test_assumed_branches.py, line" in text
    assert "always True" in text
    assert "examples=[...]" in text


def test_the_last_branch_is_turned_once() -> None:
    branches = Assumptions({("a.py", 1): True, ("a.py", 2): False})
    assert branches.open == [("a.py", 1), ("a.py", 2)]
    assert branches.turn_last()
    assert branches.ways == {("a.py", 2): True}
    assert branches.open == []
    assert not branches.turn_last()
    assert not Assumptions().turn_last()


class Placing(nn.Module):
    """Puts features in the place of ids, where there are any."""

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        x = ids.float()
        if (ids == 7).any():
            x = torch.cat([x[:, :2] * 0 + features, x[:, 2:]], 1)
        return x


def test_placeholders_that_every_row_holds_are_no_branch() -> None:
    """A session refuses rows without them, where the spec says so."""

    def made(sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        words = torch.randint(0, 6, (sizes["batch"], sizes["text"] - 2), generator=generator)
        ids = torch.cat([torch.full((sizes["batch"], 2), 7), words], 1)
        return {"ids": ids, "features": torch.randn(sizes["batch"], 2, generator=generator)}

    inputs = made({"batch": 2, "text": 4}, torch.Generator().manual_seed(0))
    axes: dict[str, dict[int, str]] = {"ids": {0: "batch", 1: "text:3"}, "features": {0: "batch"}}
    spec = ModelSpec(Placing().eval(), inputs, axes, sampler=made, settled={"ids": (7,)})
    with pytest.raises(InputError, match="always True"):
        capture(spec)
    program, _ = capture(dataclasses.replace(spec, counts={"ids": {7: 2}}))
    assert torch.equal(program.module()(**inputs)[0], Placing()(**inputs))
    with pytest.raises(InputError, match="always True"):
        capture(dataclasses.replace(spec, counts={"ids": {7: 0}}))


class Counted(nn.Module):
    """Features in the places that ids say, as many as there are places."""

    def __init__(self, strict: bool) -> None:
        super().__init__()
        self._strict = strict

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        places = (ids == 3)[..., None].expand_as(x)
        if x[places].numel() != 2 * x.shape[-1] * x.shape[0]:
            if self._strict:
                raise ValueError("tokens and features do not match")
            return x * 2
        return x.masked_scatter(places, torch.ones(x.shape[0] * 2, x.shape[2]))


def counted(strict: bool) -> ModelSpec:
    ids = torch.tensor([[3, 3, 1, 2], [3, 3, 2, 2]])
    return ModelSpec(Counted(strict), {"x": torch.randn(2, 4, 3), "ids": ids})


def test_a_check_of_sizes_that_ends_in_an_error_is_taken_to_hold() -> None:
    spec = counted(strict=True)
    program, _ = capture(spec)
    assert torch.equal(program.module()(**spec.inputs)[0], spec.module(**spec.inputs))


class Asserted(nn.Module):
    """The numbers of a mask are no larger than there is room."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.sum(-1).max().item() <= x.shape[1]:
            return x * mask
        raise AssertionError


def test_an_assertion_on_values_is_taken_to_hold() -> None:
    spec = spec_of(Asserted())
    program, found = capture(spec)
    assert torch.equal(program.module()(**spec.inputs)[0], spec.module(**spec.inputs))
    assert not found.examples


def test_sizes_that_choose_between_ways_are_refused() -> None:
    with pytest.raises(InputError, match="data-dependent"):
        capture(counted(strict=False))
