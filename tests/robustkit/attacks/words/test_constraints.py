"""Every constraint decides as TextAttack's does with the same resources."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustkit.attacks.words import (
    Constraint,
    GrammarErrors,
    IndexConstraint,
    InputColumnModification,
    LevenshteinDistance,
    MaxModificationRate,
    MinWordLength,
    Neighbours,
    NeighbourSwap,
    PartOfSpeech,
    RepeatModification,
    SentenceEncoder,
    SentenceSimilarity,
    StopwordModification,
    Tagger,
    WordEmbeddingDistance,
    WordText,
    WordVectors,
    modifiable_indices,
    run,
)
from robustkit.attacks.words.constraints import levenshtein
from tests.robustkit.attacks.words.peers import TA, pair
from tests.robustkit.attacks.words.samples import PIECES, plain, texts

QUICK = settings(max_examples=60, deadline=None)
constraints = TA.constraints
SWAP = NeighbourSwap(Neighbours({}))
THEIR_SWAP = object.__new__(TA.transformations.WordSwapEmbedding)
ONE_WORD = [piece for piece in PIECES if len(WordText(piece).words) == 1]


@st.composite
def swapped(draw: st.DrawFn, most: int = 4) -> tuple[Any, ...]:
    """A text with some words replaced, and candidates made from it: ours and TextAttack's."""
    text = draw(st.one_of(plain, texts))
    ours, theirs = first = pair(text)
    count = len(ours.words)
    for index in draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=most if count else 0)):
        word = draw(st.sampled_from(ONE_WORD))
        ours, theirs = ours.replaced(index, word), theirs.replace_word_at_index(index, word)
    mine, others = [], []
    for _ in range(draw(st.integers(0, 6)) if count else 0):
        index, word = draw(st.integers(0, count - 1)), draw(st.sampled_from(ONE_WORD))
        if word == ours.words[index]:
            continue
        mine.append(ours.replaced(index, word))
        others.append(theirs.replace_word_at_index(index, word))
        others[-1].attack_attrs["last_transformation"] = THEIR_SWAP
    return first, (ours, theirs), (mine, others)


def same_indices(ours: IndexConstraint, theirs: Any, texts: tuple[WordText, Any]) -> None:
    assert ours.allowed(texts[0], SWAP) == theirs(texts[1], THEIR_SWAP)


def same_choice(ours: Constraint, theirs: Any, case: Any) -> list[WordText]:
    """Assert that both keep the same candidates in the same order; returns them."""
    original, current, (mine, others) = case
    assert ours.against_original == theirs.compare_against_original
    reference, their_reference = original if ours.against_original else current
    kept = run(ours.keep(mine, reference))
    assert [text.text for text in kept] == [text.text for text in theirs.call_many(others, their_reference)]
    return kept


@QUICK
@given(swapped(), st.integers(1, 5), st.floats(0, 1), st.integers(0, 4))
def test_index_constraints_are_those_of_textattack(case: Any, length: int, rate: float, least: int) -> None:
    before = constraints.pre_transformation
    for current in case[:2]:
        same_indices(RepeatModification(), before.RepeatModification(), current)
        same_indices(
            StopwordModification(["the", "a", "i"]), before.StopwordModification(["the", "a", "i"]), current
        )
        same_indices(MinWordLength(length), before.MinWordLength(length), current)
        same_indices(
            MaxModificationRate(rate, least), before.MaxModificationRate(rate, min_threshold=least), current
        )


@QUICK
@given(plain, plain, st.sampled_from([("premise", "hypothesis"), ("text", "other")]))
def test_input_columns_are_those_of_textattack(first: str, second: str, names: tuple[str, str]) -> None:
    current = pair(dict(zip(names, (first, second), strict=True)))
    theirs = constraints.pre_transformation.InputColumnModification(["premise", "hypothesis"], {"premise"})
    same_indices(InputColumnModification(["premise", "hypothesis"], {"premise"}), theirs, current)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)), st.none() | st.sets(st.integers(0, 199)))
