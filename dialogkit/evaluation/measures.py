"""The figures of the table: what each is, and from which replies it is computed.

The rows of a `Pool` are the replies of all chatbots to all contexts; a figure is a function of some rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from dialogkit.dialogues import single_line
from dialogkit.diversity import (
    SemanticClusters,
    TokenTable,
    distinct_n,
    entropy_n,
    low_frequency,
    self_bleu,
    sem_ent,
)
from dialogkit.retrieval import Retriever

from .cases import EvaluationCase
from .overlap import copied_share, ngram_f1, split_words
from .replies import Answer
from .resampling import CorpusFigure, RatioFigure

__all__ = [
    "HUMAN",
    "Measure",
    "Pool",
    "Style",
    "behaviour_measures",
    "fit_measures",
    "meaning_measures",
    "relevance_vectors",
    "style_measures",
    "word_measures",
]

HUMAN = "human"
"""What the human replies are called among the chatbots."""

Style = Callable[[Sequence[str]], npt.ArrayLike]
"""From n replies to n numbers, such as the probability of a character."""

_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]
Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        key: Its short name.
        definition: What it is, exactly enough to compute it again.
        figure: How it is computed from rows of the pool.
        better: Which direction is better; empty where neither is by itself.
        tested: Whether chatbots may be compared by it.
    """

    key: str
    definition: str
    figure: RatioFigure | CorpusFigure
    better: Better = ""
    tested: bool = True


class Pool:
    """Replies of several systems to the same contexts, in one row each: system by system.

    Args:
        cases: n contexts.
        answers: n answers of each system, by name.
    """

    def __init__(self, cases: Sequence[EvaluationCase], answers: Mapping[str, Sequence[Answer]]) -> None:
        self.cases = tuple(cases)
        self.names = tuple(answers)
        self.answers = [answer for each in answers.values() for answer in each]
        self.texts = [answer.text or "" for answer in self.answers]
        self.present = np.array([answer.text is not None for answer in self.answers])

    def case(self, row: int) -> EvaluationCase:
        """The context that a row answers."""
        return self.cases[row % len(self.cases)]

    def rows(self, name: str) -> _Ints:
        """The rows of a system that hold a reply."""
        rows = self._all(name)
        kept: _Ints = rows[self.present[rows]]
        return kept

    def paired(self, one: str, other: str) -> tuple[_Ints, _Ints]:
        """The rows of two systems for the contexts that both replied to."""
        first, second = self._all(one), self._all(other)
        both = self.present[first] & self.present[second]
        return first[both], second[both]

    def mean(self, values: npt.ArrayLike) -> RatioFigure:
        """The mean of one value for each row; NaN where there is none."""
        numbers = np.asarray(values, dtype=np.float64)
        return RatioFigure(numbers, np.ones(len(numbers)))

    def _all(self, name: str) -> _Ints:
        count = len(self.cases)
        return np.arange(count, dtype=np.int64) + self.names.index(name) * count


def word_measures(pool: Pool, denominator: Literal["ngrams", "tokens"]) -> list[Measure]:
    """Lexical diversity; see :mod:`dialogkit.diversity.lexical`."""
    table = TokenTable(pool.texts)

    def corpus(function: Callable[[TokenTable], float], least: int = 1, bound: float = 1.0) -> CorpusFigure:
        return CorpusFigure(lambda rows: function(table.take(rows)), least, bound)

    measures = [
        Measure(
            f"dist-{n}",
            f"Distinct {n}-grams over all replies, divided by their "
            f"{'words' if denominator == 'tokens' else f'{n}-grams'} (Li et al. 2016). Falls as replies get "
            "more or longer.",
            corpus(partial(distinct_n, n=n, denominator=denominator)),
            "higher",
        )
        for n in (1, 2, 3)
    ]
    measures += [
        Measure(
            f"ent-{n}",
            f"Entropy of the distribution of {n}-grams in bits (Zhang et al. 2018).",
            corpus(partial(entropy_n, n=n), bound=math.inf),
            "higher",
        )
        for n in (1, 2, 3)
    ]
    measures += [
        Measure(
            "LF-100",
            "Share of words that occur at most 100 times in the system's own replies; 1 for a small set.",
            CorpusFigure(lambda rows: low_frequency(table.take(rows)), bound=1.0, halved=False),
        ),
        Measure(
            "self-BLEU",
            "Mean BLEU-4 of each reply with all others of the system as references (Zhu et al. 2018).",
            corpus(self_bleu, 2),
            "lower",
        ),
        Measure("length", "Mean number of words of a reply.", pool.mean(table.lengths)),
    ]
    return measures


