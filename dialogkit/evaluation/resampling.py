"""Intervals over contexts, and paired tests between chatbots that answered the same contexts.

A figure is a function of a set of replies. Means, and ratios of sums, are resampled with replacement (the
bootstrap). Figures of a whole set of texts, such as the share of distinct n-grams, must not be: a resample
holds replies twice and is less diverse by construction. For these, halves are drawn without replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "CorpusFigure",
    "RatioFigure",
    "holm",
]

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_TAILS = (0.025, 0.975)
_CELLS = 1 << 20


@dataclass(frozen=True)
class RatioFigure:
    """A sum over replies divided by another; with a denominator of ones it is a mean.

    Attributes:
        numerator: ``[replies]``; NaN where a reply has none.
        denominator: ``[replies]``; ignored where the numerator is NaN.
        transform: What is made of the ratio, a monotone function of arrays; None keeps it.
    """

    numerator: _Floats
    denominator: _Floats
    transform: Callable[[_Floats], _Floats] | None = None

    def defined(self, rows: _Ints) -> npt.NDArray[np.bool_]:
        """Which of the replies have a value."""
        return ~np.isnan(self.numerator[rows])

    def value(self, rows: _Ints) -> float:
        """The figure over some replies; NaN over none."""
        kept = rows[self.defined(rows)]
        return float(self._ratios(self.numerator[kept][None], self.denominator[kept][None])[0])

    def interval(self, rows: _Ints, resamples: int, seed: int) -> tuple[float, float] | None:
        """95 % percentile bootstrap interval over replies; None for fewer than two."""
        kept = rows[self.defined(rows)]
        if len(kept) < 2:
            return None
        draw = np.random.default_rng(seed)
        values = []
        for size in _chunks(resamples, len(kept)):
            drawn = kept[draw.integers(len(kept), size=(size, len(kept)))]
            values.append(self._ratios(self.numerator[drawn], self.denominator[drawn]))
        low, high = np.quantile(np.concatenate(values), _TAILS)
        return float(low), float(high)

    def p_value(self, one: _Ints, other: _Ints, permutations: int, seed: int) -> float:
        """Two-sided p-value of the paired permutation test; see :meth:`CorpusFigure.p_value`."""
        both = self.defined(one) & self.defined(other)
        one, other = one[both], other[both]

        def difference(swap: npt.NDArray[np.bool_]) -> _Floats:
            first, second = np.where(swap, other, one), np.where(swap, one, other)
            return self._ratios(self.numerator[first], self.denominator[first]) - self._ratios(
                self.numerator[second], self.denominator[second]
            )

        observed = float(difference(np.zeros((1, len(one)), dtype=bool))[0])
        draw = np.random.default_rng(seed)
        chunks = _chunks(permutations, len(one))
        differences = [difference(draw.random((size, len(one))) < 0.5) for size in chunks]
        return _share_as_extreme(np.concatenate(differences), observed)

    def _ratios(self, numerators: _Floats, denominators: _Floats) -> _Floats:
        below = denominators.sum(axis=1)
        ratios = np.divide(numerators.sum(axis=1), below, where=below > 0, out=np.full(len(below), np.nan))
        return ratios if self.transform is None else self.transform(ratios)


@dataclass(frozen=True)
class CorpusFigure:
    """A figure of a whole set of replies.

    Attributes:
        function: From rows to the figure.
        least: Fewest rows that it takes.
        bound: Its largest possible value; the smallest is 0.
        halved: Whether it means the same for half of the replies; where not, there is no interval.
    """

    function: Callable[[_Ints], float]
    least: int = 1
    bound: float = math.inf
    halved: bool = True

    def value(self, rows: _Ints) -> float:
        """The figure over some replies; NaN over too few."""
        return self.function(rows) if len(rows) >= self.least else float("nan")

    def interval(self, rows: _Ints, resamples: int, seed: int) -> tuple[float, float] | None:
        """Approximate 95 % interval from halves drawn without replacement (the delete-half jackknife).

        The deviations of the halves' figures from their own mean, scaled by ``sqrt(m / (n - m))`` for m of n
        replies, are put around the figure (Shao and Wu 1989) and cut off at its bounds. None where half is
        too few or means something else.
        """
        half = len(rows) // 2
        if not self.halved or half < max(self.least, 2):
            return None
        draw = np.random.default_rng(seed)
        values = np.array(
            [self.function(draw.choice(rows, size=half, replace=False)) for _ in range(resamples)]
        )
        deviations = (values - values.mean()) * np.sqrt(half / (len(rows) - half))
        low, high = np.clip(self.function(rows) + np.quantile(deviations, _TAILS), 0.0, self.bound)
        return float(low), float(high)

    def p_value(self, one: _Ints, other: _Ints, permutations: int, seed: int) -> float:
        """Two-sided p-value of the paired permutation test.

        If two chatbots were alike, each context's two replies could as well be swapped: the p-value is the
        share of random swappings, the one observed included, that differ at least as much.

        Args:
            one: Rows of one chatbot's replies.
            other: Rows of the other's to the same contexts.
            permutations: How many swappings.
            seed: Of the draws.
        """
        if len(one) < self.least:
            return float("nan")
        draw = np.random.default_rng(seed)
        differences = np.empty(permutations)
        for i in range(permutations):
            swap = draw.random(len(one)) < 0.5
            first, second = np.where(swap, other, one), np.where(swap, one, other)
            differences[i] = self.function(first) - self.function(second)
        return _share_as_extreme(differences, self.function(one) - self.function(other))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for their number; NaN stays NaN and does not count.

    Args:
        p_values: Of the tests of one family.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(len(given), np.nan)
    order = [i for i in np.argsort(given, kind="stable").tolist() if not np.isnan(given[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * given[i]))
        corrected[i] = highest
    return [float(value) for value in corrected]


def _chunks(draws: int, replies: int) -> Iterator[int]:
    """Sizes that add up to the number of draws and keep memory bounded."""
    size = max(1, _CELLS // max(replies, 1))
    for start in range(0, draws, size):
        yield min(size, draws - start)


def _share_as_extreme(differences: _Floats, observed: float) -> float:
    if np.isnan(observed):
        return float("nan")
    # Equal up to rounding is equal.
    as_extreme = np.abs(differences) >= abs(observed) - 1e-12 * max(1.0, abs(observed))
    return float((1 + as_extreme.sum()) / (1 + len(differences)))
