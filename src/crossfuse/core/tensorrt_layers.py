"""What the engine's own layers say: which kernel computes which ONNX node.

A builder with detailed profiling verbosity prints the finished engine's layers, one per line, each
with its name, its kind, the types of what it is given and the ONNX nodes that it came from;
TensorRT's inspector tells the same of
an engine that was loaded. Only a layer's own name
counts: kernels' names also appear among the inputs of others, and move and transpose helpers carry
an attention's metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

__all__ = ["Layer", "attention_kernels", "read_inspection", "read_layers"]

LISTING = "Layers:"
"""How the builder's message with the layers begins."""

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<body>.*?)Metadata: (?P<metadata>.*)"
)
_INPUTS = re.compile(r"Inputs: \[(.*?)\], (?:Constants|Outputs): \[")
_CONSTANTS = re.compile(r"Constants: \[(.*?)\], Outputs: \[")
_TENSOR = re.compile(
    r"\{ Name: [^{}]*?Dimensions: \[([-\d,]*)\],[^{}]*?(?:Format/)?Datatype: ([^,{}]*)"
)
_TYPES = (
    ("bf16", re.compile(r"bfloat16|bf16", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("int8", re.compile(r"int8", re.IGNORECASE)),
    ("fp16", re.compile(r"half|fp16", re.IGNORECASE)),
    ("fp32", re.compile(r"float|fp32", re.IGNORECASE)),
)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\x1e|$|\s)")
_NUMBERING = re.compile(r"_myl\d+_\d+$")
_FUSED = re.compile(r"(^|_)(gemm_mha|gemv_mha|f?mha)(_|$)")


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        kernel: its name without numbering.
        kind: of layer.
        nodes: names of the ONNX nodes that it came from.
        inputs: types of the tensors that it is given, as precisions are named; others as they are.
        constants: the same of its constants, without numbers.
    """

    kernel: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether the kernel is a whole attention."""
        return _FUSED.search(self.kernel) is not None


def read_layers(messages: Iterable[str]) -> list[Layer]:
    """The layers in a builder's messages, in order of execution."""
    layers = []
    for message in messages:
        if not message.startswith(LISTING):
            continue
        for line in message.splitlines():
            found = _LINE.match(line)
            if found:
                layer = _layer(found["name"], found["kind"], found["metadata"])
                given, constants = (
                    _types(part[1]) if (part := one.search(found["body"])) else ()
                    for one in (_INPUTS, _CONSTANTS)
                )
                layers.append(replace(layer, inputs=given, constants=constants))
    return layers


def read_inspection(text: str) -> dict[str, Layer]:
    """The layers of an engine by name, from its inspector's JSON; nothing but names where it was
    built with less verbosity."""
    found: dict[str, Layer] = {}
    for layer in json.loads(text).get("Layers", ()):
        about = {"Name": layer} if isinstance(layer, str) else layer
        found[about["Name"]] = _layer(
            about["Name"], about.get("LayerType", ""), about.get("Metadata", "")
        )
    return found


def _layer(name: str, kind: str, metadata: str) -> Layer:
    return Layer(_NUMBERING.sub("", name), kind, tuple(_NODE.findall(metadata)))


def _types(tensors: str) -> tuple[str, ...]:
    """Types of the tensors in a listing; those of one element are numbers, and left out."""
    return tuple(
        next((name for name, pattern in _TYPES if pattern.search(text)), text.strip())
        for dims, text in _TENSOR.findall(tensors)
        if dims not in ("", "1")
    )


def attention_kernels(layers: Iterable[Layer], sites: Iterable[str]) -> dict[str, str]:
    """Site → fused attention kernel, for the sites (names of ONNX nodes) that have one."""
    wanted = set(sites)
    kernels: dict[str, str] = {}
    for layer in layers:
        if layer.fused:
            for node in layer.nodes:
                if node in wanted:
                    kernels[node] = layer.kernel
    return kernels
