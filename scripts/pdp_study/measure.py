"""From replies to figures: one number for each speaker, input and seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from embedded_models.style import interval

from dialogkit.diversity import TokenTable, distinct_n
from dialogkit.evaluation import EvaluationCase
from dialogkit.evaluation.overlap import copied_share, split_words
from dialogkit.evaluation.replies import Collected
from dialogkit.evaluation.resampling import CorpusFigure
from dialogkit.pdp import StyleJudge
from dialogkit.retrieval import Retriever
from trainkit.report import Estimate

from .material import Speaker
from .replies import ROWS

__all__ = ["FIGURES", "Measured", "difference", "estimate", "measure"]

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]

FIGURES = ("StyleProb", "style accuracy", "relevance", "lift", "length", "copied")
"""Figures that every reply has; distinct-n belongs to a set of replies."""

_HALVES = 200


@dataclass(frozen=True)
class Measured:
    """Figures of one row.

    Attributes:
        values: By name of the figure, ``[speakers, inputs, seeds]``.
        distinct: Distinct-1 and -2 with intervals.
    """

    values: Mapping[str, Floats]
    distinct: Mapping[str, Estimate]


def measure(
    found: Mapping[tuple[str, str, int], Collected],
    voices: Sequence[Speaker],
    cases: Sequence[EvaluationCase],
    seeds: Sequence[int],
    *,
    judge: StyleJudge,
    encoder: Retriever,
    folder: Path,
) -> dict[str, Measured]:
    """Figures of all rows; those of a row that are on disk are not computed again.

    Args:
        found: Replies by row, speaker and seed.
        voices: The speakers.
        cases: The inputs.
        seeds: The seeds.
        judge: Labels are the speakers' ids.
        encoder: Of relevance, one that no row uses.
        folder: A file for each row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    contexts = _unit(encoder.encode_context([case.context[0] for case in cases]))
    measured = {}
    for row in ROWS:
        texts = [
            [[found[row, voice.id, seed].answers[i].text or "" for seed in seeds] for i in range(len(cases))]
            for voice in voices
        ]
        path = folder / f"{row.replace(' ', '-')}.npz"
        if path.is_file():
            with np.load(path) as kept:
                values = {name: kept[name] for name in FIGURES}
        else:
            values = _values(texts, voices, contexts, judge, encoder)
            np.savez(path, **values)  # type: ignore[arg-type]
        measured[row] = Measured(values, _distinct(texts))
        logger.info("%s: %s", row, {name: round(float(each.mean()), 4) for name, each in values.items()})
    return measured


def _values(
    texts: Sequence[Sequence[Sequence[str]]],
    voices: Sequence[Speaker],
    contexts: Floats,
    judge: StyleJudge,
    encoder: Retriever,
) -> dict[str, Floats]:
    shape = (len(texts), len(texts[0]), len(texts[0][0]))
    flat = [text for voice in texts for asked in voice for text in asked]
    labels = np.array([judge.labels.index(voice.id) for voice in voices])
    probabilities = judge.probabilities(flat).reshape(*shape, -1)
    own = np.take_along_axis(probabilities, labels[:, None, None, None], axis=3)[..., 0]
    accuracy = (probabilities.argmax(axis=3) == labels[:, None, None]).astype(float)

    distinct = sorted(set(flat), key=len)
    place = {text: i for i, text in enumerate(distinct)}
    vectors = _unit(encoder.encode_response(distinct))
    cosines = (vectors @ contexts.T)[[place[text] for text in flat]].reshape(*shape, -1)
    relevance = np.stack([cosines[:, i, :, i] for i in range(shape[1])], axis=1)
    words = split_words(flat)
    lines = [split_words(voice.character.utterances) for voice in voices]
    each = shape[1] * shape[2]
    copied = np.array([copied_share(own_words, lines[i // each]) for i, own_words in enumerate(words)])
    silent = np.array([not text for text in flat]).reshape(shape)
    return {
        "StyleProb": np.where(silent, 0.0, own),
        "style accuracy": np.where(silent, 0.0, accuracy),
        "relevance": np.where(silent, 0.0, relevance),
        "lift": np.where(silent, 0.0, relevance - cosines.mean(axis=3)),
        "length": np.array([len(each) for each in words], dtype=float).reshape(shape),
        "copied": copied.reshape(shape),
    }


def _distinct(texts: Sequence[Sequence[Sequence[str]]]) -> dict[str, Estimate]:
    """Distinct-n over all speakers' replies of one seed, mean over seeds; halves of the inputs are drawn."""
    count = len(texts[0])
    tables = [
        TokenTable([texts[s][i][r] for i in range(count) for s in range(len(texts))])
        for r in range(len(texts[0][0]))
    ]

    def figure(rows: npt.NDArray[np.int64], n: int) -> float:
        places = (rows[:, None] * len(texts) + np.arange(len(texts))).ravel()
        return float(np.mean([distinct_n(table.take(places), n) for table in tables]))

    found = {}
    for n in (1, 2):
        corpus = CorpusFigure(lambda rows, n=n: figure(rows, n), bound=1.0)  # type: ignore[misc]
        every = np.arange(count, dtype=np.int64)
        ends = corpus.interval(every, _HALVES, seed=n)
        low, high = ends if ends is not None else (None, None)
        found[f"distinct-{n}"] = Estimate(corpus.value(every), low=low, high=high)
    return found


def estimate(values: Floats) -> Estimate:
    """Mean with a 95 % interval: speakers and inputs are resampled; ``sd`` is that of the seeds' means."""
    low, high = interval(values, 2000, 0)
    spread = values.mean(axis=(0, 1))
    return Estimate(
        float(values.mean()),
        sd=float(spread.std(ddof=1)) if len(spread) > 1 else None,
        low=float(low),
        high=float(high),
    )


def difference(one: Floats, other: Floats) -> Estimate:
    """Mean of paired differences with the same interval."""
    return estimate(one - other)


def _unit(vectors: npt.NDArray[np.float32]) -> Floats:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(norms > 0, norms, 1.0))
