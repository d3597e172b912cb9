"""What an attack may not do: which words stay as they are, and which candidates are too far from the text.

Each constraint decides as TextAttack 0.3.11's constraint of the same purpose does with the same resources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch

from robustkit.attacks.words.asking import Ask, Service, Steps
from robustkit.attacks.words.resources import Tagger, WordVectors, universal_tag
from robustkit.attacks.words.text import WordText
from robustkit.attacks.words.transformations import Transformation

__all__ = [
    "Constraint",
    "GrammarErrors",
    "IndexConstraint",
    "InputColumnModification",
    "LevenshteinDistance",
    "MaxModificationRate",
    "MinWordLength",
    "PartOfSpeech",
    "RepeatModification",
    "SentenceSimilarity",
    "StopwordModification",
    "WordEmbeddingDistance",
    "modifiable_indices",
]


class IndexConstraint(Protocol):
    """Says before a transformation which words it may change."""

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """The words that may be changed.

        Args:
            text: The text about to be changed.
            transformation: What is about to change it.

        Returns:
            Indices of words.
        """
        ...


class Constraint(Protocol):
    """Filters the candidates of a transformation.

    Attributes:
        against_original: Whether candidates are compared with the text that the attack began with; else with
            the text that they were made from.
    """

    @property
    def against_original(self) -> bool: ...  # noqa: D102

    def keep(self, candidates: list[WordText], reference: WordText) -> Steps[list[WordText]]:
        """Filter candidates.

        Args:
            candidates: Texts that a transformation made.
            reference: The text to compare them with, see `against_original`.

        Returns:
            Those that fulfil the constraint, in the same order.
        """
        ...


def modifiable_indices(
    text: WordText,
    transformation: Transformation,
    constraints: Iterable[IndexConstraint],
    indices: Collection[int] | None = None,
) -> list[int]:
    """The words that all constraints let a transformation change.

    Args:
        text: The text about to be changed.
        transformation: What is about to change it.
        constraints: All of them.
        indices: The words that the search asks for; None means all.

    Returns:
        Indices in the order in which TextAttack tries them. It takes them from a Python set, which is not
        always in ascending order; ties between words are broken by it.
    """
    chosen = set(range(len(text.words)) if indices is None else indices)
    for constraint in constraints:
        chosen = chosen & constraint.allowed(text, transformation)
    return list(chosen)


def _all(text: WordText) -> frozenset[int]:
    return frozenset(range(len(text.words)))


class RepeatModification:
    """No word is changed twice."""

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """See `IndexConstraint.allowed`."""
        return _all(text) - text.modified


class StopwordModification:
    """Stop words stay.

    Args:
        stopwords: The words, compared with their case: ``The`` may be changed if only ``the`` is listed.
    """

    def __init__(self, stopwords: Iterable[str]) -> None:
        if isinstance(stopwords, str):
            raise TypeError("stopwords is one string; expected the words, or read_stopwords(file)")
        self.stopwords = frozenset(stopwords)

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """See `IndexConstraint.allowed`."""
        return frozenset(index for index, word in enumerate(text.words) if word not in self.stopwords)


class InputColumnModification:
    """Some parts of a model's input stay, such as the premise of an entailment pair.

    Args:
        columns: The names of all parts that a text must have, in order, for the constraint to apply.
        ignored: The parts that stay.
    """

    def __init__(self, columns: Sequence[str], ignored: Collection[str]) -> None:
        self.columns = tuple(columns)
        self.ignored = frozenset(ignored)

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """See `IndexConstraint.allowed`."""
        if text.columns != self.columns:
            return _all(text)
        parts = zip(self.columns, text.words_per_input, strict=True)
        owners = [column for column, words in parts for _ in words]
        return frozenset(index for index, column in enumerate(owners) if column not in self.ignored)


class MaxModificationRate:
    """At most a share of the words is changed.

    Args:
        max_rate: The share, from 0 to 1; the number of words is rounded up.
        min_threshold: So many words may be changed in any case.
    """

    def __init__(self, max_rate: float, min_threshold: int = 1) -> None:
        if not 0 <= max_rate <= 1:
            raise ValueError(f"max_rate is {max_rate}; expected a share from 0 to 1")
        self.max_rate = max_rate
        self.min_threshold = min_threshold

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """See `IndexConstraint.allowed`."""
        most = max(math.ceil(len(text.words) * self.max_rate), self.min_threshold)
        return _all(text) if len(text.modified) < most else frozenset()


class MinWordLength:
    """Short words stay.

    Args:
        min_length: Least number of characters of a word that may be changed.
    """

    def __init__(self, min_length: int) -> None:
        self.min_length = min_length

    def allowed(self, text: WordText, transformation: Transformation) -> frozenset[int]:
        """See `IndexConstraint.allowed`."""
        return frozenset(index for index, word in enumerate(text.words) if len(word) >= self.min_length)


class _Check:
    """A constraint that judges candidates one by one."""

    def __init__(self, against_original: bool) -> None:
        self.against_original = against_original

    def fulfils(self, candidate: WordText, reference: WordText) -> bool:
        """Judge one candidate.

        Args:
            candidate: A text that a transformation made.
            reference: The text to compare it with.

        Returns:
            Whether it may stay.
        """
        raise NotImplementedError

    def keep(self, candidates: list[WordText], reference: WordText) -> Steps[list[WordText]]:
        """See `Constraint.keep`."""
        yield from ()
        return [candidate for candidate in candidates if self.fulfils(candidate, reference)]


class WordEmbeddingDistance(_Check):
    """The new word's vector is near the old word's. Words are looked up in lower case.

    Args:
        vectors: Word vectors. A list of neighbours has no distances and is not enough.
        min_cosine: Least cosine similarity; give this or the next one.
        max_squared_distance: Largest squared Euclidean distance (TextAttack's ``max_mse_dist``).
        include_unknown_words: Whether a pair with a word without vector fulfils the constraint.
        against_original: See `Constraint`.
    """

    def __init__(
        self,
        vectors: WordVectors,
        *,
        min_cosine: float | None = None,
        max_squared_distance: float | None = None,
        include_unknown_words: bool = True,
        against_original: bool = True,
    ) -> None:
        super().__init__(against_original)
        if not isinstance(vectors, WordVectors):
            raise TypeError(
                f"vectors is {type(vectors).__name__}; expected WordVectors: lists of neighbours do not "
                "tell how near two words are. Load the vectors that the lists were made from, or leave the "
                "constraint out and say so"
            )
        if (min_cosine is None) == (max_squared_distance is None):
            raise ValueError("expected one of min_cosine and max_squared_distance")
        self.vectors = vectors
        self.min_cosine = min_cosine
        self.max_squared_distance = max_squared_distance
        self.include_unknown_words = include_unknown_words

    def fulfils(self, candidate: WordText, reference: WordText) -> bool:
        """See `Constraint.keep`. A candidate longer than its reference fails at the words beyond its end."""
        return all(
            index < min(len(reference.words), len(candidate.words))
            and self._near(reference.words[index].lower(), candidate.words[index].lower())
            for index in candidate.newly_modified
        )

    def _near(self, old: str, new: str) -> bool:
        if old not in self.vectors or new not in self.vectors:
            return self.include_unknown_words
        if self.min_cosine is not None:
            return self.vectors.cosine(old, new) >= self.min_cosine
        assert self.max_squared_distance is not None
        return self.vectors.squared_distance(old, new) <= self.max_squared_distance


class PartOfSpeech(_Check):
    """The new word has the old word's part of speech, in the universal tag set.

    Both are tagged amid the four words before and the three words behind. Where a word stands twice in this
    window, the tag of its first occurrence counts; so it does in TextAttack.

    Args:
        tagger: Tags sequences of words with Penn Treebank tags.
        allow_verb_noun_swap: Whether a noun may replace a verb and a verb a noun.
        against_original: See `Constraint`.
    """

    def __init__(
        self, tagger: Tagger, *, allow_verb_noun_swap: bool = True, against_original: bool = True
    ) -> None:
        super().__init__(against_original)
        self.tagger = tagger
        self.allow_verb_noun_swap = allow_verb_noun_swap
        self._tag = lru_cache(maxsize=2**16)(self._tag_in)

    def _tag_in(self, window: tuple[str, ...], word: str) -> str:
        place = window.index(word)
        return universal_tag(self.tagger.tag(window, place + 1)[place])

    def fulfils(self, candidate: WordText, reference: WordText) -> bool:
        """See `Constraint.keep`."""
        for index in candidate.newly_modified:
            if index >= len(reference.words):
                return False
            old, new = reference.words[index], candidate.words[index]
            before, after = reference.words[max(index - 4, 0) : index], reference.words[index + 1 : index + 4]
            tags = {self._tag((*before, old, *after), old), self._tag((*before, new, *after), new)}
            if len(tags) > 1 and not (self.allow_verb_noun_swap and tags == {"NOUN", "VERB"}):
                return False
        return True


class LevenshteinDistance(_Check):
    """At most some characters are inserted, deleted or replaced.

    Args:
        max_distance: Largest number of edits of single characters.
        against_original: See `Constraint`.
    """

    def __init__(self, max_distance: int, *, against_original: bool = True) -> None:
        super().__init__(against_original)
        self.max_distance = max_distance

    def fulfils(self, candidate: WordText, reference: WordText) -> bool:
        """See `Constraint.keep`."""
        old, new = reference.text.split(" "), candidate.text.split(" ")
        if len(old) == len(new):
            # Editing piece by piece is one way from text to text; where it is short the shortest one is too.
            pieces = (levenshtein(a, b) for a, b in zip(old, new, strict=True) if a != b)
            if sum(pieces) <= self.max_distance:
                return True
        return levenshtein(reference.text, candidate.text) <= self.max_distance


def levenshtein(first: str, second: str) -> int:
    """The least number of insertions, deletions and replacements of single characters between two strings.

    Args:
        first: One string.
        second: The other.

    Returns:
        The distance. The cost is one step on integers of ``len(first)`` bits per character of ``second``.

    Source: G. Myers, A fast bit-vector algorithm for approximate string matching, J. ACM 46 (1999), with the
    global-distance form of H. Hyyrö (2003). Bits hold the differences between neighbouring cells of a column.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for i, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << i
    full, last = (1 << len(first)) - 1, 1 << len(first) - 1
    up, down, distance = full, 0, len(first)  # where a column grows by one, where it falls by one, its end
    for character in second:
        equal = places.get(character, 0)
        diagonal = (((equal & up) + up) ^ up) | equal | down
        right_up, right_down = down | (full & ~(diagonal | up)), up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = (right_up << 1 | 1) & full
        up, down = (right_down << 1 & full) | (full & ~(diagonal | right_up)), right_up & diagonal
    return distance


class GrammarErrors(_Check):
    """A grammar checker finds no more errors than before.

    Args:
        count_errors: Returns the number of errors in a text, such as
            ``lambda text: len(tool.check(text))`` for a ``language_tool_python.LanguageTool`` of your own.
        max_added: Errors that may be added.
        against_original: See `Constraint`.
    """

    def __init__(
        self, count_errors: Callable[[str], int], *, max_added: int = 0, against_original: bool = True
    ) -> None:
        super().__init__(against_original)
        self.max_added = max_added
        self._count = lru_cache(maxsize=2**14)(count_errors)

    def fulfils(self, candidate: WordText, reference: WordText) -> bool:
        """See `Constraint.keep`."""
        return self._count(candidate.text) - self._count(reference.text) <= self.max_added


class SentenceSimilarity:
    """A sentence encoder finds candidate and reference alike around the changed word.

    What it measures is kept in the candidate's `WordText.similarity`.

    Args:
        encoder: Answers a text with its vector, see `SentenceEncoder`.
        threshold: Least similarity.
        metric: ``"cosine"``, or ``"angular"``: one minus the angle divided by pi.
        window_size: Number of words around the changed one that are compared, None for the whole text.
        skip_text_shorter_than_window: Whether a candidate with fewer words than the window passes unread,
            with similarity 1.
        against_original: See `Constraint`.
    """

    def __init__(
        self,
        encoder: Service,
        threshold: float,
        *,
        metric: Literal["cosine", "angular"] = "cosine",
        window_size: int | None = None,
        skip_text_shorter_than_window: bool = False,
        against_original: bool = True,
    ) -> None:
        if metric not in ("cosine", "angular"):
            raise ValueError(f"metric is {metric!r}; expected 'cosine' or 'angular'")
        self.encoder = encoder
        self.threshold = threshold
        self.metric = metric
        self.window_size = math.inf if window_size is None else window_size
        self.skip_text_shorter_than_window = skip_text_shorter_than_window
        self.against_original = against_original

    def keep(self, candidates: list[WordText], reference: WordText) -> Steps[list[WordText]]:
        """See `Constraint.keep`. A candidate in which no word is new cannot be compared and is dropped."""
        judged = [candidate for candidate in candidates if candidate.newly_modified]
        compared = [candidate for candidate in judged if not self._skipped(candidate)]
        pairs = []
        for candidate in compared:
            index = next(iter(candidate.newly_modified))
            pairs.append([text.window(index, self.window_size) for text in (reference, candidate)])
        texts = tuple(dict.fromkeys(text for pair in pairs for text in pair))
        answers = yield Ask(self.encoder, texts)
        vectors = dict(zip(texts, answers, strict=True))
        passed = {id(candidate) for candidate in judged}
        for candidate in judged:
            candidate.similarity = 1.0
        if compared:
            old, new = (
                torch.from_numpy(np.stack([vectors[text] for text in side]))
                for side in zip(*pairs, strict=True)
            )
            similarity = _similarity(old, new, self.metric)
            for candidate, value, fulfilled in zip(
                compared, similarity.tolist(), (similarity >= self.threshold).tolist(), strict=True
            ):
                candidate.similarity = value
                if not fulfilled:
                    passed.remove(id(candidate))
        return [candidate for candidate in judged if id(candidate) in passed]

    def _skipped(self, candidate: WordText) -> bool:
        return self.skip_text_shorter_than_window and len(candidate.words) < self.window_size


def _similarity(first: torch.Tensor, second: torch.Tensor, metric: str) -> torch.Tensor:
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    if metric == "angular":
        return 1 - torch.acos(torch.clamp(cosine, -1.0, 1.0)) / math.pi
    return cosine
