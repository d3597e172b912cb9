"""Sem-Ent, the entropy of responses over semantic clusters, and what is reported beside it.

Equations: sections 3 and 7 of the specification of semantic diversity. Sem-Ent says nothing about whether a
response fits its context: report it with a measure of coherence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .clusters import DifferentClustersError, SemanticClusters, label_counts

__all__ = [
    "SemEnt",
    "SemEntScore",
    "bootstrap_interval",
    "quantized_mauve",
    "sem_ent",
    "vendi_score",
]

_Floats = npt.NDArray[np.float64]


def sem_ent(
    values: npt.ArrayLike, k: int | None = None, *, base: float = math.e, normalize: bool = False
) -> float:
    """Sem-Ent, equation (2): ``-sum_j p(j) log p(j)``, with ``0 log 0 = 0``.

    Args:
        values: Whole numbers are labels, one for each response; floats are a histogram that sums to 1.
        k: Number of clusters. A histogram knows it; labels need it only for ``normalize``.
        base: Of the logarithm; e as in the paper.
        normalize: Divide by ``log k``, so that the value lies in [0, 1] (0 for k = 1).

    Returns:
        Entropy in [0, log k], in nats for base e.

    Raises:
        ValueError: There are no labels; labels or histogram do not fit ``k``; the histogram has negative
            entries or does not sum to 1; ``base`` is not above 1; ``normalize`` for labels without ``k``.
    """
    if not base > 1.0:
        raise ValueError(f"base must be above 1, got {base}")
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.floating) and array.size:
        shares = _distribution("histogram", array)
        if k is not None and k != len(shares):
            raise ValueError(f"the histogram must have k={k} entries, got {len(shares)}")
    else:
        if normalize and k is None:
            raise ValueError("normalize needs k, the number of clusters, for labels")
        size = k if k is not None else int(array.max()) + 1 if array.size else 1
        counts = label_counts(array, size)
        shares = counts / counts.sum()
    entropy = float(_entropies(shares[None])[0])
    if normalize:
        return entropy / math.log(len(shares)) if len(shares) > 1 else 0.0
    return entropy / math.log(base)


def bootstrap_interval(
    labels: npt.ArrayLike, k: int, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of Sem-Ent for responses to another draw of contexts, by the basic bootstrap.

    The entropy of a sample is biased downwards, and a resample's once more; the basic interval, which
    reflects the resampled entropies at the estimate, corrects this where the percentile interval would
    double it.

    Args:
        labels: Cluster of each response.
        k: Number of clusters.
        confidence: Of the interval, in (0, 1).
        resamples: How many resamples; they are drawn as counts, so their cost does not depend on the number
            of responses.
        seed: Of the draws.

    Returns:
        Lower and upper end in nats, within [0, ln k].

    Raises:
        ValueError: See `SemanticClusters.histogram`; ``confidence`` or ``resamples`` is out of range.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    counts = label_counts(labels, k)
    n = int(counts.sum())
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(_entropies(draws / n), tails)
    estimate = float(_entropies(counts[None] / n)[0])
    lower, upper = np.clip([2 * estimate - high, 2 * estimate - low], 0.0, math.log(k))
    return float(lower), float(upper)


def quantized_mauve(p: npt.ArrayLike, q: npt.ArrayLike, c: float = 5.0) -> float:
    """MAUVE between two histograms over the same clusters, as reported beside Sem-Ent.

    The area under the curve of ``(exp(-c KL(q|r)), exp(-c KL(p|r)))`` for ``r = l p + (1 - l) q`` with 25
    values of l from 1e-6 to 1 - 1e-6 and the two corners, averaged over integrating along either axis. Here
    the clusters come from the training responses; standard MAUVE fits its own on p and q together, so its
    values differ.

    Args:
        p: Shares of human responses ``[k]``.
        q: Shares of a model's responses ``[k]``.
        c: Scaling of the divergences.

    Returns:
        In (0, 1]; 1 for equal histograms, symmetric in p and q.

    Raises:
        ValueError: The histograms differ in length, have negative entries or do not sum to 1; ``c`` is not
            positive.
    """
    if not c > 0:
        raise ValueError(f"c must be positive, got {c}")
    first, second = _distribution("p", np.asarray(p)), _distribution("q", np.asarray(q))
    if len(first) != len(second):
        raise ValueError(f"p and q must have the same length, got {len(first)} and {len(second)}")
    weights = np.linspace(1e-6, 1 - 1e-6, 25)[:, None]
    mixtures = weights * first + (1 - weights) * second
    x = np.concatenate([np.exp(-c * _divergences(second, mixtures)), [1.0, 0.0]])
    y = np.concatenate([np.exp(-c * _divergences(first, mixtures)), [0.0, 1.0]])
    return (_area(x, y) + _area(y, x)) / 2


def vendi_score(vectors: npt.NDArray[np.floating[Any]]) -> float:
    """Vendi score (Friedman and Dieng 2023): the effective number of different responses, without clusters.

    The exponential of the entropy of the eigenvalues of ``K / n``, where K holds the cosines between
    responses. Costs ``n d^2 + d^3`` or ``n^2 d + n^3``, whichever is less.

    Args:
        vectors: Embeddings ``[n, d]``, none of them zero.

    Returns:
        In [1, min(n, d)].

    Raises:
        ValueError: The vectors are not ``[n, d]`` with n > 0, not finite, or one is zero.
    """
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise ValueError(f"vectors must be finite [n, d] with n > 0, got shape {list(vectors.shape)}")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float64)
    if not (norms > 0).all():
        raise ValueError(f"vector {int(np.argmin(norms))} is zero and has no direction")
    unit = vectors / norms
    n, d = unit.shape
    # Both products have the same eigenvalues other than zero.
    eigenvalues = np.linalg.eigvalsh((unit.T @ unit if d < n else unit @ unit.T) / n)
    shares = np.maximum(eigenvalues, 0.0)
    return float(np.exp(_entropies(shares[None] / shares.sum())[0]))


@dataclass(frozen=True)
class SemEntScore:
    """Semantic diversity of a set of responses.

    Scores of different clusters cannot be compared: ``difference`` and ``<`` refuse.

    Attributes:
        sem_ent: Entropy over the clusters, in nats.
        normalized: The same divided by ``ln k``, in [0, 1].
        interval: 95 % interval of the entropy that many more responses would have, by the basic bootstrap:
            it corrects the bias of few responses, and so may lie above ``sem_ent`` altogether.
        histogram: Share of each cluster.
        n: Number of responses. The entropy of few responses is biased downwards.
        k: Number of clusters.
        empty: Clusters that no response fell in.
        reference_sem_ent: Entropy of the human responses, a ceiling to compare with; None without them.
        mauve: `quantized_mauve` of human and model's responses; None without them.
        clusters: Fingerprint of the clusters.
    """

    sem_ent: float
    normalized: float
    interval: tuple[float, float]
    histogram: tuple[float, ...]
    n: int
    k: int
    empty: int
    reference_sem_ent: float | None
    mauve: float | None
    clusters: str

    def difference(self, other: SemEntScore) -> float:
        """This Sem-Ent minus another, in nats.

        Raises:
            DifferentClustersError: The other score was computed with other clusters.
        """
        if self.clusters != other.clusters:
            raise DifferentClustersError(
                "scores of different clusters cannot be compared: "
                f"{self.clusters[:12]} (k={self.k}) and {other.clusters[:12]} (k={other.k})"
            )
        return self.sem_ent - other.sem_ent

    def __lt__(self, other: SemEntScore) -> bool:
        return self.difference(other) < 0


class SemEnt:
    """Scores responses of any model over one set of clusters.

    Args:
        clusters: Fitted on training responses; with an encoder attached if texts are to be scored.
    """

    def __init__(self, clusters: SemanticClusters) -> None:
        self.clusters = clusters

    def compute(
        self,
        predictions: Sequence[str] | npt.NDArray[np.floating[Any]],
        references: Sequence[str] | npt.NDArray[np.floating[Any]] | None = None,
        *,
        seed: int = 0,
    ) -> SemEntScore:
        """Scores the responses of a model.

        Args:
            predictions: A response to each context, or their vectors ``[n, d]``.
            references: Human responses to the same contexts, or their vectors.
            seed: Of the bootstrap.

        Raises:
            TypeError: One string was given in place of a sequence.
            ValueError: There are no responses; see `SemanticClusters.assign`.
        """
        labels = self.clusters.assign(predictions)
        human = None if references is None else self.clusters.assign(references)
        return self.score(labels, human, seed=seed)

    def score(
        self, labels: npt.ArrayLike, reference_labels: npt.ArrayLike | None = None, *, seed: int = 0
    ) -> SemEntScore:
        """Scores responses that are assigned already; arguments are labels, else as :meth:`compute`."""
        histogram = self.clusters.histogram(labels)
        human = None if reference_labels is None else self.clusters.histogram(reference_labels)
        k = self.clusters.k
        return SemEntScore(
            sem_ent=sem_ent(histogram),
            normalized=sem_ent(histogram, normalize=True),
            interval=bootstrap_interval(labels, k, seed=seed),
            histogram=tuple(histogram.tolist()),
            n=int(np.size(labels)),
            k=k,
            empty=int((histogram == 0).sum()),
            reference_sem_ent=None if human is None else sem_ent(human),
            mauve=None if human is None else quantized_mauve(human, histogram),
            clusters=self.clusters.fingerprint,
        )


def _distribution(name: str, values: npt.NDArray[Any]) -> _Floats:
    shares = values.astype(np.float64)
    if shares.ndim != 1 or not shares.size or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(f"{name} must be shares >= 0 that sum to 1, got {shares.tolist()!r:.120}")
    return shares


def _entropies(shares: _Floats) -> _Floats:
    """Entropy of each row in nats."""
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    # Adding 0 turns -0.0 into 0.0.
    return np.asarray(-(shares * logs).sum(axis=-1) + 0.0)


def _divergences(p: _Floats, mixtures: _Floats) -> _Floats:
    """KL(p | r) for each row r; r is positive wherever p is.

    Rounding makes some of the smallest negative; a point of the curve would then lie right of its corner.
    """
    some = p > 0
    return np.asarray(np.maximum((p[some] * np.log(p[some] / mixtures[:, some])).sum(axis=1), 0.0))


def _area(x: _Floats, y: _Floats) -> float:
    """Trapezoids under the points, from left to right; of those above each other, from top to bottom."""
    order = np.lexsort((-y, x))
    return float(np.trapezoid(y[order], x[order]))
