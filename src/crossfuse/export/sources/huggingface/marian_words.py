"""Marian's tokenizer as ``tokenizer.json``: its checkpoints hold models of SentencePiece, whose ids
are no ids of theirs, and a vocabulary.

Pieces come from the source's model with its scores, and get the vocabulary's ids. Entries of the
vocabulary that the source's model doesn't have (the target's own, codes of languages) stand aside,
behind a mark that no text holds: what is unknown is looked up among them. Pieces without an entry
get ids behind all others, which stand for the unknown one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossfuse.core.checkpoint_folder import read_json
from crossfuse.core.processor_files import ASIDE, NO_ID_FROM

__all__ = ["marian_words"]

_SOURCE, _VOCABULARY, _TARGET = "source.spm", "vocab.json", "target_vocab.json"
_UNIGRAM, _UNKNOWN, _CONTROL = 1, 2, 3
_MARK = "\0"
_NEVER = -1e6
"""Score of what no text is cut into."""

_SPACE = "▁"
_SPECIAL, _NAMES = ("</s>", "<unk>", "<pad>"), ("eos_token", "unk_token", "pad_token")


def marian_words(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The content of ``tokenizer.json``, and settings that go with it; None where the folder holds
    no such tokenizer, or one that can't be written so.

    Args:
        folder: of the checkpoint.
    """
    source, entries = folder / _SOURCE, folder / _VOCABULARY
    if not (source.is_file() and entries.is_file()) or (folder / _TARGET).exists():
        return None
    given = read_json(entries)
    ids = {str(piece): number for piece, number in given.items() if isinstance(number, int)}
    if sorted(ids.values()) != list(range(len(given))) or not set(_SPECIAL) <= set(ids):
        return None
    model = _model_of(source)
    if model.trainer_spec.model_type != _UNIGRAM or model.trainer_spec.byte_fallback:
        return None
    scores = {
        one.piece: float(one.score) for one in model.pieces if one.type not in (_UNKNOWN, _CONTROL)
    }
    named = sorted(ids, key=ids.__getitem__)
    own = scores.keys() | set(_SPECIAL)
    listed = [(one if one in own else _MARK + one, scores.get(one, _NEVER)) for one in named]
    without = [(piece, score) for piece, score in scores.items() if piece not in ids]
    listed += without
    tokenizer = _tokenizer(listed, ids, bytes(model.normalizer_spec.precompiled_charsmap))
    settings: dict[str, Any] = dict(zip(_NAMES, _SPECIAL, strict=True))
    settings |= {ASIDE: _MARK, "tokenizer_class": "MarianTokenizer"}
    if without:
        settings[NO_ID_FROM] = len(named)
    return json.loads(tokenizer.to_str()), settings


def _model_of(path: Path) -> Any:
    import transformers.convert_slow_tokenizer as converters

    library: Any = converters
    model = library.import_protobuf().ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def _tokenizer(listed: list[tuple[str, float]], ids: dict[str, int], characters: bytes) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    made = Tokenizer(models.Unigram(listed, unk_id=ids["<unk>"], byte_fallback=False))
    own: list[Any] = [normalizers.Precompiled(characters)] if characters else []
    made.normalizer = normalizers.Sequence(
        [*own, normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(_MARK, ""),
            decoders.Metaspace(replacement=_SPACE, prepend_scheme="always"),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    made.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in _SPECIAL])
    return made
