"""Weights of a combination of detectors, and the choice of one of them on validation texts.

Members are given by their `robustkit.detection.ensemble.surprise`, -log p against clean validation texts: an
unweighted sum of them is Fisher's method for combining p-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Choice",
    "Judged",
    "auc",
    "bars",
    "best_sum",
    "fitted_weights",
    "leads",
    "out_of_fold",
]


@dataclass(frozen=True)
class Judged:
    """A detection set as the choice sees it.

    Attributes:
        name: Kind of set, such as data set, attack and distance.
        is_adversarial: bool (n,).
        source: int (n,), equal for texts made of one source.
        surprises: float (n, members).
    """

    name: str
    is_adversarial: NDArray[np.bool_]
    source: NDArray[np.int64]
    surprises: NDArray[np.float64]


def auc(scores: ArrayLike, is_adversarial: ArrayLike) -> float:
    """Area under the ROC curve; ties count one half."""
    values, positive = np.asarray(scores, dtype=float), np.asarray(is_adversarial, dtype=bool)
    clean = np.sort(values[~positive])
    left, right = (np.searchsorted(clean, values[positive], side) for side in ("left", "right"))  # type: ignore[call-overload]
    return float((left + right).mean() / 2 / len(clean))


def bars(sets: Sequence[Judged]) -> list[float]:
    """The AUC of the best single member on each set: what a combination has to reach."""
    return [max(auc(column, judged.is_adversarial) for column in judged.surprises.T) for judged in sets]


def leads(candidate: Sequence[ArrayLike], sets: Sequence[Judged], best: Sequence[float]) -> list[float]:
    """By how much the AUC of a candidate, given by its scores on each set, exceeds the set's bar."""
    return [auc(scores, s.is_adversarial) - bar for scores, s, bar in zip(candidate, sets, best, strict=True)]


def fitted_weights(sets: Sequence[Judged], *, penalty: float = 1.0) -> NDArray[np.float64]:
    """Weights of the members by logistic regression, none below zero.

    Every set counts the same, and in it both classes.

    Args:
        sets: Sets with adversarial texts.
        penalty: Weight of the squared norm of the weights.

    Returns:
        float64 (members,), at least 0.
    """
    from scipy.optimize import minimize

    x = np.concatenate([judged.surprises for judged in sets])
    y = np.concatenate([judged.is_adversarial for judged in sets]).astype(float)
    shares = [
        np.where(s.is_adversarial, 1 / s.is_adversarial.sum(), 1 / (~s.is_adversarial).sum()) for s in sets
    ]
    weight = np.concatenate(shares) * len(y) / (2 * len(sets))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        inner = parameters[1:]
        logits = x @ inner + parameters[0]
        slope = weight * (1 / (1 + np.exp(-np.clip(logits, -500, 500))) - y)
        value = weight @ (np.logaddexp(0, logits) - y * logits) + penalty / 2 * inner @ inner
        return value, np.concatenate([[slope.sum()], x.T @ slope + penalty * inner])

    members = x.shape[1]
    bounds = [(None, None)] + [(0, None)] * members
    return np.asarray(minimize(loss, np.full(members + 1, 0.1), jac=True, bounds=bounds).x[1:])


def folds(sets: Sequence[Judged], count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """A fold from 0 for every text of every set; texts of one source are in one fold in all sets."""
    sources = np.unique(np.concatenate([judged.source for judged in sets]))
    fold = np.random.default_rng(seed).permutation(len(sources)) % count
    return [fold[np.searchsorted(sources, judged.source)] for judged in sets]


def out_of_fold(sets: Sequence[Judged], count: int = 5, *, penalty: float = 1.0) -> list[NDArray[np.float64]]:
    """Scores under `fitted_weights` of sets whose own source had no part in the weights."""
    fold = folds(sets, count)
    scores = [np.zeros(len(judged.is_adversarial)) for judged in sets]
    for held in range(count):
        rest = [
            Judged(s.name, s.is_adversarial[f != held], s.source[f != held], s.surprises[f != held])
            for s, f in zip(sets, fold, strict=True)
        ]
        weights = fitted_weights(rest, penalty=penalty)
        for number, (judged, f) in enumerate(zip(sets, fold, strict=True)):
            scores[number][f == held] = judged.surprises[f == held] @ weights
    return scores


@dataclass(frozen=True)
class Choice:
    """A combination.

    Attributes:
        weights: Weight of each member that counts, by name.
        leads: Lead over the best single member on each of the sets that chose it.
    """

    weights: Mapping[str, float]
    leads: Sequence[float]


def best_sum(sets: Sequence[Judged], names: Sequence[str], most: int = 4) -> Choice:
    """The sum of at most ``most`` members with the largest worst lead; ties go by the mean lead."""
    best, bar = Choice({}, [-np.inf]), bars(sets)
    for size in range(1, most + 1):
        for members in combinations(range(len(names)), size):
            lead = leads([judged.surprises[:, members].sum(axis=1) for judged in sets], sets, bar)
            if (min(lead), np.mean(lead)) > (min(best.leads), np.mean(best.leads)):
                best = Choice({names[member]: 1.0 for member in members}, lead)
    return best
