"""An ONNX file as a source: its graph to fuse, and the file itself, executed, as the model to compare with."""

from __future__ import annotations

import copy
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, RemoveUnusedNodesPass, ShapeInferencePass
from onnx_ir.tape import Tape
from torch import Tensor, nn

from crossfuse.errors import InputError
from crossfuse.export.microsoft.expand import (
    ATTENTION_OPSET,
    UNDEFINED_ROWS,
    expand_microsoft,
    has_microsoft,
    needs_attention_opset,
    own_strays,
)
from crossfuse.export.passes.computed_shapes import compute_shapes
from crossfuse.export.passes.module_names import note_modules
from crossfuse.export.passes.opset import NEWEST_OPSET, lower_opset, opset_of, raise_opset
from crossfuse.export.passes.retype import DOUBLE, SINGLE, has_types, retype
from crossfuse.export.translate import IR_VERSION, OPSET
from crossfuse.model_spec import ModelSpec
from crossfuse.specs import Dim

__all__ = ["OnnxModule", "load_onnx", "onnx_spec"]

NEWEST_FUSED = 23
"""The newest opset of a graph whose attentions are fused; newer ones are lowered to it."""

NEWEST_IR = 13
"""The newest IR version that ONNX Runtime reads."""

_AGREEMENT = 1e-3
_SIZES = (2, 7, 5, 9, 11, 6, 8, 10, 12, 13)
_TRIALS = 60
_PARTED = 7


class OnnxModule(nn.Module):
    """An ONNX file that is called like a module; ONNX Runtime executes it as it is, without optimisation.

    Files of half precision are executed with the same weights in float32. In float64 (`double`), and where ONNX Runtime refuses
    the file, ONNX's reference implementation executes it instead; operators of ONNX Runtime's own are then written out in
    ONNX's. Where the written-out graph does not agree with what ONNX Runtime makes of the file, it is not used.
    (`GroupQueryAttention` is always written out.)
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._session: Any = None
        self._reference: Any = None
        self._double = False
        self._to_confirm = False

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        return OnnxModule(self.path)

    def double(self) -> OnnxModule:
        """The same graph with float64 in place of every other floating type."""
        self._double = True
        return self

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name; inputs may be of any floating type.

        Raises:
            RuntimeError: the graph can't be executed.
        """
        floating = np.float64 if self._double else np.float32
        feeds = {n: (t.double().numpy().astype(floating) if t.is_floating_point() else t.numpy()) for n, t in inputs.items()}
        if not self._double and self._reference is None and not self._undefined_rows:
            try:
                return self._executed(feeds)
            except Exception:  # noqa: BLE001 -- ONNX Runtime's own types share no base but this; its Attention takes few masks
                pass
        try:
            if self._reference is None:
                self._reference, written_out = _evaluator(self.path, DOUBLE if self._double else SINGLE)
                self._to_confirm = self._double and written_out and not self._undefined_rows
            results = self._reference.run(None, dict(feeds))
        except Exception as error:  # whatever an operator of the reference implementation raises
            raise RuntimeError(str(error)) from error
        found = {n: torch.from_numpy(np.asarray(r)) for n, r in zip(self._reference.output_names, results, strict=True)}
        if self._to_confirm:
            self._confirm(feeds, found)
        return found

    @property
    def executable(self) -> bool:
        """Whether ONNX Runtime opens the file."""
        try:
            return self.session is not None
        except InputError:
            return False

    def accepts(self, inputs: Mapping[str, Tensor]) -> bool:
        """Whether ONNX Runtime executes the file with these inputs."""
        feeds = {n: (t.float() if t.is_floating_point() else t).numpy() for n, t in inputs.items()}
        try:
            self._executed(feeds)
        except Exception:  # noqa: BLE001 -- ONNX Runtime's own types share no base but this
            return False
        return True

    @cached_property
    def _undefined_rows(self) -> bool:
        """ONNX Runtime leaves rows behind the end of a sample to chance: what they hold can't be compared."""
        return any(node.op_type in UNDEFINED_ROWS for node in _read(self.path).graph.all_nodes())

    def _executed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        results = self.session.run(names, dict(feeds))
        return {name: torch.from_numpy(array) for name, array in zip(names, results, strict=True)}

    def _confirm(self, feeds: Mapping[str, NDArray[Any]], found: Mapping[str, Tensor]) -> None:
        """Compare with the file as ONNX Runtime executes it, where it does."""
        single = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in feeds.items()}
        try:
            executed = self._executed(single)
        except Exception:  # noqa: BLE001 -- ONNX Runtime's own types share no base but this; some forms only run on GPUs
            return
        finally:
            self._to_confirm = False
        for name, truth in executed.items():
            if truth.is_floating_point() and truth.numel():
                # On average: where there are quantizers, a rounding may go the other way.
                error = float((found[name].double() - truth.double()).abs().mean())
                if not error <= _AGREEMENT * max(1.0, float(truth.double().abs().max())):
                    raise RuntimeError(f"{name}: the written-out graph differs by {error:.3g} from the file")

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, opened when first used."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            try:
                with _in_single(self.path) as path:
                    self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime's own types share no base but this
                raise InputError(f"the ONNX file can't be executed: {_short(error)}", where=self.path) from error
        return self._session