def meaning_measures(
    pool: Pool, clusters: SemanticClusters, vectors: npt.NDArray[np.float32] | None
) -> tuple[list[Measure], _Ints]:
    """Semantic diversity over clusters.

    Args:
        pool: The replies.
        clusters: The clusters.
        vectors: The replies' vectors ``[rows, d]`` by the clusters' encoder; None embeds them.

    Returns:
        The measures, and the cluster of each row.
    """
    labels = clusters.assign(pool.texts if vectors is None else vectors)
    measures = [
        Measure(
            "Sem-Ent",
            f"Entropy in nats of the replies over {clusters.k} semantic clusters, at most ln {clusters.k} = "
            f"{math.log(clusters.k):.3f} (arXiv 2210.05725). Lower for few replies. Blind to whether a reply "
            "fits its context.",
            CorpusFigure(lambda rows: sem_ent(clusters.histogram(labels[rows])), bound=math.log(clusters.k)),
            "higher",
        ),
        Measure(
            "kinds used",
            f"Share of the {clusters.k} clusters that at least one reply falls in.",
            CorpusFigure(lambda rows: len(np.unique(labels[rows])) / clusters.k, bound=1.0),
            "higher",
        ),
    ]
    return measures, labels


@dataclass(frozen=True)
class RelevanceVectors:
    """Unit vectors by the encoder of relevance.

    Attributes:
        replies: ``[rows, d]`` of the pool.
        contexts: ``[cases, d]``.
        references: One array ``[references, d]`` for each case.
        raw: The replies' vectors as the encoder gave them, ``[rows, d]``.
    """

    replies: _Floats
    contexts: _Floats
    references: list[_Floats]
    raw: npt.NDArray[np.float32]


def relevance_vectors(pool: Pool, retriever: Retriever, turns: int) -> RelevanceVectors:
    """Embeds replies, contexts (their last turns, one a line) and human replies.

    Raises:
        ValueError: The encoder gives a vector that is not finite.
    """
    contexts = ["\n".join(map(single_line, case.context[-turns:])) for case in pool.cases]
    raw = _finite("reply", pool.texts, retriever.encode_response(pool.texts))
    human = [text for case in pool.cases for text in case.references]
    vectors = _unit(_finite("human reply", human, retriever.encode_response(human)))
    ends = np.cumsum([len(case.references) for case in pool.cases])
    return RelevanceVectors(
        _unit(raw),
        _unit(_finite("context", contexts, retriever.encode_context(contexts))),
        np.split(vectors, ends[:-1]),
        raw,
    )


def fit_measures(pool: Pool, vectors: RelevanceVectors | None, encoder: str) -> list[Measure]:
    """How well replies fit: relevance, closeness to human replies, likelihood of the human reply."""
    rows = range(len(pool.texts))
    words = split_words(pool.texts)
    human = [split_words(case.references) for case in pool.cases]
    chosen = [_references(pool, row) for row in rows]
    unspoken = np.array([not text for text in pool.texts])
    measures = []
    if vectors is not None:
        fit = np.einsum("rd,rd->r", vectors.replies, np.tile(vectors.contexts, (len(pool.names), 1)))
        near = [
            float((vectors.references[row % len(pool.cases)][chosen[row]] @ vectors.replies[row]).max())
            if chosen[row]
            else math.nan
            for row in rows
        ]
        measures = [
            Measure(
                "relevance",
                f"Mean cosine of context and reply by {encoder}; 0 for an empty reply. Rewards repeating the "
                "context.",
                pool.mean(np.where(unspoken, 0.0, fit)),
                "higher",
            ),
            Measure(
                "similarity",
                f"Mean cosine of the reply and the nearest human reply by {encoder}; 0 for an empty reply.",
                pool.mean(np.where(unspoken & ~np.isnan(near), 0.0, near)),
                "higher",
            ),
        ]
    for n in (1, 2):
        scores = [
            ngram_f1(words[row], [human[row % len(pool.cases)][i] for i in chosen[row]], n)
            if chosen[row]
            else math.nan
            for row in rows
        ]
        measures.append(
            Measure(
                f"F1-{n}",
                f"Mean F1 of {n}-grams, without case, of the reply and the human reply it shares most with.",
                pool.mean(scores),
                "higher",
            )
        )
    return measures + _likelihood_measures(pool)


