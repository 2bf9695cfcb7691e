"""Which axes of a model's inputs are dynamic: found by changing one thing of a sample at a time,
comparing shapes, and trying the model on what came out.

1. Axes that one change moves, from one size to one size, have that change's dimension.
2. A change that moves axes to different sizes (twice as many patches for two rows, say), or axes
   that another one moves too, is not taken: what it would change stays as it is in the sample.
3. A change that the processor or the model refuses is not taken either.

4. Rows are not taken where an input says how large the images of each are: these sizes are numbers
   of the export.

Rows are varied for texts and pictures apart first: a model that scores all pairs takes any number
of each. Where rows can't be varied, the sample has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from crossfuse.core.foreign import cause_of
from crossfuse.core.tensors import Dim
from crossfuse.export.sources.huggingface.asked import Asked
from crossfuse.export.sources.huggingface.known_sizes import says_sizes
from crossfuse.export.sources.huggingface.sample_inputs import Row, changed

__all__ = ["ROWS", "TEXTS", "Moved", "Varied", "axes_among", "fits", "moved_by", "vary"]

ROWS, TEXTS = "rows", "texts"
_OF_KIND: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "text": {"text": ("text", "text a little", "text shorter")},
    "audio": {"sound": ("sound",)},
    "videos": {"frames": ("frames",)},
    "images": {"height": ("height",), "width": ("width",)},
}
"""Kind → what can be changed of it → ways to do so, of which the first that serves is taken."""


@dataclass(frozen=True)
class Moved:
    """What one change of a sample moves.

    Attributes:
        axes: input → axes.
        before, after: their size.
        way: the change, as `changed` knows it.
    """

    axes: Mapping[str, tuple[int, ...]]
    before: int
    after: int
    way: str = ""

    @property
    def places(self) -> set[tuple[str, int]]:
        """Inputs and axes."""
        return {(name, axis) for name, axes in self.axes.items() for axis in axes}


@dataclass(frozen=True)
class Varied:
    """A sample and what can be varied of it.

    Attributes:
        asked: how it was made.
        base: what the processor made of it.
        moved: change → what it moves.
        fixed: change → why it is not taken.
    """

    asked: Asked
    base: Mapping[str, Tensor]
    moved: Mapping[str, Moved] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)


def vary(asked: Asked) -> Varied:
    """The sample's dynamic axes."""
    found = _varied(asked)
    if ROWS not in found.fixed or len(asked.rows) == 1:
        return found
    one = replace(asked, rows=asked.rows[:1])
    try:
        made = one.made()
    except Exception:  # noqa: BLE001 -- a processor's code may raise anything
        return found
    if one.refusal(made, 1) is not None:
        return found
    again = _varied(one)
    return replace(again, fixed={**again.fixed, ROWS: found.fixed[ROWS]})


