"""How much of a reply stands elsewhere: in human replies, in the context, in what it was made from."""

from __future__ import annotations

from collections.abc import Sequence

from dialogkit.diversity import TokenTable
from dialogkit.exemplar.copying import copied_share, ngrams

__all__ = ["copied_share", "ngram_f1", "split_words"]


def split_words(texts: Sequence[str]) -> list[list[str]]:
    """The words of texts in lower case, by NLTK's ``casual_tokenize``."""
    if not texts:
        return []
    table = TokenTable([text.casefold() for text in texts])
    words = [table.vocabulary[code] for code in table.codes.tolist()]
    found, start = [], 0
    for length in table.lengths.tolist():
        found.append(words[start : start + length])
        start += length
    return found


def ngram_f1(words: Sequence[str], references: Sequence[Sequence[str]], n: int) -> float:
    """F1 of the n-grams of a reply and of the human reply that it has most in common with.

    ``F1 = 2 m / (a + b)`` with m n-grams in common (each as often as in the text that has it less often), a
    in the reply and b in the human reply. Texts shorter than n words have none of these n-grams.

    Args:
        words: Words of the reply.
        references: Words of human replies, at least one.
        n: Words of an n-gram, at least 1.

    Returns:
        In [0, 1]; 0 where neither has an n-gram.
    """
    own = ngrams(words, n)
    best = 0.0
    for reference in references:
        theirs = ngrams(reference, n)
        size = own.total() + theirs.total()
        best = max(best, 2 * (own & theirs).total() / size if size else 0.0)
    return best
