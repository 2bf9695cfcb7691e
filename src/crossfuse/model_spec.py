"""`ModelSpec`: a PyTorch module with what an export must know about its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from crossfuse.errors import InputError
from crossfuse.specs import Dim, collect_dims

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["ModelSpec", "Sampler", "Tracing"]

Kept = TypeVar("Kept")

Sampler = Callable[[dict[str, int], "torch.Generator"], "dict[str, Tensor]"]
"""Makes inputs of the given sizes of the named dimensions: realistic, seeded by the generator, masks padded."""


@dataclass(frozen=True)
class Tracing:
    """What a library brings to the tracing and translating of its models.

    Attributes:
        interfaced: paths of modules whose attention called the operator through the library's interface; filled while tracing.
        translations: PyTorch operator → its translation to ONNX.
        defer_guards: relations between sizes that hold but that the tracer can't prove are not errors.
        fix_program: mends the exported program in place before it is translated.
        fix_model: mends the ONNX program in place after that.
    """

    interfaced: Collection[str] = ()
    translations: Mapping[Any, Any] = field(default_factory=dict)
    defer_guards: bool = False
    fix_program: Callable[[Any], None] = lambda _: None
    fix_model: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class ModelSpec:
    """A module, example inputs by name, and which of their axes are dynamic.

    Args:
        module: called as ``module(**inputs)``; returns a tensor, or a dict, dataclass, named tuple or tuple of tensors.
        inputs: example tensors by the names of ``forward``'s parameters.
        dynamic: axis → dimension per input; a dimension is a :class:`crossfuse.Dim`, or text ``NAME[:MIN[:MAX]]``.
        context: names of inputs that change rarely (an image with many questions, say).
        name: of the model, for reports.
        decode: the input of token ids, ``[batch, tokens]``, of a model that decodes token by token over its context.
        drop_outputs: names of outputs to leave out; ``*`` stands for any text. An attention whose probabilities are an output
            fuses only without that output.
        tracing: gives the context in which the module is traced and translated; set by sources that need one.
        sampler: makes inputs at other sizes; where omitted, the examples' distributions are imitated: floats by mean and
            deviation, ids within the range seen, masks of zeros and ones as padded prefixes.
        about: what the manifest adds about the source, as plain data; set by sources that load weights.

    Raises:
        InputError: an input, axis or context name that doesn't exist, or one dimension with two sizes or ranges.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic: Mapping[str, Mapping[int, str | Dim]] = field(default_factory=dict)
    context: tuple[str, ...] = ()
    name: str = "model"
    sampler: Sampler | None = None
    drop_outputs: tuple[str, ...] = ()
    decode: str | None = None
    tracing: Callable[[], AbstractContextManager[Tracing]] = lambda: nullcontext(Tracing())
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ", ".join(self.inputs)
        decode = () if self.decode is None else (self.decode,)
        for what, names in (("dynamic", self.dynamic), ("context", self.context), ("decode", decode)):
            for name in names:
                if name not in self.inputs:
                    raise InputError(f"{what} names an input that doesn't exist", got=repr(name), expected=known)
        for name, axes in self.dynamic.items():
            rank = self.inputs[name].ndim
            for axis in axes:
                if not 0 <= axis < rank:
                    raise InputError("a dynamic axis doesn't exist", where=name, got=axis, expected=f"0..{rank - 1}")
        sizes = self.example_sizes
        for dim in self.dims.values():
            dim.check(sizes[dim.name], "the example inputs")

    @classmethod
    def from_sampler(
        cls,
        module: nn.Module,
        sampler: Sampler,
        *,
        dynamic: Mapping[str, Mapping[int, str | Dim]],
        example: dict[str, int],
        context: tuple[str, ...] = (),
        name: str = "model",
    ) -> ModelSpec:
        """A spec whose examples come from its sampler at the sizes ``example``."""
        return cls(module, sampler(example, _generator(0)), dynamic, context, name, sampler)

    def kept(self, outputs: Mapping[str, Kept]) -> dict[str, Kept]:
        """The outputs that are not dropped.

        Raises:
            InputError: none is left, or a name without ``*`` matches none.
        """
        for pattern in self.drop_outputs:
            if "*" not in pattern and pattern not in outputs:
                raise InputError("an output to drop doesn't exist", got=repr(pattern), expected=", ".join(outputs))
        left = {n: out for n, out in outputs.items() if not any(fnmatchcase(n, p) for p in self.drop_outputs)}
        if not left:
            raise InputError("every output is dropped", where=self.name, got=", ".join(outputs))
        return left

    def traced_in(self, tracing: Callable[[], AbstractContextManager[Tracing]]) -> ModelSpec:
        """The spec, traced in a context."""
        return replace(self, tracing=tracing)

    @property
    def dims(self) -> dict[str, Dim]:
        """The named dimensions, each once."""
        return collect_dims(self.dynamic)

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """Dimension names per input and axis."""
        return {name: {axis: Dim.parse(d).name for axis, d in axes.items()} for name, axes in self.dynamic.items()}

    @property
    def example_sizes(self) -> dict[str, int]:
        """Sizes of the named dimensions in the example inputs."""
        sizes: dict[str, int] = {}
        for name, axes in self.axes.items():
            for axis, dim in axes.items():
                size = int(self.inputs[name].shape[axis])
                if sizes.setdefault(dim, size) != size:
                    raise InputError(
                        f"dimension {dim!r} has two sizes in the example inputs",
                        where=f"{name}, axis {axis}",
                        got=size,
                        expected=sizes[dim],
                    )
        return sizes

    def sample(self, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Seeded inputs at the given sizes of the named dimensions.

        Raises:
            InputError: the sampler gives other names or sizes than the spec says.
        """
        generator = _generator(seed)
        if self.sampler is None:
            return {name: self._imitate(name, sizes, generator) for name in self.inputs}
        made = self.sampler(dict(sizes), generator)
        for name, example in self.inputs.items():
            expected = self._shape(name, sizes)
            if name not in made or tuple(made[name].shape) != expected or made[name].dtype != example.dtype:
                got = f"{made[name].dtype} {tuple(made[name].shape)}" if name in made else "nothing"
                raise InputError("the sampler's inputs differ", where=name, got=got, expected=f"{example.dtype} {expected}")
        return made

    def _shape(self, name: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
        axes = self.axes.get(name, {})
        return tuple(sizes[axes[i]] if i in axes else int(n) for i, n in enumerate(self.inputs[name].shape))

    def _imitate(self, name: str, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        import torch

        example, shape = self.inputs[name], self._shape(name, sizes)
        if example.is_floating_point():
            deviation, mean = torch.std_mean(example.double()) if example.numel() > 1 else (torch.ones(()), example.mean())
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            return (noise * (deviation if deviation > 0 else 1.0) + mean).to(example.dtype)
        low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 1)
        if example.dtype == torch.bool or (low >= 0 and high <= 1 and high != 0):
            length = shape[-1] if shape else 1
            kept = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
            return (torch.arange(length) < kept).reshape(shape).to(example.dtype)
        return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)
