"""The zoo's table of contents: name → module, description, sizes. Importing it costs nothing."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crossfuse.core.tensors import SIZES
from crossfuse.errors import unknown

if TYPE_CHECKING:
    from crossfuse.spec.model_spec import ModelSpec

__all__ = ["SIZES", "ZOO", "ZooEntry", "zoo_spec"]


@dataclass(frozen=True)
class ZooEntry:
    """One system of the zoo.

    Attributes:
        name: of its module in `crossfuse.models`.
        summary: one line for people.
        published: what the published size is.
        checkpoint: classes of ``transformers`` whose checkpoints it loads, or None.
    """

    name: str
    summary: str
    published: str
    checkpoint: str | None = None


ZOO = {
    entry.name: entry
    for entry in (
        ZooEntry(
            "cross_modal_attention",
            "the mechanism: tokens of one modality attend to another's, gated into their "
            "embeddings",
            "width 768 over 1024, 12 heads",
        ),
        ZooEntry(
            "clip", "text and image towers scored against each other", "ViT-B/32", "CLIPModel"
        ),
        ZooEntry(
            "vilt", "one transformer over words and image patches", "B/32, 384×384", "ViltModel"
        ),
        ZooEntry(
            "qformer",
            "learned queries and text that read image features",
            "BLIP-2: 32 queries, 257×1408 features, 12 layers",
            "Blip2ForImageTextRetrieval, Blip2Model, Blip2ForConditionalGeneration",
        ),
        ZooEntry(
            "dalle",
            "image tokenizer, text that attends to image codes, decoder to pixels",
            "128×128 image, 256 codes of 8192, 13 layers",
        ),
    )
}


def zoo_spec(
    name: str,
    size: str = "published",
    seed: int = 0,
    checkpoint: str | None = None,
    *,
    allow_missing: bool = False,
) -> ModelSpec:
    """The spec of a zoo system with random weights, or with those of a checkpoint folder.

    Args:
        name: of the system.
        size: ``tiny`` or ``published``.
        seed: of random weights.
        checkpoint: folder with ``config.json`` and safetensors files, which give size and weights.
        allow_missing: let weights that the checkpoint lacks stay random.

    Raises:
        InputError: unknown name or size, or a checkpoint that doesn't fit.
    """
    if name not in ZOO:
        raise unknown("unknown model", name, ZOO)
    if size not in SIZES:
        raise unknown("unknown size", size, SIZES, where=name)
    if checkpoint is not None:
        from crossfuse.models.checkpoints import checkpoint_spec

        return checkpoint_spec(name, checkpoint, allow_missing=allow_missing)
    spec: ModelSpec = importlib.import_module(f"crossfuse.models.{name}").spec(size, seed)
    return spec
