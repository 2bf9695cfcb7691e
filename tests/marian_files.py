"""The files of Marian's tokenizer, trained on a few sentences: two models of SentencePiece and a
vocabulary of both, with codes of languages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

__all__ = ["write_marian_files"]

SOURCE = (
    "The quick brown fox jumps over the lazy dog.", "Tom asked his teacher for advice, didn't he?",
    "It was the best of times; it was the worst of times!", "How much is it? 45.50, or 3 dollars.",
)  # fmt: skip
TARGET = (
    "Der schnelle braune Fuchs springt über den faulen Hund.", "Wie viel kostet das? Drei Dollar.",
    "Es war die beste Zeit, es war die schlechteste Zeit!", "Tom bat um Rat, nicht wahr? Größe",
)  # fmt: skip


def write_marian_files(folder: Path, without: Sequence[str] = ()) -> Path:
    """Write them; ``without`` these pieces in the vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    pieces = ["</s>", "<unk>"]
    for name, texts in (("source", SOURCE), ("target", TARGET)):
        (folder / f"{name}.txt").write_text("\n".join(texts * 30), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / f"{name}.txt"), model_prefix=str(folder / name), vocab_size=80,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        own = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
        pieces += [piece for piece in own if piece not in pieces]
    pieces = [piece for piece in pieces if piece not in without]
    pieces += [">>deu<<", ">>fra<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return folder
