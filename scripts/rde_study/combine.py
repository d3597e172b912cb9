"""Combinations of detectors, and the choice of one of them on validation texts.

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
    "Compared",
    "Judged",
    "Stack",
    "auc",
    "bars",
    "best_sum",
    "lead_interval",
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


@dataclass(frozen=True)
class Compared:
    """Two detectors on one detection set.

    Attributes:
        one: Scores (n,).
        other: Those of the other detector.
        is_adversarial: bool (n,).
        source: (n,), equal for texts made of one source.
    """

    one: NDArray[np.float64]
    other: NDArray[np.float64]
    is_adversarial: NDArray[np.bool_]
    source: NDArray[np.int64]


def lead_interval(sets: Sequence[Compared], *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the AUC of one detector minus that of another, by bootstrap.

    Texts of one source are drawn together, in each set for itself; leads are averaged over the sets.

    Args:
        sets: One for each victim.
        resamples: Draws; those without texts of both classes are left out.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    found = []
    for compared in sets:
        names, place = np.unique(compared.source, return_inverse=True)
        rows = [np.flatnonzero(place == i) for i in range(len(names))]
        drawn = (
            np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))]) for _ in range(resamples)
        )
        truths = ((texts, compared.is_adversarial[texts]) for texts in drawn)
        found.append(
            [
                auc(compared.one[texts], truth) - auc(compared.other[texts], truth)
                if 0 < truth.sum() < len(truth)
                else np.nan
                for texts, truth in truths
            ]
        )
    low, high = np.nanpercentile(np.mean(found, axis=0), [2.5, 97.5])
    return float(low), float(high)


def bars(sets: Sequence[Judged]) -> list[float]:
    """The AUC of the best single member on each set: what a combination has to reach."""
    return [max(auc(column, judged.is_adversarial) for column in judged.surprises.T) for judged in sets]


def leads(candidate: Sequence[ArrayLike], sets: Sequence[Judged], best: Sequence[float]) -> list[float]:
    """By how much the AUC of a candidate, given by its scores on each set, exceeds the set's bar."""
    return [auc(scores, s.is_adversarial) - bar for scores, s, bar in zip(candidate, sets, best, strict=True)]


class Stack:
    """A detector that learns from attacked texts what the members' surprises mean together.

    Logistic regression on standardised surprises, which keeps strong single ones, and boosted trees that
    never take a larger surprise for a better sign, which find where they depend on each other; the score is
    the sum of both log-odds. Every set counts the same, and in it both classes.

    Args:
        inverse_penalty: scikit-learn's ``C`` of the regression.
        trees: Number of trees, of depth 3.
        least: Fewest texts in a leaf.
        seed: Of the trees.
    """

    def __init__(
        self, *, inverse_penalty: float = 0.1, trees: int = 150, least: int = 10, seed: int = 0
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.linear_model import LogisticRegression

        self.regression = LogisticRegression(C=inverse_penalty, max_iter=3000)
        self.trees = HistGradientBoostingClassifier(
            max_iter=trees,
            learning_rate=0.05,
            max_depth=3,
            min_samples_leaf=least,
            l2_regularization=1.0,
            early_stopping=False,
            random_state=seed,
        )

    def fit(self, sets: Sequence[Judged]) -> Stack:
        """Learns from sets with adversarial texts."""
        x = np.concatenate([judged.surprises for judged in sets])
        y = np.concatenate([judged.is_adversarial for judged in sets])
        shares = [
            np.where(s.is_adversarial, 1 / s.is_adversarial.sum(), 1 / (~s.is_adversarial).sum())
            for s in sets
        ]
        weight = np.concatenate(shares) * len(y) / (2 * len(sets))
        self.mean, self.spread = x.mean(axis=0), x.std(axis=0) + 1e-9
        self.regression.fit((x - self.mean) / self.spread, y, weight)
        self.trees.set_params(monotonic_cst=[1] * x.shape[1]).fit(x, y, weight)
        return self

    def score(self, surprises: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the log-odds, float64 (n,)."""
        linear = self.regression.decision_function((surprises - self.mean) / self.spread)
        return np.asarray(linear + self.trees.decision_function(surprises))


def folds(sets: Sequence[Judged], count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """A fold from 0 for every text of every set; texts of one source are in one fold in all sets."""
    sources = np.unique(np.concatenate([judged.source for judged in sets]))
    fold = np.random.default_rng(seed).permutation(len(sources)) % count
    return [fold[np.searchsorted(sources, judged.source)] for judged in sets]


def out_of_fold(sets: Sequence[Judged], count: int = 5) -> list[NDArray[np.float64]]:
    """Scores of a `Stack` that has not learned from a text's own source."""
    fold = folds(sets, count)
    scores = [np.zeros(len(judged.is_adversarial)) for judged in sets]
    for held in range(count):
        parts = [part_of(s, f != held) for s, f in zip(sets, fold, strict=True)]
        stack = Stack().fit([part for part in parts if 0 < part.is_adversarial.sum() < len(part.source)])
        for number, (judged, f) in enumerate(zip(sets, fold, strict=True)):
            if (f == held).any():
                scores[number][f == held] = stack.score(judged.surprises[f == held])
    return scores


def part_of(judged: Judged, rows: NDArray[np.bool_]) -> Judged:
    """Some texts of a set."""
    return Judged(
        judged.name,
        judged.is_adversarial[rows],
        judged.source[rows],
        judged.surprises[rows],
    )


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
