"""An ONNX file as a source: its graph to fuse, and the file itself, executed, as the model to compare with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass
from onnxscript.version_converter import convert_version
from torch import Tensor, nn

from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.capture import quiet_exporter
from crossfuse.export.translate import IR_VERSION, OPSET
from crossfuse.foreign import blaming
from crossfuse.model_spec import ModelSpec
from crossfuse.onnx_runtime import onnxruntime
from crossfuse.specs import Dim

__all__ = ["OnnxModule", "load_onnx", "onnx_spec"]

NEWEST_OPSET = 23
_SIZES = (2, 7, 5, 9, 11, 6, 8, 10, 12, 13)


class OnnxModule(nn.Module):
    """An ONNX file that is called like a module; ONNX Runtime executes it as it is, without optimisation.

    In float64 (`double`), and where ONNX Runtime refuses the file, ONNX's reference implementation executes it instead.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session: Any = None
        self._reference: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        return OnnxModule(self.path)

    def double(self) -> OnnxModule:
        """The same graph with float64 in place of float32."""
        self._reference = ReferenceEvaluator(_in_double(self.path))
        return self

    def __call__(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """As `forward`; PyTorch's own call takes no input of the name ``self``, which files may have."""
        return self.forward(**inputs)

    def forward(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name.

        Raises:
            RuntimeError: the graph can't be executed.
        """
        feeds = {name: tensor.detach().numpy() for name, tensor in inputs.items()}
        if self._reference is None:
            names = [output.name for output in self.session.get_outputs()]
            try:
                results = self.session.run(names, feeds)
            except Exception:  # noqa: BLE001 -- ONNX Runtime's own types share no base but this; its Attention takes few masks
                self._reference = ReferenceEvaluator(onnx.load(self.path))
            else:
                return {name: torch.from_numpy(array) for name, array in zip(names, results, strict=True)}
        try:
            results = self._reference.run(None, dict(feeds))
        except Exception as error:  # whatever an operator of the reference implementation raises
            raise RuntimeError(str(error)) from error
        return {n: torch.from_numpy(np.asarray(r)) for n, r in zip(self._reference.output_names, results, strict=True)}

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, opened when first used."""
        if self._session is None:
            ort = onnxruntime()
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            try:
                self._session = ort.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's own types share no base but this
                raise InputError(f"the ONNX file can't be executed: {_short(error)}", where=self.path) from error
        return self._session


def load_onnx(path: Path) -> ir.Model:
    """Read a graph, its functions inlined, at an opset that the passes know, with the shapes that can be inferred.

    Raises:
        InputError: not an ONNX file, weights outside its folder, or an opset that can't be read.
    """
    model = _read(path)
    with quiet_exporter(), blaming("the ONNX file can't be read by ONNX's own tools:", where=path):
        return _prepared(model, path)


def _prepared(model: ir.Model, path: Path) -> ir.Model:
    InlinePass()(model)
    opset = model.graph.opset_imports.get("", model.opset_imports.get("", 0))
    if opset > NEWEST_OPSET or opset < 1:
        raise InputError("the opset can't be read", where=path, got=opset, expected=f"1 to {NEWEST_OPSET}")
    if opset < OPSET:
        convert_version(model, OPSET, fallback=True)
        if model.opset_imports.get("") != OPSET:
            raise InputError("the graph can't be converted", where=path, got=f"opset {opset}", expected=f"opset {OPSET}",
                             do="Export it again at a newer opset")  # fmt: skip
    LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    ShapeInferencePass(data_prop=True)(model)
    model.ir_version = max(model.ir_version, IR_VERSION)
    return model


def onnx_spec(
    source: str, example: Mapping[str, NDArray[Any]] | None = None, sizes: Mapping[str, int] | None = None
) -> ModelSpec:
    """The spec of an ONNX file: inputs and dynamic dimensions as it declares them.

    Args:
        source: the file.
        example: inputs by name; where omitted, seeded ones are made: ids within the table that they look up, masks padded.
        sizes: of named dimensions in made inputs.

    Raises:
        InputError: the file or the example can't be used.
    """
    path = Path(source)
    model = load_onnx(path)
    chosen: dict[str, int] = dict(sizes or {})
    dynamic: dict[str, dict[int, str | Dim]] = {}
    inputs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for value in model.graph.inputs:
        name = value.name or ""
        shape = []
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                shape.append(size)
                continue
            dim = _plain_name(str(size.value) if size.value is not None else "", name, axis)
            if example is not None and name in example:
                if example[name].ndim != len(value.shape or ()):
                    raise InputError(
                        "the example has another rank", where=name, got=list(example[name].shape), expected=value.shape
                    )
                chosen.setdefault(dim, int(example[name].shape[axis]))
            shape.append(chosen.setdefault(dim, _SIZES[len(chosen) % len(_SIZES)]))
            dynamic.setdefault(name, {})[axis] = dim
        inputs[name] = _given(example, name) if example is not None else _made(value, shape, generator)
    rows = {value.name or "": _table_rows(value) for value in model.graph.inputs}
    vocabulary = {name: count for name, count in rows.items() if count is not None}
    return ModelSpec(OnnxModule(path).eval(), inputs, dynamic, name=path.stem, vocabulary=vocabulary)


def _given(example: Mapping[str, NDArray[Any]], name: str) -> Tensor:
    if name not in example:
        raise InputError("the example lacks an input", got=", ".join(example), expected=name)
    with blaming("the example can't be used:", where=name):
        return torch.from_numpy(example[name])


def _made(value: ir.Value, shape: list[int], generator: torch.Generator) -> Tensor:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        raise InputError(
            "an input's type can't be made up",
            where=value.name,
            got=value.dtype,
            do=Advice("Give {}", Said("--example FILE.npz", "example='FILE.npz'")),
        )
    dtype = torch.from_numpy(np.zeros((), value.dtype.numpy())).dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    rows = _table_rows(value)
    if rows is not None and dtype != torch.bool:
        return torch.randint(rows, shape, generator=generator).to(dtype)
    length = shape[-1] if shape else 1
    kept = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
    kept.view(-1)[0] = length
    return (torch.arange(length) < kept).reshape(shape).to(dtype)


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the table that ids look up."""
    for node, index in value.uses():
        if node.op_type == "Gather" and index == 1 and node.inputs[0] is not None and node.inputs[0].shape is not None:
            size = node.inputs[0].shape[node.attributes.get_int("axis", 0) or 0]
            return size if isinstance(size, int) else None
        if node.op_type in ("Cast", "Reshape", "Identity", "Unsqueeze", "Squeeze") and index == 0:
            rows = _table_rows(node.outputs[0])
            if rows is not None:
                return rows
    return None


def _plain_name(dim: str, name: str, axis: int) -> str:
    return dim if dim.isidentifier() else f"{name}_{axis}".replace(".", "_")


def _read(path: Path) -> ir.Model:
    if not path.is_file():
        raise InputError("the ONNX file doesn't exist", where=path)
    try:
        model = ir.load(path)
        onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's and onnx's errors share no base but this
        raise InputError(f"the ONNX file can't be read: {_short(error)}", where=path) from error
    folder = path.parent.resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).resolve().is_relative_to(folder):
            raise InputError("the graph's weights lie outside its folder", where=path, got=tensor.location)
    return model


def _in_double(path: Path) -> onnx.ModelProto:
    """The graph with every float32 turned into float64."""
    model = _read(path)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = tensor = ir.tensor(tensor.numpy(), name=value.name)
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float64), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in graph.all_nodes():
            for name, attribute in list(node.attributes.items()):
                node.attributes[name] = _attribute_in_double(attribute)
            for value in node.outputs:
                value.type = None
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    return copy.deepcopy(ir.to_proto(model))


def _attribute_in_double(attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
        return ir.AttrTensor(attribute.name, ir.tensor(attribute.as_tensor().numpy().astype(np.float64)))
    is_dtype = attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT
    if is_dtype and attribute.as_int() == ir.DataType.FLOAT:
        return ir.AttrInt64(attribute.name, int(ir.DataType.DOUBLE))
    return attribute


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
