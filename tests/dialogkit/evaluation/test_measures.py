"""Figures are those of their definitions, on the right replies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dialogkit.diversity import (
    SemanticClusters,
    SentenceTransformerEncoder,
    distinct_n,
    entropy_n,
    self_bleu,
    sem_ent,
)
from dialogkit.evaluation import Answer, EvaluationCase
from dialogkit.evaluation.measures import (
    HUMAN,
    Measure,
    Pool,
    behaviour_measures,
    fit_measures,
    meaning_measures,
    relevance_vectors,
    style_measures,
    word_measures,
)

from .stubs import WordEncoder, some_cases

CASES = [
    EvaluationCase(("what do you like", "tell me of tea"), ("tea is good", "i like tea", "no tea")),
    EvaluationCase(("and rain",), ("rain is wet", "i like rain")),
    EvaluationCase(("bread",), ("bread is soft",)),
    EvaluationCase(("nothing known",)),
]
SAID = ["i like tea", "", "tell me of bread and rain", None]


def pool(cases: Sequence[EvaluationCase] = CASES, said: Sequence[str | None] = SAID) -> Pool:
    human = [Answer(case.references[0] if case.references else None) for case in cases]
    return Pool(cases, {HUMAN: human, "bot": [Answer(text) for text in said]})


def by_key(measures: Sequence[Measure]) -> dict[str, Measure]:
    return {measure.key: measure for measure in measures}


def test_rows_hold_replies_and_pairs_hold_both() -> None:
    some = pool()
    assert some.rows("human").tolist() == [0, 1, 2] and some.rows("bot").tolist() == [4, 5, 6]
    missing = pool(said=[None, "a", "b", "c"])
    assert [rows.tolist() for rows in missing.paired("human", "bot")] == [[1, 2], [5, 6]]


@pytest.mark.parametrize("denominator", ["ngrams", "tokens"])
def test_words_are_measured_by_the_functions_of_diversity(denominator) -> None:  # type: ignore[no-untyped-def]
    cases = some_cases(10)
    said = [f"reply {i % 4} of many {i % 3}" for i in range(10)]
    some = pool(cases, said)
    measures = by_key(word_measures(some, denominator))
    rows = some.rows("bot")
    for n in (1, 2, 3):
        assert measures[f"dist-{n}"].figure.value(rows) == distinct_n(said, n, denominator=denominator)
        assert measures[f"ent-{n}"].figure.value(rows) == pytest.approx(entropy_n(said, n))
    assert measures["self-BLEU"].figure.value(rows) == pytest.approx(self_bleu(said))
    assert measures["self-BLEU"].figure.value(rows[3:7]) == pytest.approx(self_bleu(said[3:7]))
    assert math.isnan(measures["self-BLEU"].figure.value(rows[:1]))
    assert measures["LF-100"].figure.value(rows) == 1.0
    assert measures["LF-100"].figure.interval(rows, 10, 0) is None
    assert measures["dist-1"].figure.interval(rows, 10, 0) is not None
    assert measures["length"].figure.value(rows) == 5.0
    assert ("words" in measures["dist-2"].definition) == (denominator == "tokens")


def test_meaning_is_measured_over_the_clusters() -> None:
    some = pool(some_cases(12), ["thank you so much tea"] * 6 + ["good bye and see you rain"] * 6)
    human = [text for case in some.cases for text in case.references]
    clusters = SemanticClusters.fit(human, SentenceTransformerEncoder(WordEncoder()), k=4)
    measures, labels = meaning_measures(some, clusters, None)
    again, same = meaning_measures(some, clusters, WordEncoder().encode_response(some.texts))
    assert labels.tolist() == same.tolist() == clusters.assign(some.texts).tolist()
    rows, figures = some.rows("bot"), by_key(measures)
    assert figures["Sem-Ent"].figure.value(rows) == pytest.approx(sem_ent(labels[rows], 4))
    assert figures["kinds used"].figure.value(rows) == len(set(labels[rows].tolist())) / 4
    low, high = figures["Sem-Ent"].figure.interval(rows, 100, 0) or (1.0, 0.0)
    assert 0.0 <= low <= figures["Sem-Ent"].figure.value(rows) <= high <= math.log(4)
    assert [measure.key for measure in again] == ["Sem-Ent", "kinds used"]


def cosine(one: str, other: str) -> float:
    a, b = WordEncoder().vector(one).astype(float), WordEncoder().vector(other).astype(float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_relevance_and_closeness_to_human_replies_by_hand() -> None:
    some = pool()
    vectors = relevance_vectors(some, WordEncoder(), turns=1)
    figures = by_key(fit_measures(some, vectors, "words"))
    relevance, similarity, f1 = (figures[key].figure for key in ("relevance", "similarity", "F1-1"))
    assert relevance.value(np.array([4])) == pytest.approx(cosine("tell me of tea", "i like tea"))
    assert relevance.value(np.array([5])) == 0.0  # empty
    # The first human reply is a system of its own, the others are what replies are scored against.
    assert similarity.value(np.array([4])) == pytest.approx(1.0)
    assert f1.value(np.array([4])) == 1.0
    best = max(cosine("tea is good", "i like tea"), cosine("tea is good", "no tea"))
    assert similarity.value(np.array([0])) == pytest.approx(best)
    assert f1.value(np.array([0])) == pytest.approx(max(2 * 1 / 6, 2 * 1 / 5))
    # A single one serves the chatbot alone; where there is none, nothing is defined.
    assert f1.value(np.array([6])) == pytest.approx(2 * 1 / 9)
    assert math.isnan(f1.value(np.array([2]))) and math.isnan(similarity.value(np.array([2])))
    assert math.isnan(f1.value(np.array([7])))
    assert "perplexity" not in figures
    wider = by_key(fit_measures(some, relevance_vectors(some, WordEncoder(), turns=2), "words"))
    assert wider["relevance"].figure.value(np.array([4])) == pytest.approx(
        cosine("what do you like\ntell me of tea", "i like tea")
    )


def test_likelihood_of_the_human_reply_by_token_and_by_byte() -> None:
    cases = [
        EvaluationCase(("a",), ("abcd",)),
        EvaluationCase(("b",), ("é",)),
        EvaluationCase(("c",), ("x",)),
    ]
    answers = [
        Answer("r", human_logprob=-6.0, human_tokens=2),
        Answer("r", human_logprob=-3.0, human_tokens=1),
    ]
    some = Pool(cases, {"bot": [*answers, Answer("r")]})
    figures = by_key(fit_measures(some, None, ""))
    assert figures["perplexity"].figure.value(np.arange(3)) == pytest.approx(math.exp(9 / 3))
    assert figures["bits per byte"].figure.value(np.arange(3)) == pytest.approx(9 / math.log(2) / 6)
    assert not figures["perplexity"].tested and figures["bits per byte"].tested
    assert "relevance" not in figures


def test_style_is_any_callable() -> None:
    figures = by_key(style_measures(pool(), {"shouts": lambda texts: [text.isupper() for text in texts]}))
    assert figures["shouts"].figure.value(np.array([4, 6])) == 0.0
    with pytest.raises(ValueError, match="'bad' must give one finite number for each of 8"):
        style_measures(pool(), {"bad": lambda texts: [1.0]})
    with pytest.raises(ValueError, match="finite"):
        style_measures(pool(), {"bad": lambda texts: [math.nan] * len(texts)})


def test_copying_unsafe_words_and_silence() -> None:
    cases = [EvaluationCase(("we went to the old house",)), EvaluationCase(("b",))]
    answers = [Answer("So we went to the sea.", sources=("so we went to the sea.",)), Answer("")]
    some = Pool(cases, {"bot": answers})
    figures = by_key(behaviour_measures(some, ["the SEA", "went to sea"], run=4))
    rows = some.rows("bot")
    assert figures["copied from context"].figure.value(rows[:1]) == pytest.approx(4 / 7)
    assert figures["copied from sources"].figure.value(rows) == 1.0  # the other reply names no source
    assert figures["unsafe"].figure.value(rows) == 0.5
    assert figures["empty"].figure.value(rows) == 0.5
    assert {"copied from sources", "unsafe"}.isdisjoint(by_key(behaviour_measures(pool(), (), run=4)))
    whole_words = by_key(behaviour_measures(some, ["se"], run=4))
    assert whole_words["unsafe"].figure.value(rows) == 0.0
    with pytest.raises(ValueError, match="unsafe must hold words"):
        behaviour_measures(some, ["a", " "], run=4)


def test_vectors_that_are_not_finite_are_refused() -> None:
    class Broken(WordEncoder):
        def encode_response(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            vectors = super().encode_response(texts)
            vectors[2] = math.nan
            return vectors

    with pytest.raises(ValueError, match="not finite for 1 texts, first for the reply 'bread is soft'"):
        relevance_vectors(pool(), Broken(), turns=1)