def test_words_are_tried_in_the_order_of_textattack(
    stop: set[int], modified: set[int], chosen: set[int] | None
) -> None:
    # Not ascending in general: the order of a Python set depends on how it came about.
    ours, theirs = pair(" ".join(f"w{i}" for i in range(200)))
    ours, theirs = (
        ours.replaced(dict.fromkeys(modified, "x")),
        theirs.replace_words_at_indices(list(modified), ["x"] * len(modified)),
    )
    stop_words = [f"w{i}" for i in stop]
    before = constraints.pre_transformation
    expected = TA.transformations.Transformation.__call__(
        THEIR_SWAP,
        theirs,
        [before.RepeatModification(), before.StopwordModification(stop_words)],
        indices_to_modify=chosen,
        return_indices=True,
    )
    mine = [RepeatModification(), StopwordModification(stop_words)]
    assert modifiable_indices(ours, SWAP, mine, chosen) == list(expected)


def test_the_order_of_words_is_not_always_ascending() -> None:
    text = WordText(" ".join(f"w{i}" for i in range(100)))
    order = modifiable_indices(text, SWAP, [StopwordModification(set(text.words) - {"w64", "w33", "w2"})])
    assert sorted(order) == [2, 33, 64] != order


def vectors(dtype: Any = np.float32) -> WordVectors:
    words = sorted({word.lower() for word in ONE_WORD if word.isalpha()} - {"plot"})
    return WordVectors(words, np.random.default_rng(0).standard_normal((len(words), 4)).astype(dtype))


def their_embedding(ours: WordVectors) -> Any:
    rank = {word: index for index, word in enumerate(ours.words)}
    return TA.shared.WordEmbedding(ours.matrix, rank, dict(enumerate(ours.words)), None)


@QUICK
@given(swapped(), st.booleans(), st.booleans(), st.sampled_from([-0.5, 0.1, 0.5]), st.booleans())
def test_embedding_distance_is_that_of_textattack(
    case: Any, cosine: bool, unknown: bool, limit: float, against_original: bool
) -> None:
    ours, distance = vectors(), 4 * (limit + 1)
    theirs = constraints.semantics.WordEmbeddingDistance(
        embedding=their_embedding(ours),
        include_unknown_words=unknown,
        compare_against_original=against_original,
        **({"min_cos_sim": limit} if cosine else {"max_mse_dist": distance}),
    )
    mine = WordEmbeddingDistance(
        ours,
        min_cosine=limit if cosine else None,
        max_squared_distance=None if cosine else distance,
        include_unknown_words=unknown,
        against_original=against_original,
    )
    same_choice(mine, theirs, case)


def test_embedding_distance_of_words_that_are_longer_than_the_text() -> None:
    ours, theirs = pair("good")
    mine, other = ours.replaced(0, "bad film"), theirs.replace_word_at_index(0, "bad film")
    other.attack_attrs["last_transformation"] = THEIR_SWAP
    expected = constraints.semantics.WordEmbeddingDistance(
        embedding=their_embedding(vectors()), min_cos_sim=-1.0
    )
    assert not expected.call_many([other], theirs)
    assert run(WordEmbeddingDistance(vectors(), min_cosine=-1.0).keep([mine], ours)) == []


def test_embedding_distance_needs_vectors_and_one_limit() -> None:
    with pytest.raises(TypeError, match="lists of neighbours do not tell how near"):
        WordEmbeddingDistance(Neighbours({"good": ["fine"]}), min_cosine=0.5)  # type: ignore[arg-type]
    for limits in ({}, {"min_cosine": 0.5, "max_squared_distance": 1.0}):
        with pytest.raises(ValueError, match="expected one of min_cosine and max_squared_distance"):
            WordEmbeddingDistance(vectors(), **limits)


TAGS = ("NN", "NNS", "VB", "VBZ", "JJ", "RB", "UH", "XX", ".")


