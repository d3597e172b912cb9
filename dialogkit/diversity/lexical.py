"""Lexical diversity of a set of responses: distinct-n, n-gram entropy, rare words, self-BLEU, length.

All are corpus-level figures over all responses; n-grams never cross responses. Words are those of NLTK's
``casual_tokenize`` with its default settings, case kept, unless another tokeniser is given. Definitions: the
specification of semantic diversity, section 7, and of G2R, section 7 and 9.1 item 8.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "TokenTable",
    "distinct_n",
    "entropy_n",
    "low_frequency",
    "mean_length",
    "self_bleu",
    "token_counts",
]

Tokenize = Callable[[str], Sequence[str]]
_Ints = npt.NDArray[np.int64]

# Where NLTK's casual tokeniser may look beyond white space: phone numbers, spaced ellipses, HTML entities.
# Such a text, and any with characters that are rare in dialogues, is tokenised whole.
_WHOLE = re.compile(r"[^ !-%'-/:-~\u2019]|\. +\.")

_SMOOTHING = 0.1
"""Matches counted in place of none, as in method 1 of Chen and Cherry (2014)."""


class TokenTable:
    """Responses cut into words once, to be measured many times.

    Every function of this module takes a table in place of the responses. Words are numbers here: a million
    responses of ten words hold 90 MB. Without a tokeniser of one's own a table costs about a dictionary
    look-up for each word; NLTK sees each distinct word once.

    Args:
        responses: At least one text; empty texts count as responses without words.
        tokenize: From a text to its words; None is NLTK's ``casual_tokenize``, which needs the extra
            ``diversity``.

    Attributes:
        vocabulary: The distinct words, in order of appearance.
        codes: The words of all responses as numbers in the vocabulary, ``int64 [words]``.
        lengths: Words of each response, ``int64 [responses]``.

    Raises:
        TypeError: ``responses`` is one string, or a response is no string.
        ValueError: There are no responses.
    """

    def __init__(self, responses: Sequence[str], tokenize: Tokenize | None = None) -> None:
        if isinstance(responses, str):
            raise TypeError("responses must be a sequence of strings, got one string")
        vocabulary: dict[str, int] = {}

        def code(words: Sequence[str]) -> array[int]:
            return array("q", [vocabulary.setdefault(word, len(vocabulary)) for word in words])

        words_of = _casual(code) if tokenize is None else lambda text: code(tokenize(text))
        codes, lengths = array("q"), array("q")
        for i, text in enumerate(responses):
            if not isinstance(text, str):
                raise TypeError(f"response {i} must be a string, got {type(text).__name__}")
            before = len(codes)
            codes.extend(words_of(text))
            lengths.append(len(codes) - before)
        if not lengths:
            raise ValueError("responses is empty: at least one response is needed")
        self.vocabulary: list[str] = list(vocabulary)
        self.codes: _Ints = np.frombuffer(codes, dtype=np.int64) if codes else np.empty(0, np.int64)
        self.lengths: _Ints = np.frombuffer(lengths, dtype=np.int64)
        self._counts: dict[int, _Ints] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: npt.ArrayLike) -> TokenTable:
        """The table of some of the responses; nothing is tokenised again.

        Args:
            rows: Indices of responses, at least one, in any order.

        Raises:
            ValueError: There are no rows.
            IndexError: A row is out of range.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        if not len(chosen):
            raise ValueError("rows is empty: at least one response is needed")
        part = copy(self)
        part._counts = {}
        part.lengths = self.lengths[chosen]
        ends = np.cumsum(part.lengths)
        # Where each word of the part stands in the whole.
        shift = (np.cumsum(self.lengths) - self.lengths)[chosen] - (ends - part.lengths)
        part.codes = self.codes[np.arange(ends[-1]) + np.repeat(shift, part.lengths)]
        return part

    def ngrams(self, n: int) -> tuple[_Ints, _Ints]:
        """The n-grams of all responses, those of one response together.

        Args:
            n: Words of an n-gram, at least 1.

        Returns:
            A number for each n-gram, equal exactly where the n-grams are equal, and the index of its
            response; both ``int64 [n-grams]``.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        size, base = max(len(self.codes) - n + 1, 0), max(len(self.vocabulary), 1)
        keys, bound = self.codes[:size], base
        for shift in range(1, n):
            if bound > np.iinfo(np.int64).max // base:
                # One more word would not fit: number the distinct ones of what there is.
                distinct, keys = np.unique(keys, return_inverse=True)
                bound = len(distinct)
            keys, bound = keys * base + self.codes[shift : shift + size], bound * base
        owners = np.repeat(np.arange(len(self)), self.lengths)
        inside = owners[:size] == owners[n - 1 :]
        return keys[inside], owners[:size][inside]

    def ngram_counts(self, n: int) -> _Ints:
        """How often each distinct n-gram occurs, in no particular order: ``int64 [distinct n-grams]``."""
        if n not in self._counts:
            self._counts[n] = np.unique(self.ngrams(n)[0], return_counts=True)[1]
        return self._counts[n]


Responses = Sequence[str] | TokenTable


def distinct_n(
    responses: Responses,
    n: int,
    *,
    denominator: Literal["ngrams", "tokens"] = "ngrams",
    tokenize: Tokenize | None = None,
) -> float:
    """Dist-n: distinct n-grams over all responses, divided by a total (Li et al. 2016).

    The two denominators in use give figures that cannot be compared. G2R and DRESS divide by the number of
    n-grams, CORGE by the number of words for every n. Both fall as the number of responses grows.

    Args:
        responses: Texts, or a `TokenTable`.
        n: Words of an n-gram, at least 1.
        denominator: ``"ngrams"`` or ``"tokens"``.
        tokenize: See `TokenTable`.

    Returns:
        In [0, 1]; 0 where there are no n-grams.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are no responses, ``n`` is below 1 or the denominator is unknown.
    """
    if denominator not in ("ngrams", "tokens"):
        raise ValueError(f"denominator must be 'ngrams' or 'tokens', got {denominator!r}")
    table = _table(responses, tokenize)
    counts = table.ngram_counts(n)
    total = len(table.codes) if denominator == "tokens" else int(counts.sum())
    return len(counts) / total if total else 0.0


def entropy_n(responses: Responses, n: int, *, base: float = 2.0, tokenize: Tokenize | None = None) -> float:
    """Ent-n: entropy of the distribution of n-grams, ``-sum p(g) log p(g)`` (Zhang et al. 2018).

    Args:
        responses: Texts, or a `TokenTable`.
        n: Words of an n-gram, at least 1.
        base: Of the logarithm. 2 (bits) as in the released code of Sem-Ent; AdaLabel's uses e.
        tokenize: See `TokenTable`.

    Returns:
        At least 0, in units of the logarithm; 0 where there are no n-grams.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are no responses, ``n`` is below 1 or ``base`` is not above 1.
    """
    if not base > 1.0:
        raise ValueError(f"base must be above 1, got {base}")
    counts = _table(responses, tokenize).ngram_counts(n)
    if not len(counts):
        return 0.0
    shares = counts / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum() / np.log(base)))


def low_frequency(
    responses: Responses,
    *,
    threshold: int = 100,
    reference_counts: Mapping[str, int] | None = None,
    tokenize: Tokenize | None = None,
) -> float:
    """LF: the share of words that are rare.

    Without ``reference_counts`` a word is rare if it occurs at most ``threshold`` times in the responses
    themselves, as in the released code of Sem-Ent; then the figure depends on the number of responses and is
    1.0 for a small set. D2GPo and AdaLabel count in the training set instead.

    Args:
        responses: Texts, or a `TokenTable`.
        threshold: The largest count of a rare word.
        reference_counts: Counts of words in a reference corpus, such as `token_counts` of the training
            responses; a word that is missing there has count 0.
        tokenize: See `TokenTable`.

    Returns:
        In [0, 1]; 0 where there are no words.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are no responses, or ``threshold`` is negative.
    """
    if threshold < 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    table = _table(responses, tokenize)
    if not len(table.codes):
        return 0.0
    here = np.bincount(table.codes, minlength=len(table.vocabulary))
    counts = (
        here
        if reference_counts is None
        else np.array([reference_counts.get(word, 0) for word in table.vocabulary])
    )
    return float(here[counts <= threshold].sum() / here.sum())


def token_counts(responses: Responses, *, tokenize: Tokenize | None = None) -> dict[str, int]:
    """How often each word occurs: the ``reference_counts`` of `low_frequency`.

    Args:
        responses: Texts, or a `TokenTable`.
        tokenize: See `TokenTable`.

    Returns:
        Counts by word, in order of appearance.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are no responses.
    """
    table = _table(responses, tokenize)
    counts = np.bincount(table.codes, minlength=len(table.vocabulary)).tolist()
    return dict(zip(table.vocabulary, counts, strict=True))


def mean_length(responses: Responses, *, tokenize: Tokenize | None = None) -> float:
    """Mean number of words of a response.

    Args:
        responses: Texts, or a `TokenTable`.
        tokenize: See `TokenTable`.

    Returns:
        At least 0; empty responses count with 0 words.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are no responses.
    """
    return float(_table(responses, tokenize).lengths.mean())


def self_bleu(
    responses: Responses,
    *,
    n: int = 4,
    sample: int | None = None,
    seed: int = 0,
    tokenize: Tokenize | None = None,
) -> float:
    """Self-BLEU: mean BLEU-n of each response with all others as its references (Zhu et al. 2018).

    Low where responses differ. BLEU is that of one sentence against many references: clipped n-gram
    precisions of orders 1 to n with equal weights, brevity penalty against the reference nearest in length,
    no match of an order counted as 0.1 matches (method 1 of Chen and Cherry 2014), 0 without any word in
    common. It is exact and costs a sort of the n-grams instead of a comparison of all pairs. It grows with
    the number of responses: to compare sets of different size take a ``sample`` of the same size of each.

    Args:
        responses: Texts, or a `TokenTable`; at least two.
        n: The longest n-grams, at least 1.
        sample: Take this many responses at random and measure these among themselves; None takes all.
        seed: Of the sample.
        tokenize: See `TokenTable`.

    Returns:
        In [0, 1]; 1 where all responses are equal and none is shorter than n words.

    Raises:
        TypeError: See `TokenTable`.
        ValueError: There are fewer than two responses, ``n`` is below 1, or ``sample`` is below 2 or above
            the number of responses.
    """
    table = _table(responses, tokenize)
    if len(table) < 2:
        raise ValueError(f"self_bleu needs at least two responses, got {len(table)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rows = np.arange(len(table))
    if sample is not None:
        if not 2 <= sample <= len(table):
            raise ValueError(f"sample must be 2 to {len(table)} (the number of responses), got {sample}")
        rows = np.sort(np.random.default_rng(seed).choice(rows, size=sample, replace=False))
    lengths = table.lengths[rows]
    log_precisions = np.zeros(len(rows))
    has_match = np.zeros(len(rows), dtype=bool)
    for order in range(1, n + 1):
        matches = _clipped_matches(*table.ngrams(order), len(table), rows)
        if order == 1:
            has_match = matches > 0
        total = np.maximum(lengths - order + 1, 1)
        log_precisions += np.log(np.where(matches > 0, matches, _SMOOTHING) / total) / n
    length = np.maximum(lengths, 1)
    brevity = np.minimum(0.0, 1.0 - _nearest_other(lengths) / length)
    return float(np.where(has_match, np.exp(log_precisions + brevity), 0.0).mean())


def _clipped_matches(keys: _Ints, owners: _Ints, size: int, rows: _Ints) -> _Ints:
    """For each response of ``rows``, its n-grams that another of them has, each at most as often as there."""
    position = np.full(size, -1)
    position[rows] = np.arange(len(rows))
    kept = position[owners] >= 0
    matches = np.zeros(len(rows), dtype=np.int64)
    if not kept.any():
        return matches
    _, ranks = np.unique(keys[kept], return_inverse=True)
    pairs, counts = np.unique(ranks * len(rows) + position[owners[kept]], return_counts=True)
    ngram, row = np.divmod(pairs, len(rows))
    starts = np.flatnonzero(np.diff(ngram, prepend=-1))
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(pairs)))
    most = np.maximum.reduceat(counts, starts)
    # The first response with the largest count is the only one that must not be compared with itself.
    at_most = np.flatnonzero(counts == most[group])
    holder = at_most[np.flatnonzero(np.diff(group[at_most], prepend=-1))]
    others = counts.copy()
    others[holder] = 0
    second = np.maximum.reduceat(others, starts)
    limit = most[group]
    limit[holder] = second
    np.add.at(matches, row, np.minimum(counts, limit))
    return matches


def _nearest_other(lengths: _Ints) -> _Ints:
    """For each length the nearest of the others; of two as near, the shorter."""
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order]
    below, above = ascending.copy(), ascending.copy()
    below[1:], above[:-1] = ascending[:-1], ascending[1:]
    below[0], above[-1] = above[0], below[-1]
    nearest = np.empty_like(lengths)
    nearest[order] = np.where(np.abs(ascending - below) <= np.abs(above - ascending), below, above)
    return nearest


def _table(responses: Responses, tokenize: Tokenize | None) -> TokenTable:
    if not isinstance(responses, TokenTable):
        return TokenTable(responses, tokenize)
    if tokenize is not None:
        raise ValueError("tokenize must be None for a TokenTable, which is tokenised already")
    return responses


def _casual(code: Callable[[Sequence[str]], array[int]]) -> Callable[[str], array[int]]:
    """NLTK's ``casual_tokenize`` followed by ``code``, with a memory for what stands between white space."""
    try:
        from nltk.tokenize.casual import TweetTokenizer
    except ImportError as error:
        raise ImportError(
            "the default tokeniser needs NLTK: pip install 'dialogkit-robustkit[diversity]'; or pass tokenize"
        ) from error

    tokenize: Callable[[str], list[str]] = TweetTokenizer().tokenize
    known: dict[str, array[int]] = {}

    def words(text: str) -> array[int]:
        if _WHOLE.search(text):
            return code(tokenize(text))
        found = array("q")
        for piece in text.split(" "):
            if piece:
                codes = known.get(piece)
                if codes is None:
                    codes = known[piece] = code(tokenize(piece))
                found.extend(codes)
        return found

    return words
