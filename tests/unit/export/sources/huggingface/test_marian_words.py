"""Marian's tokenizer as JSON, against SentencePiece itself: the same ids of any text, and the same
texts of ids."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossfuse.export.sources.huggingface.carried import carried
from crossfuse.export.sources.huggingface.marian_words import marian_words
from crossfuse.export.sources.huggingface.processor import NoProcessorError
from crossfuse.runtime.processing.processor import Processor

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

SOURCE = (
    "The quick brown fox jumps over the lazy dog.", "Tom asked his teacher for advice, didn't he?",
    "It was the best of times; it was the worst of times!", "How much is it? 45.50, or 3 dollars.",
)  # fmt: skip
TARGET = (
    "Der schnelle braune Fuchs springt über den faulen Hund.", "Wie viel kostet das? Drei Dollar.",
    "Es war die beste Zeit, es war die schlechteste Zeit!", "Tom bat um Rat, nicht wahr? Größe",
)  # fmt: skip
LETTERS = "Tom asked his teacher quick brown fox times best ßüöäé 日本 .,;:!?0123456789'\"-ﬁＦ\t"
TEXTS = [
    "It was the best of times.", "  Two   spaces  here ", "ﬁne Ｆｕｌｌ width ①", "Größe ßß ß",
    "今天",
    ">>deu<< Tom asked", ">>xxx<< Tom", ">>deu", "fox >>fra<< dog", "x" * 40, "e\u0301 é", "👍🏽",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as checkpoints of Marian have them; the vocabulary lacks a piece of the source's."""
    path = tmp_path_factory.mktemp("marian")
    pieces = ["</s>", "<unk>"]
    for name, texts in (("source", SOURCE), ("target", TARGET)):
        (path / f"{name}.txt").write_text("\n".join(texts * 30), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(path / f"{name}.txt"), model_prefix=str(path / name), vocab_size=80,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        (path / f"{name}.model").rename(path / f"{name}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(path / f"{name}.spm"))
        own = [model.id_to_piece(i) for i in range(3, model.get_piece_size())]
        pieces += [piece for piece in own if piece not in pieces]
    pieces.remove("o")
    pieces += [">>deu<<", ">>fra<<", "<pad>"]
    (path / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    return path


def texts() -> list[str]:
    drawn = random.Random(0)
    return TEXTS + ["".join(drawn.choices(LETTERS, k=drawn.randint(1, 30))) for _ in range(300)]


def processor_of(files: dict[str, str]) -> Processor:
    return Processor(Path("bundle"), {name: text.encode() for name, text in files.items()})


def test_ids_and_texts_are_those_of_sentencepiece(folder: Path) -> None:
    config = SimpleNamespace(model_type="marian")
    files = carried(NoProcessorError("none"), config, folder)
    words = processor_of(files).words
    ids: dict[str, int] = json.loads((folder / "vocab.json").read_text())
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    lacking = 0
    for text in texts():
        code, rest = [], text
        if text.startswith(">>") and "<<" in text:
            end = text.index("<<") + 2
            code, rest = [text[:end]], text[end:]
        pieces = [*code, *model.encode(rest, out_type=str)]
        expected = [ids.get(piece, ids["<unk>"]) for piece in pieces]
        assert words.encode(text) == [*expected, ids["</s>"]], text
        assert words.encode(text, special=False) == expected
        lacking += "o" in pieces
    assert lacking > 3, "pieces without an id are among them"
    by_id = {number: piece for piece, number in ids.items()}
    drawn = random.Random(1)
    for _ in range(100):
        some = [i for i in drawn.choices(range(len(ids)), k=12) if i > 1 and by_id[i] != "<pad>"]
        written = model.decode_pieces([by_id[i] for i in some]).replace("▁", " ").strip()
        assert words.decode([*some, 0]).strip() == written


def changed(folder: Path, into: Path, **entries: Any) -> Path:
    into.mkdir()
    for name in ("source.spm", "target.spm"):
        (into / name).write_bytes((folder / name).read_bytes())
    given = json.loads((folder / "vocab.json").read_text()) | entries
    (into / "vocab.json").write_text(json.dumps({n: v for n, v in given.items() if v is not None}))
    return into


def test_what_can_not_be_written_so(folder: Path, tmp_path: Path) -> None:
    assert marian_words(changed(folder, tmp_path / "good")) is not None
    assert marian_words(tmp_path) is None
    assert marian_words(changed(folder, tmp_path / "gap", more=10_000)) is None
    assert marian_words(changed(folder, tmp_path / "twice", more=3)) is None
    assert marian_words(changed(folder, tmp_path / "no", **{"<pad>": None})) is None
    apart = changed(folder, tmp_path / "apart")
    (apart / "target_vocab.json").write_text("{}")
    assert marian_words(apart) is None, "ids of the target are others"
    broken = changed(folder, tmp_path / "broken")
    (broken / "source.spm").write_bytes(b"\xff\xff\xff")
    config = SimpleNamespace(model_type="marian")
    assert carried(NoProcessorError("none"), config, broken) == {}
    other = SimpleNamespace(model_type="bart")
    assert carried(NoProcessorError("none"), other, folder) == {}
