"""`Session`: a bundle's target, ready to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from crossfuse.bundle.manifest import Decode, StageSpec
from crossfuse.core.processes import require_own_process
from crossfuse.core.tensors import Dim, TensorSpec, names_of
from crossfuse.errors import Advice, InputError, Said
from crossfuse.runtime.binding import Binding
from crossfuse.runtime.context import Context, require_own
from crossfuse.runtime.context_files import load_tensors, placed
from crossfuse.runtime.decoding import DecodingState
from crossfuse.runtime.empty_stage import executing
from crossfuse.runtime.given_inputs import GivenInputs, given_by_name
from crossfuse.runtime.input_checks import InputChecker, any_on_device, ids_of
from crossfuse.runtime.session_layout import SessionLayout
from crossfuse.runtime.stage import OpenedStages, Stage
from crossfuse.runtime.token_rows import TokenRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Session"]


class Session:
    """A target, ready to run.

    Safe to use from several threads at once; close it, or use it as a context manager. A split
    bundle's session also encodes contexts once (`encode`) and asks them many queries (`query`).
    """

    def __init__(  # noqa: PLR0913 -- all that a manifest says of a session
        self,
        target: str,
        stages: Mapping[str, StageSpec],
        dims: Mapping[str, Dim],
        engines: Mapping[str, Stage],
        *,
        shared_batch: str | None = None,
        decode: Decode | None = None,
        owner: str = "",
        constants: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        self.target = target
        self.stages: Mapping[str, StageSpec] = MappingProxyType(dict(stages))
        self._layout = layout = SessionLayout(stages, shared_batch, decode)
        self.split = layout.split
        self.inputs: tuple[TensorSpec, ...] = layout.inputs
        self.outputs: tuple[TensorSpec, ...] = layout.outputs
        self.decode = decode
        self.generation: Mapping[str, Any] = MappingProxyType(dict(generation or {}))
        self.provider = next(iter(engines.values())).provider
        self._names, self._dims = layout.output_names, dims
        self._check = InputChecker(layout.inputs, dims)
        self._check_context = InputChecker(layout.context, dims)
        self._check_query = InputChecker(layout.queries, dims)
        self.given = GivenInputs(names_of(layout.inputs), constants or {})
        self.owner = owner or f"{target} {id(self)}"
        self._engines: Mapping[str, Stage] | None = OpenedStages(engines)
        self._process = os.getpid()

    def run(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Any]:
        """Run on inputs by name: as keywords, or as one mapping, which takes any name.

        Args:
            inputs: NumPy arrays, or anything with DLPack; inputs ``a.b`` and ``a.0`` by these
                names, or in a container ``a``. Host arrays that are contiguous are not copied.
                Device arrays stay on the device, and then so do the outputs (`DeviceArray`, which
                speaks DLPack). In a split bundle the queries' batch may be a multiple of the
                contexts'.
            named: the same as keywords.

        Returns:
            outputs by name; NumPy arrays for host inputs.

        Raises:
            InputError: names, dtypes or shapes that the specs don't allow, values that the engine
                refuses, or a closed session.
            EngineError: the GPU failed.
        """
        engines = self._open_engines()
        given = self.given(inputs, named)
        if any_on_device(given):
            return self._run_on_device(engines, given)
        feeds = self._check(given)
        if not self.split:
            return dict(zip(self._names, engines["model"].run(feeds), strict=True))
        first = self._take_contexts(feeds)
        context, query = engines["context"], engines["query"]
        if context.on_device:
            feeds.update(zip(self._layout.frontier, context.run_on_device(first), strict=True))
            return dict(zip(self._names, query.run_mixed(feeds), strict=True))
        feeds.update(zip(self._layout.frontier, context.run(first), strict=True))
        return dict(zip(self._names, query.run(feeds), strict=True))

    def check(
        self, inputs: Mapping[str, Any], /, context: Context | None = None
    ) -> dict[str, NDArray[Any]]:
        """Check host inputs as `run` does, or, with a context, as `query` does, and compute
        nothing.

        Args:
            inputs: all inputs by name, or the query inputs.
            context: that the queries are for.

        Returns:
            the inputs as contiguous arrays.

        Raises:
            InputError: as `run` and `query`.
        """
        inputs = self.given(inputs, {})
        if context is None:
            feeds = self._check(inputs)
            if self.split:
                self._layout.check_fan_out(feeds, self._layout.contexts_in(feeds))
            return feeds
        require_own(context, self.owner)
        feeds = self._check_query(inputs, context.sizes)
        self._layout.check_fan_out(feeds, context.count)
        return feeds

    def encode(self, inputs: Mapping[str, Any] | None = None, /, **named: Any) -> Context:
        """Compute what depends on the context inputs alone, K and V projections included.

        Args:
            inputs: the context inputs by name, one or more contexts in a batch; host or device
                arrays.
            named: the same as keywords.

        Returns:
            the contexts: on the session's device, immutable, usable from several threads.

        Raises:
            InputError: as `run`, or the bundle is not split.
        """
        engines = self._require_split()
        given, context = self.given(inputs, named), engines["context"]
        if any_on_device(given):
            feeds = self._check_context.check_device(given, context)
        else:
            feeds = self._check_context(given)
        tensors = context.run_on_device(feeds) if context.on_device else context.run(feeds)
        return self._layout.context_of(tensors, feeds, self.owner)

    def load_context(self, path: str | Path) -> Context:
        """Contexts that :meth:`Context.save` wrote, to where its own are.

        Raises:
            InputError: no such file, a damaged one, or contexts of another bundle or target.
        """
        engine = next(iter(self._require_split().values()))
        stage, layout = self.stages["context"], self._layout
        found = load_tensors(Path(path), stage, layout.batch, self._dims, self.owner)
        layout.require_before(found.about, path)
        tensors = {name: placed(stored, engine) for name, stored in found.tensors.items()}
        return layout.context_with(tensors, found.about)

    def query(
        self, context: Context, inputs: Mapping[str, Any] | None = None, /, **named: Any
    ) -> dict[str, Any]:
        """Ask contexts that were encoded before.

        Args:
            context: of this bundle and target.
            inputs: the query inputs by name. Their batch is a multiple G of the contexts'; queries
                ``i·G … (i+1)·G-1`` ask context ``i``.
            named: the same as keywords.

        Returns:
            outputs by name, as from `run` on the same contexts and queries.

        Raises:
            InputError: as `run`, a context of another bundle or target, or a batch that is no
                multiple of the contexts'.
        """
        engines = self._require_split()
        require_own(context, self.owner)
        given = self.given(inputs, named)
        on_device = any_on_device(given)
        if on_device:
            feeds = self._check_query.check_device(given, engines["query"], context.sizes)
        else:
            feeds = self._check_query(given, context.sizes)
        self._layout.check_fan_out(feeds, context.count)
        feeds.update(context.tensors)
        engine = engines["query"]
        if on_device:
            return dict(zip(self._names, engine.run_on_device(feeds), strict=True))
        outputs = engine.run_mixed(feeds) if engine.on_device else engine.run(feeds)
        return dict(zip(self._names, outputs, strict=True))

    def start(
        self,
        context: Context,
        /,
        batch: int | None = None,
        *,
        prompt: object = None,
        lengths: object = None,
        mask: object = None,
    ) -> DecodingState:
        """Begin to decode sequences over a context.

        Args:
            context: of this bundle and target.
            batch: how many sequences, a multiple of the contexts; by default the prompt's, or one
                each.
            prompt, lengths, mask: tokens to begin with, as of :meth:`DecodingState.append`.

        Raises:
            InputError: a bundle that can't decode, a context of another one, a batch that is no
                multiple, or a prompt that doesn't fit.
        """
        engines = self._require_split()
        decode = self._layout.require_steps()
        require_own(context, self.owner)
        rows = None if prompt is None else TokenRows.of(prompt, lengths, mask).batch
        count = self._layout.sequences(context.count, batch, rows)
        inputs, engine = self.stages["step"].inputs, engines["step"]
        state = DecodingState(context, engine, inputs, decode.tokens, count, decode.length)
        if prompt is not None:
            state.append(prompt, lengths, mask=mask)
        return state

    def step(
        self,
        state: DecodingState,
        tokens: NDArray[Any] | Mapping[str, Any] | None = None,
        /,
        **named: Any,
    ) -> Mapping[str, NDArray[Any]]:
        """Give every sequence its next token and compute the outputs at it.

        The cost doesn't grow with the sequence.

        Args:
            state: from `start`; changed in place.
            tokens: ids, ``[batch]`` or ``[batch, 1]``; or a mapping from the input's name to them,
                and from the names of inputs beside it to theirs.
            named: the same as a keyword.

        Returns:
            outputs by name, with a token axis of 1; overwritten by the state's next step.

        Raises:
            InputError: tokens of another shape, a full state, or values that the engine refuses.
        """
        self._open_engines()
        beside: Mapping[str, Any] = {}
        if tokens is None or named or isinstance(tokens, Mapping):
            tokens, beside = self._layout.tokens_in(given_by_name(tokens, named))
        if not isinstance(state, DecodingState):
            raise InputError(
                "a step needs a state", got=type(state).__name__, do="Call session.start(context)"
            )
        others = {name: ids_of(value) for name, value in beside.items()}
        return state.append_one(ids_of(tokens), others)

    def bind(
        self, inputs: Mapping[str, NDArray[Any]] | None = None, /, **named: NDArray[Any]
    ) -> Binding:
        """Check once, run many times: a binding to these host arrays, by name, for hot loops over
        one shape.

        Raises:
            InputError: as `run`, and for arrays that would have to be copied.
        """
        engines = self._open_engines()
        given = self.given(inputs, named)
        feeds = self._check(given)
        for name, array in feeds.items():
            if array is not given[name]:
                raise InputError("a bound input must be a contiguous NumPy array", where=name)
        if not self.split:
            return Binding([(engines["model"], feeds, self._names)])
        if engines["context"].on_device:
            raise InputError(
                "a split bundle on a GPU can't be bound",
                do="Encode the contexts once, and query them",
            )
        first = self._take_contexts(feeds)
        return Binding(
            [
                (engines["context"], first, self._layout.frontier),
                (engines["query"], feeds, self._names),
            ]
        )

    def close(self) -> None:
        """Release the engines; running threads finish first. Closing twice is fine."""
        engines, self._engines = self._engines, None
        for engine in (engines or {}).values():
            engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._engines is None else self.provider
        return f"<crossfuse Session {self.target} on {state}: {', '.join(map(str, self.inputs))}>"

    def _run_on_device(
        self, engines: Mapping[str, Stage], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        feeds = self._check.check_device(inputs, next(iter(engines.values())))
        if not self.split:
            return dict(zip(self._names, engines["model"].run_on_device(feeds), strict=True))
        encoded = engines["context"].run_on_device(self._take_contexts(feeds))
        feeds.update(zip(self._layout.frontier, encoded, strict=True))
        return dict(zip(self._names, engines["query"].run_on_device(feeds), strict=True))

    def _take_contexts(self, feeds: dict[str, Any]) -> dict[str, Any]:
        """Take the context inputs out of checked inputs; what is left are the queries'."""
        self._layout.check_fan_out(feeds, self._layout.contexts_in(feeds))
        return {name: feeds.pop(name) for name in self._layout.context_names}

    def _require_split(self) -> Mapping[str, Stage]:
        if not self.split:
            do = Advice("Export it with {}", Said("--context INPUT", "ModelSpec(context=...)"))
            raise InputError("the bundle has no context stage", got=", ".join(self.stages), do=do)
        return self._open_engines()

    def engine(self, stage: str) -> Stage:
        """What executes a stage, for tools that look inside."""
        return executing(self._open_engines()[stage])

    def _open_engines(self) -> Mapping[str, Stage]:
        if self._engines is None:
            raise InputError("the session is closed", do="Load the bundle again")
        require_own_process(self._process)
        return self._engines
