"""How much of a reply was copied."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["copied_share", "exemplar_bleu", "ngrams"]

_NO_MATCH = 1e-12
"""Matches counted in place of none: NLTK's smoothing method 1 with the epsilon of the released notebook."""


def exemplar_bleu(replies: Sequence[str], exemplars: Sequence[str], n: int = 2) -> list[float]:
    """BLEU-n of each reply against its exemplar: a measure of copying, high = over-reliance.

    Words are what stands between white space, cases as they are; uniform weights up to n, brevity penalty,
    NLTK's smoothing method 1 with epsilon 1e-12, each reply for itself: the definition of CORGE's notebook.

    Args:
        replies: The replies.
        exemplars: One for each.
        n: Longest n-grams.

    Returns:
        Values in [0, 1]; 0 for a reply without words.

    Raises:
        ValueError: There are not as many exemplars as replies, or n is below 1.
    """
    if len(replies) != len(exemplars):
        raise ValueError(f"replies and exemplars must be as many, got {len(replies)} and {len(exemplars)}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return [_bleu(*pair, n) for pair in zip(replies, exemplars, strict=True)]


def _bleu(reply: str, exemplar: str, n: int) -> float:
    own, other = reply.split(), exemplar.split()
    if not set(own) & set(other):
        return 0.0
    total = 0.0
    for size in range(1, n + 1):
        grams = ngrams(own, size)
        matches = (grams & ngrams(other, size)).total()
        total += math.log((matches or _NO_MATCH) / max(1, grams.total()))
    return math.exp(min(0.0, 1 - len(other) / len(own)) + total / n)


def copied_share(words: Sequence[str], sources: Sequence[Sequence[str]], run: int = 4) -> float:
    """The share of a reply's words that stand in a source in runs of several words.

    Args:
        words: Words of the reply.
        sources: Words of the texts that it may be copied from.
        run: Words in a row that count as copied; a reply with fewer is copied as a whole or not at all.

    Returns:
        In [0, 1]; 0 for a reply without words.
    """
    size = min(run, len(words))
    if size == 0:
        return 0.0
    there = {gram for source in sources for gram in ngrams(source, size)}
    copied = [False] * len(words)
    for start in range(len(words) - size + 1):
        if tuple(words[start : start + size]) in there:
            copied[start : start + size] = [True] * size
    return sum(copied) / len(words)


def ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of n words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
