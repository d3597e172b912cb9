"""Several detectors as one: what each says of clean validation texts makes their scores comparable."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from robustkit.classifiers.features import Features

from .base import Detector, not_fitted

__all__ = ["EnsembleDetector", "decorrelated_weights", "effective_number", "surprise"]

Method = Literal["fisher", "stouffer", "min"]

# Share of clean scores in the tail that is continued.
_TAIL = 0.1
_FOLDER = "member-{}"


def surprise(clean: NDArray[np.float64], scores: ArrayLike) -> NDArray[np.float64]:
    """How surprising scores are for clean texts: -log p, in nats.

    p is the share of clean scores above, ties by half. Beyond the 90 % quantile q of the clean scores it
    falls exponentially, with the mean excess of the clean scores over q, so that large scores do not tie.

    Args:
        clean: Scores (n,) of clean texts, ascending.
        scores: Scores (m,).

    Returns:
        float64 (m,), above 0; it never falls where the score rises.
    """
    values, n = np.asarray(scores, dtype=np.float64), len(clean)
    below = (np.searchsorted(clean, values, "left") + np.searchsorted(clean, values, "right")) / 2
    inside = -np.log(np.maximum((n - below + 0.5) / (n + 1), _TAIL))
    edge = np.quantile(clean, 1 - _TAIL)
    excess = clean[clean > edge] - edge
    if not len(excess):
        # Most clean scores are equal and largest: more is beyond all that was seen.
        return np.where(values > edge, np.log(n + 1) + values - edge, inside)
    return np.where(values > edge, -np.log(_TAIL) + (values - edge) / excess.mean(), inside)


def decorrelated_weights(correlation: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Weights of z-scores for the strongest test of a shift that all share alike, none below zero.

    They minimize :math:`w^T R w / (1^T w)^2`; without the bound that is :math:`w \propto R^{-1} 1`. Members
    that say the same share one weight.

    Args:
        correlation: R ``(m, m)`` of the z-scores of clean texts.

    Returns:
        float64 ``(m,)`` with mean 1.
    """
    from scipy.optimize import nnls

    # min w'Rw - 2 1'w over w >= 0, as least squares.
    values, vectors = np.linalg.eigh(correlation)
    root = np.sqrt(np.maximum(values, 1e-6))
    weights = nnls(root[:, None] * vectors.T, (vectors.T @ np.ones(len(values))) / root)[0]
    return np.asarray(weights / weights.mean())


def effective_number(correlation: NDArray[np.float64]) -> float:
    r"""How many independent tests correlated ones amount to: :math:`(\sum \sqrt\lambda)^2 / \sum \lambda`.

    Galwey, Genetic Epidemiology 2009; :math:`\lambda` are the eigenvalues. Formula unconfirmed.

    Args:
        correlation: ``(m, m)``.
    """
    values = np.maximum(np.linalg.eigvalsh(correlation), 0)
    return float(np.sqrt(values).sum() ** 2 / values.sum())


