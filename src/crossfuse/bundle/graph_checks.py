"""A stranger's graph, looked at before an engine opens it: what makes engines crash, read elsewhere
or grow without end.

1. Weights lie in files that the manifest lists, and within them; in graphs of graphs, too.
2. Numbers that kernels divide by are not 0: heads, groups, blocks, strides. ONNX Runtime before
   1.32 ends with the process there.
3. Functions, once their calls are written out, come to no more nodes than a model has; and none
   calls itself.
4. Versions of operator sets are ones that there may be: OpenVINO counts up to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from crossfuse.bundle.manifest import FileEntry
from crossfuse.core.onnx_wire import Function, Graph, Model, Node, WireError, read_model
from crossfuse.errors import BundleError

__all__ = ["require_safe_graph"]

_DO = "Don't use this bundle: it was not written by crossfuse"
_MOST_NODES = 2_000_000
_HEADS = frozenset({"num_heads", "q_num_heads", "kv_num_heads", "head_size", "qkv_hidden_sizes"})
_DIVISORS = frozenset(
    {
        "bits",
        "blocksize",
        "dilations",
        "frame_step",
        "group",
        "groups",
        "hidden_size",
        "kernel_shape",
        "num_groups",
        "num_outputs",
        "strides",
    }
)
_LARGEST_DIVISOR = 1 << 31
_LATEST = 1000
"""More than any operator set's version is for a long time."""


def require_safe_graph(path: Path, files: Mapping[str, FileEntry]) -> None:
    """Check a graph's file.

    Args:
        path: of the graph, verified.
        files: what the bundle's manifest lists.

    Raises:
        BundleError: something that crossfuse never writes, and engines should not see.
    """
    try:
        model = read_model(path.read_bytes())
        _check_external(model, files)
        _check_versions(model)
        _check_numbers(model)
        _check_size(model)
    except WireError as error:
        raise BundleError(f"the graph is not opened: {error}", where=path, do=_DO) from error


def _check_external(model: Model, files: Mapping[str, FileEntry]) -> None:
    for about in model.external:
        for name in about.get("location", [""]):
            entry = files.get(name)
            if entry is None:
                raise WireError(
                    f"its weights are in {name!r}, which the manifest doesn't list; nothing "
                    "outside the bundle is read"
                )
            ends = (_number(about, "offset"), _number(about, "length"))
            if sum(ends) > entry.size:
                raise WireError(f"its weights are beyond the end of {name!r}")


def _number(about: Mapping[str, list[str]], key: str) -> int:
    values = about.get(key, ["0"])
    if not all(value.isdecimal() and value.isascii() and len(value) < 20 for value in values):
        raise WireError(f"the {key} of its weights is {values[0]!r}")
    return max(int(value) for value in values)


def _check_versions(model: Model) -> None:
    for version in (*model.versions, *(v for one in model.functions for v in one.versions)):
        if not 0 <= version <= _LATEST:
            raise WireError(f"{version} is the version of no operator set")


def _check_numbers(model: Model) -> None:
    """Numbers that kernels divide by, also where a function is given them."""
    given: set[str] = set()
    for node in _nodes(model):
        for name, values in node.numbers.items():
            if _is_divisor(node.op_type, name):
                _require_divisors(node.op_type, name, values)
        given |= {
            source for name, source in node.references.items() if _is_divisor(node.op_type, name)
        }
    functions = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if (node.domain, node.op_type) in functions:
            for name in given & set(node.numbers):
                _require_divisors(node.op_type, name, node.numbers[name])
    for function in model.functions:
        for name in given & set(function.defaults):
            _require_divisors(function.name, name, function.defaults[name])


def _is_divisor(op_type: str, name: str) -> bool:
    return name in _DIVISORS or (name in _HEADS and "Attention" in op_type)


def _require_divisors(op_type: str, name: str, values: Iterable[int]) -> None:
    for value in values:
        if not 0 < value < _LARGEST_DIVISOR:
            raise WireError(f"{name} of {op_type!r} is {value}, which engines can't divide by")


def _nodes(model: Model) -> Iterator[Node]:
    waiting = [model.graph.nodes, *(function.nodes for function in model.functions)]
    while waiting:
        for node in waiting.pop():
            yield node
            waiting += [graph.nodes for graph in node.graphs]


def _check_size(model: Model) -> None:
    """How many nodes there are once every call is written out."""
    functions = {(function.domain, function.name): function for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}
    for key in functions:
        _size_of(key, functions, sizes)
    total = _written_out(model.graph, sizes)
    if total > _MOST_NODES:
        raise WireError(f"its functions, written out, come to {total} nodes")


def _size_of(
    start: tuple[str, str],
    functions: Mapping[tuple[str, str], Function],
    sizes: dict[tuple[str, str], int],
) -> None:
    """Sizes of a function and of those that it calls, without recursion."""
    way: list[tuple[str, str]] = [start]
    on_the_way: set[tuple[str, str]] = set()
    while way:
        key = way[-1]
        if key in sizes:
            way.pop()
            continue
        called = {one for one in _calls(functions[key]) if one in functions and one not in sizes}
        if not called:
            sizes[key] = _written_out(Graph(functions[key].nodes), sizes)
            way.pop()
            on_the_way.discard(key)
            continue
        if key in on_the_way:
            raise WireError(f"its function {key[1]!r} calls itself")
        on_the_way.add(key)
        way += called


def _calls(function: Function) -> Iterator[tuple[str, str]]:
    waiting = [function.nodes]
    while waiting:
        for node in waiting.pop():
            yield node.domain, node.op_type
            waiting += [graph.nodes for graph in node.graphs]


def _written_out(graph: Graph, sizes: Mapping[tuple[str, str], int]) -> int:
    total, waiting = 0, [graph.nodes]
    while waiting:
        for node in waiting.pop():
            total += 1 + sizes.get((node.domain, node.op_type), 0)
            waiting += [inner.nodes for inner in node.graphs]
    return total