class HashTagger:
    """Tags by the word and the one before it."""

    def tag(self, words: Sequence[str], count: int | None = None) -> list[str]:
        pairs = zip(words, ["", *words], strict=False)
        marks = [hashlib.sha256(f"{before} {word}".encode()).digest()[0] for word, before in pairs]
        return [TAGS[mark % len(TAGS)] for mark in marks][:count]


@QUICK
@given(swapped(), st.booleans(), st.booleans())
def test_part_of_speech_is_that_of_textattack(case: Any, verb_noun: bool, against_original: bool) -> None:
    from robustkit.attacks.words import universal_tag

    def pos_tag(words: list[str], tagset: str, lang: str) -> list[tuple[str, str]]:
        assert (tagset, lang) == ("universal", "eng")
        return list(zip(words, map(universal_tag, HashTagger().tag(words)), strict=True))

    theirs = constraints.grammaticality.PartOfSpeech(
        allow_verb_noun_swap=verb_noun, compare_against_original=against_original
    )
    tagger: Any = HashTagger()
    mine = PartOfSpeech(tagger, allow_verb_noun_swap=verb_noun, against_original=against_original)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nltk.pos_tag", pos_tag)
        same_choice(mine, theirs, case)


def test_part_of_speech_asks_for_the_words_around() -> None:
    asked = []

    class Listener(HashTagger):
        def tag(self, words: Sequence[str], count: int | None = None) -> list[str]:
            asked.append((words, count))
            return ["NN"] * len(words)

    text = WordText("a b c d e f g h i j")
    tagger: Any = Listener()
    assert run(PartOfSpeech(tagger).keep([text.replaced(5, "new")], text))
    assert asked == [(tuple("bcdefghi"), 5), (("b", "c", "d", "e", "new", "g", "h", "i"), 5)]


def toy_encode(texts: Sequence[str]) -> torch.Tensor:
    """Sums of vectors that depend on the word and its neighbour, so that order matters; float32."""
    rows = []
    for text in texts:
        words = text.split() or [""]
        seeds = [
            int.from_bytes(hashlib.sha256(f"{a} {b}".encode()).digest()[:4], "big")
            for a, b in zip(words, [*words[1:], ""], strict=True)
        ]
        rows.append(sum(np.random.default_rng(seed).standard_normal(6) for seed in seeds))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


class TheirEncoder(TA.constraints.semantics.sentence_encoders.SentenceEncoder):  # type: ignore[misc]
    encode = staticmethod(toy_encode)


@settings(max_examples=80, deadline=None)
@given(
    swapped(),
    st.sampled_from(["cosine", "angular"]),
    st.sampled_from([None, 1, 4, 15]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.5, 0.8, 0.936338023]),
)
def test_sentence_similarity_is_that_of_textattack(
    case: Any, metric: Any, window: int | None, skip: bool, against_original: bool, threshold: float
) -> None:
    theirs = TheirEncoder(
        threshold=threshold,
        metric=metric,
        compare_against_original=against_original,
        window_size=window,
        skip_text_shorter_than_window=skip,
    )
    mine = SentenceSimilarity(
        SentenceEncoder(toy_encode, batch_size=3),
        threshold,
        metric=metric,
        window_size=window,
        skip_text_shorter_than_window=skip,
        against_original=against_original,
    )
    same_choice(mine, theirs, case)
    ours, others = case[2]
    for text, other in zip(ours, others, strict=True):
        assert text.similarity == pytest.approx(other.attack_attrs["similarity_score"], abs=1e-6)


def test_sentence_similarity_by_hand() -> None:
    table = {"a good film": [1.0, 0.0], "a fine film": [3.0, 4.0], "a bad film": [0.0, 2.0]}
    encoder = SentenceEncoder(lambda texts: np.array([table[text] for text in texts]))
    text = WordText("a good film!")
    candidates = [text.replaced(1, "fine"), text.replaced(1, "bad")]
    kept = run(SentenceSimilarity(encoder, 0.6).keep(candidates, text))
    assert kept == [candidates[0]]
    assert [candidate.similarity for candidate in candidates] == pytest.approx([0.6, 0.0])
    run(SentenceSimilarity(encoder, 0.6, metric="angular").keep(candidates, text))
    assert [c.similarity for c in candidates] == pytest.approx([1 - math.acos(0.6) / math.pi, 0.5])