def moved_by(base: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Moved | str | None:
    """What has another size in a changed sample; None where nothing has, and a reason where that
    can't be one dimension."""
    if base.keys() != other.keys():
        return "the processor then makes other inputs"
    axes: dict[str, tuple[int, ...]] = {}
    sizes: set[tuple[int, int]] = set()
    for name, tensor in base.items():
        now = other[name]
        if now.ndim != tensor.ndim or now.dtype != tensor.dtype:
            return f"{name} then has other axes"
        found = [i for i in range(tensor.ndim) if tensor.shape[i] != now.shape[i]]
        sizes |= {(int(tensor.shape[i]), int(now.shape[i])) for i in found}
        if found:
            axes[name] = tuple(found)
    if len(sizes) > 1:
        told = ", ".join(f"{before} becomes {after}" for before, after in sorted(sizes))
        return f"several sizes depend on it ({told})"
    if not sizes:
        return None
    before, after = sizes.pop()
    return Moved(axes, before, after)


def axes_among(examples: Sequence[Mapping[str, Tensor]]) -> dict[str, dict[int, str]]:
    """The axes whose sizes differ among inputs of the same names; those whose sizes are the same in
    each have one dimension, called after the first input that has it.
    """
    names: dict[tuple[int, ...], str] = {}
    found: dict[str, dict[int, str]] = {}
    first = examples[0]
    for name, tensor in first.items():
        alike = [e[name] for e in examples if name in e and e[name].ndim == tensor.ndim]
        for axis in range(tensor.ndim):
            sizes = tuple(int(other.shape[axis]) for other in alike)
            if len(set(sizes)) > 1:
                called = (
                    "batch" if axis == 0 and "batch" not in names.values() else f"{name}_{axis}"
                )
                found.setdefault(name, {})[axis] = names.setdefault(sizes, called)
    return found


def fits(
    made: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    dynamic: Mapping[str, Mapping[int, Dim]],
) -> bool:
    """Inputs of the same names and types, of one size in range per dimension, and otherwise of the
    example's sizes."""
    if made.keys() != base.keys():
        return False
    sizes: dict[str, int] = {}
    for name, tensor in made.items():
        if tensor.ndim != base[name].ndim or tensor.dtype != base[name].dtype:
            return False
        for axis, size in enumerate(tensor.shape):
            dim = dynamic.get(name, {}).get(axis)
            if dim is None:
                if size != base[name].shape[axis]:
                    return False
            elif sizes.setdefault(dim.name, size) != size or not _in_range(dim, size):
                return False
    return True


def _in_range(dim: Dim, size: int) -> bool:
    return dim.min <= size and (dim.max is None or size <= dim.max)


def _varied(asked: Asked) -> Varied:
    base = asked.made()
    moved: dict[str, Moved] = {}
    fixed: dict[str, str] = {}
    apart = _rows_apart(asked, base)
    moved.update(apart)
    for change, ways in _changes(asked, with_rows=not apart):
        found = _first_moved(asked, base, ways)
        shared = isinstance(found, Moved) and next(
            (other for other, known in moved.items() if known.places & found.places), None
        )
        if shared:
            fixed[change] = f"it moves an axis of the {shared} too"
        elif isinstance(found, Moved):
            moved[change] = found
        elif found is not None:
            fixed[change] = found
    return Varied(asked, base, moved, fixed)


def _changes(asked: Asked, *, with_rows: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    if with_rows:
        yield ROWS, (ROWS,)
    for kind, changes in _OF_KIND.items():
        if kind in asked.recipe.kinds:
            yield from changes.items()


def _first_moved(
    asked: Asked, base: Mapping[str, Tensor], ways: Sequence[str]
) -> Moved | str | None:
    """What the first way moves that the model takes; otherwise the first reason."""
    first: Moved | str | None = None
    for way in ways:
        found = _tried(asked, base, changed(asked.rows, way))
        if isinstance(found, Moved):
            return replace(found, way=way)
        first = first or found
    return first


def _rows_apart(asked: Asked, base: Mapping[str, Tensor]) -> dict[str, Moved]:
    """Rows of texts and of the rest, where the model takes different numbers of them."""
    media = [kind for kind in asked.recipe.kinds if kind != "text"]
    if "text" not in asked.recipe.kinds or not media or asked.recipe.prompt != "plain":
        return {}
    more = changed(asked.rows, ROWS)
    texts = _tried(asked, base, list(asked.rows), more)
    rest = _tried(asked, base, more, list(asked.rows))
    if isinstance(texts, Moved) and isinstance(rest, Moved) and not texts.places & rest.places:
        return {ROWS: rest, TEXTS: texts}
    return {}


def _tried(
    asked: Asked,
    base: Mapping[str, Tensor],
    rows: Sequence[Row],
    texts: Sequence[Row] | None = None,
) -> Moved | str | None:
    """What other rows move, or why they don't do."""
    try:
        made = asked.made(rows, texts)
    except Exception as error:  # noqa: BLE001 -- a processor's code may raise anything
        return f"the processor fails: {cause_of(error)}"
    found = moved_by(base, made)
    if isinstance(found, Moved):
        sizes = [name for name in found.axes if says_sizes(name, base[name])]
        if sizes:
            return f"{sizes[0]}, part of the export, says how large the images of each row are"
        why = asked.refusal(made, len(rows))
        return found if why is None else f"the model refuses it: {why}"
    return found