def load_onnx(path: Path, axes: Mapping[str, Mapping[int, str]] | None = None) -> ir.Model:
    """Read a graph in float32, its functions inlined, in operators and at an opset that the passes know, with inferred shapes.

    Args:
        path: the file.
        axes: names of dynamic dimensions by input and axis; where omitted, those that the file gives, or made up ones.

    Raises:
        InputError: not an ONNX file, weights outside its folder, or an opset or operators that can't be taken in.
    """
    model = _read(path)
    InlinePass()(model)
    opset = opset_of(model)
    if opset > NEWEST_OPSET or opset < 1:
        raise InputError("the opset can't be read", where=path, got=opset, expected=f"1 to {NEWEST_OPSET}",
                         do=f"Export it at opset {NEWEST_FUSED} or an older one")  # fmt: skip
    if has_types(model, SINGLE):
        _widen(model)
    _name_inputs(model, axes or {})
    try:
        note_modules(model)
        microsoft = has_microsoft(model)
        raise_opset(model, ATTENTION_OPSET if microsoft and needs_attention_opset(model) else OPSET)
        if opset > NEWEST_FUSED:
            ShapeInferencePass(data_prop=True)(model)
            lower_opset(model, NEWEST_FUSED)
        if microsoft:
            expand_microsoft(model)
    except InputError as error:
        raise InputError(error.what, where=path, got=error.got, expected=error.expected, do=error.do) from error
    LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    compute_shapes(model)
    RemoveUnusedNodesPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=False)(model)
    note_modules(model)
    model.ir_version = min(max(model.ir_version, IR_VERSION), NEWEST_IR)
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
    module = OnnxModule(path).eval()
    names = {
        v.name or "": {i: str(d.value) for i, d in enumerate(v.shape or ()) if not isinstance(d, int)}
        for v in model.graph.inputs
    }
    first: ModelSpec | None = None
    for joined in itertools.islice(_joined(names), _TRIALS):
        dynamic: dict[str, dict[int, str | Dim]] = {
            n: {i: joined[d] for i, d in axes.items()} for n, axes in names.items() if axes
        }
        chosen: dict[str, int] = dict(sizes or {})
        inputs: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for value in model.graph.inputs:
            name = value.name or ""
            shape = []
            for axis, size in enumerate(value.shape or ()):
                if isinstance(size, int):
                    shape.append(size)
                    continue
                dim = joined[str(size.value)]
                if example is not None and name in example:
                    chosen.setdefault(dim, int(example[name].shape[axis]))
                shape.append(chosen.setdefault(dim, _SIZES[len(chosen) % len(_SIZES)]))
            inputs[name] = _given(example, name) if example is not None else _made(value, shape, generator)
        try:
            spec = ModelSpec(module, inputs, dynamic, name=path.stem)
        except InputError:
            if first is None:
                raise
            continue  # The example tells dimensions apart that would be joined.
        if first is None:
            first = spec
            if len(spec.dims) < 2 or not module.executable:
                return spec
        apart = {dim: _SIZES[i % len(_SIZES)] for i, dim in enumerate(spec.dims)}
        if module.accepts(spec.sample(apart, 0) if example is not None else inputs):
            return spec
    assert first is not None
    return first


def _joined(names: Mapping[str, Mapping[int, str]]) -> Iterator[dict[str, str]]:
    """Which dimensions may be one: first none, then all first axes, then more and more of them.

    Files name dimensions that must be equal differently, or not at all; only a run tells.
    """
    every = list(dict.fromkeys(dim for axes in names.values() for dim in axes.values()))
    yield {dim: dim for dim in every}
    firsts = list(dict.fromkeys(axes[0] for axes in names.values() if 0 in axes))
    others = [dim for dim in every if dim not in firsts]
    for batch, rest in ((firsts, others), ([], every)):
        for blocks in sorted(_partitions(rest[:_PARTED]), key=len, reverse=True):
            found = {dim: dim for dim in every} | dict.fromkeys(batch, batch[0] if batch else "")
            for block in blocks:
                found |= dict.fromkeys(block, block[0])
            yield found


def _partitions(items: list[str]) -> Iterator[list[list[str]]]:
    """All ways to part a list into blocks."""
    if not items:
        yield []
        return
    first, *rest = items
    for blocks in _partitions(rest):
        yield [[first], *blocks]
        for i, block in enumerate(blocks):
            yield [*blocks[:i], [first, *block], *blocks[i + 1 :]]


def _given(example: Mapping[str, NDArray[Any]], name: str) -> Tensor:
    if name not in example:
        raise InputError("the example lacks an input", got=", ".join(example), expected=name)
    return torch.from_numpy(example[name])


