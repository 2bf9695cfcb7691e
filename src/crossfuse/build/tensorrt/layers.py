"""What the engine's own layers say: which kernel computes which ONNX node.

A builder with detailed profiling verbosity prints the finished engine's layers, one per line, each with its name, its kind and
the ONNX nodes that it came from. Only a layer's own name counts: kernels' names also appear among the inputs of others, and
move and transpose helpers carry an attention's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Layer", "attention_kernels", "read_layers"]

LISTING = "Layers:"
"""How the builder's message with the layers begins."""

_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), .*?Metadata: (?P<metadata>.*)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\x1e|$|\s)")
_NUMBERING = re.compile(r"_myl\d+_\d+$")
_FUSED = re.compile(r"(^|_)(gemm_mha|gemv_mha|f?mha)(_|$)")


@dataclass(frozen=True)
class Layer:
    """One layer: its kernel's name without numbering, its kind, and the ONNX nodes that it came from."""

    kernel: str
    kind: str
    nodes: tuple[str, ...]


def read_layers(messages: Iterable[str]) -> list[Layer]:
    """The layers in a builder's messages, in order of execution."""
    layers = []
    for message in messages:
        if not message.startswith(LISTING):
            continue
        for line in message.splitlines():
            found = _LINE.match(line)
            if found:
                kernel = _NUMBERING.sub("", found["name"])
                layers.append(Layer(kernel, found["kind"], tuple(_NODE.findall(found["metadata"]))))
    return layers


def attention_kernels(layers: Iterable[Layer], sites: Iterable[str]) -> dict[str, str]:
    """Site → fused attention kernel, for the sites (names of ONNX nodes) that have one."""
    wanted = set(sites)
    kernels: dict[str, str] = {}
    for layer in layers:
        if _FUSED.search(layer.kernel):
            for node in layer.nodes:
                if node in wanted:
                    kernels[node] = layer.kernel
    return kernels
