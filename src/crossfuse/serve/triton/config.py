"""``config.pbtxt``: what Triton must know of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from crossfuse.core.tensors import TensorSpec
from crossfuse.serve.open_inference import DATATYPES

__all__ = ["STREAM", "TEXT", "TEXT_OUT", "ModelConfig", "TextSpec", "WarmUp"]

TEXT, TEXT_OUT = "text_input", "text_output"
"""Of a model that generates: the input that stands for ids in words, and the text of its tokens."""

STREAM = "stream"
"""The parameter by which its tokens come as they are generated, and not all in one response."""


class TextSpec(NamedTuple):
    """A text as an input or an output."""

    name: str
    shape: tuple[int | str, ...] = (1,)
    dtype: str = "text"


_TYPES = {**DATATYPES, "text": "STRING"}


@dataclass(frozen=True)
class WarmUp:
    """One request that Triton makes before a model is ready.

    ``files`` lie in the model's ``warmup`` folder, by input.
    """

    files: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository.

    Args:
        name: of the model's folder.
        backend: ``python``, or a platform such as ``onnxruntime_onnx``.
        inputs: with their first axis, which is left out where ``max_batch`` says that it is the
            batch.
        outputs: likewise.
        max_batch: largest batch that Triton may make of several requests; 0 for none.
        optional: inputs that a request may leave out.
        instances: copies that run at once.
        gpu: whether they run on a GPU.
        queue_ms: how long a request may wait for others.
        parameters: for the backend, as text.
        warm_up: a request to make at start.
        file: the model's file name, where the backend doesn't imply it.
        decoupled: a request may have any number of responses.
    """

    name: str
    backend: str
    inputs: Sequence[TensorSpec | TextSpec]
    outputs: Sequence[TensorSpec | TextSpec]
    max_batch: int = 0
    optional: Sequence[str] = ()
    instances: int = 1
    gpu: bool = False
    queue_ms: float = 0.0
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_up: WarmUp | None = None
    file: str | None = None
    decoupled: bool = False

    def text(self) -> str:
        """In protobuf's text format."""
        lines = [f"name: {_quoted(self.name)}"]
        lines.append(
            f"{'backend' if self.backend == 'python' else 'platform'}: {_quoted(self.backend)}"
        )
        if self.file is not None:
            lines.append(f"default_model_filename: {_quoted(self.file)}")
        lines.append(f"max_batch_size: {self.max_batch}")
        if self.decoupled:
            lines.append("model_transaction_policy { decoupled: true }")
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            lines += [f"{kind} [", *_listed([self._tensor(spec) for spec in specs]), "]"]
        lines += [
            "instance_group [",
            f"  {{ count: {self.instances} kind: {'KIND_GPU' if self.gpu else 'KIND_CPU'} }}",
            "]",
        ]
        if self.max_batch:
            lines.append(
                f"dynamic_batching {{ max_queue_delay_microseconds: {round(self.queue_ms * 1000)} "
                f"}}"
            )
        for key, value in self.parameters.items():
            lines.append(
                f"parameters {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}"
            )
        if self.warm_up is not None:
            lines += self._warm_up(self.warm_up)
        return "\n".join(lines) + "\n"

    def _tensor(self, spec: TensorSpec | TextSpec) -> str:
        shape = spec.shape[1:] if self.max_batch else spec.shape
        dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in shape)
        optional = " optional: true" if spec.name in self.optional else ""
        # A tensor of the batch alone still needs a dimension in the configuration; reshape takes it
        # away again.
        reshape = "" if shape else " reshape: { shape: [] }"
        kind = f"TYPE_{_TYPES[spec.dtype]}"
        return (
            f"{{ name: {_quoted(spec.name)} data_type: {kind} dims: [ {dims or '1'} "
            f"]{reshape}{optional} }}"
        )

    def _warm_up(self, warm_up: WarmUp) -> list[str]:
        lines = [
            "model_warmup [",
            '  { name: "reference"',
            f"    batch_size: {1 if self.max_batch else 0}",
        ]
        for spec in self.inputs:
            shape = warm_up.shapes[spec.name][1:] if self.max_batch else warm_up.shapes[spec.name]
            dims = ", ".join(map(str, shape))
            value = f"data_type: TYPE_{_TYPES[spec.dtype]} dims: [ {dims} ]"
            file = _quoted(warm_up.files[spec.name])
            lines.append(
                f"    inputs {{ key: {_quoted(spec.name)} value: {{ {value} input_data_file: "
                f"{file} }} }}"
            )
        return [*lines, "  }", "]"]


def _listed(entries: Sequence[str]) -> list[str]:
    return [f"  {entry}{',' if i + 1 < len(entries) else ''}" for i, entry in enumerate(entries)]


def _quoted(text: str) -> str:
    return json.dumps(text)
