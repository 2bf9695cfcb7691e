"""Passes of other packages join the list in their places, and leave it again."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.fuse import fuse, fusion_passes
from crossfuse.export.passes import registry
from crossfuse.export.passes.base import FusionPass, FusionResult, Missed, pass_name
from crossfuse.export.passes.registry import PASSES, PassRegistry, register_pass
from crossfuse.spec.model_spec import ModelSpec


class FirstPass(FusionPass):
    def call(self, model: ir.Model) -> FusionResult:
        return FusionResult(model, False)


class SecondPass(FirstPass):
    pass


class ThirdPass(FirstPass):
    before = "second"


class ReluToMaxPass(FusionPass):
    """``Relu`` → ``Max`` with 0: something that a test can see."""

    captures = True
    after = "unify_products"

    def call(self, model: ir.Model) -> FusionResult:
        found = [node for node in model.graph if node.op_type == "Relu"]
        for node in found:
            zero = ir.node("Constant", [], {"value": ir.tensor([0.0], dtype=ir.DataType.FLOAT)})
            maximum = ir.node("Max", [node.inputs[0], zero.outputs[0]])
            model.graph.insert_before(node, [zero, maximum])
            old, new = node.outputs[0], maximum.outputs[0]
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
        return FusionResult(model, bool(found), (Missed("elsewhere", "a test's"),))


def names(passes: list) -> list[str]:
    return [pass_name(each) for each in passes]


def test_places() -> None:
    held = PassRegistry()
    own = [FirstPass(), SecondPass()]
    held.register(ReluToMaxPass(), after="first")
    held.register(ThirdPass())
    assert names(held.placed(own)) == ["first", "relu_to_max", "third", "second"]
    held.unregister("third")
    held.unregister("third")
    assert names(held.placed(own)) == ["first", "relu_to_max", "second"]
    assert len(own) == 2


def test_several_in_one_place_keep_their_order() -> None:
    for where in ({"after": "first"}, {"before": "second"}):
        held = PassRegistry()
        made = [type(f"{letter}Pass", (FirstPass,), {})() for letter in "XYZ"]
        for each in made:
            held.register(each, **where)
        assert names(held.placed([FirstPass(), SecondPass()])) == ["first", *"xyz", "second"]


def test_a_registered_pass_may_be_a_place() -> None:
    held = PassRegistry()
    held.register(ThirdPass(), after="relu_to_max")  # registered before its place is there
    held.register(ReluToMaxPass(), before="second")
    found = names(held.placed([FirstPass(), SecondPass()]))
    assert found == ["first", "relu_to_max", "third", "second"]


@pytest.mark.parametrize(
    ("given", "where", "match"),
    [
        (object(), {"after": "first"}, "is no pass"),
        (FirstPass, {"after": "first"}, "is no pass"),
        (SecondPass(), {}, "one of the two"),
        (SecondPass(), {"after": "first", "before": "first"}, "one of the two"),
    ],
)
def test_what_is_not_registered(given: object, where: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        PassRegistry().register(given, **where)


def test_names_are_taken_once() -> None:
    held = PassRegistry()
    held.register(SecondPass(), after="first")
    with pytest.raises(InputError, match="registered already: got 'second'"):
        held.register(SecondPass(), after="first")
    with pytest.raises(InputError, match="is there already: got 'second'"):
        held.placed([FirstPass(), SecondPass()])


def test_a_place_that_is_not_there() -> None:
    held = PassRegistry()
    held.register(SecondPass(), after="frist")
    with pytest.raises(InputError, match=r"the pass second has no place.*Did you mean 'first'"):
        held.placed([FirstPass()])


def test_fusing_runs_it_and_then_no_more() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    spec = ModelSpec(Model(), inputs={"x": torch.randn(2, 3)})

    def operators() -> list[str]:
        return [node.op_type for node in fuse(spec).model.graph if node.op_type != "Constant"]

    with register_pass(ReluToMaxPass()) as registration:
        assert registration.name == "relu_to_max"
        place = names(PASSES.placed(fusion_passes(["y"], ["y"])))
        assert place.index("relu_to_max") == place.index("unify_products") + 1
        assert operators() == ["Max"]
    assert operators() == ["Relu"]
    register_pass(ReluToMaxPass(), before="name_sites").remove()
    assert operators() == ["Relu"]


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.ENTRY_POINTS)


def given(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "crossfuse.passes"
        return list(entries)

    monkeypatch.setattr(registry, "entry_points", entry_points)


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, entry("relu", f"{__name__}:ReluToMaxPass"))
    found = names(PassRegistry().placed(fusion_passes([], [])))
    assert found[found.index("unify_products") + 1] == "relu_to_max"
    held = PassRegistry()
    held.register(ReluToMaxPass(), before="name_sites")  # a call goes before an entry point
    found = names(held.placed(fusion_passes([], [])))
    assert found[found.index("name_sites") - 1] == "relu_to_max"
    assert found.count("relu_to_max") == 1


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("no_such_package.fusion:Pass", "ModuleNotFoundError"),
        (f"{__name__}:nothing", "AttributeError"),
        (f"{__name__}:names", "is no pass"),
        (f"{__name__}:FirstPass", "one of the two"),
    ],
)
def test_an_entry_point_that_can_not_be_used(
    value: str, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, entry("broken", value))
    with pytest.raises(InputError, match=match):
        PassRegistry().placed([FirstPass()])


def test_no_package_that_is_installed_here_registers_any() -> None:
    own = fusion_passes(["y"], ["y"])
    assert names(PASSES.placed(own)) == names(own)
