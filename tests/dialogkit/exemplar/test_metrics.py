"""Behaviour C18, and where the exemplars of a measurement come from."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from dialogkit.dialogues import Example
from dialogkit.exemplar import (
    ExemplarPacker,
    copied_share,
    exemplar_bleu,
    exemplars_from,
    perplexities,
)
from dialogkit.retrieval import ResponseIndex
from tests.dialogkit.exemplar.toys import WordRetriever, examples, lm, response_index

TEXTS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join)


def test_c18_exemplar_bleu() -> None:
    replies = ["a b c d", "a b c d", "a b c d"]
    found = exemplar_bleu(replies, ["a b c d", "x y z w", "a b x y"])
    assert found == pytest.approx([1.0, 0.0, 0.408], abs=1e-3)
    assert exemplar_bleu([""], ["a"]) == [0.0]
    with pytest.raises(ValueError, match="must be as many"):
        exemplar_bleu(["a"], [])
    with pytest.raises(ValueError, match="n must be at least 1"):
        exemplar_bleu(["a"], ["a"], 0)


@given(reply=TEXTS, exemplar=TEXTS, n=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_exemplar_bleu_is_nltks(reply: str, exemplar: str, n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sentence_bleu(
            [exemplar.split()],
            reply.split(),
            weights=(1 / n,) * n,
            smoothing_function=SmoothingFunction(epsilon=1e-12).method1,
        )
    assert exemplar_bleu([reply], [exemplar], n) == pytest.approx([expected], abs=1e-9)


def test_copied_share() -> None:
    words = ["a", "b", "c", "d", "e", "f", "g", "h"]
    assert copied_share(words, [words]) == 1
    assert copied_share(words, [["x", "a", "b", "c", "d", "y"]]) == 0.5
    assert copied_share(words, [["a", "b", "c", "x"]]) == 0
    assert copied_share(["yes"], [["oh", "yes"]]) == 1
    assert copied_share([], [words]) == copied_share(words, []) == 0


def test_sources_of_exemplars() -> None:
    rows = [*examples(4), Example(("tell me of red it is gold",), "red it is gold"), Example((" ",), "x")]
    index = response_index()
    golds = [row.response for row in rows]
    assert exemplars_from("none", rows) == [None] * 6
    assert exemplars_from("gold", rows) == golds
    drawn = exemplars_from("random", rows, index=index, seed=1)
    assert drawn == exemplars_from("random", rows, index=index, seed=1)
    assert drawn != exemplars_from("random", rows, index=index, seed=2)
    found = exemplars_from("context", rows, WordRetriever(), index)
    vectors = WordRetriever().encode_context(["\n".join(row.context) for row in rows])
    best = index.search(vectors, 1).texts
    assert found[:4] == [texts[0] for texts in best[:4]]
    # A gold response that stands in the index is found first, and is no exemplar.
    assert best[4] == [golds[4]]
    assert found[4] not in (golds[4], None)
    assert found[5] is None
    for source in (drawn, found):
        assert all(text != gold for text, gold in zip(source, golds, strict=True))
    lonely = ResponseIndex.build(WordRetriever(), [golds[0]])
    assert exemplars_from("random", rows[:1], index=lonely) == [None]
    with pytest.raises(ValueError, match="source must be"):
        exemplars_from("best", rows)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs an index"):
        exemplars_from("context", rows, index=index)


def test_perplexities_by_source() -> None:
    found = perplexities(ExemplarPacker(lm()), examples(4), WordRetriever(), response_index())
    assert list(found) == ["none", "context", "gold", "random"]
    assert all(np.isfinite(value) and value > 1 for value in found.values())
    assert all(one != other for one, other in pairwise(found.values()))
