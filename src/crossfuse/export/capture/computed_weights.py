"""What is made of weights alone by an operator that has no ONNX translation, computed once.

A weight that is parametrized (``orthogonal`` by a matrix's exponential or its Householder product),
or computed in forward (``torch.linalg.inv(self.mixing)``), is the same number in every run. Where
the exporter can translate the operators that make it, they stay in the graph, and engines fold
them. Where it can't, the value is computed here and becomes a constant.

It must not fire on what a random operator gives, nor on what a dynamic size or an input takes part
in.
"""

from __future__ import annotations

import importlib
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

__all__ = ["compute_weights", "has_translation"]

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def has_translation(opset: int) -> Callable[[Any], bool]:
    """Whether PyTorch's exporter knows an operator; that is taken for granted where this version
    doesn't tell."""
    try:
        module: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
        found: Callable[[Any], bool] = module.ONNXRegistry.from_torchlib(opset).is_registered
    except (ImportError, AttributeError, TypeError):
        return lambda _: True
    return found


def compute_weights(program: ExportedProgram, translated: Callable[[Any], bool]) -> None:
    """Compute what has no translation and needs weights alone, in place.

    Args:
        program: decomposed.
        translated: of an operator.
    """
    weights = _Weights(program)
    made: list[fx.Node] = []
    for node in list(program.graph.nodes):
        if not weights.make(node) or node.target is operator.getitem or translated(node.target):
            continue
        made.append(node)
        several = [use for use in node.users if use.target is operator.getitem]
        for result in several or [node]:
            if result.users and isinstance(result.meta.get("val"), Tensor):
                result.replace_all_uses_with(weights.constant(result))
    if not made:
        return
    program.graph.eliminate_dead_code()
    # What only checks is no dead code to PyTorch: it did its work when the value was computed.
    for node in reversed([node for node in made if node in program.graph.nodes]):
        if not node.users:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()


class _Weights:
    """The weights of a program, and what is made of them alone."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._values: dict[fx.Node, Any] = {}
        self._made: set[fx.Node] = set()
        held = {**program.state_dict, **program.constants}
        mutated = set(program.graph_signature.buffers_to_mutate.values())
        places = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
        for spec in program.graph_signature.input_specs:
            known = held.get(str(spec.target))
            if spec.kind in _WEIGHTS and isinstance(known, Tensor) and spec.target not in mutated:
                self._values[places[spec.arg.name]] = known.detach()

    def make(self, node: fx.Node) -> bool:
        """Whether this is made of weights and numbers alone; asked of the nodes in order."""
        if node.op != "call_function":
            return False
        alone = all(n in self._values or n in self._made for n in node.all_input_nodes)
        found = alone and _is_a_function(node.target)
        if found:
            self._made.add(node)
        return found

    def constant(self, node: fx.Node) -> fx.Node:
        """The node's value as a constant of the program."""
        program = self._program
        with torch.no_grad(), unset_fake_temporarily():
            value: Tensor = self._of(node).contiguous()
        specs = program.graph_signature.input_specs
        users = (i for i, spec in enumerate(specs) if spec.kind == InputKind.USER_INPUT)
        place = next(users, len(specs))
        nodes = list(program.graph.nodes)
        with program.graph.inserting_before(nodes[place]):
            made: fx.Node = program.graph.placeholder(f"computed_{node.name}")
        made.target = made.name
        made.meta["val"] = _like(node.meta["val"], value)
        program.constants[made.name] = value
        argument = TensorArgument(name=made.name)
        specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, argument, made.name))
        self._values[made] = value
        return made

    def _of(self, node: fx.Node) -> Any:
        if node not in self._values:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._of)
            target: Any = node.target
            self._values[node] = target(*args, **kwargs)
        return self._values[node]


def _is_a_function(target: Any) -> bool:
    """What it gives is determined by its arguments."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, OpOverload)
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
        and "empty" not in target._schema.name
    )


def _like(fake: Any, value: Tensor) -> Any:
    """The value, as the program's own fake tensors are."""
    if isinstance(fake, FakeTensor):
        return fake.fake_mode.from_tensor(value, static_shapes=True)
    return value