def test_sentence_similarity_of_short_texts_and_of_no_new_word() -> None:
    def never(texts: list[str]) -> Any:
        raise AssertionError(texts)

    text = WordText("a good film")
    short = SentenceSimilarity(
        SentenceEncoder(never), 0.9, window_size=15, skip_text_shorter_than_window=True
    )
    candidate = text.replaced(1, "bad")
    assert run(short.keep([candidate, text.deleted(1)], text)) == [candidate]
    assert candidate.similarity == 1.0
    assert run(short.keep([], text)) == []
    with pytest.raises(ValueError, match="expected 'cosine' or 'angular'"):
        SentenceSimilarity(SentenceEncoder(never), 0.9, metric="euclidean")  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.text("abcd é", max_size=40), st.text("abcd é", max_size=40))
def test_levenshtein_is_that_of_editdistance(first: str, second: str) -> None:
    import editdistance

    assert levenshtein(first, second) == editdistance.eval(first, second)


def test_levenshtein_by_hand() -> None:
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == levenshtein("abc", "") == 3
    assert levenshtein("ab" * 500, "ba" * 500) == 2


@QUICK
@given(swapped(), st.integers(0, 12), st.booleans())
def test_levenshtein_distance_is_that_of_textattack(case: Any, most: int, against_original: bool) -> None:
    theirs = constraints.overlap.LevenshteinEditDistance(most, compare_against_original=against_original)
    same_choice(LevenshteinDistance(most, against_original=against_original), theirs, case)


@QUICK
@given(swapped(), st.integers(-1, 2), st.booleans())
def test_grammar_errors_are_those_of_textattack(case: Any, most: int, against_original: bool) -> None:
    def check(text: str) -> list[str]:
        return [word for word in text.split() if len(word) > 4]

    theirs = object.__new__(constraints.grammaticality.LanguageTool)  # its __init__ needs Java and a download
    theirs.lang_tool = type("Tool", (), {"check": staticmethod(check)})
    theirs.grammar_error_threshold, theirs.grammar_error_cache = most, {}
    theirs.compare_against_original = against_original
    mine = GrammarErrors(lambda text: len(check(text)), max_added=most, against_original=against_original)
    same_choice(mine, theirs, case)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="stopwords is one string"):
        StopwordModification("stopwords.txt")
    with pytest.raises(ValueError, match="max_rate is 2"):
        MaxModificationRate(2)


def test_stop_words_are_compared_with_their_case() -> None:
    text = WordText("The film and the plot")
    assert StopwordModification(["the", "and"]).allowed(text, SWAP) == {0, 1, 4}


def test_rates_of_modified_words() -> None:
    text = WordText("a b c d e f g h i j").replaced(0, "x")
    assert MaxModificationRate(0.1).allowed(text, SWAP) == set()
    assert MaxModificationRate(0.11).allowed(text, SWAP) == set(range(10))  # 1.1 words are 2
    assert MaxModificationRate(0.1, min_threshold=4).allowed(text, SWAP) == set(range(10))


def test_a_trained_tagger_decides(tmp_path: Any) -> None:
    tagger = Tagger({}, {"good": "JJ", "fine": "JJ", "run": "VB", "film": "NN"}, ["JJ", "NN", "VB"])
    text = WordText("a good film")
    candidates = [text.replaced(1, "fine"), text.replaced(1, "run"), text.replaced(2, "run")]
    assert run(PartOfSpeech(tagger).keep(candidates, text)) == [candidates[0], candidates[2]]
    assert run(PartOfSpeech(tagger, allow_verb_noun_swap=False).keep(candidates, text)) == candidates[:1]
