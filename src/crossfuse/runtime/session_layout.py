"""`SessionLayout`: what a bundle's stages take and give together, and which of its dimensions count
contexts and queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.tensors import CONTEXTS, PREFIX, STATE, TensorSpec, names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.context import Context, frozen
from crossfuse.runtime.context_files import Of
from crossfuse.runtime.device_array import DeviceArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        kept: specs of what the context stage hands to the query stage.
        frontier: names of what the context stage hands to the query stage.
        batch: the dimension that counts contexts, or None where their inputs have no batch.
        token: spec of the input that `decode` names, or None.
        beside: names of the step stage's inputs beside it, with one element per token.
    """

    def __init__(
        self, stages: Mapping[str, StageSpec], shared_batch: str | None, decode: Decode | None
    ) -> None:
        self.split = "context" in stages
        last = stages["query" if self.split else "model"]
        self.context = stages["context"].inputs if self.split else ()
        self.kept = stages["context"].outputs if self.split else ()
        self.frontier = names_of(self.kept)
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
        steps = names_of(stages["step"].inputs) if "step" in stages else ()
        self.beside = tuple(spec.name for spec in self.queries if STATE + spec.name in steps)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all inputs, those of the contexts first."""
        return (*self.context, *self.queries)

    def context_of(self, tensors: Iterable[Any], feeds: Mapping[str, Any], owner: str) -> Context:
        """What a context stage computed of checked inputs, in its outputs' order."""
        made = zip(self.frontier, tensors, strict=True)
        about = Of(owner, self.contexts_in(feeds), self.context_sizes(feeds), self._before(feeds))
        return self.context_with({name: frozen(tensor) for name, tensor in made}, about)

    def context_with(self, tensors: Mapping[str, Any], about: Of) -> Context:
        """Contexts of these tensors."""
        kept = MappingProxyType(dict(tensors))
        owner, count, sizes, before = about
        return Context(kept, self.kept, count, self.batch, owner, sizes, before)

    def require_before(self, about: Of, where: object) -> None:
        """Refuse contexts of a file that says other ids in front of prompts than there are.

        Raises:
            InputError: none, or others in number.
        """
        spec = next((s for s in self.context if s.name == self._before_name), None)
        expected = None if spec is None or len(spec.shape) != 2 else spec.shape[1]
        got = None if about.before is None else about.before.shape[1]
        fits = got == expected or (isinstance(expected, str) and got == about.sizes.get(expected))
        if not fits:
            raise InputError(
                "the context's file doesn't hold the tokens in front of the prompts",
                where=where,
                got=got or "none",
                expected=expected or "none",
                do="Encode the input again with this bundle",
            )

    @property
    def _before_name(self) -> str | None:
        return None if self.decode is None else PREFIX + self.decode.tokens

    def _before(self, feeds: Mapping[str, Any]) -> NDArray[np.int64] | None:
        """Ids in front of the prompts among checked inputs."""
        given = feeds.get(self._before_name or "")
        if given is None or len(given.shape) != 2:
            return None
        ids = given.numpy() if isinstance(given, DeviceArray) else given
        found: NDArray[np.int64] = frozen(np.array(ids, np.int64))
        return found

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
        if queries % contexts if contexts else queries:
            raise InputError(
                "the number of queries is no multiple of the number of contexts",
                where=f"{spec.name}, axis {axis}",
                got=f"{queries} queries, {contexts} contexts",
                do="Give each context equally many queries, or select the contexts that you ask",
            )

    def require_steps(self) -> Decode:
        """How the bundle decodes.

        Raises:
            InputError: it has no step stage.
        """
        if self.decode is None:
            raise InputError(
                "the bundle has no step stage",
                got="context, query",
                do=Advice("Export it with {}", Said("--decode INPUT", "ModelSpec(decode=...)")),
            )
        return self.decode

    def sequences(self, contexts: int, batch: int | None, prompts: int | None) -> int:
        """How many sequences to decode over so many contexts: as asked for, else as many as there
        are prompts, or one each where one prompt is for all.

        Raises:
            InputError: no multiple of the contexts.
        """
        each = contexts if prompts in (None, 1) else prompts
        count = each if batch is None else batch
        if count < 1 or contexts < 1 or count % contexts:
            raise InputError(
                "the batch is no multiple of the number of contexts",
                got=count,
                expected=contexts,
            )
        return count

    def tokens_in(self, inputs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The ids among a step's inputs, and what is beside them.

        Raises:
            InputError: no ids, or other inputs than the step stage takes beside them.
        """
        name = "" if self.decode is None else self.decode.tokens
        if name not in inputs or not set(inputs) <= {name, *self.beside}:
            raise InputError(
                "a step takes the ids alone"
                if not self.beside
                else "a step takes the ids, and what is beside them",
                got=", ".join(map(str, inputs)) or "nothing",
                expected=", ".join((name, *self.beside)),
            )
        return inputs[name], {key: inputs[key] for key in self.beside if key in inputs}
