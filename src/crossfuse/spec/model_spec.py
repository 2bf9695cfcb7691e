"""`ModelSpec`: a PyTorch module with what an export must know about its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, TypeVar

from crossfuse.core.foreign import blaming
from crossfuse.core.tensors import Dim, axis_size, collect_dims
from crossfuse.errors import InputError, unknown
from crossfuse.spec.arguments import Arguments
from crossfuse.spec.checks import (
    check_fields,
    check_given,
    check_input,
    check_names,
    check_tensors_among,
)
from crossfuse.spec.samplers import sampler_for
from crossfuse.spec.sizes import shape_at, sizes_in

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from crossfuse.spec.imitation import Draw
    from crossfuse.spec.input_kinds import Kind

__all__ = ["ModelSpec", "Sampler", "Tracing"]

Kept = TypeVar("Kept")

Sampler = Callable[[dict[str, int], "torch.Generator"], "dict[str, Tensor]"]
"""Makes inputs of the given sizes of the named dimensions: realistic, seeded by the generator,
masks padded."""


@dataclass(frozen=True)
class Tracing:
    """What a library brings to the tracing and translating of its models.

    Attributes:
        interfaced: paths of modules whose attention called the operator through the library's
            interface; filled while tracing.
        joined: paths of modules that compute their attentions as fewer than eager execution, by
            parts below them too; filled while tracing.
        translations: PyTorch operator → its translation to ONNX.
        defer_guards: relations between sizes that hold but that the tracer can't prove are not
            errors.
        fix_program: mends the exported program in place before it is translated.
        fix_model: mends the ONNX program in place after that.
    """

    interfaced: Collection[str] = ()
    joined: Collection[str] = ()
    translations: Mapping[Any, Any] = field(default_factory=dict)
    defer_guards: bool = False
    fix_program: Callable[[Any], None] = lambda _: None
    fix_model: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class ModelSpec:
    """A module, example inputs by name, and which of their axes are dynamic.

    Args:
        module: called as ``module(**inputs)``; returns a tensor, or a dict, dataclass, named tuple,
            tuple or list of tensors.
        inputs: example tensors by the names of ``forward``'s parameters (of a ``*`` too). A
            mapping, list, tuple, named tuple or dataclass holds inputs ``a.b``, ``a.0``; numbers,
            texts and ``None`` become part of what is exported. The spec has them by flat names.
        dynamic: axis → dimension per input; a dimension is a :class:`crossfuse.Dim`, or text
            ``NAME[:MIN[:MAX]]``. ``8*NAME[:MIN[:MAX]]`` is an axis of eight times its size. By flat
            names, or in containers like the inputs'; axes of a container are those of every tensor
            in it.
        context: names of inputs that change rarely (an image with many questions, say).
        name: of the model, for reports.
        decode: the input of token ids, ``[batch, tokens]``, of a model that decodes token by token
            over its context.
        decode_where_possible: a model that can't be decoded so is exported without the stage for
            steps, instead of refused.
        drop_outputs: names of outputs to leave out; ``*`` stands for any text. An attention whose
            probabilities are an output fuses only without that output, or where it is kept.
        keep_probabilities: ``SITE``, or ``SITE:HEAD,HEAD``: attentions whose probabilities are
            computed beside the fused operator. Outputs of the model that are made of them stay;
            where there are none, they become the output ``probabilities.SITE``.
        tracing: gives the context in which the module, or a copy of it, is traced and translated;
            set by sources that need one.
        sampler: makes inputs at other sizes; where omitted, the examples are imitated, as
            :mod:`crossfuse.spec.imitation` tells.
        examples: further real inputs, by the same names and of any sizes that ``dynamic`` allows.
            They and ``inputs`` are among the points at which every target is compared, and which a
            search for mixed precision measures.
        vocabulary: how many rows the table has that an input of ids looks up; where omitted, seen
            in one eager run where the table is a parameter. Ids are made over all of it.
        generation: settings for choosing tokens, under the names of ``generation_config.json``; the
            bundle holds them for `crossfuse.runtime.generate`.
        processing: content by name of the files that `crossfuse.runtime.load_processor` reads, such
            as ``tokenizer.json``; the bundle holds them.
        about: what the manifest adds about the source, as plain data; set by sources that load
            weights.
        settled: inputs that the sampler alone decides, and of ids, which of them: an image's
            placeholders, of which there must be as many as features. An input without ids given is
            settled as a whole.
        counts: of inputs of ids, how many of some ids each row holds, as id → number; a session
            refuses rows that hold others.
        dims_found: the dynamic axes were found by trying the model and not asked for: those that
            its tracing refuses become narrower or fixed.
        arguments: the inputs as they were given; set by the spec itself.

    Raises:
        InputError: a field of the wrong type, an input that is no tensor, an input, axis or context
            name that doesn't exist, or one dimension with two sizes or ranges.
    """

    module: nn.Module
    inputs: Mapping[str, Any]
    dynamic: Mapping[str, Any] = field(default_factory=dict)
    context: tuple[str, ...] = ()
    name: str = "model"
    sampler: Sampler | None = None
    drop_outputs: tuple[str, ...] = ()
    decode: str | None = None
    tracing: Callable[[nn.Module], AbstractContextManager[Tracing]] = lambda _: nullcontext(
        Tracing()
    )
    examples: Sequence[Mapping[str, Any]] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    processing: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    decode_where_possible: bool = False
    keep_probabilities: tuple[str, ...] = ()
    settled: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    counts: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    dims_found: bool = False
    arguments: Arguments = field(default_factory=Arguments)

    def __post_init__(self) -> None:
        self._flatten()
        check_fields(self)
        for name, axes in self.dynamic.items():
            rank = self.inputs[name].ndim
            for axis in axes:
                if not 0 <= axis < rank:
                    raise InputError(
                        "a dynamic axis doesn't exist",
                        where=name,
                        got=axis,
                        expected=f"0..{rank - 1}",
                    )
        sizes = self.example_sizes
        for dim in self.dims.values():
            dim.check(sizes[dim.name], "the example inputs")
        for i, example in enumerate(self.examples):
            self.sizes_of(example, f"examples[{i}]")

    def _flatten(self) -> None:
        """Give the fields that speak of inputs the inputs' flat names."""
        check_names(self.inputs)
        arguments = Arguments(self.inputs)
        check_tensors_among(arguments)
        if arguments.constants or arguments.tensors.keys() != self.arguments.tensors.keys():
            object.__setattr__(self, "arguments", arguments)
        flat = self.arguments
        object.__setattr__(self, "inputs", arguments.tensors)
        object.__setattr__(self, "dynamic", flat.flat_axes(self.dynamic))
        object.__setattr__(self, "context", flat.flat_names(self.context))
        examples = [
            flat.flat(example, f"examples[{i}]") if isinstance(example, Mapping) else example
            for i, example in enumerate(self.examples)
        ]
        object.__setattr__(self, "examples", examples)

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
        with blaming("the sampler raised", where=name):
            inputs = sampler(example, _generator(0))
        return cls(module, inputs, dynamic, context, name, sampler)

    def call(self, inputs: Mapping[str, Tensor], module: nn.Module | None = None) -> Any:
        """What the module, or a copy of it, returns for tensors by the inputs' flat names."""
        return self.arguments.call(self.module if module is None else module, inputs)

    def outputs_of(self, result: object) -> dict[str, Tensor]:
        """The tensors of a result of the module, by the names that outputs have.

        Raises:
            InputError: it holds no tensor, or something that can't be one.
        """
        from crossfuse.spec.results import named_outputs

        return named_outputs(result, self.inputs, self.is_dropped)

    def run(
        self, inputs: Mapping[str, Tensor], module: nn.Module | None = None
    ) -> dict[str, Tensor]:
        """The outputs that are not dropped, of the module or a copy of it.

        Raises:
            InputError: as `outputs_of` and `kept`.
        """
        return self.kept(self.outputs_of(self.call(inputs, module)))

    def kept(self, outputs: Mapping[str, Kept]) -> dict[str, Kept]:
        """The outputs that are not dropped.

        Raises:
            InputError: none is left, or a name without ``*`` matches none.
        """
        for pattern in self.drop_outputs:
            known = pattern in outputs or f"{pattern}_out" in outputs
            if "*" not in pattern and not known:
                raise unknown("an output to drop doesn't exist", pattern, outputs)
        left = {n: out for n, out in outputs.items() if not self.is_dropped(n)}
        if not left:
            raise InputError("every output is dropped", where=self.name, got=", ".join(outputs))
        return left

    def is_dropped(self, output: str) -> bool:
        """Whether an output is left out: by its name, or by the module's own, an input's."""
        own = output.removesuffix("_out")
        names = {output, own} if own in self.inputs else {output}
        return any(fnmatchcase(name, p) for name in names for p in self.drop_outputs)

    def with_dynamic(self, dynamic: Mapping[str, Mapping[int, str | Dim]]) -> ModelSpec:
        """The spec with other dynamic axes; its sampler is asked by its own names, and where it
        can't vary what is asked, the examples are imitated.

        Raises:
            InputError: an input or axis that doesn't exist, or one dimension with two sizes.
        """
        # First as they are, so that what is wrong with the axes is said of them.
        changed = replace(self, dynamic=dynamic, dims_found=False)
        return replace(changed, sampler=sampler_for(self, dynamic))

    def traced_in(
        self, tracing: Callable[[nn.Module], AbstractContextManager[Tracing]]
    ) -> ModelSpec:
        """The spec, traced in a context."""
        return replace(self, tracing=tracing)

    @property
    def dims(self) -> dict[str, Dim]:
        """The named dimensions, each once."""
        return collect_dims(self.dynamic)

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        """Dimension names per input and axis, or multiples of them: ``8*height``."""
        return {
            name: {axis: axis_size(d) for axis, d in axes.items()}
            for name, axes in self.dynamic.items()
        }

    @property
    def example_sizes(self) -> dict[str, int]:
        """Sizes of the named dimensions in the example inputs."""
        return sizes_in(self.inputs, self.axes, "the example inputs")

    def sizes_of(self, inputs: Mapping[str, Tensor], where: str) -> dict[str, int]:
        """Sizes of the named dimensions in other inputs, which are checked against the examples.

        Raises:
            InputError: other names, dtypes, ranks or fixed sizes, one dimension with two sizes, or
                a size out of its range.
        """
        check_given(self, inputs, where)
        sizes = sizes_in(inputs, self.axes, where)
        for dim in self.dims.values():
            dim.check(sizes[dim.name], where)
        return sizes

    def kinds(self) -> dict[str, Kind]:
        """What kind each input is, told by all examples."""
        from crossfuse.spec.input_kinds import kinds_of

        return kinds_of([self.inputs, *self.examples], self.axes)

    def sample(
        self, sizes: Mapping[str, int], seed: int, draw: Draw | None = None
    ) -> dict[str, Tensor]:
        """Seeded inputs at the given sizes of the named dimensions.

        Args:
            sizes: of the named dimensions.
            seed: the same gives the same.
            draw: what they are to reach; where omitted, masks are padded at the end, ids and
                features as in the examples.

        Raises:
            InputError: the sampler fails, or gives other names or sizes than the spec says.
        """
        from crossfuse.spec.imitation import Draw, imitate, vary

        generator, draw = _generator(seed), draw or Draw()
        axes = self.axes
        shapes = {n: shape_at(t.shape, axes.get(n, {}), sizes) for n, t in self.inputs.items()}
        if self.sampler is None:
            return imitate(self.kinds(), self.inputs, shapes, axes, draw, generator)
        with blaming("the sampler raised", where=f"{self.name} at {dict(sizes)}"):
            made = self.sampler(dict(sizes), generator)
        if not isinstance(made, Mapping):
            raise InputError(
                "the sampler gives no tensors by name", where=self.name, got=type(made).__name__
            )
        made = self.arguments.flat(made, "the sampler")
        for name, example in self.inputs.items():
            if name in made:
                check_input(name, made[name])
            if (
                name not in made
                or tuple(made[name].shape) != shapes[name]
                or made[name].dtype != example.dtype
            ):
                got = f"{made[name].dtype} {tuple(made[name].shape)}" if name in made else "nothing"
                expected = f"{example.dtype} {shapes[name]}"
                raise InputError(
                    "the sampler's inputs differ", where=name, got=got, expected=expected
                )
        return vary(
            self.kinds(),
            {name: made[name] for name in self.inputs},
            axes,
            draw,
            generator,
            self.settled,
        )


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)
