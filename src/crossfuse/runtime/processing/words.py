"""`Words`: texts to ids and back, by the tokenizer that a bundle holds; and `Pieces`, text as its
tokens come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crossfuse.core.foreign import cause_of
from crossfuse.core.processor_files import ASIDE, NO_ID_FROM
from crossfuse.core.requirements import needed
from crossfuse.core.text import brief
from crossfuse.errors import BundleError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Pieces", "Words"]

_UNFINISHED = "\ufffd"
"""Stands for bytes that are no whole character yet."""

_CLOSED_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What tokenizers of whole words, asked to clean up, close up in the texts that they write."""


class Words:
    """A tokenizer.

    Args:
        data: the content of ``tokenizer.json``.
        settings: of ``tokenizer_config.json``.
        where: the file, for errors.

    Raises:
        PackageError: the package tokenizers is not installed.
        BundleError: the file is no tokenizer, or the settings name what is no token.
    """

    def __init__(self, data: bytes, settings: Mapping[str, Any], where: object) -> None:
        with needed("tokenizers", "turning texts into ids and back"):
            import tokenizers
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(data.decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            model = json.loads(data)["model"].get("type")
        except BaseException as error:
            # A panic of the library's is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(
                f"the tokenizer can't be read: {cause_of(error)}",
                where=where,
                do="Export the model again with this version of crossfuse",
            ) from error
        pad = settings.get("pad_token")
        if not isinstance(pad, str | None):
            raise BundleError(
                "the tokenizer's settings are not valid",
                where=where,
                got=f"pad_token {brief(repr(pad), 60)}",
                expected="a text",
                do="Export the model again with this version of crossfuse",
            )
        self.pad = pad
        aside, first = settings.get(ASIDE), settings.get(NO_ID_FROM)
        self._aside = aside if isinstance(aside, str) else None
        self._no_id_from = first if isinstance(first, int) else None
        self._unknown = self.id_of(str(settings.get("unk_token")))
        self.closes_up = bool(settings.get("clean_up_tokenization_spaces")) and model != "BPE"

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any.
            special: with the tokens that the tokenizer puts around a text.

        Raises:
            InputError: the tokenizer refuses it.
        """
        if not isinstance(text, str):
            raise InputError("a text is needed", got=type(text).__name__)
        code, rest = ("", text) if self._aside is None else _language_code(text)
        try:
            found = self._tokenizer.encode(rest, add_special_tokens=special)
        except Exception as error:
            raise InputError(f"the tokenizer refuses the text: {cause_of(error)}") from error
        ids: list[int] = found.ids
        if self._aside is None or self._unknown is None:
            return ids
        pieces = zip(found.tokens, ids, strict=True)
        known = [self._number(piece, own) for piece, own in pieces]
        return [self._number(code, self._unknown), *known] if code else known

    def _number(self, piece: str, own: int) -> int:
        """The id of a piece; of an unknown one, that of the same piece aside, if there is any."""
        assert self._unknown is not None
        if self._no_id_from is not None and own >= self._no_id_from:
            return self._unknown
        if own != self._unknown:
            return own
        found = self.id_of(f"{self._aside}{piece}")
        return self._unknown if found is None else found

    def rows(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of several texts, padded on the right, and the mask of what counts: both
        ``[texts, longest]`` int64.

        Raises:
            InputError: no texts, an empty one, or texts of different lengths without a token to
                pad with.
        """
        rows = [self.encode(text) for text in texts]
        if not rows or not all(rows):
            raise InputError("a text has no tokens", got=list(texts))
        width = max(map(len, rows))
        pad = self.id_of(self.pad) if self.pad is not None else None
        if pad is None and any(len(row) != width for row in rows):
            raise InputError(
                "texts of different lengths need a token to pad with, and the tokenizer has none",
                got=", ".join(str(len(row)) for row in rows),
                do="Give them one by one",
            )
        ids = np.full((len(rows), width), pad or 0, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        return ids, mask

    def id_of(self, token: str) -> int | None:
        """The id of one token by its text; None where there is no such one."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids.

        Args:
            ids: ids that the tokenizer doesn't know are left out.
            special: with tokens that are no text, such as those that end one.
        """
        plain = [int(one) for one in ids]
        text: str = self._tokenizer.decode(plain, skip_special_tokens=not special)
        for apart, together in _CLOSED_UP if self.closes_up else ():
            text = text.replace(apart, together)
        return text


def _language_code(text: str) -> tuple[str, str]:
    """A language's code in front, such as ``>>fra<<``, and the text behind it."""
    end = text.find("<<") + 2
    return (text[:end], text[end:]) if text.startswith(">>") and end > 1 else ("", text)


class Pieces:
    """The text of ids that come one after the other; what the pieces are together is the text of
    all ids.

    A piece may be empty: a character may take several tokens, and where spaces are closed up, a
    word is settled by the next one.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """What is settled of the text with this token."""
        self._ids.append(int(token))
        text = self._words.decode(self._ids)
        end = text.rfind(" ") if self._words.closes_up else len(text)
        settled = text[: max(end, 0)].rstrip(_UNFINISHED)
        if not settled.startswith(self._given):
            return ""
        piece, self._given = settled[len(self._given) :], max(settled, self._given, key=len)
        return piece

    def rest(self) -> str:
        """What is left at the end."""
        text = self._words.decode(self._ids)
        piece = text[len(self._given) :] if text.startswith(self._given) else ""
        self._given = text
        return piece
