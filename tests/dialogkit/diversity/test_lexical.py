"""Lexical diversity against hand values, plain-Python counting and NLTK."""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogkit.diversity import (
    TokenTable,
    distinct_n,
    entropy_n,
    low_frequency,
    mean_length,
    self_bleu,
    token_counts,
)

casual = pytest.importorskip("nltk.tokenize.casual", reason="NLTK is not installed")

GOLDEN = ["Hello", "Hello World", "World Hi"]
WORDS = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)
CORPUS = st.lists(WORDS, min_size=2, max_size=12)


def ngrams(responses: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """The n-grams of responses, counted the slow way."""
    found: Counter[tuple[str, ...]] = Counter()
    for response in responses:
        words = casual.casual_tokenize(response)
        found.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return found


def test_s8_goldens() -> None:
    assert distinct_n(GOLDEN, 1) == pytest.approx(0.6)
    assert entropy_n(GOLDEN, 1) == pytest.approx(1.521928, abs=1e-6)
    assert distinct_n(GOLDEN, 2) == 1.0
    assert entropy_n(GOLDEN, 2) == 1.0
    assert low_frequency(GOLDEN) == 1.0
    assert mean_length(GOLDEN) == pytest.approx(5 / 3)


def test_s8_no_ngrams_give_zero() -> None:
    for responses, n in ((["", " "], 1), (GOLDEN, 3)):
        assert distinct_n(responses, n) == 0.0
        assert entropy_n(responses, n) == 0.0
    assert low_frequency([""]) == 0.0
    assert mean_length(["", "a b"]) == 1.0
    assert self_bleu(["", ""]) == 0.0


def test_g16_two_definitions_of_dist_n() -> None:
    replies = ["one two three four"] * 4
    assert distinct_n(replies, 1) == distinct_n(replies, 1, denominator="tokens") == 0.25
    assert distinct_n(replies, 2) == 0.25
    assert distinct_n(replies, 2, denominator="tokens") == 0.1875


@settings(deadline=None, max_examples=60)
@given(CORPUS, st.integers(1, 4))
def test_counting_equals_plain_python(responses: list[str], n: int) -> None:
    counts = ngrams(responses, n)
    total = sum(counts.values())
    expected = -sum(c / total * math.log2(c / total) for c in counts.values())
    assert distinct_n(responses, n) == (pytest.approx(len(counts) / total) if total else 0.0)
    assert entropy_n(responses, n) == pytest.approx(expected)
    assert entropy_n(responses, n, base=math.e) == pytest.approx(expected * math.log(2))
    assert sorted(TokenTable(responses).ngram_counts(n)) == sorted(counts.values())


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.text(alphabet=st.one_of(st.sampled_from(" .:)(-'D8a@/&;1<\u2019"), st.characters()), max_size=25)
    )
)
def test_words_are_those_of_casual_tokenize(texts: list[str]) -> None:
    texts = [
        *texts,
        "wait . . . and... :-) www.a.com/b?c=1 e.g. call 555 123 4567 now",
        "&lt;b&gt; it’s 3 < 5",
    ]
    table = TokenTable(texts)
    words = [word for text in texts for word in casual.casual_tokenize(text)]
    assert [table.vocabulary[code] for code in table.codes] == words
    assert table.lengths.tolist() == [len(casual.casual_tokenize(text)) for text in texts]


def test_longer_ngrams_than_a_number_holds() -> None:
    # 70,000 words to the fourth are above 2**63: the keys are numbered anew on the way.
    words = [f"w{i}" for i in range(70_000)]
    table = TokenTable([" ".join(words), " ".join(words[:10]), "w1 w2 w3 w5"], str.split)
    assert distinct_n(table, 4) == pytest.approx((69_997 + 1) / (69_997 + 7 + 1))
    assert distinct_n(table, 5) == pytest.approx(69_996 / (69_996 + 6))


@settings(deadline=None, max_examples=60)
@given(CORPUS, st.integers(1, 4))
def test_self_bleu_equals_nltk(responses: list[str], n: int) -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words = [response.split() for response in responses]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            sentence_bleu(
                words[:i] + words[i + 1 :],
                words[i],
                weights=[1 / n] * n,
                smoothing_function=SmoothingFunction().method1,
            )
            for i in range(len(words))
        ]
    assert self_bleu(responses, n=n) == pytest.approx(float(np.mean(expected)), abs=1e-12)


def test_self_bleu_of_equal_and_of_unlike_responses() -> None:
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d", "e f g h"]) == 0.0


