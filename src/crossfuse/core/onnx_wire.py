"""What an ONNX file says, read without ONNX: nodes with their whole numbers, external data and
functions, at any depth.

A runtime of NumPy and one engine has no library for it. Only lengths, names and whole numbers are
read; weights are passed over. Every occurrence of a field counts, although a parser would take the
last one: what is not said twice by an exporter may be said twice by somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Function", "Graph", "Model", "Node", "WireError", "read_model"]

_DEEPEST = 24
"""Graphs within graphs."""
_LONGEST_VARINT = 10


class WireError(ValueError):
    """Not an ONNX file, or one that no exporter writes."""


@dataclass
class Node:
    """One node.

    Attributes:
        op_type: its operator.
        domain: of the operator.
        numbers: attribute → whole numbers that it holds, one or a list.
        references: attribute → the function's attribute that it takes its value from.
        graphs: within it.
    """

    op_type: str = ""
    domain: str = ""
    numbers: dict[str, list[int]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)


@dataclass
class Graph:
    """Nodes, and where their tensors' data are."""

    nodes: list[Node] = field(default_factory=list)


@dataclass
class Function:
    """A function: its name and domain, its nodes, the versions of their operators, its attributes'
    defaults."""

    name: str = ""
    domain: str = ""
    nodes: list[Node] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    defaults: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class Model:
    """A file.

    Attributes:
        graph: the main one.
        functions: of the file.
        external: every entry of every tensor's external data, at any depth: file, and the other
            entries.
        versions: of the operator sets.
    """

    graph: Graph = field(default_factory=Graph)
    functions: list[Function] = field(default_factory=list)
    external: list[dict[str, list[str]]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)


def read_model(data: bytes) -> Model:
    """Read an ONNX file's bytes.

    Raises:
        WireError: it is none, or its graphs are nested too deeply.
    """
    model = Model()
    for number, value in _fields(memoryview(data)):
        if number == 7:
            _graph(_message(value), model.graph, model, 0)
        elif number == 8:
            model.versions += _versions(_message(value))
        elif number == 25:
            model.functions.append(_function(_message(value), model))
    return model


def _graph(data: memoryview, graph: Graph, model: Model, depth: int) -> None:
    if depth > _DEEPEST:
        raise WireError(f"graphs within graphs, more than {_DEEPEST} deep")
    for number, value in _fields(data):
        if number == 1:
            graph.nodes.append(_node(_message(value), model, depth))
        elif number == 5:
            _tensor(_message(value), model)
        elif number == 15:
            _sparse(_message(value), model)


def _function(data: memoryview, model: Model) -> Function:
    function = Function()
    for number, value in _fields(data):
        if number == 1:
            function.name = _text(value)
        elif number == 10:
            function.domain = _text(value)
        elif number == 7:
            function.nodes.append(_node(_message(value), model, 0))
        elif number == 9:
            function.versions += _versions(_message(value))
        elif number == 11:
            holder = Node()
            _attribute(_message(value), holder, model, 0)
            function.defaults |= holder.numbers
    return function


def _versions(data: memoryview) -> list[int]:
    """Of an operator set."""
    return [
        _signed(value) for number, value in _fields(data) if number == 2 and isinstance(value, int)
    ]


def _node(data: memoryview, model: Model, depth: int) -> Node:
    node = Node()
    for number, value in _fields(data):
        if number == 4:
            node.op_type = _text(value)
        elif number == 7:
            node.domain = _text(value)
        elif number == 5:
            _attribute(_message(value), node, model, depth)
    return node


def _attribute(data: memoryview, node: Node, model: Model, depth: int) -> None:
    names: list[str] = []
    references: list[str] = []
    numbers: list[int] = []
    for number, value in _fields(data):
        if number == 1:
            names.append(_text(value))
        elif number in (3, 8):
            numbers += [value] if isinstance(value, int) else _packed(value)
        elif number == 21:
            references.append(_text(value))
        elif number in (5, 10):
            _tensor(_message(value), model)
        elif number in (6, 11):
            graph = Graph()
            _graph(_message(value), graph, model, depth + 1)
            node.graphs.append(graph)
        elif number in (22, 23):
            _sparse(_message(value), model)
    for name in names or [""]:
        node.numbers.setdefault(name, []).extend(_signed(one) for one in numbers)
        if any(references):
            node.references[name] = next(one for one in references if one)


def _sparse(data: memoryview, model: Model) -> None:
    for number, value in _fields(data):
        if number in (1, 2):
            _tensor(_message(value), model)


def _tensor(data: memoryview, model: Model) -> None:
    about: dict[str, list[str]] = {}
    external = False
    for number, value in _fields(data):
        if number == 13:
            keys: list[str] = []
            values: list[str] = []
            for part, text in _fields(_message(value)):
                (keys if part == 1 else values).append(_text(text))
            for key in keys:
                about.setdefault(key, []).extend(values)
        elif number == 14:
            external = external or value == 1
    if about or external:
        model.external.append(about)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field: a whole number, or the bytes of a text or message."""
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        if key < 0x80:
            at += 1
        else:
            key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
            if length > end - at:
                raise WireError("a field is longer than the file")
            yield key >> 3, data[at : at + length]
            at += length
        elif kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > end:
                raise WireError("the file is cut")
        else:
            raise WireError("a field of no known kind")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    for place in range(at, min(at + _LONGEST_VARINT, len(data))):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place + 1
        shift += 7
    raise WireError("a number without an end")


def _packed(data: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        numbers.append(value)
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise WireError("a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode("utf-8", errors="replace")
