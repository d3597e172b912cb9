"""Tokens of texts, and the words that they are pieces of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from robustkit.classifiers.features import Text
from robustkit.classifiers.text import TextClassifier

__all__ = ["TokenizedTexts", "Word", "pieces", "tokenized"]


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: As it is written.
        columns: Where its pieces are among the T tokens of the batch.
        side: 0, or 1 in the second text of a pair.
        start: Its first character in that text; None where the tokenizer does not say.
    """

    text: str
    columns: tuple[int, ...]
    side: int = 0
    start: int | None = None


@dataclass(frozen=True)
class TokenizedTexts:
    """The tokens behind token attributions.

    Attributes:
        texts: The n texts or pairs.
        tokens: Tokens of each text, special ones included, padding not.
        mask: bool ``(n, T)``: no padding.
        special: bool ``(n, T)``: tokens of the frame, such as [CLS].
        words: Words of each text. With a tokenizer that keeps no offsets, each token is a word.
    """

    texts: tuple[Text, ...]
    tokens: tuple[tuple[str, ...], ...]
    mask: Tensor
    special: Tensor
    words: tuple[tuple[Word, ...], ...]

    def __getitem__(self, rows: slice) -> TokenizedTexts:
        """Some of the texts; T stays."""
        return TokenizedTexts(
            self.texts[rows], self.tokens[rows], self.mask[rows], self.special[rows], self.words[rows]
        )


def pieces(text: str, words: Sequence[Word], scores: Sequence[float]) -> list[tuple[str, float | None]]:
    """A text in its words with their numbers, and what stands between and after them with None.

    Args:
        text: One text, or one side of a pair.
        words: Its words, in order.
        scores: A number for each.
    """
    found: list[tuple[str, float | None]] = []
    end = 0
    for word, score in zip(words, scores, strict=True):
        if word.start is None:
            found.append((" ", None))
        else:
            found.append((text[end : word.start], None))
            end = word.start + len(word.text)
        found.append((word.text, score))
    known = all(word.start is not None for word in words)
    return [*found, (text[end:] if known else "", None)]


def tokenized(
    classifier: TextClassifier,
    texts: Sequence[Text],
    input_ids: Tensor,
    attention_mask: Tensor,
    changeable: Tensor,
) -> TokenizedTexts:
    """Tokens and words of texts.

    Args:
        classifier: Whose tokenizer made the ids.
        texts: n texts or pairs.
        input_ids: int64 ``(n, T)``.
        attention_mask: ``(n, T)``.
        changeable: bool ``(n, T)``: neither padding nor special.
    """
    mask = attention_mask.bool().cpu()
    tokenizer = classifier.tokenizer
    tokens, words = [], []
    for row, text in enumerate(texts):
        columns = mask[row].nonzero()[:, 0].tolist()
        names = tuple(tokenizer.convert_ids_to_tokens(input_ids[row, columns].tolist()))
        open_columns = {column for column in columns if changeable[row, column]}
        found = None
        if tokenizer.is_fast:
            sides: tuple[str, ...] = text if isinstance(text, tuple) else (text,)
            encoded = tokenizer(*sides, truncation=True, max_length=classifier.max_length, verbose=False)
            if encoded["input_ids"] == input_ids[row, columns].tolist():
                found = _words(encoded, sides, columns, open_columns)
        if found is None:
            pairs = zip(names, columns, strict=True)
            found = tuple(Word(name, (column,)) for name, column in pairs if column in open_columns)
        tokens.append(names)
        words.append(found)
    special = mask & ~changeable.cpu()
    return TokenizedTexts(tuple(texts), tuple(tokens), mask, special, tuple(words))


def _words(
    encoded: Any, sides: tuple[str, ...], columns: list[int], open_columns: set[int]
) -> tuple[Word, ...]:
    encoding = encoded.encodings[0]
    pieces: list[tuple[tuple[int, int | None, int], int, int, int]] = []
    for place, (side, word, (start, end)) in enumerate(
        zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True)
    ):
        if side is None or columns[place] not in open_columns:
            continue
        written = sides[side][start:end]
        start += len(written) - len(written.lstrip())
        # Some tokenizers take a whole text for one word: white space parts words in any case.
        pieces.append(((side, word, len(sides[side][: start + 1].split())), place, start, end))
    found = []
    for (side, _, _), group in groupby(pieces, key=lambda piece: piece[0]):
        own = list(group)
        start, end = own[0][2], own[-1][3]
        found.append(Word(sides[side][start:end], tuple(columns[piece[1]] for piece in own), side, start))
    return tuple(found)
