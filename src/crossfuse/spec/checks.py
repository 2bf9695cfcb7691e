"""The fields of a :class:`ModelSpec`, checked one by one: a wrong type is told where it was given,
not where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crossfuse.core.processor_files import PARTS
from crossfuse.core.tensors import DTYPES, Dim
from crossfuse.errors import InputError, unknown

if TYPE_CHECKING:
    from crossfuse.spec.arguments import Arguments
    from crossfuse.spec.model_spec import ModelSpec

__all__ = [
    "check_fields",
    "check_given",
    "check_input",
    "check_names",
    "check_tensors",
    "check_tensors_among",
]

_WRAP = (
    "Wrap the module in one whose forward takes tensors by name and makes of them what the model "
    "wants; what is no tensor belongs into the wrapper"
)


def check_fields(spec: Any) -> None:
    """Check the types of a spec's fields.

    Raises:
        InputError: naming the field, what it got and what it takes.
    """
    from torch import nn

    if not isinstance(spec.module, nn.Module):
        raise _wrong("module", spec.module, "a torch.nn.Module")
    for name, value in spec.inputs.items():
        check_input(name, value)
    _check_dynamic(spec.dynamic)
    _check_names("context", spec.context)
    _check_names("drop_outputs", spec.drop_outputs)
    _check_names("keep_probabilities", spec.keep_probabilities)
    if not isinstance(spec.name, str) or not spec.name:
        raise _wrong("name", spec.name, "a text")
    if spec.decode is not None and not isinstance(spec.decode, str):
        raise _wrong("decode", spec.decode, "the name of an input, or None")
    _check_processing(spec.processing)
    _check_functions(spec)
    for field, names in (
        ("dynamic", spec.dynamic),
        ("context", spec.context),
        ("decode", [spec.decode] if spec.decode else []),
        ("vocabulary", spec.vocabulary),
    ):
        for name in names:
            if name not in spec.inputs:
                raise unknown(f"{field} names an input that doesn't exist", name, spec.inputs)


def _check_processing(files: Any) -> None:
    if not isinstance(files, Mapping):
        raise _wrong("processing", files, "a mapping of files' names to their content")
    for name, content in files.items():
        if name not in PARTS:
            raise unknown("processing names a file that a bundle doesn't hold", name, PARTS)
        if not isinstance(content, str):
            raise _wrong(f"processing[{name!r}]", content, "a text")


def check_names(inputs: Any) -> None:
    """Check that inputs are given by name.

    Raises:
        InputError: they are not, or there are none.
    """
    if not isinstance(inputs, Mapping):
        raise _wrong("inputs", inputs, "a mapping of input names to example tensors")
    if not inputs:
        raise InputError(
            "the spec has no inputs",
            expected="example tensors by the names of forward's parameters",
        )
    for name in inputs:
        if not isinstance(name, str) or not name:
            raise InputError(
                "an input's name is no text",
                where="inputs",
                got=repr(name),
                expected="a parameter of forward",
            )


def check_tensors_among(arguments: Arguments) -> None:
    """Check that there is a tensor among the arguments.

    Raises:
        InputError: there is none.
    """
    if arguments.tensors:
        return
    shown = ", ".join(f"{name} = {value!r}" for name, value in arguments.constants.items())
    raise InputError(
        "none of the inputs holds a tensor",
        where=", ".join(f"inputs[{name!r}]" for name in arguments.given),
        got=shown or "empty containers",
        expected="example tensors by the names of forward's parameters",
    )


def _check_dynamic(dynamic: Any) -> None:
    if not isinstance(dynamic, Mapping):
        raise _wrong(
            "dynamic",
            dynamic,
            "a mapping of input names to {axis: dimension}",
            do="Leave it out where nothing is dynamic",
        )
    for name, axes in dynamic.items():
        field = f"dynamic[{name!r}]"
        if not isinstance(axes, Mapping):
            raise _wrong(field, axes, "a mapping of axes to dimensions, such as {0: 'batch:1:16'}")
        for axis, dim in axes.items():
            if not isinstance(axis, int) or isinstance(axis, bool):
                raise InputError(
                    "a dynamic axis is no number",
                    where=field,
                    got=repr(axis),
                    expected="an axis, counted from 0",
                )
            if not isinstance(dim, str | Dim):
                raise _wrong(f"{field}[{axis}]", dim, "a crossfuse.Dim, or text NAME[:MIN[:MAX]]")


def _check_names(field: str, names: Any) -> None:
    if isinstance(names, str):
        raise InputError(
            "a field takes several names",
            where=f"ModelSpec.{field}",
            got=repr(names),
            expected=f"({names!r},)",
        )
    if not isinstance(names, tuple | list) or not all(isinstance(one, str) for one in names):
        raise _wrong(field, names, "a tuple of names")


def _check_functions(spec: Any) -> None:
    if spec.sampler is not None and not callable(spec.sampler):
        expected = "a function of sizes and a generator that gives tensors by name, or None"
        raise _wrong("sampler", spec.sampler, expected)
    if not callable(spec.tracing):
        raise _wrong("tracing", spec.tracing, "a function that gives a context")


def check_input(name: str, value: Any) -> None:
    """Check one example input.

    Raises:
        InputError: not a dense tensor on the CPU that holds values of a type which a bundle may
            hold.
    """
    import numpy as np
    import torch

    def wrong(got: object, do: str) -> InputError:
        expected = "a torch.Tensor on the CPU"
        return InputError(
            "an example input can't be used",
            where=f"inputs[{name!r}]",
            got=got,
            expected=expected,
            do=do,
        )

    if isinstance(value, np.ndarray):
        raise wrong("a NumPy array", "Give torch.from_numpy(array)")
    if not isinstance(value, torch.Tensor):
        shown = (
            f" ({value!r})" if value is None or isinstance(value, bool | int | float | str) else ""
        )
        raise wrong(f"{_article(type(value).__name__)}{shown}", _WRAP)
    if value.device.type == "meta" or _is_fake(value):
        raise wrong(
            "a tensor without values (meta or fake)",
            "Give one with values: torch.randn, torch.randint",
        )
    if value.device.type != "cpu":
        raise wrong(f"a tensor on {value.device}", "Give tensor.cpu(), and the module on the CPU")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        raise wrong(f"a tensor that is not dense ({value.layout})", "Give tensor.to_dense()")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise wrong(f"a tensor of {dtype}", f"Types that can be used: {', '.join(DTYPES)}")


def check_given(spec: ModelSpec, inputs: Mapping[str, Any], where: str) -> None:
    """Check inputs against a spec's examples.

    Raises:
        InputError: other names, dtypes, ranks or fixed sizes.
    """
    if inputs.keys() != spec.inputs.keys():
        strange, missing = (
            sorted(inputs.keys() - spec.inputs.keys()),
            sorted(spec.inputs.keys() - inputs.keys()),
        )
        got = [f"unknown {', '.join(strange)}"] * bool(strange) + [
            f"missing {', '.join(missing)}"
        ] * bool(missing)
        raise InputError(
            "the inputs' names are wrong",
            where=where,
            got="; ".join(got),
            expected=", ".join(spec.inputs),
        )
    for name, example in spec.inputs.items():
        tensor, free = inputs[name], spec.axes.get(name, {})
        check_input(name, tensor)
        if tensor.dtype != example.dtype:
            raise InputError(
                "an input has the wrong dtype",
                where=f"{where}, {name}",
                got=tensor.dtype,
                expected=example.dtype,
            )
        fixed = tensor.ndim == example.ndim and all(
            n == m
            for i, (n, m) in enumerate(zip(tensor.shape, example.shape, strict=True))
            if i not in free
        )
        if not fixed:
            expected = [free.get(i, n) for i, n in enumerate(example.shape)]
            raise InputError(
                "an input has the wrong shape",
                where=f"{where}, {name}",
                got=list(tensor.shape),
                expected=f"[{', '.join(map(str, expected))}]",
            )


def check_tensors(spec: ModelSpec) -> None:
    """Check that a module's parameters and buffers hold values, on the CPU.

    Raises:
        InputError: naming the first ones that don't.
    """
    named = {**dict(spec.module.named_parameters()), **dict(spec.module.named_buffers())}
    for what, do, found in (
        (
            "the module's parameters hold no values: they are on the meta device",
            "Load its weights: module.to_empty(device='cpu'), then load_state_dict",
            [
                name
                for name, tensor in named.items()
                if tensor.device.type == "meta" or _is_fake(tensor)
            ],
        ),
        (
            "the module is not on the CPU, where it is traced and compared",
            "Give module.cpu(); the target decides where a bundle runs",
            [name for name, tensor in named.items() if tensor.device.type not in ("cpu", "meta")],
        ),
    ):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(what, where=spec.name, got=", ".join(found[:3]) + more, do=do)


def _is_fake(tensor: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def _wrong(field: str, value: object, expected: str, do: str | None = None) -> InputError:
    got = (
        repr(value)
        if value is None or isinstance(value, bool | int | float | str)
        else _article(type(value).__name__)
    )
    return InputError(
        "a field has the wrong type", where=f"ModelSpec.{field}", got=got, expected=expected, do=do
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
