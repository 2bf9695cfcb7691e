"""Texts and ids, against the library's tokenizers; and texts that come in pieces."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from crossfuse import BundleError, InputError
from crossfuse.runtime.processing.words import Pieces, Words

TEXTS = [
    "It's a cat , isn't it ? No .", "naïve café 😀 你好", " two  spaces", "we 've seen  it !", "",
]  # fmt: skip


def by_bytes() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def by_words(**settings: Any) -> Any:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[PAD]", "[UNK]", "[SEP]"], show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", **settings
    )


TOKENIZERS = {
    "bytes": by_bytes,
    "bytes, asked to clean up": lambda: by_bytes(),
    "words": by_words,
    "words, cleaned up": lambda: by_words(clean_up_tokenization_spaces=True),
}


def opened(name: str) -> tuple[Words, Any]:
    theirs = TOKENIZERS[name]()
    if name == "bytes, asked to clean up":
        theirs.clean_up_tokenization_spaces = True
    settings = {
        "pad_token": theirs.pad_token,
        "clean_up_tokenization_spaces": theirs.clean_up_tokenization_spaces,
    }
    return Words(theirs.backend_tokenizer.to_str().encode(), settings, "here"), theirs


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_are_the_librarys(name: str) -> None:
    mine, theirs = opened(name)
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert mine.encode(text) == ids
        assert mine.encode(text, special=False) == theirs(text, add_special_tokens=False).input_ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert mine.decode([*ids, 0], special=True) == theirs.decode([*ids, 0])
    assert mine.id_of("nothing") is None
    rows, mask = mine.rows(TEXTS[:3])
    both = theirs(TEXTS[:3], padding=True, return_tensors="np")
    np.testing.assert_array_equal(rows, both["input_ids"])
    np.testing.assert_array_equal(mask, both["attention_mask"])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_the_text(name: str) -> None:
    mine, theirs = opened(name)
    for text in TEXTS:
        ids, pieces = mine.encode(text), Pieces(mine)
        found = [pieces.add(token) for token in ids]
        assert "\ufffd" not in "".join(found)
        assert "".join([*found, pieces.rest()]) == theirs.decode(ids, skip_special_tokens=True)
        if text == TEXTS[0]:
            assert sum(map(bool, found)) > 4, "they come one by one"


def test_refusals() -> None:
    mine, theirs = opened("bytes")
    with pytest.raises(InputError, match="a text is needed"):
        mine.encode(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no tokens"):
        mine.rows([""])
    alone = Words(theirs.backend_tokenizer.to_str().encode(), {}, "here")
    with pytest.raises(InputError, match="pad with"):
        alone.rows(["a", "a cat sat"])
    data = theirs.backend_tokenizer.to_str()
    broken = json.loads(data)
    broken["model"]["merges"] = [["no", "such"]]
    damaged = (b"", b"{}", b"\xff", data[: len(data) // 2].encode(), json.dumps(broken).encode())
    for wrong in damaged:
        with pytest.raises(BundleError, match="tokenizer can't be read"):
            Words(wrong, {}, "here")


@pytest.mark.parametrize("pad", [True, 3, ["[PAD]"], {"content": "[PAD]"}])
def test_a_token_to_pad_with_is_a_text(pad: object) -> None:
    _, theirs = opened("bytes")
    with pytest.raises(BundleError, match="pad_token"):
        Words(theirs.backend_tokenizer.to_str().encode(), {"pad_token": pad}, "here")


def test_a_vocabulary_that_numbers_what_another_one_cuts() -> None:
    """What is unknown is looked up among the pieces that stand aside; a code in front is one."""
    from tokenizers import processors

    pieces = ["</s>", "<unk>", "▁a", "b", "\0ß", "\0>>de<<", "▁", "x"]
    made = Tokenizer(models.Unigram([(one, -1.0 - i) for i, one in enumerate(pieces)], unk_id=1))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    settings = {"unk_token": "<unk>", "pieces_aside": "\0", "no_id_from": 7}
    words = Words(made.to_str().encode(), settings, "here")
    assert words.encode("ab aß") == [2, 3, 2, 4, 0]
    assert words.encode("ax ay") == [2, 1, 2, 1, 0]
    assert words.encode(">>de<<ab", special=False) == [5, 2, 3]
    assert words.encode(">>fr<<ab", special=False) == [1, 2, 3]
    assert words.encode(">>de", special=False) == [6, 1]
    plain = Words(made.to_str().encode(), {}, "here")
    assert plain.encode("aß ax") == [2, 1, 2, 7, 0]
