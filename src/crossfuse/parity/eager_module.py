"""How the eager module is run for the reference: in float64 where it runs, in float32 otherwise,
never on a fast path. In float64, limits of numbers are those of the model's own dtype.

A module may refuse float64 in any way: it can't be copied, asserts a dtype, or mixes in tensors of
its own. Then the reference is float32, and `EagerModule.reason` says why. So that float32's own
error is still known, its products are then summed in
float64: two float32 results of the same weights, whose difference is what float32 loses.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crossfuse.core.foreign import cause_of, place_of
from crossfuse.errors import Advice, CrossfuseError, InputError, Said
from crossfuse.export.capture.copies import copied
from crossfuse.export.capture.fast_paths import without_fast_paths
from crossfuse.export.capture.half_sources import half_source
from crossfuse.export.capture.module_state import ModuleState
from crossfuse.export.sources.onnx_file.module import OnnxModule
from crossfuse.parity.double_masks import DoubleMasks
from crossfuse.parity.dtype_limits import limits_of
from crossfuse.parity.tables import tables_seen
from crossfuse.parity.wide_products import WideProducts
from crossfuse.spec.imitation import Table
from crossfuse.spec.model_spec import ModelSpec

__all__ = ["EagerModule", "EagerResults"]

_LOG = logging.getLogger(__name__)
_RUN = "Make the module run in PyTorch first: module(**inputs)"
_FILE = Advice(
    "Give inputs that the file takes ({}). Where it holds as numbers what it names as dimensions, "
    "export it again with these axes dynamic",
    Said("--example FILE.npz", "example='FILE.npz'"),
)
_NARROW = Advice(
    "If the model does not take these sizes, narrow the range of the dimension: {}",
    Said("--dynamic INPUT:AXIS=NAME:MIN:MAX", "dynamic={INPUT: {AXIS: 'NAME:MIN:MAX'}}"),
)


@dataclass(frozen=True)
class EagerResults:
    """What the eager model gives for some inputs: in float32, and the reference."""

    single: dict[str, NDArray[Any]]
    truth: dict[str, NDArray[Any]]


class EagerModule:
    """A spec's module in float32 and, where it runs, in float64.

    Args:
        spec: whose module is left as it is.
        first: inputs on which float64 is tried.

    Attributes:
        dtype: of the reference: ``float64`` or ``float32``.
        reason: why the reference is not plain float64 of a float32 model; empty where it is.
        tables: what the first inputs look up, by name, as the run in float64 showed; None where
            nobody could watch one.
    """

    def __init__(self, spec: ModelSpec, first: Mapping[str, Tensor]) -> None:
        self.spec = spec
        self.dtype, self.reason = "float64", ""
        self.tables: dict[str, Table] | None = None
        self._double: nn.Module | None = None
        self._states: dict[nn.Module, ModuleState] = {spec.module: ModuleState(spec.module)}
        self._tried: tuple[Mapping[str, Tensor], dict[str, NDArray[Any]] | None] | None = None
        try:
            self._double = copied(spec.module, lambda _: torch.float64, attributes=True).double()
        except Exception as error:  # noqa: BLE001 -- the user's code, which may refuse a copy in any way
            self._give_up(f"can't be copied to float64: {cause_of(error)}")
        else:
            self._states[self._double] = ModuleState(self._double)
            self._tried = first, self._watched(self._double, first)
        half = half_source(spec.module)
        if half is not None:
            about = f"the source's weights are {half}, computed here in {self.dtype}"
            self.reason = f"{about}; {self.reason}" if self.reason else about

    def run(self, inputs: Mapping[str, Tensor]) -> EagerResults:
        """Results in float32, and the reference.

        Raises:
            InputError: the module fails.
        """
        single = _arrays(self._checked(self.spec.module, inputs))
        truth = self._in_double(inputs)
        if truth is None:
            truth = self._in_wide_products(inputs, single)
        return EagerResults(single, truth)

    def _watched(
        self, double: nn.Module, first: Mapping[str, Tensor]
    ) -> dict[str, NDArray[Any]] | None:
        """The float64 module's results, with `tables` noted where it can be watched."""
        try:
            with tables_seen(double, first) as tables:
                results = self._double_results(double, first)
        except Exception:  # noqa: BLE001 -- the user's code, which may refuse to be watched in any way
            return self._in_double(first)
        self.tables = tables
        return results

    @without_fast_paths()
    def _call(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Copies: a module may write into its inputs.
        given = {name: tensor.clone() for name, tensor in inputs.items()}
        try:
            with torch.no_grad():
                outputs = self.spec.run(given, module)
                # Copies: an output may be a part of what the module keeps.
                return {name: tensor.clone() for name, tensor in outputs.items()}
        finally:
            self._states[module].restore()

    def _checked(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return self._call(module, inputs)
        except CrossfuseError:
            raise
        except (Exception, SystemExit) as error:  # the user's code
            shapes = {name: tuple(t.shape) for name, t in inputs.items()}
            as_given = all(
                tuple(t.shape) == tuple(self.spec.inputs[name].shape) for name, t in inputs.items()
            )
            is_file = isinstance(module, OnnxModule)
            place = None if is_file else place_of(error)
            raise InputError(
                f"the {'ONNX file' if is_file else 'eager model'} fails: {cause_of(error)}",
                where=f"{self.spec.name} on {shapes}" + ("" if place is None else f"; {place}"),
                do=_NARROW if not as_given else _FILE if is_file else _RUN,
            ) from error

    def _in_double(self, inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]] | None:
        """The float64 module's results; None once it has refused."""
        if self._double is None:
            return None
        if self._tried is not None and self._tried[0] is inputs:
            _, results = self._tried
            self._tried = None
            return results
        try:
            return self._double_results(self._double, inputs)
        except Exception as error:  # noqa: BLE001 -- the user's code, which may refuse float64 in any way
            self._give_up(f"does not run in float64: {cause_of(error)}")
            return None

    def _double_results(
        self, double: nn.Module, inputs: Mapping[str, Tensor]
    ) -> dict[str, NDArray[Any]]:
        given = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        with limits_of(self.spec.module, self.spec.inputs.values()), DoubleMasks():
            return _arrays(self._call(double, given))

    def _give_up(self, why: str) -> None:
        self._states = {self.spec.module: self._states[self.spec.module]}
        self._double, self.dtype, self.reason = None, "float32", f"the module {why}"
        _LOG.debug("%s: the reference is float32, as %s", self.spec.name, self.reason)

    def _in_wide_products(
        self, inputs: Mapping[str, Tensor], single: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Float32 with products summed in float64.

        Plain float32 where the module can't be watched.
        """
        try:
            with WideProducts(torch.float32, torch.float64):
                wide = _arrays(self._call(self.spec.module, inputs))
        except Exception:  # noqa: BLE001 -- the user's code, which may refuse to be watched in any way
            return single
        same = all(
            name in wide and wide[name].shape == array.shape for name, array in single.items()
        )
        return wide if same else single


def _arrays(outputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: _array(tensor) for name, tensor in outputs.items()}


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach()
    found: NDArray[Any] = (
        (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    )
    return found
