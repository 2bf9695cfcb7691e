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
from marian_files import write_marian_files

sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")

LETTERS = "Tom asked his teacher quick brown fox times best ßüöäé 日本 .,;:!?0123456789'\"-ﬁＦ\t"
TEXTS = [
    "It was the best of times.", "  Two   spaces  here ", "ﬁne Ｆｕｌｌ width ①", "Größe ßß ß",
    "今天",
    ">>deu<< Tom asked", ">>xxx<< Tom", ">>deu", "fox >>fra<< dog", "x" * 40, "e\u0301 é", "👍🏽",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as checkpoints of Marian have them; the vocabulary lacks a piece of the source's."""
    return write_marian_files(tmp_path_factory.mktemp("marian"), without=("o",))


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