def _likelihood_measures(pool: Pool) -> list[Measure]:
    nll = np.array([-math.nan if a.human_logprob is None else -a.human_logprob for a in pool.answers])
    if np.isnan(nll).all():
        return []
    tokens = np.array([float(answer.human_tokens) for answer in pool.answers])
    size = [
        float(len(single_line(pool.case(row).references[0]).encode())) if pool.case(row).references else 0.0
        for row in range(len(pool.texts))
    ]
    return [
        Measure(
            "perplexity",
            "Of the first human reply under the chatbot's own prompt and language model, for each of its "
            "tokens. Not comparable between tokenisers.",
            RatioFigure(nll, tokens, np.exp),
            "lower",
            tested=False,
        ),
        Measure(
            "bits per byte",
            "The same likelihood for each byte of UTF-8; comparable between tokenisers.",
            RatioFigure(nll / math.log(2), np.array(size)),
            "lower",
        ),
    ]


def style_measures(pool: Pool, styles: Mapping[str, Style]) -> list[Measure]:
    """Means of what callables say about the replies alone.

    Raises:
        ValueError: A callable does not give one finite number for each reply.
    """
    measures = []
    for name, style in styles.items():
        scores = np.asarray(style(pool.texts), dtype=np.float64)
        if scores.shape != (len(pool.texts),) or not np.isfinite(scores).all():
            raise ValueError(
                f"the style {name!r} must give one finite number for each of {len(pool.texts)} replies, "
                f"got shape {list(scores.shape)}"
            )
        measures.append(Measure(name, f"Mean of the style {name!r} over replies.", pool.mean(scores)))
    return measures


def behaviour_measures(pool: Pool, unsafe: Sequence[str], run: int) -> list[Measure]:
    """Copying, unsafe words, silence."""
    words = split_words(pool.texts)
    contexts = [split_words(case.context) for case in pool.cases]
    sources = [split_words(answer.sources) for answer in pool.answers]
    rows = range(len(pool.texts))
    measures = [
        Measure(
            "copied from context",
            f"Share of a reply's words that stand in a turn of the context in runs of {run} or more (a "
            "shorter reply: all of it or nothing), mean over replies.",
            pool.mean([copied_share(words[row], contexts[row % len(pool.cases)], run) for row in rows]),
            "lower",
        )
    ]
    if any(sources):
        measures.append(
            Measure(
                "copied from sources",
                "The same for the texts that the reply's evidence names: a character's lines, a retrieved "
                "response (1 by construction), an exemplar.",
                pool.mean(
                    [
                        copied_share(words[row], sources[row], run) if sources[row] else math.nan
                        for row in rows
                    ]
                ),
            )
        )
    if unsafe:
        phrases = split_words(list(unsafe))
        if not all(phrases):
            raise ValueError(f"unsafe must hold words or phrases, got {list(unsafe)!r:.80}")
        measures.append(
            Measure(
                "unsafe",
                f"Share of replies with at least one of {len(phrases)} given words or phrases, whole words, "
                "without case.",
                pool.mean([float(any(_holds(words[row], phrase) for phrase in phrases)) for row in rows]),
                "lower",
            )
        )
    measures.append(
        Measure(
            "empty", "Share of replies without text.", pool.mean([not text for text in pool.texts]), "lower"
        )
    )
    return measures


def _references(pool: Pool, row: int) -> list[int]:
    """Which human replies a row is scored against: not the first, which is a system of its own.

    Where there is only one, the chatbots are scored against it, and the human row against nothing.
    """
    count = len(pool.case(row).references)
    if count > 1:
        return list(range(1, count))
    return [0] if count and pool.names[row // len(pool.cases)] != HUMAN else []


def _holds(words: Sequence[str], phrase: Sequence[str]) -> bool:
    size = len(phrase)
    return any(list(words[i : i + size]) == list(phrase) for i in range(len(words) - size + 1))


def _finite(what: str, texts: Sequence[str], vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise ValueError(
            f"the encoder gives vectors that are not finite for {int(bad.sum())} texts, "
            f"first for the {what} {texts[int(bad.argmax())]!r:.80}"
        )
    return vectors


def _unit(vectors: npt.NDArray[np.float32]) -> _Floats:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(norms > 0, norms, 1.0)
