"""A `Source`: what a user exports, as text, as a spec of a model, and as a manifest's words for it.

The way of a source, each room once::

    "clip", "hf:…", "diffusers:…", "m.onnx", "a.b:make", a ModelSpec    the caller's words
      └► kind_of                     api/source_kinds.py      which of the six kinds; only here
          └► Source(kind, name, options)                      frozen; travels in place of the words
              ├► model()             by the kind, one room:
              │    zoo               models/registry.py         zoo_spec
              │    huggingface       export/sources/huggingface/spec.py
              │    diffusers         export/sources/diffusers/spec.py
              │    onnx              export/sources/onnx_file/load.py
              │    factory           export/sources/factory.py
              │    spec              the spec itself
              ├► load()              the model, with context, dynamic axes, decoding, dropped
              │    └► ModelSpec      outputs and examples of the options
              │        └► accepted   parity/repeatable.py, export/capture/half_sources.py
              └► to_manifest()       bundle/manifest.py       plain data
                  └► Source.of_bundle(data, the caller's words)
                       back to kind_of, with a zoo name or what the caller says: no code, file or
                       address of a manifest is used

``trust_remote_code`` and the paths of examples are the caller's alone: no manifest holds them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossfuse.api.arguments import Progress, silent
from crossfuse.api.examples import tensors_of, with_examples
from crossfuse.api.source_kinds import DIFFUSERS, HUGGING_FACE, SourceKind, kind_of
from crossfuse.core.checkpoint_weights import MISSING
from crossfuse.core.npz import load_arrays
from crossfuse.core.tensors import Dim
from crossfuse.errors import Advice, InputError, Said
from crossfuse.models.registry import SIZES, ZOO, zoo_spec
from crossfuse.spec.input_origin import FROM, YOURS

if TYPE_CHECKING:
    from crossfuse.export.capture.guards import NotFreeError
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["Source", "SourceOptions", "accepted"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceOptions:
    """What a caller says beside a source; see :func:`crossfuse.export`.

    ``context``, ``dynamic`` and ``decode`` stand in place of the model's own, where given, axis by
    axis; the next three beside them. The last five are for a checkpoint of ``transformers``.
    """

    size: str = SIZES[-1]
    seed: int = 0
    checkpoint: str | None = None
    task: str | None = None
    trust_remote_code: bool = False
    allow_missing: bool = False
    context: tuple[str, ...] = ()
    dynamic: Mapping[str, Mapping[int, str | Dim]] = field(default_factory=dict)
    decode: str | None = None
    drop_outputs: tuple[str, ...] = ()
    keep_probabilities: tuple[str, ...] = ()
    examples: tuple[Path, ...] = ()
    image: tuple[Any, ...] = ()
    text: tuple[str, ...] = ()
    audio: tuple[Any, ...] = ()
    video: tuple[Any, ...] = ()
    prefix: str | None = None


@dataclass(frozen=True)
class Source:
    """A model as a caller names it, with what he says of it.

    Attributes:
        kind: decided when the source was made.
        name: the text, or a spec's name.
        options: of the caller, or of a bundle's manifest.
        spec: the spec that was given, where one was.
    """

    kind: SourceKind
    name: str
    options: SourceOptions = SourceOptions()
    spec: ModelSpec | None = None

    @classmethod
    def of(cls, source: ModelSpec | str, options: SourceOptions | None = None) -> Source:
        """The source behind a text or a spec.

        Raises:
            InputError: it is none.
        """
        kind, options = kind_of(source), options or SourceOptions()
        if isinstance(source, str):
            _log.debug("source %r: %s", source, kind.value)
            return cls(kind, source, options)
        return cls(kind, source.name, options, source)

    @classmethod
    def of_bundle(
        cls,
        about: Mapping[str, Any],
        source: ModelSpec | str | None = None,
        *,
        checkpoint: str | None = None,
        task: str | None = None,
    ) -> Source:
        """The source that a bundle was exported from, for `verify` and `profile`.

        A bundle may come from anywhere, so what it says about its source names no code, file or
        address here: of it come the name of a zoo model, its size and seed, and the names of
        inputs, axes and outputs that the export was told. The rest is the caller's to say.

        Args:
            about: what the manifest says about the source.
            source: as for `export`; None for the zoo model that the bundle names.
            checkpoint, task: as for `export`.

        Raises:
            InputError: the bundle names no zoo model, or was made with a checkpoint or task that
                isn't given.
        """
        if source is None:
            source = _zoo_name(about)
        size, seed = about.get("size", SIZES[-1]), about.get("seed", 0)
        if size not in SIZES or type(seed) is not int:
            raise InputError(
                "the bundle names a size or seed that no zoo model has", got=f"{size!r}, {seed!r}"
            )
        found = cls.of(
            source,
            SourceOptions(
                size=size,
                seed=seed,
                checkpoint=checkpoint,
                task=task,
                # Weights that were missing then may be missing now.
                allow_missing=bool(about.get(MISSING)),
                context=_texts(about, "context"),
                dynamic=_axes_of(about),
                decode=about.get("decode"),
                drop_outputs=_texts(about, "drop_outputs"),
                keep_probabilities=_texts(about, "keep_probabilities"),
                prefix=about.get("prefix"),
            ),
        )
        if found.kind is SourceKind.ZOO and about.get("name") == source:
            _require_given("checkpoint", checkpoint, about)
        if found.kind is SourceKind.HUGGINGFACE:
            _require_given("task", task, about)
        return found

    def to_manifest(self) -> dict[str, Any]:
        """What a manifest says about the source: plain data."""
        options = self.options
        about: dict[str, Any] = {"kind": self.kind.value, "name": self.name}
        if self.kind is SourceKind.ZOO and options.checkpoint:
            about["checkpoint"] = options.checkpoint
        elif self.kind is SourceKind.ZOO:
            about |= {"size": options.size, "seed": options.seed}
        elif self.kind is SourceKind.HUGGINGFACE and options.task:
            about["task"] = options.task
        asked = {
            "context": list(options.context),
            "dynamic": {
                name: {str(axis): _dim_text(dim) for axis, dim in axes.items()}
                for name, axes in options.dynamic.items()
            },
            "decode": options.decode,
            "drop_outputs": list(options.drop_outputs),
            "keep_probabilities": list(options.keep_probabilities),
            "prefix": options.prefix,
        }
        return about | {key: value for key, value in asked.items() if value}

    def model(self) -> ModelSpec:
        """The spec as the source itself gives it, but for an ONNX file, whose examples the caller's
        first are.

        Raises:
            InputError: a factory that fails, a checkpoint that can't be loaded, a damaged file.
        """
        options = self.options
        if self.spec is not None:
            return self.spec
        if self.kind is SourceKind.ONNX:
            from crossfuse.export.sources.onnx_file.load import onnx_spec

            first = load_arrays(options.examples[0]) if options.examples else None
            return onnx_spec(self.name, first)
        if self.kind is SourceKind.HUGGINGFACE:
            return self._checkpoint()
        if self.kind is SourceKind.DIFFUSERS:
            from crossfuse.export.sources.diffusers.spec import diffusers_spec

            return diffusers_spec(
                self.name.removeprefix(DIFFUSERS), allow_missing=options.allow_missing
            )
        if self.kind is SourceKind.FACTORY:
            from crossfuse.export.sources.factory import factory_spec

            return factory_spec(self.name)
        return zoo_spec(
            self.name,
            options.size,
            options.seed,
            options.checkpoint,
            allow_missing=options.allow_missing,
        )

    def _checkpoint(self) -> ModelSpec:
        from crossfuse.export.sources.huggingface.sample_inputs import Given
        from crossfuse.export.sources.huggingface.spec import checkpoint_spec

        options = self.options
        return checkpoint_spec(
            self.name.removeprefix(HUGGING_FACE),
            task=options.task,
            trust_remote_code=options.trust_remote_code,
            allow_missing=options.allow_missing,
            given=Given(options.text, options.image, options.audio, options.video),
            examples=[tensors_of(file) for file in options.examples],
            prefix=options.prefix,
        )

    def load(self) -> ModelSpec:
        """The spec with the options: context, dynamic axes, decoding, dropped outputs, examples.

        Raises:
            InputError: as `model`; an option or an example that the model doesn't take.
        """
        if self.kind is not SourceKind.HUGGINGFACE:
            for name in ("audio", "image", "prefix", "text", "video"):
                if getattr(self.options, name):
                    raise InputError(
                        Advice("{} is for hf: sources", Said(f"--{name}", f"{name}=...")),
                        where=self.name,
                    )
        spec = self._with_options(self.model())
        used = 1 if self.kind is SourceKind.ONNX or spec.about.get(FROM) == YOURS else 0
        # With a prefix the spec has them all, in two parts.
        files = () if self.options.prefix else self.options.examples[used:]
        return with_examples(spec, [(str(file), load_arrays(file)) for file in files])

    def refitted(self, spec: ModelSpec, refused: NotFreeError) -> ModelSpec:
        """The spec with dimensions that its tracing found fixed or narrower than their ranges,
        where these were found by trying the model and not asked for.

        Raises:
            NotFreeError: as it was given, where they were asked for.
        """
        if not spec.dims_found:
            raise refused
        from crossfuse.export.sources.huggingface.refit import refitted

        return refitted(spec, refused)

    def _with_options(self, spec: ModelSpec) -> ModelSpec:
        options = self.options
        shaping = (options.context, options.dynamic, options.decode)
        if not any((*shaping, options.drop_outputs, options.keep_probabilities)):
            return spec
        axes = {name: dict(own) for name, own in spec.dynamic.items()}
        for name, asked in options.dynamic.items():
            axes[name] = axes.get(name, {}) | dict(asked)
        possible = spec.decode_where_possible and options.decode is None
        if options.dynamic and self.kind is SourceKind.HUGGINGFACE:
            spec = replace(spec, examples=())  # made for its own axes
        return replace(
            spec.with_dynamic(axes) if options.dynamic else spec,
            context=options.context or spec.context,
            decode=options.decode or spec.decode,
            drop_outputs=(*spec.drop_outputs, *options.drop_outputs),
            keep_probabilities=(*spec.keep_probabilities, *options.keep_probabilities),
            decode_where_possible=possible,
        )


def accepted(spec: ModelSpec, progress: Progress = silent) -> ModelSpec:
    """The spec as an export takes it: of a module whose results depend on its inputs alone, its
    half floats widened.

    Raises:
        InputError: the module is random, or in half precision and can't be widened.
    """
    from crossfuse.export.capture.fast_paths import uncompiled
    from crossfuse.export.capture.half_sources import widened
    from crossfuse.parity.repeatable import require_repeatable

    progress("running the model twice")
    spec = replace(spec, module=uncompiled(spec.module))
    require_repeatable(spec)
    return widened(spec)


def _zoo_name(about: Mapping[str, Any]) -> str:
    """The zoo model that a manifest names, and nothing else that it names."""
    kind, name = about.get("kind"), str(about.get("name"))
    if kind == SourceKind.ZOO.value and name in ZOO:
        return name
    raise InputError(
        "the model that the bundle was exported from is loaded again only where it is the zoo's: a "
        "bundle may come from anywhere, so no code, file or address that it names is used",
        got=f"{kind} {name}",
        do=Advice("If you trust that, name it yourself: {}", Said("--source SOURCE", "source=...")),
    )


def _require_given(option: str, given: str | None, about: Mapping[str, Any]) -> None:
    """Refuse to go on without a path or class that the bundle names and the caller doesn't."""
    if given is None and about.get(option) is not None:
        raise InputError(
            f"the bundle was exported with a {option}, which is not taken from it: it may come "
            "from anywhere",
            got=about[option],
            do=Advice(
                "If you trust that, name it yourself: {} ({} too, unless it is the zoo's)",
                Said(f"--{option}", f"{option}=..."),
                Said("--source", "source=..."),
            ),
        )


def _texts(about: Mapping[str, Any], key: str) -> tuple[str, ...]:
    return tuple(text for text in about.get(key) or () if isinstance(text, str))


def _axes_of(about: Mapping[str, Any]) -> dict[str, dict[int, str | Dim]]:
    """Dynamic axes as a manifest has them, whose axes are text."""
    return {
        name: {int(axis): dim for axis, dim in axes.items()}
        for name, axes in (about.get("dynamic") or {}).items()
    }


def _dim_text(dim: str | Dim) -> str:
    """As it was given; a `Dim` as text that reads the same."""
    if isinstance(dim, str):
        return dim
    return f"{dim.name}:{dim.min}" + ("" if dim.max is None else f":{dim.max}")
