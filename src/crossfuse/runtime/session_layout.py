"""`SessionLayout`: what a bundle's stages take and give together, and which of its dimensions count
contexts and queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import CONTEXTS, TensorSpec, names_of
from crossfuse.errors import InputError

__all__ = ["SessionLayout"]


class SessionLayout:
    """The boundary of a whole session, read off its stages once.

    Args:
        stages: ``model`` alone, or ``context`` and ``query``, and perhaps ``step``.
        shared_batch: the dimension of the queries' batch, where it is a multiple of the contexts'.
        decode: which input grows token by token, where the bundle decodes.

    Attributes:
        split: whether there is a context stage.
        context: specs of the context inputs; none in an unsplit bundle.
        queries: specs of the other inputs.
        outputs: specs of the outputs.
        frontier: names of what the context stage hands to the query stage.
        batch: the dimension that counts contexts, or None where their inputs have no batch.
        token: spec of the input that `decode` names, or None.
    """

    def __init__(
        self, stages: Mapping[str, StageSpec], shared_batch: str | None, decode: Decode | None
    ) -> None:
        self.split = "context" in stages
        last = stages["query" if self.split else "model"]
        self.context = stages["context"].inputs if self.split else ()
        self.frontier = names_of(stages["context"].outputs) if self.split else ()
        self.queries = tuple(spec for spec in last.inputs if spec.name not in self.frontier)
        self.outputs = last.outputs
        self.output_names = names_of(last.outputs)
        self.context_names = names_of(self.context)
        firsts = (s.shape[0] for s in self.context if s.shape and isinstance(s.shape[0], str))
        self.batch = CONTEXTS if shared_batch is not None else next(firsts, None)
        self.shared_batch = shared_batch
        self.decode = decode
        tokens = None if decode is None else decode.tokens
        self.token = next((spec for spec in self.queries if spec.name == tokens), None)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all inputs, those of the contexts first."""
        return (*self.context, *self.queries)

    def contexts_in(self, feeds: Mapping[str, Any]) -> int:
        """How many contexts the checked inputs hold; 1 where they have no batch."""
        if self.batch is not None:
            for spec in self.context:
                if self.batch in spec.shape:
                    return int(feeds[spec.name].shape[spec.shape.index(self.batch)])
        return 1

    def context_sizes(self, feeds: Mapping[str, Any]) -> dict[str, int]:
        """Sizes of the context inputs' named dimensions in checked inputs."""
        return {
            dim: int(size)
            for spec in self.context
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }

    def check_fan_out(self, feeds: Mapping[str, Any], contexts: int) -> None:
        """Refuse queries that can't be shared out among so many contexts.

        Raises:
            InputError: their number is no multiple of the contexts'.
        """
        if self.shared_batch is None:
            return
        spec = next((s for s in self.queries if self.shared_batch in s.shape), None)
        if spec is None:
            return
        axis = spec.shape.index(self.shared_batch)
        queries = int(feeds[spec.name].shape[axis])
        if queries % contexts:
            raise InputError(
                "the number of queries is no multiple of the number of contexts",
                where=f"{spec.name}, axis {axis}",
                got=f"{queries} queries, {contexts} contexts",
                do="Give each context equally many queries, or select the contexts that you ask",
            )

    def tokens_in(self, inputs: Mapping[str, Any]) -> Any:
        """The ids among a step's inputs.

        Raises:
            InputError: other inputs than the ids.
        """
        name = "" if self.decode is None else self.decode.tokens
        if set(inputs) != {name}:
            raise InputError(
                "a step takes the ids alone",
                got=", ".join(map(str, inputs)) or "nothing",
                expected=name,
            )
        return inputs[name]
