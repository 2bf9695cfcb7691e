"""What a checkpoint's processor makes, as a plan of a model's inputs: example, dynamic dimensions
with their ranges, a sampler, and further examples with other padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.asked import Asked
from crossfuse.export.sources.huggingface.input_fillers import plain_ids
from crossfuse.export.sources.huggingface.input_plan import (
    InputPlan,
    TextInput,
    add_text,
    find,
    text_config,
)
from crossfuse.export.sources.huggingface.known_sizes import (
    POSITIONS,
    fix_sizes,
    says_sizes,
    with_positions,
)
from crossfuse.export.sources.huggingface.sample_inputs import changed
from crossfuse.export.sources.huggingface.stretched import Stretched
from crossfuse.export.sources.huggingface.tried import refusal
from crossfuse.export.sources.huggingface.varied_axes import ROWS, TEXTS, Varied, fits, vary

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import Sampler

__all__ = ["ProcessorPlan", "plan_from_processor"]

_NAMES = {ROWS: "batch", "frames": "video_frames"}
"""Change → the dimension's name, where that is another one."""

_MOST_TOKENS = 1_000_000
"""More than this is a tokenizer's word for no limit."""


@dataclass(frozen=True)
class ProcessorPlan:
    """Inputs of a model, made by its processor.

    Attributes:
        inputs: example tensors by name, and sizes that are fixed as lists of numbers.
        dynamic: input → axis → dimension.
        sampler: makes others.
        examples: further ones of the processor's, which the model takes.
        fixed: dimensions that can't be varied → why.
        settled: what no check may change, as of a spec: placeholders of images, and what tells
            where they are.
    """

    inputs: Mapping[str, Any]
    dynamic: Mapping[str, Mapping[int, Dim]]
    sampler: Sampler
    examples: Sequence[Mapping[str, Tensor]]
    fixed: Mapping[str, str]
    settled: Mapping[str, tuple[int, ...]]


def plan_from_processor(asked: Asked) -> ProcessorPlan:
    """The plan of a model that was asked in a way that serves."""
    varied = vary(asked)
    asked = varied.asked
    fixed = {_name(change, varied): why for change, why in varied.fixed.items()}
    axes: dict[str, dict[int, str]] = {}
    for change, moved in varied.moved.items():
        for name, places in moved.axes.items():
            axes.setdefault(name, {}).update({axis: _name(change, varied) for axis in places})
    sizes = {_name(change, varied): moved.before for change, moved in varied.moved.items()}
    plain = _plain(asked)
    ids = [n for n, t in varied.base.items() if n.endswith("input_ids") and t.ndim == 2]
    maker = _Maker(asked, Stretched(varied.base, axes, ("batch", TEXTS), ids, plain), sizes)
    dims, refused = _ranges(maker, varied)
    fixed |= refused
    maker = maker.without(refused)
    known = {
        name: tensor.tolist()
        for name, tensor in varied.base.items()
        if says_sizes(name, tensor) and not maker.stretched.axes.get(name)
    }
    maker = replace(maker, known=tuple(known))
    if known:
        fix_sizes(asked.model, known)
    base = maker.completed(varied.base)
    dynamic = maker.dynamic(dims, base)
    examples = _examples(maker, varied, base, dynamic)
    settled = _settled(asked, base, ids)
    return ProcessorPlan({**base, **known}, dynamic, maker.sample, examples, fixed, settled)