class EnsembleDetector(Detector):
    r"""Detectors combined by their p-values on clean validation texts.

    `fit` fits every member on the same features. `calibrate` learns from clean texts what each member says of
    them, and how their answers depend on each other; there are no scores before. With :math:`s_i` the
    `surprise` of member i's score, :math:`z_i` the normal quantile of :math:`1 - e^{-s_i}`, weights w and the
    correlation R of z on the clean texts, the score is

    | method | score | p-value of `tail_p_values`, corrected for dependence |
    | --- | --- | --- |
    | ``fisher`` | :math:`\sum w_i s_i` | chi-squared with mean and variance of the clean texts (Brown 1975) |
    | ``stouffer`` | :math:`\sum w_i z_i / \sqrt{w^T R w}` | normal |
    | ``min`` | :math:`\max w_i s_i` | :math:`1 - (1 - p)^m`, m by `effective_number` |

    Only clean texts are used, unless a member needs others. Cost: that of the members; each scores the texts
    of `calibrate` once.

    Args:
        members: Detectors, at least one; saved with the ensemble.
        method: How they are combined.
        weights: One for each member, none negative; None for equal ones; ``"decorrelated"`` takes
            `decorrelated_weights` from the clean texts of `calibrate`.

    Raises:
        ValueError: A parameter is out of range.

    Example:
        >>> ensemble = EnsembleDetector([RDEDetector(), MSPDetector("energy"), KNNDetector()])
        >>> ensemble.fit(train_features, train_labels)
        >>> ensemble.calibrate(validation_features, fpr=0.05)
    """

    # Members that are fitted already need no second fit.
    needs_fit = False
    not_saved = ("members",)

    def __init__(
        self,
        members: Sequence[Detector],
        method: Method = "stouffer",
        weights: Sequence[float] | Literal["decorrelated"] | None = None,
    ) -> None:
        self.members = members
        self.method = method
        self.weights = weights
        self._check_params()

    def _check_params(self) -> None:
        if not self.members or not all(isinstance(member, Detector) for member in self.members):
            raise ValueError(f"members is {self.members!r}; expected detectors, at least one")
        if self.method not in get_args(Method):
            raise ValueError(f"method is {self.method!r}; expected one of {get_args(Method)}")
        if self.weights is None or self.weights == "decorrelated":
            return
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.shape != (len(self.members),) or not (weights >= 0).all() or not weights.any():
            raise ValueError(
                f"weights is {self.weights!r}; expected {len(self.members)} numbers from 0, one not 0, "
                "None or 'decorrelated'"
            )

    @property
    def weights_(self) -> NDArray[np.float64]:
        """The weights (m,) in use.

        Raises:
            NotFittedError: `calibrate` was not called.
        """
        if self.weights is None:
            return np.ones(len(self.members))
        if self.weights == "decorrelated":
            return decorrelated_weights(self._known().correlation)
        return np.asarray(self.weights, dtype=np.float64)

    def calibrate(self, clean: Features, fpr: float = 0.10) -> float:
        """Learn from clean texts how to compare and combine the members, and set the threshold.

        Args:
            clean: Features of clean texts that were not used in `fit`, some hundred.
            fpr: Share of clean texts that may be flagged, between 0 and 1.

        Returns:
            The threshold.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: ``fpr`` is not between 0 and 1, or there are fewer than 1 / fpr - 1 texts.
        """
        scores = self._member_scores(clean)
        self._clean = _Clean(scores)
        return self._calibrate(clean, self._combined(scores), fpr)

    def tail_p_values(self, inputs: Features) -> NDArray[np.float64]:
        """p-values (n,) by the formulas of the class, corrected for dependence of the members.

        Unlike `p_values` they fall below 1 / (1 + number of clean texts), and they are approximate.

        Raises:
            NotFittedError: `calibrate` was not called.
        """
        from scipy.special import gammaincc, ndtr

        known, weights = self._known(), self.weights_
        x = self.score_samples(inputs)
        if self.method == "stouffer":
            return np.asarray(ndtr(-x))
        if self.method == "min":
            used = weights[weights > 0]
            exponent = effective_number(known.correlation[np.ix_(weights > 0, weights > 0)]) / len(used)
            below = np.log1p(-np.exp(-x[:, None] / used)).sum(axis=1)
            return np.asarray(-np.expm1(exponent * below))
        # Every surprise of a clean text has mean and variance 1.
        mean, variance = weights.sum(), weights @ known.surprise_correlation @ weights
        return np.asarray(gammaincc(mean**2 / variance, x * mean / variance))

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        vars(self).pop("_clean", None)
        for member in self.members:
            member.fit(clean, labels, adversarial)

    def _member_scores(self, inputs: Features) -> NDArray[np.float64]:
        return np.stack([member.score_samples(inputs) for member in self.members], axis=1)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        self._known()
        return self._combined(self._member_scores(inputs))

    def _combined(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        known, weights = self._known(), self.weights_
        surprises = known.surprises(scores)
        if self.method == "fisher":
            return np.asarray(surprises @ weights)
        if self.method == "min":
            return np.asarray((surprises * weights).max(axis=1))
        return np.asarray(_normal(surprises) @ weights / np.sqrt(weights @ known.correlation @ weights))

    def _known(self) -> _Clean:
        if not hasattr(self, "_clean"):
            raise not_fitted(
                f"this {type(self).__name__} knows no clean texts; call calibrate(features, fpr) first"
            )
        return self._clean

    # Files --------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        return {"clean": torch.from_numpy(self._clean.scores)} if hasattr(self, "_clean") else {}

    def _restore(self, state: Mapping[str, Any]) -> None:
        if "clean" in state:
            self._clean = _Clean(state["clean"].numpy())

    def _save(self, directory: Path) -> None:
        super()._save(directory)
        for number, member in enumerate(self.members):
            folder = directory / _FOLDER.format(number)
            folder.mkdir()
            member._save(folder)

    @classmethod
    def _parts(cls, directory: Path) -> dict[str, object]:
        folders = itertools.takewhile(Path.is_dir, (directory / _FOLDER.format(i) for i in itertools.count()))
        return {"members": [Detector._load(folder) for folder in folders]}


class _Clean:
    """What the members say of clean texts.

    Attributes:
        scores: float64 (n, m).
        correlation: (m, m) of the z-scores of these texts.
        surprise_correlation: (m, m) of their surprises.
    """

    def __init__(self, scores: NDArray[np.float64]) -> None:
        self.scores = scores
        self._sorted = np.sort(scores, axis=0)
        surprises = self.surprises(scores)
        self.correlation = _correlation(_normal(surprises))
        self.surprise_correlation = _correlation(surprises)

    def surprises(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Surprises of scores; both (n, m)."""
        columns = zip(self._sorted.T, scores.T, strict=True)
        return np.stack([surprise(clean, column) for clean, column in columns], axis=1)


def _normal(surprises: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quantiles of the normal distribution whose upper tail has the surprise."""
    from scipy.special import ndtri_exp

    return np.asarray(-ndtri_exp(-surprises))


def _correlation(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation (m, m) of columns (n, m); a constant one is correlated with none but itself."""
    centred = columns - columns.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=0)
    unit = centred / np.where(lengths > 0, lengths, 1)
    matrix: NDArray[np.float64] = unit.T @ unit
    np.fill_diagonal(matrix, 1)
    return matrix
