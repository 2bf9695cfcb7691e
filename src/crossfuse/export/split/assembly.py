"""From the fused graph to the graphs of a bundle's stages, with their boundaries: ``model``, or
``context`` and ``query``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from crossfuse.bundle.manifest import Decode, PrefixReuse, StageSpec
from crossfuse.core.tensors import CONTEXTS, NEW_TOKENS, Dim
from crossfuse.errors import InputError
from crossfuse.export.split.decode_step import NoStepsError, decode_stage
from crossfuse.export.split.partition import NothingToSplitError, split
from crossfuse.export.split.prefix import cut_prefix
from crossfuse.export.split.stage_sizes import MissingSizeError
from crossfuse.graph.flops import count_flops
from crossfuse.graph.shapes import boundary, dim_of

__all__ = ["DEFAULT_LENGTH", "Stages", "assemble"]

DEFAULT_LENGTH = 512
"""The most tokens of a sequence being decoded, where its dimension has no maximum."""


@dataclass(frozen=True)
class Stages:
    """Graphs and specs by stage, their dimensions with typical sizes, the batch that contexts and
    queries shared, and tensors of the context that are computed with the queries, with the
    reason."""

    graphs: Mapping[str, ir.Model]
    specs: Mapping[str, StageSpec]
    dims: Mapping[str, Dim]
    example: Mapping[str, int]
    shared_batch: str | None = None
    decode: Decode | None = None
    with_queries: Mapping[str, str] = field(default_factory=dict)
    prefix: PrefixReuse | None = None

    def without_steps(self) -> Stages:
        """The same without a stage for steps."""
        return replace(
            self,
            graphs={name: graph for name, graph in self.graphs.items() if name != "step"},
            specs={name: spec for name, spec in self.specs.items() if name != "step"},
            dims={name: dim for name, dim in self.dims.items() if name != NEW_TOKENS},
            example={name: size for name, size in self.example.items() if name != NEW_TOKENS},
            decode=None,
        )


def assemble(
    model: ir.Model,
    context: Sequence[str],
    dims: Mapping[str, Dim],
    sizes: Mapping[str, int],
    *,
    whole: bool = False,
    decode: str | None = None,
    prefix: bool = True,
) -> Stages:
    """Split the graph where it has context inputs.

    It stays whole where all that could be computed from them alone mixes samples of a batch, or
    needs sizes of the queries.

    Args:
        model: the fused graph.
        context: names of its context inputs.
        dims: its dimensions.
        sizes: their typical sizes.
        whole: leave it whole all the same.
        decode: the input of token ids of a model that decodes; gives a stage ``step``.
        prefix: keep tokens of the context that stand in front of the queries' apart from them.

    Raises:
        InputError: there is nothing to split, or it can't be decoded step by step.
    """
    if not context or whole:
        return Stages({"model": model}, {"model": _spec(model, sizes)}, dims, sizes)
    apart, found = cut_prefix(model, context) if prefix else (model, None)
    if apart is not model:
        try:
            stages = _split(apart, context, dims, sizes, decode)
        except NoStepsError:
            raise
        except InputError as error:
            found = PrefixReuse(None, (), str(error.what))
        else:
            if "context" in stages.graphs:
                return replace(stages, prefix=found)
            found = PrefixReuse(None, (), next(iter(stages.with_queries.values())))
    try:
        return replace(_split(model, context, dims, sizes, decode), prefix=found)
    except NoStepsError as error:
        if found is None or not found.reason:
            raise
        # What can't be computed once can't stand in front of steps either.
        raise NoStepsError(
            f"the model can't be decoded step by step: {found.reason}",
            where=error.where,
            do=error.do,
        ) from error


def _split(
    model: ir.Model,
    context: Sequence[str],
    dims: Mapping[str, Dim],
    sizes: Mapping[str, int],
    decode: str | None,
) -> Stages:
    try:
        parts = split(model, context, sizes)
    except (NothingToSplitError, MissingSizeError) as error:
        if not error.kept or decode is not None:
            raise
        stages = Stages({"model": model}, {"model": _spec(model, sizes)}, dims, sizes)
        return replace(stages, with_queries=error.kept)
    if parts.shared is not None:
        shared = dims[parts.shared]
        dims = {**dims, CONTEXTS: replace(shared, name=CONTEXTS)}
        sizes = {**sizes, CONTEXTS: sizes[parts.shared]}
    graphs = {"context": parts.context, "query": parts.query}
    steps = None
    if decode is not None:
        steps = Decode(decode, _most_tokens(parts.query, decode, dims))
        graphs["step"] = decode_stage(parts.query, decode, steps.length)
        dims = {**dims, NEW_TOKENS: Dim(NEW_TOKENS, 1, steps.length)}
        sizes = {**sizes, NEW_TOKENS: 1}
    specs = {name: _spec(graph, sizes) for name, graph in graphs.items()}
    return Stages(graphs, specs, dims, sizes, parts.shared, steps, parts.kept)


def _most_tokens(query: ir.Model, tokens: str, dims: Mapping[str, Dim]) -> int:
    """The most tokens that a sequence may have: the maximum of its dimension, where it has one."""
    value = next((v for v in query.graph.inputs if v.name == tokens), None)
    has_axis = value is not None and value.shape is not None and len(value.shape) > 1
    size = dim_of(value, 1) if has_axis else None
    limit = dims[size].max if isinstance(size, str) and size in dims else None
    return limit or DEFAULT_LENGTH


def _spec(model: ir.Model, sizes: Mapping[str, int]) -> StageSpec:
    return StageSpec(
        boundary(model.graph.inputs), boundary(model.graph.outputs), count_flops(model, sizes)
    )