@dataclass(frozen=True)
class _Maker:
    """Samples of a model that was asked.

    Attributes:
        asked: it.
        stretched: what the processor made, at other sizes.
        sizes: of the dimensions in the example.
        known: inputs that are numbers of the export.
    """

    asked: Asked
    stretched: Stretched
    sizes: Mapping[str, int]
    known: tuple[str, ...] = ()

    def without(self, dims: Mapping[str, object]) -> _Maker:
        """Samples in which dimensions have the example's sizes."""
        axes = {
            name: {axis: dim for axis, dim in own.items() if dim not in dims}
            for name, own in self.stretched.axes.items()
        }
        sizes = {dim: size for dim, size in self.sizes.items() if dim not in dims}
        return replace(self, stretched=replace(self.stretched, axes=axes), sizes=sizes)

    def completed(self, made: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """What the processor made, with the inputs from the configuration."""
        batch = self._rows_of(made)
        return self._whole(made, {"batch": batch}, _generator(seed))

    def sample(self, sizes: dict[str, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Inputs of the given sizes."""
        made = self.stretched.sample(sizes, generator)
        batch = sizes.get("batch", len(self.asked.rows))
        return self._whole(made, {**sizes, "batch": batch}, generator)

    def _whole(
        self, made: Mapping[str, Tensor], sizes: Mapping[str, int], generator: torch.Generator
    ) -> dict[str, Tensor]:
        found = with_positions(self.asked.model, self.asked.completed(made, sizes, generator))
        return {name: tensor for name, tensor in found.items() if name not in self.known}

    def refusal(self, **other: int) -> str | None:
        """Why the model doesn't take a sample with some sizes other than the example's."""
        known = {**(self.asked.plan.example if self.asked.plan else {}), **self.sizes, **other}
        return refusal(self.asked.model, self.sample(known, _generator(1)))

    def dynamic(
        self, dims: Mapping[str, Dim], base: Mapping[str, Tensor]
    ) -> dict[str, dict[int, Dim]]:
        """Axes per input of the example, those from the configuration and positions too."""
        found = {
            name: {axis: dims[dim] for axis, dim in own.items()}
            for name, own in self.stretched.axes.items()
            if own and name in base
        }
        if POSITIONS in base and POSITIONS not in self.stretched.base:
            first = base[POSITIONS].ndim - 2
            found[POSITIONS] = {first + a: d for a, d in found.get("input_ids", {}).items()}
        plan = self.asked.plan
        for name in self.asked.added if plan is not None else ():
            shape = plan.shapes[name] if plan is not None else ()
            known = {**(plan.dims if plan is not None else {}), **dims}
            if "batch" not in dims:
                known.pop("batch", None)
            found[name] = {
                i: known[s] for i, s in enumerate(shape) if isinstance(s, str) and s in known
            }
        return found

    def _rows_of(self, made: Mapping[str, Tensor]) -> int:
        for name, own in self.stretched.axes.items():
            for axis, dim in own.items():
                if dim == "batch":
                    return int(made[name].shape[axis])
        return len(self.asked.rows)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _name(change: str, varied: Varied) -> str:
    """The dimension of a change."""
    if change == "sound":
        moved = varied.moved.get(change)
        long = moved is None or all(varied.base[name].ndim == 2 for name in moved.axes)
        return "samples" if long else "frames"
    moved = varied.moved.get(change)
    if change in ("height", "width") and moved is not None:
        # A processor that keeps the shorter side moves the other one.
        name, axes = next(iter(moved.axes.items()))
        return {1: "width", 2: "height"}.get(varied.base[name].ndim - axes[0], change)
    return _NAMES.get(change, change)


def _ranges(maker: _Maker, varied: Varied) -> tuple[dict[str, Dim], dict[str, str]]:
    """Ranges of the dimensions, and those that the model doesn't take after all → why."""
    dims: dict[str, Dim] = {}
    refused: dict[str, str] = {}
    for change, moved in varied.moved.items():
        dim, high = _name(change, varied), None
        lows: tuple[int, ...] = (1,) if change in (ROWS, TEXTS) else (moved.after,)
        if change == "text":
            least, high = maker.stretched.least(dim), _longest(maker.asked)
            if least is None:
                refused[dim] = "no words stand beside the special tokens in some row"
                continue
            lows = (1, least)
            high = None if high is None else max(high, moved.before, moved.after)
        smaller = (size for size in lows if size < moved.before)
        low = next((n for n in smaller if maker.refusal(**{dim: n}) is None), moved.before)
        odd = moved.before + 1
        if (high is None or odd <= high) and (why := maker.refusal(**{dim: odd})):
            refused[dim] = f"the model takes {moved.after} and refuses {odd}: {why}"
            continue
        dims[dim] = Dim(dim, low, high)
    return dims, refused


def _settled(
    asked: Asked, base: Mapping[str, Tensor], ids: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Placeholders among the ids, and inputs that tell where these are."""
    named = {
        value
        for key, value in asked.model.config.to_dict().items()  # type: ignore[union-attr,operator]
        if isinstance(value, int) and key.endswith(("token_id", "token_index"))
        if any(kind in key for kind in ("image", "video", "audio", "vision"))
    }
    found = {
        name: tuple(sorted(n for n in named if bool((base[name] == n).any())))
        for name in ids
        if name in base
    }
    settled = {name: tokens for name, tokens in found.items() if tokens}
    if settled:
        told = (POSITIONS, "mm_token_type_ids", "token_type_ids", "image_embeds_position_mask")
        settled |= dict.fromkeys((name for name in told if name in base), ())
    return settled


def _longest(asked: Asked) -> int | None:
    """The longest text that the configuration and the tokenizer allow."""
    plan = InputPlan()
    plan.dim("batch", 2)
    add_text(plan, text_config(asked.model.config), TextInput())
    of_words = getattr(asked.processor.words, "model_max_length", None)
    limits = [plan.dims["text"].max, of_words]
    known = [int(n) for n in limits if isinstance(n, int) and 0 < n < _MOST_TOKENS]
    return min(known, default=None)


def _plain(asked: Asked) -> Tensor:
    """Ids of words: none that is special to the tokenizer or that the configuration names."""
    words: Any = asked.processor.words
    config: Any = asked.model.config
    if words is None or "text" not in asked.recipe.kinds:
        return torch.zeros(0, dtype=torch.long)
    rows = find(text_config(config), "vocab_size")
    known = min(len(words), rows if isinstance(rows, int) else len(words))
    special = set(words.all_special_ids) - {getattr(words, "unk_token_id", None)}
    added = getattr(words, "added_tokens_decoder", {})
    special |= {index for index, token in added.items() if token.special}
    for part in (config, text_config(config)):
        for key, value in part.to_dict().items():
            if key.endswith(("token_id", "token_index", "token_ids")):
                special |= set(value) if isinstance(value, list) else {value}
    return plain_ids(known, list(special))


def _examples(
    maker: _Maker,
    varied: Varied,
    base: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, Dim]],
) -> list[dict[str, Tensor]]:
    """The sample padded at the other side, and one with all that varies varied, where the model
    takes them."""
    asked = varied.asked
    wanted: list[Callable[[], dict[str, Tensor]]] = []
    words = asked.processor.words
    if "text" in asked.recipe.kinds and words is not None:
        side = "left" if words.padding_side == "right" else "right"
        other = replace(asked, recipe=replace(asked.recipe, padding_side=side))
        wanted.append(other.made)
    rows: list[Any] = list(asked.rows)
    for change, moved in varied.moved.items():
        if _name(change, varied) in maker.sizes and change != TEXTS:
            rows = changed(rows, moved.way or change)
    wanted.append(lambda: asked.made(rows))
    found: list[dict[str, Tensor]] = []
    for seed, make in enumerate(wanted, 1):
        try:
            made = maker.completed(make(), seed)
        except Exception:  # noqa: BLE001 -- a processor's code may raise anything
            continue
        new = not any(_same(made, other) for other in (base, *found))
        if new and fits(made, base, dynamic) and refusal(asked.model, made) is None:
            found.append(made)
    return found


def _same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """The same inputs, but for those made at random from the configuration."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left if not name.startswith("decoder_")
    )
