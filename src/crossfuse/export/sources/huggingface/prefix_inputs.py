"""The tokens that all questions share, as inputs of their own: `--prefix`.

A vision-language model of ``transformers`` takes one row of ids, with placeholders where an image's
features go. Where the image is depends on the ids, so nothing behind its projector depends on the
image alone. It does where the ids are given in two parts: the first tokens, placeholders included,
with the image, once; the rest with each question. The model joins both and runs as it is.

Rules:

1. Inputs with the ids' dimension along an axis are cut there: ``prefix_NAME`` holds the first
   tokens, ``NAME`` the rest. Results that have it along their second axis are those of the rest.
2. The first tokens have the same number in every call. They hold all placeholders, each row as many
   as the examples' rows, and the rest holds none: a session refuses others. Where they end with the
   last placeholder, rows begin with a token: padding goes behind them (`aligned_rows`).
3. Kinds of tokens that are one number in the rest of every example are no input there. Nor are
   positions that count on behind the first tokens' (`counted_positions`).
4. The rest grows token by token, where the model is causal.
5. A result that has several places for each row along its first axis, as features of images that
   are cut into tiles have, is left out: no context could have its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.dimensions import multiple_of
from crossfuse.core.tensors import PREFIX, Dim
from crossfuse.errors import Advice, InputError, Said
from crossfuse.export.sources.huggingface.aligned_rows import aligned
from crossfuse.export.sources.huggingface.counted_positions import count_on, counting_on
from crossfuse.export.sources.huggingface.placed_features import First
from crossfuse.export.sources.huggingface.placeholders import SENSES, token_of
from crossfuse.export.sources.huggingface.prefix_outputs import of_several, with_rows

if TYPE_CHECKING:
    from torch import nn

    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["PLACEHOLDERS", "with_prefix"]

PLACEHOLDERS = "placeholders"
"""Asks for the tokens up to and with the last placeholder."""

_IDS = "input_ids"
_KINDS = "token_type_ids"

Tensors = Mapping[str, Tensor]


def with_prefix(spec: ModelSpec, asked: str) -> tuple[ModelSpec, First]:
    """The spec of a model whose first tokens are inputs of the context, and these.

    Args:
        spec: of a model of ``transformers``, whose ``forward`` is replaced.
        asked: how many tokens, or `PLACEHOLDERS`.

    Raises:
        InputError: there are no ids, or no placeholders, or they don't stand in front alike.
    """
    ids = spec.inputs.get(_IDS)
    if ids is None or ids.ndim != 2 or 1 not in spec.axes.get(_IDS, {}):
        raise _unfit(spec, "the model has no input_ids [batch, tokens] of any length")
    dim = spec.axes[_IDS][1]
    axes = {
        name: next(axis for axis, other in own.items() if other == dim)
        for name, own in spec.axes.items()
        if dim in own.values()
    }
    sizes = [[(multiple_of(size) or (1, size))[1] for size in own.values()] for own in
             spec.axes.values()]  # fmt: skip
    if any(own.count(dim) > 1 for own in sizes) or sum(dim in own for own in sizes) > len(axes):
        raise _unfit(spec, "an input has its tokens along two axes, or a multiple of them")
    if asked == PLACEHOLDERS:
        spec = _aligned(spec, axes)
    given = [spec.inputs, *spec.examples]
    found = [example[_IDS] for example in given]
    tokens = _placeholders(spec, found)
    count = _count(spec, asked, found, tokens)
    counted = counting_on(axes, given, count)
    constants = _constants(axes, given, count)
    parts = _Parts(spec, dim, axes, count, constants, counted, aligned=asked == PLACEHOLDERS)
    several = of_several(spec)
    _join(spec.module, parts, with_rows(spec, axes))
    made = parts.spec(tokens)
    made = replace(made, drop_outputs=(*made.drop_outputs, *several))
    return made, First(count, tuple(tokens.values()))


def _unfit(spec: ModelSpec, why: str) -> InputError:
    return InputError(
        f"the first tokens can't be inputs of their own: {why}",
        where=spec.name,
        do=Advice("Export without {}", Said("--prefix", "prefix=...")),
    )


def _aligned(spec: ModelSpec, axes: Mapping[str, int]) -> ModelSpec:
    """The spec with examples whose rows begin with a token."""
    fixed = {n: v for n, v in spec.arguments.given.items() if not isinstance(v, Tensor)}
    examples = [aligned(example, axes) for example in spec.examples]
    return replace(spec, inputs={**fixed, **aligned(spec.inputs, axes)}, examples=examples)


def _placeholders(spec: ModelSpec, ids: list[Tensor]) -> dict[int, int]:
    """Placeholders among the ids, and how many each row has.

    Raises:
        InputError: rows have different numbers of one.
    """
    named = {token_of(spec.module.config, sense) for sense in SENSES} - {None}
    named |= set(spec.settled.get(_IDS, ()))
    found: dict[int, int] = {}
    for token in sorted(int(token) for token in named if token is not None):
        counts = {int(n) for rows in ids for n in (rows == token).sum(-1)}
        if counts == {0}:
            continue
        if len(counts) > 1:
            raise _unfit(spec, f"rows of the examples hold {sorted(counts)} of the id {token}")
        found[token] = counts.pop()
    return found


def _count(spec: ModelSpec, asked: str, ids: list[Tensor], tokens: Mapping[int, int]) -> int:
    """How many tokens are the first.

    Raises:
        InputError: there are no placeholders to tell it by, or not all are among them, or nothing
            is left.
    """
    among = [torch.isin(rows, torch.tensor(sorted(tokens), dtype=rows.dtype)) for rows in ids]
    last = max((int(found.nonzero()[:, 1].max()) for found in among if found.any()), default=-1)
    if asked == PLACEHOLDERS and last < 0:
        raise _unfit(spec, "the examples hold no placeholders, so say how many tokens they are")
    if asked != PLACEHOLDERS and not asked.isdecimal():
        raise InputError(
            "the first tokens can't be told",
            got=repr(asked),
            expected=f"a number of tokens, or {PLACEHOLDERS!r}: up to and with the last one",
        )
    count = last + 1 if asked == PLACEHOLDERS else int(asked)
    shortest = min(int(rows.shape[1]) for rows in ids)
    if not last < count < shortest or count < 1:
        raise InputError(
            "the first tokens have to hold all placeholders of the examples, and leave some tokens",
            where=spec.name,
            got=count,
            expected=f"at least {max(last + 1, 1)} and at most {shortest - 1}",
            do="Give examples with more tokens behind the placeholders, or another number",
        )
    return count


def _constants(axes: Mapping[str, int], given: list[Tensors], count: int) -> dict[str, int]:
    """Kinds of tokens that are one number in the rest of all examples."""
    found = {}
    for name, axis in axes.items():
        if not name.endswith(_KINDS):
            continue
        rest = [example[name].narrow(axis, count, example[name].shape[axis] - count)
                for example in given]  # fmt: skip
        values = {int(n) for tensor in rest for n in tensor.unique()}
        if len(values) == 1:
            found[name] = values.pop()
    return found


@dataclass(frozen=True)
class _Parts:
    """Inputs in two parts.

    Attributes:
        whole: the spec of the inputs in one.
        dim: that counts their tokens.
        axes: of each that has it, the axis.
        count: of the first tokens.
        constants: inputs that are one number behind these.
        counted: inputs that count on behind these.
        aligned: rows begin with a token, whatever the sampler gives.
    """

    whole: ModelSpec
    dim: str
    axes: Mapping[str, int]
    count: int
    constants: Mapping[str, int]
    counted: frozenset[str]
    aligned: bool = False

    @property
    def known(self) -> frozenset[str]:
        """What is no input behind the first tokens."""
        return self.counted | self.constants.keys()

    def spec(self, tokens: Mapping[int, int]) -> ModelSpec:
        """The spec of the inputs in two parts, with placeholders and their numbers in each row."""
        whole, dim = self.whole, self.whole.dims[self.dim]
        rest = Dim(
            dim.name,
            max(1, dim.min - self.count),
            None if dim.max is None else dim.max - self.count,
        )
        dynamic: dict[str, dict[int, str | Dim]] = {}
        for name, own in whole.dynamic.items():
            axis = self.axes.get(name)
            if axis is None:
                dynamic[name] = dict(own)
                continue
            others = {a: d for a, d in own.items() if a != axis}
            dynamic[PREFIX + name] = others
            if name not in self.known:
                dynamic[name] = {**others, axis: rest}
        kinds = (name for name in self.axes if name.endswith(_KINDS))
        told: dict[str, tuple[int, ...]] = dict.fromkeys(kinds, ())
        told |= {_IDS: tuple(tokens)} if tokens else {}
        settled = {
            part: ids
            for name, ids in (told | dict(whole.settled)).items()
            for part in ((PREFIX + name, name) if name in self.axes else (name,))
            if part not in self.known
        }
        first = tuple(PREFIX + name for name in self.axes)
        counts = {PREFIX + _IDS: tokens, _IDS: dict.fromkeys(tokens, 0)} if tokens else {}
        return replace(
            whole,
            inputs=self._given(whole.inputs),
            dynamic=dynamic,
            context=(*(name for name in whole.context if name not in self.axes), *first),
            sampler=self.sample,
            examples=[self.split(example) for example in whole.examples],
            settled=settled,
            counts=counts,
            decode=_IDS if whole.decode in (None, _IDS) else None,
            decode_where_possible=whole.decode is None or whole.decode_where_possible,
        )

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """The example as arguments: with those that are no tensors."""
        given = self.whole.arguments.given
        fixed = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
        return {**fixed, **self.split(inputs)}

    def split(self, inputs: Tensors) -> dict[str, Tensor]:
        """Inputs in two parts."""
        found = {n: tensor for n, tensor in inputs.items() if n not in self.axes}
        for name, axis in self.axes.items():
            tensor = inputs[name]
            found[PREFIX + name] = tensor.narrow(axis, 0, self.count).contiguous()
            if name not in self.known:
                left = tensor.shape[axis] - self.count
                found[name] = tensor.narrow(axis, self.count, left).contiguous()
        return found

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Inputs of the given sizes: the first tokens as in the example, of the rest fewer or some
        again."""
        whole = self.whole
        example = whole.example_sizes[self.dim]
        asked = {**sizes, self.dim: example}
        if whole.sampler is not None:
            rows = whole.arguments.flat(whole.sampler(asked, generator), "the sampler")
        else:
            rows = _repeated(whole, asked)
        made = self.split(aligned(rows, self.axes) if self.aligned else rows)
        places = _places(example - self.count, sizes[self.dim], generator)
        for name, axis in self.axes.items():
            if name in made:
                made[name] = made[name].index_select(axis, places)
        return made