def test_self_bleu_of_a_sample() -> None:
    responses = [" ".join(random.Random(i).choices("abcdef", k=6)) for i in range(40)]
    some = self_bleu(responses, sample=10, seed=1)
    assert some == self_bleu(responses, sample=10, seed=1)
    assert some != self_bleu(responses, sample=10, seed=2)
    assert self_bleu(responses, sample=40) == pytest.approx(self_bleu(responses))
    chosen = np.sort(np.random.default_rng(1).choice(40, size=10, replace=False))
    assert some == pytest.approx(self_bleu([responses[i] for i in chosen]))


@settings(deadline=None, max_examples=40)
@given(CORPUS, st.integers(2, 4))
def test_s2_order_and_repetition(responses: list[str], m: int) -> None:
    shuffled = random.Random(m).sample(responses, len(responses))
    for n in (1, 2):
        assert distinct_n(shuffled, n) == distinct_n(responses, n)
        assert entropy_n(shuffled, n) == pytest.approx(entropy_n(responses, n))
        assert entropy_n(responses * m, n) == pytest.approx(entropy_n(responses, n))
        assert distinct_n(responses * m, n) == pytest.approx(distinct_n(responses, n) / m)
    assert self_bleu(shuffled) == pytest.approx(self_bleu(responses))


def test_low_frequency_here_and_in_a_reference() -> None:
    responses = ["a a a b", "c"]
    assert low_frequency(responses, threshold=2) == pytest.approx(2 / 5)
    assert low_frequency(responses, threshold=3) == 1.0
    assert low_frequency(responses, threshold=1, reference_counts={"a": 1, "b": 2}) == pytest.approx(4 / 5)
    assert token_counts(responses) == {"a": 3, "b": 1, "c": 1}


def test_a_tokenizer_of_ones_own_and_a_table() -> None:
    assert distinct_n(["ab", "ba"], 1, tokenize=list) == 0.5
    table = TokenTable(["ab", "ba"], tokenize=list)
    assert (distinct_n(table, 2), mean_length(table), len(table)) == (1.0, 2.0, 2)
    with pytest.raises(ValueError, match="tokenised already"):
        distinct_n(table, 1, tokenize=list)


@given(st.data())
def test_a_part_of_a_table_is_the_table_of_a_part(data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.sampled_from(["", "a b", "b c a", "c", "a b c d", "d a"]), min_size=1))
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1))
    part, whole = TokenTable(texts).take(rows), TokenTable([texts[row] for row in rows])
    assert part.lengths.tolist() == whole.lengths.tolist()
    assert [part.vocabulary[code] for code in part.codes] == [whole.vocabulary[code] for code in whole.codes]
    for n in (1, 2, 3):
        assert sorted(part.ngram_counts(n)) == sorted(whole.ngram_counts(n))
    assert low_frequency(part, threshold=2) == low_frequency(whole, threshold=2)


def test_a_part_without_responses_is_refused() -> None:
    with pytest.raises(ValueError, match="rows is empty"):
        TokenTable(["a"]).take([])


def test_other_languages_and_emoji() -> None:
    responses = ["안녕하세요 여러분", "你好", "😀😀", "مرحبا", "👨‍👩‍👧 ok"]
    assert distinct_n(responses, 1) == len(ngrams(responses, 1)) / sum(ngrams(responses, 1).values())
    assert 0.0 < entropy_n(responses, 1) <= math.log2(len(token_counts(responses)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: distinct_n([], 1), ValueError, "responses is empty"),
        (lambda: distinct_n("abc", 1), TypeError, "got one string"),
        (lambda: distinct_n(["a", None], 1), TypeError, "response 1 must be a string, got NoneType"),
        (lambda: distinct_n(["a"], 0), ValueError, "n must be at least 1, got 0"),
        (lambda: distinct_n(["a"], 1, denominator="words"), ValueError, "'words'"),
        (lambda: entropy_n(["a"], 1, base=1.0), ValueError, "base must be above 1"),
        (lambda: low_frequency(["a"], threshold=-1), ValueError, "threshold"),
        (lambda: self_bleu(["a"]), ValueError, "at least two responses, got 1"),
        (lambda: self_bleu(["a", "b"], n=0), ValueError, "n must be at least 1"),
        (lambda: self_bleu(["a", "b"], sample=3), ValueError, "sample must be 2 to 2"),
    ],
)
def test_bad_input(call, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        call()
