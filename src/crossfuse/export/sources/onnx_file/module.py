"""An ONNX file, executed: the model that its targets are compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.tape import Tape
from torch import Tensor, nn

from crossfuse.core.onnx_runtime import onnxruntime
from crossfuse.core.scratch import scratch_folder
from crossfuse.errors import InputError
from crossfuse.export.passes.retype import DOUBLE, SINGLE, RetypePass, has_types
from crossfuse.export.sources.onnx_file.microsoft.expand import UNDEFINED_ROWS, has_microsoft
from crossfuse.export.sources.onnx_file.reading import NEWEST_IR, load_onnx, read_onnx, short

__all__ = ["OnnxModule"]

_AGREEMENT = 1e-3
_QUANTISED = "crossfuse quantised "


class OnnxModule(nn.Module):
    """An ONNX file that is called like a module.

    ONNX Runtime executes it as it is, without optimisation.

    Files of half precision are executed with the same weights in float32. In float64 (`double`),
    and where ONNX Runtime refuses the file, ONNX's reference implementation executes it instead;
    operators of ONNX Runtime's own are then written out in ONNX's. Where the written-out graph does
    not agree with what ONNX Runtime makes of the file, it is not used. (`GroupQueryAttention` is
    always written out.)
    """

    crossfuse_stateless = True
    """What it keeps is made once, whatever the inputs (`module_state`)."""

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

    def __call__(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """As `forward`.

        PyTorch's own call takes no input of the name ``self``, which files may have.
        """
        return self.forward(**inputs)

    def forward(self, /, **inputs: Tensor) -> dict[str, Tensor]:
        """Outputs by name; inputs may be of any floating type.

        Raises:
            RuntimeError: the graph can't be executed.
        """
        floating = np.float64 if self._double else np.float32
        feeds = {
            n: (t.double().numpy().astype(floating) if t.is_floating_point() else t.numpy())
            for n, t in inputs.items()
        }
        if not self._double and self._reference is None and not self._undefined_rows:
            try:
                return self._executed(feeds)
            except Exception:  # noqa: BLE001 -- ONNX Runtime's own types share no base but this; its Attention takes few masks
                pass
        try:
            if self._reference is None:
                self._reference, written_out = _evaluator(
                    self.path, DOUBLE if self._double else SINGLE
                )
                self._to_confirm = self._double and written_out and not self._undefined_rows
            results = self._reference.run(None, dict(feeds))
        except Exception as error:  # whatever an operator of the reference implementation raises
            raise RuntimeError(str(error)) from error
        found = {
            n: torch.from_numpy(np.asarray(r))
            for n, r in zip(self._reference.output_names, results, strict=True)
        }
        _require_numbers(found, _QUANTISED)
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
        """ONNX Runtime leaves rows behind the end of a sample to chance: what they hold can't be
        compared."""
        return any(
            node.op_type in UNDEFINED_ROWS for node in read_onnx(self.path).graph.all_nodes()
        )

    def _executed(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        names = [output.name for output in self.session.get_outputs()]
        results = self.session.run(names, dict(feeds))
        found = {name: torch.from_numpy(array) for name, array in zip(names, results, strict=True)}
        _require_numbers(found, _QUANTISED)
        return found

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
                    raise RuntimeError(
                        f"{name}: the written-out graph differs by {error:.3g} from the file"
                    )

    @property
    def session(self) -> Any:
        """ONNX Runtime's session, opened when first used."""
        if self._session is None:
            ort = onnxruntime()
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            try:
                with _in_single(self.path) as path:
                    self._session = ort.InferenceSession(
                        path, options, providers=["CPUExecutionProvider"]
                    )
            except Exception as error:  # ONNX Runtime's own types share no base but this
                raise InputError(
                    f"the ONNX file can't be executed: {short(error)}", where=self.path
                ) from error
        return self._session


def _evaluator(
    path: Path, types: Mapping[ir.DataType, ir.DataType]
) -> tuple[ReferenceEvaluator, bool]:
    """ONNX's reference implementation over the file in other types.

    The second result is whether the graph had to be written out for it.
    """
    model = read_onnx(path)
    if not has_microsoft(model):
        try:
            return _evaluated(model, types), False
        except (RuntimeError, NotImplementedError, TypeError):
            pass  # It implements few operators of older opsets (quantizers among the missing).
    return _evaluated(load_onnx(path), types), True


def _evaluated(model: ir.Model, types: Mapping[ir.DataType, ir.DataType]) -> ReferenceEvaluator:
    RetypePass(types)(model)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    _spread_masks(model)
    _show_quantised(model)
    return ReferenceEvaluator(copy.deepcopy(ir.to_proto(model)))


def _show_quantised(model: ir.Model) -> bool:
    """Make outputs of what quantizers take, too, which would turn NaN into a number.

    Returns:
        whether there are any.
    """
    before = len(model.graph.outputs)
    for i, node in enumerate(list(model.graph)):
        value = (
            node.inputs[0] if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") else None
        )
        if value is None or value.producer() is None:
            continue
        copy = ir.node(
            "Identity",
            [value],
            outputs=[ir.Value(name=f"{_QUANTISED}{i}", type=value.type, shape=value.shape)],
        )
        model.graph.insert_before(node, copy)
        model.graph.outputs.append(copy.outputs[0])
    return len(model.graph.outputs) > before


def _require_numbers(outputs: dict[str, Tensor], prefix: str) -> None:
    """Take away the outputs that are only there to be looked at.

    Raises:
        RuntimeError: one of them holds NaN.
    """
    for name in [name for name in outputs if name.startswith(prefix)]:
        if outputs.pop(name).isnan().any():
            raise RuntimeError("NaN reaches a quantizer")


def _spread_masks(model: ir.Model) -> None:
    """Give the masks of causal ``Attention`` nodes a row per query: the reference implementation
    reads the rows off them."""
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if (
                node.op_type != "Attention"
                or not node.attributes.get_int("is_causal", 0)
                or len(node.inputs) < 4
            ):
                continue
            mask = node.inputs[3]
            if mask is None:
                continue
            axis = 1 if "q_num_heads" in node.attributes else 2
            tape = Tape()
            rows = tape.op("Shape", [node.inputs[0]], {"start": axis, "end": axis + 1})
            one = tape.op("Constant", [], {"value": ir.tensor(np.array([1], np.int64))})
            node.replace_input_with(
                3, tape.op("Expand", [mask, tape.op("Concat", [rows, one], {"axis": 0})])
            )
            graph.insert_before(node, tape.nodes)


@contextmanager
def _in_single(path: Path) -> Iterator[Path]:
    """The file, or one that ONNX Runtime reads: half precision in float32, and what quantizers take
    to be looked at."""
    model = read_onnx(path)
    shown = _show_quantised(model)
    if not shown and not has_types(model, SINGLE) and model.ir_version <= NEWEST_IR:
        yield path
        return
    RetypePass(SINGLE)(model)
    model.ir_version = min(model.ir_version, NEWEST_IR)
    with scratch_folder() as folder:
        ir.save(model, folder / "single.onnx", external_data="single.weights")
        yield folder / "single.onnx"
