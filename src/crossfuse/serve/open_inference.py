"""The Open Inference Protocol, version 2, with its binary tensor extension: bytes to arrays and
back. No server in here.

Source: the KServe V2 inference protocol and Triton's binary data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossfuse.core.tensors import TensorSpec
from crossfuse.errors import Advice, InputError, Said
from crossfuse.serve.limits import Limits

__all__ = ["BINARY_HEADER", "DATATYPES", "Call", "encode_outputs", "parse_call", "tensor_metadata"]

BINARY_HEADER = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of the body are JSON; tensors follow."""

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names of element types, by NumPy's."""

_DTYPES = {name: np.dtype(dtype) for dtype, name in DATATYPES.items()}
_MAX_RANK = 32
_LONGEST = 1 << 40
"""Elements of a tensor, and of an axis."""


@dataclass(frozen=True)
class Call:
    """A parsed request.

    Attributes:
        inputs: arrays by name, read-only views of the body where they came as bytes.
        identity: the client's name for the request, given back.
        context_id: the client's name for the contexts in it, or of earlier ones.
        requested: outputs asked for, and whether each is requested as bytes; None where all are.
        binary: whether outputs are requested as bytes where ``requested`` says nothing.
        text: what is asked in words.
        parameters: all of them, as they came.
    """

    inputs: Mapping[str, NDArray[Any]]
    identity: str | None = None
    context_id: str | None = None
    requested: Mapping[str, bool] | None = None
    binary: bool = False
    text: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def parse_call(
    body: bytes | memoryview, header_length: int | None = None, limits: Limits | None = None
) -> Call:
    """Read a request's body.

    Args:
        body: JSON, followed by tensors' bytes.
        header_length: bytes of JSON, where tensors follow.
        limits: of JSON and names.

    Raises:
        InputError: what the protocol doesn't allow, or what isn't supported here, named by its
            tensor.
    """
    view = memoryview(body)
    length = len(view) if header_length is None else header_length
    if not 0 <= length <= len(view):
        raise InputError(
            "the header's length is outside the body",
            where=BINARY_HEADER,
            got=length,
            expected=f"≤ {len(view)}",
        )
    within = limits or Limits()
    if length > within.max_json_bytes:
        raise InputError(
            "the request's JSON is too long",
            got=f"{length} bytes",
            expected=f"at most {within.max_json_bytes}",
            do=Advice(
                "Send tensors as bytes (the binary tensor extension), or raise {}",
                Said("--max-json-bytes", "Limits(max_json_bytes=...)"),
            ),
        )
    try:
        data = json.loads(bytes(view[:length]), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not valid JSON: {error}") from error
    top = _of(data, dict, "the request")
    parameters = _of(top.get("parameters", {}), dict, "parameters")
    binary = _of(parameters.get("binary_data_output", False), bool, "parameters.binary_data_output")
    inputs: dict[str, NDArray[Any]] = {}
    position = length
    text = _optional(top.get("text_input"), "text_input")
    for tensor in _of(top.get("inputs", None if text is None else []), list, "inputs"):
        name = _of(_of(tensor, dict, "inputs").get("name"), str, "an input's name")
        if name in inputs:
            raise InputError("an input is given twice", where=name)
        inputs[name], position = _read_tensor(tensor, name, view, position)
    if position != len(view):
        raise InputError(
            "the body is longer than its tensors",
            got=f"{len(view)} bytes",
            expected=f"{position} bytes",
        )
    call = Call(
        inputs,
        _optional(top.get("id"), "id"),
        _optional(parameters.get("context_id"), "parameters.context_id"),
        _wanted(top, binary),
        binary,
        text,
        parameters,
    )
    _check_names(call, within)
    return call


def _check_names(call: Call, limits: Limits) -> None:
    for what, name in (
        ("id", call.identity or ""),
        ("parameters.context_id", call.context_id or ""),
        *(("an input's name", name) for name in call.inputs),
        *(("an output's name", name) for name in call.requested or ()),
    ):
        size = len(name.encode("utf-8", "surrogatepass"))
        if size > limits.max_name_bytes:
            raise InputError(
                "a name is too long",
                where=what,
                got=f"{size} bytes",
                expected=f"at most {limits.max_name_bytes}",
            )


def encode_outputs(
    outputs: Mapping[str, NDArray[Any]], call: Call, *, model: str, version: str = "1"
) -> tuple[bytes, int | None]:
    """A response's body, and how many bytes of it are JSON if tensors follow.

    Raises:
        InputError: an output that doesn't exist was asked for.
    """
    requested = dict.fromkeys(outputs, call.binary) if call.requested is None else call.requested
    described, chunks = [], []
    for name, binary in requested.items():
        if name not in outputs:
            raise InputError("an output doesn't exist", got=name, expected=", ".join(outputs))
        array = np.ascontiguousarray(outputs[name])
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            chunks.append(array.tobytes())
        else:
            entry["data"] = _json_numbers(array)
        described.append(entry)
    top: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": described}
    if call.identity is not None:
        top["id"] = call.identity
    header = json.dumps(top, allow_nan=False).encode()
    return b"".join([header, *chunks]), len(header) if chunks else None


def tensor_metadata(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    """Names, element types and shapes as model metadata tells them: -1 for a dynamic size."""
    return [
        {
            "name": s.name,
            "datatype": DATATYPES[s.dtype],
            "shape": [d if isinstance(d, int) else -1 for d in s.shape],
        }
        for s in specs
    ]


def _read_tensor(
    tensor: dict[str, Any], name: str, view: memoryview, position: int
) -> tuple[NDArray[Any], int]:
    datatype = _of(tensor.get("datatype"), str, f"{name}, datatype")
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise InputError(
            "an element type isn't supported",
            where=name,
            got=repr(datatype),
            expected=", ".join(_DTYPES),
        )
    shape = [
        _of(size, int, f"{name}, shape")
        for size in _of(tensor.get("shape"), list, f"{name}, shape")
    ]
    if len(shape) > _MAX_RANK or any(not 0 <= size < _LONGEST for size in shape):
        raise InputError("a shape isn't possible", where=name, got=shape)
    parameters = _of(tensor.get("parameters", {}), dict, f"{name}, parameters")
    if "shared_memory_region" in parameters:
        raise InputError(
            "shared memory isn't supported", where=name, do="Send the tensor in the request"
        )
    elements = math.prod(shape)
    if math.prod(max(1, size) for size in shape) >= _LONGEST:
        raise InputError("a shape isn't possible", where=name, got=shape)
    size = parameters.get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), dtype, shape, elements, name), position
    size = _of(size, int, f"{name}, binary_data_size")
    if size != elements * dtype.itemsize:
        raise InputError(
            "a tensor's bytes don't fit its shape",
            where=name,
            got=f"{size} bytes",
            expected=elements * dtype.itemsize,
        )
    if position + size > len(view):
        raise InputError(
            "the body ends within a tensor",
            where=name,
            got=f"{len(view)} bytes",
            expected=f"{position + size}",
        )
    flat = view[position : position + size]
    array = np.frombuffer(flat, dtype) if size else np.empty(0, dtype)
    if dtype == np.bool_ and size and np.frombuffer(flat, np.uint8).max() > 1:
        raise InputError("a boolean is neither 0 nor 1", where=name)
    return (array if array.flags.aligned else array.copy()).reshape(shape), position + size


