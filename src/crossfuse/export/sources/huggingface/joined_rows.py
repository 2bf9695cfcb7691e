"""Batches of image features that a model lists row by row and joins again.

``list(features)`` of ``[images, tokens, width]`` fixes the number of images to the example's, and
so does ``features.split(counts.tolist())`` of features that are joined already; ``torch.cat`` of
the rows undoes it. While a model is traced, such a list holds one tensor with the rows joined, so
that the number stays a symbol; joined with itself it is the same.

Idefics and its kin take several images a row, rows with fewer being padded with images that are 0,
and leave those out. Where none is padding, the stand-in takes all.

Rules:

1. Lists are joined in the modules that are named here; counts where their number is a symbol and
they are used as sizes of a split of the first axis.
2. Counts that are used in another way are the numbers that they were, one by one.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._pytree import tree_map

from crossfuse.export.capture.traceable import replaced
from crossfuse.export.sources.huggingface.known_sizes import as_number

__all__ = ["all_images", "joined_rows"]

_MODULES = ("transformers.models.llava.modeling_llava",)
"""Modules that list features, whose every list of a tensor is joined along its first axis."""


_TENSORS: tuple[Any, ...] = (Tensor, FakeTensor, FunctionalTensor)
"""Classes with a ``tolist`` of their own."""


class _Counts:
    """Numbers of a tensor, asked for when something else than a split needs them."""

    def __init__(self, numbers: Callable[[], list[int]]) -> None:
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers())

    def __len__(self) -> int:
        return len(self._numbers())

    def __getitem__(self, place: Any) -> Any:
        return self._numbers()[place]


@contextmanager
def joined_rows() -> Iterator[None]:
    """Let models list tensors and split them so, for a while."""
    found = [sys.modules[name] for name in _MODULES if name in sys.modules]
    for module in found:
        setattr(module, "list", _listed)  # noqa: B010 -- a name that the module has of the builtins
    try:
        with ExitStack() as stack:
            for kind in _TENSORS:
                stack.enter_context(replaced(kind, "tolist", _counted(kind.tolist)))
            for owner in (Tensor, torch):
                stack.enter_context(replaced(owner, "split", _whole(owner.split)))
            yield
    finally:
        for module in found:
            delattr(module, "list")


def _counted(tolist: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def counts(self: Tensor) -> Any:
        if self.ndim == 1 and not self.is_floating_point() and _is_open(self):
            return _Counts(lambda: tolist(self))
        return tolist(self)

    return counts


def _whole(split: Callable[..., Any]) -> Callable[..., Any]:
    def parts(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(as_number, (args, kwargs))
        counts = [value for value in (*args, *kwargs.values()) if isinstance(value, _Counts)]
        if not counts:
            return split(tensor, *args, **kwargs)
        sizes, dim = counts[0], kwargs.get("dim", args[1] if args[1:] else 0)
        return (tensor,) if dim == 0 else split(tensor, list(sizes), dim)

    return parts


def _is_open(tensor: Tensor) -> bool:
    """It has an unknown number of rows."""
    return isinstance(tensor.shape[0], torch.SymInt)


def _listed(items: Any = ()) -> list[Any]:
    """A list; of a tensor with an unknown number of rows, these as one."""
    if isinstance(items, Tensor) and _is_open(items):
        return [items.flatten(0, 1)]
    return list(items)


def all_images(
    self: Any, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **given: Any
) -> Any:
    """What stands in for ``get_image_features`` of Idefics 2 and 3 and SmolVLM where no image is
    padding.

    Args:
        pixel_values: ``[B, images, 3, H, W]``.
        pixel_attention_mask: ``[B, images, H, W]``, 0 for padding; None where there is none.
        given: for the vision tower.
    """
    pixels = pixel_values.to(self.dtype).flatten(0, 1)
    if pixel_attention_mask is None:
        seen = torch.ones_like(pixels[:, 0], dtype=torch.bool)
    else:
        seen = pixel_attention_mask.flatten(0, 1)
    size = self.config.vision_config.patch_size
    counts = seen.unfold(1, size, size).unfold(2, size, size).sum(dim=(-1, -2))
    masked = "attention_mask" in inspect.signature(self.connector.forward).parameters
    patches = counts == size * size if masked else counts > 0
    given["return_dict"] = True
    outputs = self.vision_model(pixel_values=pixels, patch_attention_mask=patches, **given)
    mask = {"attention_mask": patches.flatten(1)} if masked else {}
    outputs.pooler_output = [self.connector(outputs.last_hidden_state, **mask).flatten(0, 1)]
    return outputs