def _repeated(spec: ModelSpec, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The example with its rows, and what else has a dimension, as often as sizes say."""
    found = dict(spec.inputs)
    for name, own in spec.axes.items():
        for axis, dim in own.items():
            if dim in sizes:
                size = found[name].shape[axis]
                found[name] = found[name].index_select(axis, torch.arange(sizes[dim]) % size)
    return found


def _places(known: int, asked: int, generator: torch.Generator) -> Tensor:
    """So many of the known places, in order; some of them several times where they are too few."""
    if asked <= known:
        return torch.randperm(known, generator=generator)[:asked].sort().values
    more = torch.randint(known, (asked - known,), generator=generator)
    return torch.cat([torch.arange(known), more]).sort().values


def _last(
    parts: _Parts, name: str, given: Mapping[str, Any], rest: Tensor, first: Tensor
) -> Tensor:
    """The part of an input that is behind the first tokens."""
    if name in parts.constants:
        return rest.new_full((), parts.constants[name]).expand_as(rest)
    if name in parts.counted:
        return count_on(first, rest)
    found: Tensor = given[name]
    return found


def _join(model: nn.Module, parts: _Parts, with_rows: tuple[str, ...]) -> None:
    """Let a model take its inputs in two parts, and give results for the tokens of the second.

    Args:
        model: whose ``forward`` is replaced; its modules keep their paths.
        parts: of the inputs.
        with_rows: outputs that have the tokens along their second axis.
    """
    original: Any = getattr(model.__dict__.get("forward"), "__func__", type(model).forward)
    axes, count = dict(parts.axes), parts.count

    def forward(self: Any, **given: Any) -> Any:
        rest = given[_IDS]
        for name, axis in axes.items():
            first = given.pop(PREFIX + name)
            given[name] = torch.cat([first, _last(parts, name, given, rest, first)], axis)
        result = original(self, **given)
        if not isinstance(result, Mapping):
            return result
        return {
            name: value[:, count:] if name in with_rows else value for name, value in result.items()
        }

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = dict.fromkeys([*parts.whole.arguments.given, *(PREFIX + name for name in axes)])
    taken = [inspect.Parameter(name, kind, default=None) for name in names]
    of_method = inspect.Signature([inspect.Parameter("self", kind), *taken])
    forward.__signature__ = of_method  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