def _from_json(
    data: Any, dtype: np.dtype[Any], shape: list[int], elements: int, name: str
) -> NDArray[Any]:
    try:
        given = np.asarray(_of(data, list, f"{name}, data"))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError("a tensor's data are no array", where=name) from error
    if given.size != elements:
        raise InputError(
            "a tensor's data don't fit its shape", where=name, got=given.size, expected=f"{shape}"
        )
    if not elements:
        return np.empty(shape, dtype)
    fits = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}[dtype.kind]
    if given.dtype.kind not in fits:
        raise InputError(
            "a tensor's data don't fit its element type",
            where=name,
            got=given.dtype,
            expected=dtype,
        )
    if dtype.kind in "iu" and (
        given.min() < np.iinfo(dtype).min or given.max() > np.iinfo(dtype).max
    ):
        raise InputError("a number is out of the element type's range", where=name, expected=dtype)
    if dtype.kind == "f" and not np.abs(given).max() <= np.finfo(dtype).max:
        # JSON has no infinity; 1e999 would become one.
        raise InputError("a number is out of the element type's range", where=name, expected=dtype)
    return given.astype(dtype).reshape(shape)


def _wanted(top: dict[str, Any], binary: bool) -> dict[str, bool] | None:
    if "outputs" not in top:
        return None
    requested = {}
    for output in _of(top["outputs"], list, "outputs"):
        name = _of(_of(output, dict, "outputs").get("name"), str, "an output's name")
        parameters = _of(output.get("parameters", {}), dict, f"{name}, parameters")
        if "shared_memory_region" in parameters or parameters.get("classification"):
            raise InputError(
                "an output's shared memory and classification aren't supported", where=name
            )
        requested[name] = _of(parameters.get("binary_data", binary), bool, f"{name}, binary_data")
    return requested or None


def _json_numbers(array: NDArray[Any]) -> list[Any]:
    """Flat numbers; JSON has none for NaN and infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(
            "an output isn't finite, which JSON can't say", do="Ask for binary outputs"
        )
    flat: list[Any] = array.reshape(-1).tolist()
    return flat


def _optional(value: Any, where: str) -> str | None:
    """A text, or none."""
    return None if value is None else str(_of(value, str, where))


def _of(value: Any, kind: type[Any], where: str) -> Any:
    """The value, if it is of the type; JSON's ``true`` is no integer."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = "nothing" if value is None else type(value).__name__
        raise InputError("the request is malformed", where=where, got=got, expected=kind.__name__)
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")
