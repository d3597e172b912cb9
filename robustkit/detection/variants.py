"""What detectors share that show the classifier altered copies of a text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from robustkit.classifiers.features import Features, Text

from .base import Detector, texts_of

if TYPE_CHECKING:
    from robustkit.classifiers.text import TextClassifier

__all__ = ["ClassifierDetector", "Words", "cased_like", "mask_word", "softmax", "variant_logits"]

# Copies in memory at a time; the classifier batches them as it likes.
_CHUNK = 4096


class Words:
    """A text, or a pair of texts, as a row of words that can be replaced; everything between them stays.

    Args:
        text: The text.
        pattern: Regular expression of a word, without groups; by default what stands between blanks.
    """

    def __init__(self, text: Text, pattern: str = r"\S+") -> None:
        self._pair = not isinstance(text, str)
        # Words at odd places, what is between them at even ones.
        self._pieces = [
            re.split(f"({pattern})", part) for part in ((text,) if isinstance(text, str) else text)
        ]
        self._places = [(i, j) for i, part in enumerate(self._pieces) for j in range(1, len(part), 2)]
        self.words = tuple(self._pieces[i][j] for i, j in self._places)

    def __len__(self) -> int:
        return len(self.words)

    def replaced(self, changes: Mapping[int, str]) -> Text:
        """The text with other words at some places."""
        pieces = [list(part) for part in self._pieces]
        for index, word in changes.items():
            i, j = self._places[index]
            pieces[i][j] = word
        parts = ["".join(part) for part in pieces]
        return (parts[0], parts[1]) if self._pair else parts[0]


def cased_like(word: str, replacement: str) -> str:
    """A replacement with the capitals of the word: all, or the first; as it is for a lower-case word."""
    if len(word) > 1 and word.isupper():
        return replacement.upper()
    return replacement.capitalize() if word[0].isupper() else replacement


def variant_logits(
    classifier: TextClassifier, variants: Iterable[Sequence[Text]]
) -> Iterator[NDArray[np.float64]]:
    """Logits of altered copies of many texts, in full batches.

    Copies of many texts are collected, equal ones are asked for once, and the classifier sorts them by
    length; memory is bounded by some thousand copies and those of one text.

    Args:
        classifier: The classifier.
        variants: For each text its copies, k of them; k may differ and be 0.

    Yields:
        float64 ``(k, C)`` for each text, in order.
    """
    pending: list[Sequence[Text]] = []
    count = 0
    for copies in variants:
        pending.append(copies)
        count += len(copies)
        if count >= _CHUNK:
            yield from _ask(classifier, pending)
            pending, count = [], 0
    yield from _ask(classifier, pending)


def _ask(classifier: TextClassifier, pending: list[Sequence[Text]]) -> Iterator[NDArray[np.float64]]:
    rows: dict[Text, int] = {}
    for copies in pending:
        for copy in copies:
            rows.setdefault(copy, len(rows))
    logits = classifier.logits(list(rows)).astype(np.float64)
    for copies in pending:
        yield logits[[rows[copy] for copy in copies]]


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities (n, C) of logits (n, C), in float64."""
    z = np.asarray(logits, dtype=np.float64)
    weights = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def mask_word(classifier: TextClassifier, mask: str | None) -> str:
    """The word that hides another: ``mask``, or else the tokenizer's mask token, or else its unknown token.

    Raises:
        ValueError: ``mask`` is None and the tokenizer has neither.
    """
    found = mask or classifier.tokenizer.mask_token or classifier.tokenizer.unk_token
    if not found:
        raise ValueError(f"the tokenizer of {classifier.name} has no mask token; pass mask=, such as '***'")
    return str(found)


class ClassifierDetector(Detector):
    """A detector that asks the classifier again; ``classifier`` is its first argument and is not saved."""

    not_saved: ClassVar[tuple[str, ...]] = ("classifier",)

    classifier: TextClassifier

    def _texts(self, inputs: Features) -> tuple[Text, ...]:
        """The texts of features, which must come from this detector's classifier.

        Raises:
            ValueError: They come from another classifier, or carry no texts.
        """
        if inputs.source and inputs.source != self.classifier.source:
            raise ValueError(
                f"the features come from another classifier, layer, pooling or length (fingerprint "
                f"{inputs.source[:12]}) than the one this {type(self).__name__} asks "
                f"({self.classifier.name}, {self.classifier.source[:12]})"
            )
        return texts_of(inputs)