def _made(value: ir.Value, shape: list[int], generator: torch.Generator) -> Tensor:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        raise InputError("an input's type can't be made up", where=value.name, got=value.dtype, do="Give --example FILE.npz")
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


def _name_inputs(model: ir.Model, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give every dynamic dimension of an input a plain name."""
    renamed: dict[str, str] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        shape: list[int | str] = []
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                shape.append(size)
                continue
            given = str(size.value) if size.value is not None else ""
            plain = given if given.isidentifier() else re.sub(r"\W", "_", f"{name}_{axis}")
            shape.append(axes.get(name, {}).get(axis, plain))
            if given and given != shape[-1]:
                renamed[given] = str(shape[-1])
        if value.shape is not None:
            value.shape = ir.Shape(shape)
    if not renamed:
        return
    for other in [*model.graph.outputs, *(v for node in model.graph.all_nodes() for v in node.outputs)]:
        if other.shape is not None and any(not isinstance(d, int) and str(d.value) in renamed for d in other.shape):
            other.shape = ir.Shape([d if isinstance(d, int) else renamed.get(str(d.value), d.value) for d in other.shape])


def _read(path: Path) -> ir.Model:
    if not path.is_file():
        raise InputError("the ONNX file doesn't exist", where=path)
    try:
        model = ir.load(path)
        if own_strays(model, opset_of(model)):
            onnx.checker.check_model(_without_weights(model))
        else:
            onnx.checker.check_model(str(path))
    except Exception as error:  # protobuf's and onnx's errors share no base but this
        raise InputError(f"the ONNX file can't be read: {_short(error)}", where=path) from error
    for value in list(model.graph.inputs):
        # Before IR version 4 every weight was listed as an input.
        if value.name in model.graph.initializers:
            model.graph.inputs.remove(value)
    folder = path.parent.resolve()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).resolve().is_relative_to(folder):
            raise InputError("the graph's weights lie outside its folder", where=path, got=tensor.location)
    return model


def _widen(model: ir.Model) -> None:
    """Half precision in float32; inputs of float16 stay what they are, and are cast. (NumPy has no bfloat16.)"""
    half = [value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT16]
    retype(model, SINGLE)
    first = next(iter(model.graph), None)
    for value in half:
        value.type = ir.TensorType(ir.DataType.FLOAT16)
        cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.type = f"{value.name}_in_float32", value.shape, ir.TensorType(ir.DataType.FLOAT)
        value.replace_all_uses_with(wide)
        cast.replace_input_with(0, value)
        if first is not None:
            model.graph.insert_before(first, [cast])


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """For the checker: what has a weight's size is an input."""
    bare = model.clone()
    for name, value in list(bare.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            continue
        value.type, value.shape, value.const_value = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy()), None
        bare.graph.initializers.pop(name)
        if value not in bare.graph.inputs:
            bare.graph.inputs.append(value)
    return ir.to_proto(bare)


def _evaluator(path: Path, types: Mapping[ir.DataType, ir.DataType]) -> tuple[ReferenceEvaluator, bool]:
    """ONNX's reference implementation over the file in other types; and whether the graph had to be written out for it."""
    model = _read(path)
    if not has_microsoft(model):
        try:
            return _evaluated(model, types), False
        except (RuntimeError, NotImplementedError, TypeError):
            pass  # It implements few operators of older opsets (quantizers among the missing).
    return _evaluated(load_onnx(path), types), True


def _evaluated(model: ir.Model, types: Mapping[ir.DataType, ir.DataType]) -> ReferenceEvaluator:
    retype(model, types)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    _spread_masks(model)
    return ReferenceEvaluator(copy.deepcopy(ir.to_proto(model)))


def _spread_masks(model: ir.Model) -> None:
    """Give the masks of causal ``Attention`` nodes a row per query: the reference implementation reads the rows off them."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.op_type != "Attention" or not node.attributes.get_int("is_causal", 0) or len(node.inputs) < 4:
                continue
            mask = node.inputs[3]
            if mask is None:
                continue
            axis = 1 if "q_num_heads" in node.attributes else 2
            tape = Tape()
            rows = tape.op("Shape", [node.inputs[0]], {"start": axis, "end": axis + 1})
            one = tape.op("Constant", [], {"value": ir.tensor(np.array([1], np.int64))})
            node.replace_input_with(3, tape.op("Expand", [mask, tape.op("Concat", [rows, one], {"axis": 0})]))
            graph.insert_before(node, tape.nodes)


@contextmanager
def _in_single(path: Path) -> Iterator[Path]:
    """The file, or one with its half precision in float32, that ONNX Runtime reads."""
    model = _read(path)
    if not has_types(model, SINGLE) and model.ir_version <= NEWEST_IR:
        yield path
        return
    retype(model, SINGLE)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    with tempfile.TemporaryDirectory() as folder:
        ir.save(model, Path(folder) / "single.onnx", external_data="single.weights")
        yield Path(folder) / "single.onnx"


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
