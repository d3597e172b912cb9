from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from robustkit.attacks.words.asking import Steps, run
from robustkit.attacks.words.constraints import RepeatModification, StopwordModification
from robustkit.attacks.words.goals import Gradients, Probabilities, UntargetedClassification
from robustkit.attacks.words.resources import Neighbours
from robustkit.attacks.words.search import BeamSearch, GreedyWordSwap, Result, Search, Trial, _token_places
from robustkit.attacks.words.text import WordText
from robustkit.attacks.words.transformations import NeighbourSwap


class Scorer:
    """A classifier of two classes whose p(wrong class) is a sum over the words of a text."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self.seen: list[str] = []

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        wrong = [sum(self.weights.get(word, 0.0) for word in re.findall(r"\w+", text)) for text in texts]
        wrong = [min(max(value, 0.001), 0.999) for value in wrong]
        return np.array([[np.log(1 - value), np.log(value)] for value in wrong], dtype=np.float32)

    def token_gradients(self, texts: Sequence[str], labels: Sequence[int]) -> list[Any]:
        found = []
        for text in texts:
            tokens = re.findall(r"\w+", text)
            rows = [[self.weights.get(token, 0.0), -1.0] for token in tokens]
            found.append((tokens, [], np.array(rows, dtype=np.float32)))
        return found


class Sentence:
    """Keeps every candidate and says how similar it is."""

    against_original = True

    def __init__(self, similarity: Mapping[str, float]) -> None:
        self.similarity = similarity

    def keep(self, candidates: list[WordText], reference: WordText) -> Steps[list[WordText]]:
        yield from ()
        for candidate in candidates:
            candidate.similarity = self.similarity[candidate.text]
        return candidates


def trial(
    scorer: Scorer,
    text: str,
    swaps: Mapping[str, Sequence[str]],
    constraints: Sequence[Any] = (),
    query_budget: int | None = None,
) -> Trial:
    made = Trial(
        WordText(text),
        0,
        goal=UntargetedClassification(),
        transformation=NeighbourSwap(Neighbours(swaps)),
        constraints=constraints,
        index_constraints=[RepeatModification(), StopwordModification(["the"])],
        probabilities=Probabilities(scorer),  # type: ignore[arg-type]
        gradients=Gradients(scorer),  # type: ignore[arg-type]
        max_words=2,
        query_budget=query_budget,
    )
    assert run(made.begin())
    return made


def texts_of(results: Sequence[Result]) -> list[str]:
    return [result.text.text for result in results]


WEIGHTS = {"a": -0.1, "b": -0.3, "c": -0.05, "base": 0.6, "x": 0.1, "y": 0.2, "UNK": 0.02}


@pytest.mark.parametrize("ranking", ["delete", "unk", "gradient"])
def test_most_important_word_is_changed_first(ranking: Any) -> None:
    # p(wrong) of the text is 0.15; without b it is 0.45, without a 0.25, without c 0.2.
    scorer = Scorer(WEIGHTS)
    steps = trial(scorer, "the base a b c", {word: ["x"] for word in "abc"})
    ranked = {"delete": 4, "unk": 4, "gradient": 0}[ranking]
    results = run(GreedyWordSwap(ranking).find(steps))
    assert scorer.seen[1 + ranked :] == ["the base a x c"]
    assert texts_of(results) == ["the base a x c"]
    assert results[0].reached
    assert steps.queries == 1 + ranked + 1


def test_weighted_saliency_is_softmax_times_best_candidate() -> None:
    scorer = Scorer({"s": 0.3, "a": -0.1, "b": -0.05, "x": 0.0, "y": 0.02, "z": 0.08})
    swaps = {"a": ["x"], "b": ["x", "y", "z"]}
    steps = trial(scorer, "s a b", swaps)
    results = run(GreedyWordSwap("weighted-saliency").find(steps))
    saliency = np.array([0.001, 0.25, 0.2])  # without s, a, b
    weights = np.exp(saliency) / np.exp(saliency).sum()
    best = np.array([0.0, 0.25, 0.28])  # nothing for s; b becomes z
    first = "sab"[int((weights * best).argmax())]
    assert first == "b"
    # 1 original, 3 without a word, 4 candidates to rank, then those of b and of a.
    assert steps.queries == 1 + 3 + 4 + 3 + 1
    assert scorer.seen[8:11] == ["s a x", "s a y", "s a z"]
    assert texts_of(results) == ["s x z"]
    assert not results[0].reached


def test_a_candidate_that_does_not_raise_the_score_is_not_kept() -> None:
    scorer = Scorer({"s": 0.2, "a": -0.1, "b": -0.1, "low": -0.5, "same": -0.1})
    results = run(GreedyWordSwap("delete").find(trial(scorer, "s a b", {"a": ["low"], "b": ["same"]})))
    assert texts_of(results) == ["s a b"]


def test_most_similar_of_the_successful_candidates_wins() -> None:
    scorer = Scorer({"s": 0.4, "a": -0.1, "u": 0.3, "v": 0.2, "w": 0.15, "z": 0.01})
    similarity = {"s u": 0.5, "s v": 0.9, "s w": 0.7, "s z": 0.99}
    swaps = {"a": ["u", "v", "w", "z"]}
    results = run(GreedyWordSwap("delete").find(trial(scorer, "s a", swaps, [Sentence(similarity)])))
    assert texts_of(results) == ["s v", "s w", "s u"], "z is the most similar, but does not succeed"
    results = run(GreedyWordSwap("delete").find(trial(scorer, "s a", swaps)))
    assert texts_of(results) == ["s u", "s v", "s w"], "by score if nothing measures similarity"


@pytest.mark.parametrize("budget", range(1, 12))
@pytest.mark.parametrize("ranking", ["delete", "weighted-saliency", "gradient", "random"])
def test_no_search_exceeds_its_budget(budget: int, ranking: Any) -> None:
    scorer = Scorer({word: -0.01 for word in "abc"})
    steps = trial(scorer, "a b c", {word: ["x", "y"] for word in "abc"}, query_budget=budget)
    run(GreedyWordSwap(ranking).find(steps))
    assert steps.queries == len(scorer.seen) <= budget
    beam = trial(Scorer({}), "a b c", {word: ["x", "y"] for word in "abc"}, query_budget=budget)
    run(BeamSearch(2).find(beam))
    assert beam.queries <= budget


def test_only_the_first_words_are_ranked_and_changed() -> None:
    scorer = Scorer({})
    for max_words in (2, "model"):
        scorer.seen.clear()
        steps = trial(scorer, "the a b c", {word: ["x"] for word in "abc"})
        run(GreedyWordSwap("delete", max_words=max_words).find(steps))  # type: ignore[arg-type]
        assert sorted(scorer.seen[1:]) == ["the a c", "the a x c", "the b c", "the x b c"]


def test_gradient_reads_only_the_beginning_of_a_long_text() -> None:
    scorer = Scorer({"s": 0.4, "a": -0.1, "b": -0.2})
    read: list[str] = []
    plain = scorer.token_gradients
    scorer.token_gradients = lambda texts, labels: read.extend(texts) or plain(texts, labels)  # type: ignore
    run(GreedyWordSwap("gradient", max_words=2).find(trial(scorer, '"s, a!" b c', {"a": ["x"]})))
    assert read == ['"s, a']


def test_beam_search_finds_what_greedy_search_misses() -> None:
    class Odd(Scorer):
        def logits(self, texts: Sequence[str]) -> np.ndarray:
            table = {"x b": 0.4, "a y": 0.3, "z y": 0.9, "x y": 0.35}
            self.seen += texts
            wrong = [table.get(text, 0.2) for text in texts]
            return np.log(np.array([[1 - value, value] for value in wrong], dtype=np.float32))

    swaps = {"a": ["x", "z"], "b": ["y"]}
    assert texts_of(run(BeamSearch(1).find(trial(Odd({}), "a b", swaps)))) == ["x y"]
    assert texts_of(run(BeamSearch(3).find(trial(Odd({}), "a b", swaps)))) == ["z y", "z y"], "two ways"


@pytest.mark.parametrize(
    ("words", "tokens", "places"),
    [
        (["embedding", "it"], ["[CLS]", "em", "##bed", "##ding", "it", "[SEP]"], [[1, 2, 3], [4]]),
        (["Great", "film"], ["<s>", "Ġgreat", ",", "Ġfilm", "</s>"], [[1], [3]]),
        (["well-made"], ["well", "-", "made"], [[0, 1, 2]]),
        (["naïve", "film"], ["[CLS]", "[UNK]", "film", "[SEP]"], [[], [2]]),
        (["cut", "off"], ["[CLS]", "cut", "[SEP]"], [[1], []]),
        ([], ["[CLS]", "[SEP]"], []),
    ],
)
def test_tokens_of_words(words: list[str], tokens: list[str], places: list[list[int]]) -> None:
    assert _token_places(words, tokens) == places


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: GreedyWordSwap("loudness"), "ranking"),  # type: ignore[arg-type]
        (lambda: GreedyWordSwap(max_words=0), "max_words"),
        (lambda: BeamSearch(0), "width"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Search], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_candidates_are_sorted_by_text() -> None:
    steps = trial(Scorer({}), "s a", {"a": ["z", "x", "y"], "s": ["t"]})
    assert [text.text for text in run(steps.candidates(steps.original))] == ["s x", "s y", "s z", "t a"]


@pytest.mark.parametrize("against_original", [True, False])
def test_candidates_are_compared_with_what_the_constraint_asks_for(against_original: bool) -> None:
    references: list[str] = []

    class Noting(Sentence):
        def keep(self, candidates: list[WordText], reference: WordText) -> Steps[list[WordText]]:
            yield from ()
            references.append(reference.text)
            return candidates

    constraint = Noting({})
    constraint.against_original = against_original
    steps = trial(Scorer({}), "s a", {"s": ["t"], "a": ["x"]}, [constraint])
    run(steps.candidates(steps.original.replaced(1, "x")))
    assert references == ["s a" if against_original else "s x"]


def test_words_without_candidates_weigh_nothing() -> None:
    # Without "a" the score is highest, but it has no candidates and so goes to the end of the order.
    scorer = Scorer({"a": -0.3, "b": -0.1, "s": 0.45, "x": 0.0})
    steps = trial(scorer, "s a b", {"b": ["x"]})
    run(GreedyWordSwap("weighted-saliency").find(steps))
    order = run(GreedyWordSwap("weighted-saliency")._order(trial(scorer, "s a b", {"b": ["x"]})))
    assert order[0] == 2


def test_first_words_are_first_by_position() -> None:
    # A set of the positions 8 and 1 lists 8 first.
    text = " ".join("the" if i not in (1, 8) else "a" for i in range(9))
    steps = trial(Scorer({}), text, {"a": ["x"]})
    assert steps.indices(steps.original) == [8, 1]
    assert run(GreedyWordSwap("delete", max_words=1)._order(steps)) == [1]
